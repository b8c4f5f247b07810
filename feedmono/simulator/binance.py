"""Binance spot as the simulator speaks it: combined and raw trade streams, market data REST.

Source: binance-spot-api-docs, web-socket-streams.md, rest-api.md and errors.md, 2026-07.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import unquote

from feedmono.simulator.base import (
    NOTHING,
    Dialect,
    Print,
    Reply,
    Request,
    Response,
    Rules,
    Session,
    answer,
    dump,
)
from feedmono.simulator.market import Market, Shape
from feedmono.simulator.tape import Made, Tape
from feedmono.simulator.venue import Venue, Window
from feedmono.trade import SELL

MESSAGES_PER_S = 5
MAX_STREAMS = 1024
MAX_ROWS = 1000
WEIGHT_PER_MINUTE = 6000
# How many requests beyond the limit turn "back off" into a ban, and how long it lasts: the
# documentation tells no figures, only that bans begin at two minutes.
BAN_AFTER = 20
BAN_S = 120.0

COMBINED_MS = "combined ms"
COMBINED_US = "combined µs"
RAW_MS = "raw ms"
RAW_US = "raw µs"

_STREAM = re.compile(r"[^\s@/!]+@[A-Za-z]\w*(?:@\w+)*")


def _market(base: str, quote: str, ticks: int, tick_decimals: int, lot_decimals: int) -> Market:
    return Market(base + quote, base, quote, Shape(ticks, tick_decimals, lot_decimals, decimals=8))


MARKETS = (
    _market("BTC", "USDT", 6_183_763, 2, 5),
    _market("ETH", "USDT", 268_830, 2, 4),
    _market("BNB", "USDT", 58_210, 2, 3),
    _market("SOL", "USDT", 15_627, 2, 3),
    _market("XRP", "USDT", 6_114, 4, 0),
    _market("DOGE", "USDT", 10_672, 5, 0),
    _market("ADA", "USDT", 3_467, 4, 1),
    _market("TRX", "USDT", 12_910, 5, 1),
    _market("SHIB", "USDT", 1_412, 8, 0),
    _market("ETH", "BTC", 4_347, 5, 4),
)


@dataclass(slots=True)
class BinanceSession(Session):
    """One connection: its streams, and how often it may speak."""

    combined: bool = True
    streams: dict[str, None] = field(default_factory=dict)
    messages: Window = field(default_factory=lambda: Window(MESSAGES_PER_S, 1.0))
    errors: int = 0

    def counts(self, now_s: float) -> Reply:
        if not self.venue.strict or self.messages.admits(now_s):
            return NOTHING
        return Reply(close=1008, reason="Too many requests")

    def receive(self, message: bytes, now_s: float) -> Reply:
        try:
            request = json.loads(message)
        except (ValueError, RecursionError):
            return self._error(3, "Invalid JSON: expected value at line 1 column 1", None)
        if not isinstance(request, dict):
            return self._error(2, "Invalid request: request must be an object", None)
        number = request.get("id")
        if isinstance(number, bool) or not isinstance(number, int | str | None):
            return self._error(2, "Invalid request: request ID must be an unsigned integer", None)
        method = request.get("method")
        if method == "LIST_SUBSCRIPTIONS":
            return Reply((dump({"result": list(self.streams), "id": number}),))
        if method not in ("SUBSCRIBE", "UNSUBSCRIBE"):
            text = "Invalid request: unknown variant, expected one of `SUBSCRIBE`, `UNSUBSCRIBE`"
            return self._error(2, text, number)
        return self._change(method == "SUBSCRIBE", request.get("params"), number)

    def _change(self, add: bool, names: object, number: int | str | None) -> Reply:
        if not isinstance(names, list) or not names:
            return self._error(2, "Invalid request: invalid type: expected a sequence", number)
        for name in names:
            if not isinstance(name, str) or _STREAM.fullmatch(name) is None:
                return self._error(2, "Invalid request: invalid stream", number)
            if name.partition("@")[0].upper() in self.venue.faults.refuse and add:
                return self._error(2, f"Invalid request: stream {name} is not available", number)
        if add and len({*self.streams, *names}) > MAX_STREAMS:
            return self._error(2, f"Invalid request: more than {MAX_STREAMS} streams", number)
        for name in names:
            if add:
                self.streams[name] = None
            else:
                self.streams.pop(name, None)
        self._follow()
        return Reply((dump({"result": None, "id": number}),))

    def open_streams(self, names: Sequence[str]) -> bool:
        """The streams in the URL; false if there are too many. What does not exist is taken
        without a word, as the exchange does it."""
        if len(names) > MAX_STREAMS:
            return False
        self.streams.update(dict.fromkeys(names))
        self._follow()
        return True

    def _follow(self) -> None:
        """The symbols behind the streams. Names in capitals are accepted and stay mute."""
        refused = self.venue.faults.refuse
        self.subscribed = {
            symbol: None
            for symbol in self.venue.tapes
            if f"{symbol.lower()}@trade" in self.streams and symbol not in refused
        }

    def _error(self, code: int, text: str, number: int | str | None) -> Reply:
        """Both forms that the exchange has been seen to use, in turn."""
        self.errors += 1
        if self.errors % 2:
            return Reply((dump({"code": code, "msg": text, "id": number}),))
        return Reply((dump({"error": {"code": code, "msg": text}, "id": number}),))


class Binance(Dialect):
    """See the head of this file."""

    name = "binance"
    markets: ClassVar[Mapping[str, Market]] = {m.symbol: m for m in MARKETS}
    default_symbols = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT")
    generic = Shape(1_237, 4, 3, decimals=8)
    batches = False
    rules = Rules(
        ping_interval_s=20.0,
        idle_limit_s=0.0,
        attempts=300,
        attempts_window_s=300.0,
    )
    essential = ("t", "p", "q", "T")
    recorded_symbol = "BTCUSDT"
    default_variant = COMBINED_US

    def __init__(self, venue: Venue) -> None:
        super().__init__(venue)
        self._minute = 0
        self._weight = 0
        self._beyond = 0
        self._banned_until_s = 0.0
        self._heads: dict[tuple[str, str], str] = {}

    def session(self, path: str, query: Mapping[str, str]) -> Session | None:
        if path == "/stream":
            names = query.get("streams", "").split("/")
        elif path == "/ws" or path.startswith("/ws/"):
            names = unquote(path[4:]).split("/")
        else:
            return None
        combined = path == "/stream"
        if query.get("timeUnit", "").upper() == "MICROSECOND":
            variant = COMBINED_US if combined else RAW_US
        else:
            variant = COMBINED_MS if combined else RAW_MS
        session = BinanceSession(self.venue, variant, combined=combined)
        return session if session.open_streams([n for n in names if n]) else None

    # --- Messages of the stream.

    def render(self, variant: str, symbol: str, prints: Sequence[Print]) -> str:
        trade_id, price, quantity, side, time = prints[0]
        head = self._heads.get((variant, symbol))
        if head is None:
            head = self._head(variant, symbol)
            self._heads[variant, symbol] = head
        maker = "true" if side == SELL else "false"
        end = "}}" if variant in (COMBINED_MS, COMBINED_US) else "}"
        return (
            f'{head}{time},"s":"{symbol}","t":{trade_id},"p":"{price}","q":"{quantity}",'
            f'"T":{time},"m":{maker},"M":true{end}'
        )

    @staticmethod
    def _head(variant: str, symbol: str) -> str:
        if variant in (COMBINED_MS, COMBINED_US):
            return f'{{"stream":"{symbol.lower()}@trade","data":{{"e":"trade","E":'
        return '{"e":"trade","E":'

    def time_text(self, variant: str, time_us: int) -> str:
        return str(time_us if variant in (COMBINED_US, RAW_US) else time_us // 1000)

    def placeholder(self, variant: str) -> str:
        return "\0" * len(self.time_text(variant, 1_700_000_000_000_000))

    def shutdown_notice(self, variant: str) -> str:
        time = self.time_text(variant, self.venue.now_us())
        event = f'{{"e":"serverShutdown","E":{time}}}'
        if variant in (COMBINED_MS, COMBINED_US):
            return f'{{"stream":"!serverShutdown","data":{event}}}'
        return event

    # --- REST.

    def is_trades(self, path: str) -> bool:
        return path in ("/api/v3/historicalTrades", "/api/v3/trades", "/api/v3/aggTrades")

    def rest(self, request: Request) -> Response:
        routes: dict[str, tuple[int, Callable[[Request], Response]]] = {
            "/api/v3/ping": (1, lambda _: answer({})),
            "/api/v3/time": (1, lambda _: answer({"serverTime": self.venue.now_us() // 1000})),
            "/api/v3/exchangeInfo": (20, self._exchange_info),
            "/api/v3/historicalTrades": (25, self._trades),
            "/api/v3/trades": (25, self._trades),
            "/api/v3/aggTrades": (4, self._aggregates),
        }
        if request.path not in routes:
            return Response(404, b"<html><body><h2>404 Not found</h2></body></html>")
        weight, handle = routes[request.path]
        refusal = self._weigh(weight, request.now_s)
        response = refusal or handle(request)
        used = str(self._weight)
        headers = (("X-MBX-USED-WEIGHT", used), ("X-MBX-USED-WEIGHT-1M", used))
        return Response(response.status, response.body, response.headers + headers)

    def _weigh(self, weight: int, now_s: float) -> Response | None:
        minute = int(now_s // 60)
        if minute != self._minute:
            self._minute, self._weight, self._beyond = minute, 0, 0
        self._weight += weight
        if not self.venue.strict:
            return None
        if now_s < self._banned_until_s:
            return self.failure(418, self._banned_until_s - now_s)
        if self._weight <= WEIGHT_PER_MINUTE:
            return None
        self._beyond += 1
        if self._beyond > BAN_AFTER:
            self._banned_until_s = now_s + BAN_S
            return self.failure(418, BAN_S)
        return self.failure(429, 60.0 - now_s % 60)

    def failure(self, status: int, retry_after_s: float = 0.0) -> Response:
        codes = {
            418: (-1003, "Way too many requests; IP banned. Please use the websocket."),
            429: (-1003, "Too much request weight used; please use WebSocket Streams."),
        }
        code, text = codes.get(status, (-1000, "An unknown error occurred while processing."))
        headers = {"Retry-After": str(max(1, round(retry_after_s)))} if retry_after_s > 0 else {}
        return answer({"code": code, "msg": text}, status, headers)

    def _exchange_info(self, request: Request) -> Response:
        wanted: Any = list(self.venue.tapes)
        if "symbol" in request.query:
            wanted = [request.query["symbol"]]
        elif "symbols" in request.query:
            try:
                wanted = json.loads(request.query["symbols"])
            except (ValueError, RecursionError):
                wanted = None
        known = self.venue.tapes
        if not isinstance(wanted, list) or not all(
            isinstance(s, str) and s in known for s in wanted
        ):
            return answer({"code": -1121, "msg": "Invalid symbol."}, 400)
        markets = [known[s].market for s in wanted]
        return answer(
            {
                "timezone": "UTC",
                "serverTime": self.venue.now_us() // 1000,
                "rateLimits": [
                    {
                        "rateLimitType": "REQUEST_WEIGHT",
                        "interval": "MINUTE",
                        "intervalNum": 1,
                        "limit": WEIGHT_PER_MINUTE,
                    }
                ],
                "exchangeFilters": [],
                "symbols": [
                    {
                        "symbol": m.symbol,
                        "status": "TRADING",
                        "baseAsset": m.base,
                        "baseAssetPrecision": 8,
                        "quoteAsset": m.quote,
                        "quotePrecision": 8,
                        "quoteAssetPrecision": 8,
                        "isSpotTradingAllowed": True,
                        "permissionSets": [["SPOT"]],
                    }
                    for m in markets
                ],
            }
        )

    def _page(self, request: Request) -> tuple[Tape, list[Made]] | Response:
        """The trades that a request asks for, or why there are none."""
        query = request.query
        if not query.get("symbol"):
            text = "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed."
            return answer({"code": -1102, "msg": text}, 400)
        tape = self.venue.tapes.get(query["symbol"])
        if tape is None:
            return answer({"code": -1121, "msg": "Invalid symbol."}, 400)
        for name in ("limit", "fromId"):
            if not re.fullmatch(r"\d{1,18}", query.get(name, "0"), re.ASCII):
                text = f"Illegal characters found in parameter '{name}'."
                return answer({"code": -1100, "msg": text}, 400)
        limit = min(int(query.get("limit", "500")) or 500, MAX_ROWS)
        if "fromId" in query and request.path != "/api/v3/trades":
            rows = tape.from_id(int(query["fromId"]), limit)
        else:
            rows = tape.recent(limit)
        return tape, self.venue.spoiled(tape, rows)

    def _trades(self, request: Request) -> Response:
        page = self._page(request)
        if isinstance(page, Response):
            return page
        tape, rows = page
        decimals = tape.market.shape.decimals
        unit_ns = _time_unit_ns(request)
        parts = [
            f'{{"id":{r.trade_id},"price":"{r.price}","qty":"{r.quantity}",'
            f'"quoteQty":"{_quote(r, decimals)}","time":{r.time_ns // unit_ns},'
            f'"isBuyerMaker":{"true" if r.side == SELL else "false"},"isBestMatch":true}}'
            for r in rows
        ]
        return Response(200, f"[{','.join(parts)}]".encode())

    def _aggregates(self, request: Request) -> Response:
        """Neighbours of one price, side and time folded into one row. Its own id is that of
        its first trade: the exchange counts aggregates by themselves."""
        page = self._page(request)
        if isinstance(page, Response):
            return page
        _, rows = page
        unit_ns = _time_unit_ns(request)
        folded: list[list[Made]] = []
        for row in rows:
            last = folded[-1][-1] if folded else None
            same = last and (last.price, last.side, last.time_ns) == (row[1], row[3], row[4])
            if same:
                folded[-1].append(row)
            else:
                folded.append([row])
        return answer(
            [
                {
                    "a": trades[0].trade_id,
                    "p": trades[0].price,
                    "q": _units_text(sum(_units(t.quantity, 8) for t in trades)),
                    "f": trades[0].trade_id,
                    "l": trades[-1].trade_id,
                    "T": trades[0].time_ns // unit_ns,
                    "m": trades[0].side == SELL,
                    "M": True,
                }
                for trades in folded
            ]
        )


def _time_unit_ns(request: Request) -> int:
    micros = request.headers.get(b"x-mbx-time-unit", b"").upper() == b"MICROSECOND"
    return 1_000 if micros else 1_000_000


def _units(text: str, decimals: int) -> int:
    whole, _, rest = text.partition(".")
    return int(whole + rest.ljust(decimals, "0"))


def _units_text(units: int) -> str:
    digits = str(units).rjust(9, "0")
    return f"{digits[:-8]}.{digits[-8:]}"


def _quote(row: Made, decimals: int) -> str:
    """Price × quantity with 8 decimals, cut."""
    return _units_text(_units(row.price, decimals) * _units(row.quantity, decimals) // 10**8)


DIALECT = Binance
