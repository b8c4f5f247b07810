"""Kraken as the simulator speaks it: WebSocket v2 (trade, instrument, status), public REST.

Source: docs.kraken.com, WebSocket v2 and Spot REST, 2026-05, and recorded control frames.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, ClassVar, NamedTuple

from feedmono.simulator.base import (
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

MAX_ROWS = 1000
SNAPSHOT_TRADES = 50
# The documentation gives no figure for the burst of requests that it refuses.
MESSAGES_PER_S = 20
# About one REST request a second; a second one at once is forgiven.
REST_BURST = 2.0
# Beyond int64, as the exchange's are.
CONNECTION_ID = 12_393_906_104_898_154_338
STATUSES = ("online", "cancel_only", "maintenance", "post_only")

V2 = "v2"


class _V1(NamedTuple):
    """An asset's names in REST: in pair names and as an asset."""

    alternative: str
    code: str


# The assets whose v1 names differ from their v2 ones.
_ASSETS: Mapping[str, _V1] = {
    "BTC": _V1("XBT", "XXBT"),
    "DOGE": _V1("XDG", "XXDG"),
    "ETH": _V1("ETH", "XETH"),
    "LTC": _V1("LTC", "XLTC"),
    "XRP": _V1("XRP", "XXRP"),
    "USD": _V1("USD", "ZUSD"),
    "EUR": _V1("EUR", "ZEUR"),
}
# Bases whose pairs with USD and EUR are named by asset codes: XXBTZUSD, but XDGUSD.
_CODED = ("BTC", "ETH", "LTC", "XRP")


def _market(symbol: str, ticks: int, tick_decimals: int, lots: int) -> Market:
    base, _, quote = symbol.partition("/")
    return Market(symbol, base, quote, Shape(ticks, tick_decimals, 8, lots))


MARKETS = (
    _market("BTC/USD", 684_669, 1, 99_991),
    _market("ETH/USD", 268_830, 2, 999_983),
    _market("SOL/USD", 15_627, 2, 9_999_991),
    _market("XRP/USD", 61_142, 5, 99_999_989),
    _market("DOGE/USD", 1_067_213, 7, 99_999_989),
    _market("ADA/USD", 346_721, 6, 99_999_989),
    _market("LTC/USD", 6_512, 2, 9_999_991),
    _market("BTC/EUR", 631_202, 1, 99_991),
    _market("ETH/BTC", 4_347, 5, 999_983),
    _market("AAPLx/USD", 21_312, 2, 999_983),
)


def _rest_name(market: Market) -> str:
    """The pair's key in REST answers."""
    if market.base in _CODED and market.quote in ("USD", "EUR", "BTC"):
        return _asset(market.base).code + _asset(market.quote).code
    return _asset(market.base).alternative + _asset(market.quote).alternative


def _asset(name: str) -> _V1:
    return _ASSETS.get(name, _V1(name, name))


def _ws_name(market: Market) -> str:
    return f"{_asset(market.base).alternative}/{_asset(market.quote).alternative}"


def _rfc3339(time_us: int) -> str:
    seconds, micros = divmod(time_us, 1_000_000)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"


def _order_type(trade_id: int) -> str:
    return "limit" if trade_id % 3 else "market"


@dataclass(slots=True)
class KrakenSession(Session):
    """One connection: its subscriptions by channel."""

    dialect: Kraken | None = None
    number: int = 0
    instruments: bool = False
    messages: Window = field(default_factory=lambda: Window(MESSAGES_PER_S, 1.0))

    def opened(self) -> Sequence[str]:
        return (_status_text(self.number, "online"),)

    def idle(self) -> str | None:
        return '{"channel":"heartbeat"}' if self.subscribed or self.instruments else None

    def receive(self, message: bytes, now_s: float) -> Reply:
        time_in = _rfc3339(self.venue.now_us())
        try:
            request = json.loads(message)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            return Reply((dump({"error": "Malformed request", "success": False}),))
        head = {"req_id": request["req_id"]} if "req_id" in request else {}
        method = request.get("method")
        if method == "ping":
            return self._ping(request, head, time_in)
        if method not in ("subscribe", "unsubscribe"):
            return self._refuse("Unsupported event", {"method": str(method), **head}, time_in)
        head["method"] = method
        params = request.get("params")
        if not isinstance(params, dict):
            return self._refuse("Field 'params' is missing", head, time_in)
        if params.get("channel") == "instrument":
            return self._instrument(method, params, head, time_in)
        if params.get("channel") != "trade":
            return self._refuse("Unsupported event", head, time_in)
        symbols = params.get("symbol")
        if not isinstance(symbols, list) or not symbols:
            return self._refuse("Field 'symbol' is missing", head, time_in)
        return self._trade(params, [str(s) for s in symbols], head, time_in, now_s)

    def _ping(self, request: dict[str, Any], head: dict[str, Any], time_in: str) -> Reply:
        if "params" in request:
            text = "Unsupported field: 'params' for the given msg type: ping"
            return self._refuse(text, {"method": "ping", **head}, time_in)
        return Reply((self._ack({"method": "pong", **head}, time_in),))

    def _trade(
        self,
        params: dict[str, Any],
        symbols: Sequence[str],
        head: dict[str, Any],
        time_in: str,
        now_s: float,
    ) -> Reply:
        """One answer a symbol, a snapshot behind that of each new one."""
        admitted = not self.venue.strict or self.messages.admits(now_s)
        subscribe = head["method"] == "subscribe"
        snapshot = params.get("snapshot", True) is True
        texts: list[str] = []
        for symbol in symbols:
            error = self._error(symbol, subscribe, admitted)
            if error:
                texts.append(self._refusal(error, {**head, "symbol": symbol}, time_in))
                continue
            result = {"channel": "trade", "symbol": symbol}
            if not subscribe:
                self.subscribed.pop(symbol)
                texts.append(self._ack({**head, "result": result, "success": True}, time_in))
                continue
            self.subscribed[symbol] = None
            full = {"channel": "trade", "snapshot": snapshot, "symbol": symbol}
            texts.append(self._ack({**head, "result": full, "success": True}, time_in))
            if snapshot:
                texts += self._snapshot(symbol)
        return Reply(texts)

    def _error(self, symbol: str, subscribe: bool, admitted: bool) -> str:
        if not admitted:
            return "Exceeded msg rate"
        if symbol not in self.venue.tapes or symbol in self.venue.faults.refuse:
            return f"Currency pair not supported {symbol}"
        if subscribe and symbol in self.subscribed:
            return "Already subscribed"
        if not subscribe and symbol not in self.subscribed:
            return "Subscription Not Found"
        return ""

    def _snapshot(self, symbol: str) -> list[str]:
        """The last trades, as one message; none while there are none."""
        assert self.dialect is not None
        prints = [
            Print(m.trade_id, m.price, m.quantity, m.side, _rfc3339(m.time_ns // 1000))
            for m in self.venue.tapes[symbol].recent(SNAPSHOT_TRADES)
        ]
        return [self.dialect.message("snapshot", symbol, prints)] if prints else []

    def _instrument(
        self, method: str, params: dict[str, Any], head: dict[str, Any], time_in: str
    ) -> Reply:
        snapshot = params.get("snapshot", True) is True
        self.instruments = method == "subscribe"
        result: dict[str, Any] = {"channel": "instrument", "snapshot": snapshot}
        texts = [self._ack({**head, "result": result, "success": True}, time_in)]
        if self.instruments and snapshot:
            markets = [tape.market for tape in self.venue.tapes.values()]
            assets = sorted({m.base for m in markets} | {m.quote for m in markets})
            pairs = [
                {"symbol": m.symbol, "base": m.base, "quote": m.quote, "status": "online"}
                for m in markets
            ]
            data = {"assets": [{"id": a, "status": "enabled"} for a in assets], "pairs": pairs}
            texts.append(dump({"channel": "instrument", "type": "snapshot", "data": data}))
        return Reply(texts)

    def _ack(self, fields: dict[str, Any], time_in: str) -> str:
        return dump({**fields, "time_in": time_in, "time_out": _rfc3339(self.venue.now_us())})

    def _refusal(self, error: str, head: dict[str, Any], time_in: str) -> str:
        return self._ack({"error": error, **head, "success": False}, time_in)

    def _refuse(self, error: str, head: dict[str, Any], time_in: str) -> Reply:
        return Reply((self._refusal(error, head, time_in),))


def _status_text(number: int, status: str) -> str:
    data = {
        "api_version": "v2",
        "connection_id": CONNECTION_ID + number,
        "system": status,
        "version": "2.0.4",
    }
    return dump({"channel": "status", "data": [data], "type": "update"})


class Kraken(Dialect):
    """See the head of this file."""

    name = "kraken"
    markets: ClassVar[Mapping[str, Market]] = {m.symbol: m for m in MARKETS}
    default_symbols = ("BTC/USD", "ETH/USD", "SOL/USD", "XRP/USD")
    generic = Shape(1_237, 4, 8, 999_983)
    batches = True
    rules = Rules(
        ping_interval_s=0.0,
        idle_limit_s=60.0,
        attempts=150,
        attempts_window_s=600.0,
    )
    essential = ("trade_id", "price", "qty", "timestamp")
    default_variant = V2

    def __init__(self, venue: Venue) -> None:
        super().__init__(venue)
        self._sessions = 0
        self._tokens = REST_BURST
        self._tokens_at_s = 0.0
        self._pairs: dict[str, Tape] = {}
        for tape in venue.tapes.values():
            key, ws_name = _rest_name(tape.market), _ws_name(tape.market)
            for name in (key, ws_name, ws_name.replace("/", "")):
                self._pairs[name] = tape

    def session(self, path: str, query: Mapping[str, str]) -> Session | None:
        if path != "/v2":
            return None
        self._sessions += 1
        return KrakenSession(self.venue, V2, dialect=self, number=self._sessions)

    # --- Messages of the stream.

    def render(self, variant: str, symbol: str, prints: Sequence[Print]) -> str:
        return self.message("update", symbol, prints)

    @staticmethod
    def message(kind: str, symbol: str, prints: Sequence[Print]) -> str:
        """A message of the trade channel."""
        trades = ",".join(
            [
                f'{{"symbol":"{symbol}","side":"{"sell" if side == SELL else "buy"}",'
                f'"price":{price},"qty":{quantity},'
                f'"ord_type":"{_order_type(trade_id)}","trade_id":{trade_id},'
                f'"timestamp":"{time}"}}'
                for trade_id, price, quantity, side, time in prints
            ]
        )
        return f'{{"channel":"trade","type":"{kind}","data":[{trades}]}}'

    def time_text(self, variant: str, time_us: int) -> str:
        return _rfc3339(time_us)

    def placeholder(self, variant: str) -> str:
        return "\0" * len(_rfc3339(0))

    def shutdown_notice(self, variant: str) -> str:
        return _status_text(0, "maintenance")

    def status_message(self, status: str) -> str:
        if status not in STATUSES:
            raise ValueError(f"no status {status!r}: one of {', '.join(STATUSES)} is wanted")
        return _status_text(0, status)

    # --- REST.

    def is_trades(self, path: str) -> bool:
        return path == "/0/public/Trades"

    def rest(self, request: Request) -> Response:
        routes: dict[str, Callable[[Request], Response]] = {
            "/0/public/Time": self._time,
            "/0/public/SystemStatus": self._system_status,
            "/0/public/AssetPairs": self._asset_pairs,
            "/0/public/Trades": self._trades,
        }
        if request.path not in routes:
            return _error("EGeneral:Unknown method", 404)
        if self.venue.strict and not self._has_token(request.now_s):
            return _error("EGeneral:Too many requests")
        return routes[request.path](request)

    def _has_token(self, now_s: float) -> bool:
        self._tokens = min(REST_BURST, self._tokens + (now_s - self._tokens_at_s))
        self._tokens_at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def failure(self, status: int, retry_after_s: float = 0.0) -> Response:
        limited = status in (418, 429)
        text = "EGeneral:Too many requests" if limited else "EService:Unavailable"
        headers = {"Retry-After": str(max(1, round(retry_after_s)))} if retry_after_s > 0 else {}
        return answer({"error": [text]}, status, headers)

    def _time(self, request: Request) -> Response:
        seconds = self.venue.now_us() // 1_000_000
        moment = datetime.fromtimestamp(seconds, timezone.utc)
        text = f"{moment:%a, %d %b %y %H:%M:%S} +0000"
        return _result({"unixtime": seconds, "rfc1123": text})

    def _system_status(self, request: Request) -> Response:
        seconds = self.venue.now_us() // 1_000_000
        moment = datetime.fromtimestamp(seconds, timezone.utc)
        return _result({"status": "online", "timestamp": f"{moment:%Y-%m-%dT%H:%M:%S}Z"})

    def _asset_pairs(self, request: Request) -> Response:
        tapes = list(self.venue.tapes.values())
        if request.query.get("pair"):
            wanted = [self._pairs.get(p) for p in request.query["pair"].split(",")]
            tapes = [t for t in wanted if t is not None]
            if len(tapes) < len(wanted):
                return _error("EQuery:Unknown asset pair")
        return _result(
            {
                _rest_name(m): {
                    "altname": _ws_name(m).replace("/", ""),
                    "wsname": _ws_name(m),
                    "aclass_base": "currency",
                    "base": _asset(m.base).code,
                    "aclass_quote": "currency",
                    "quote": _asset(m.quote).code,
                    "pair_decimals": m.shape.tick_decimals,
                    "lot_decimals": m.shape.lot_decimals,
                    "status": "online",
                }
                for m in (t.market for t in tapes)
            }
        )

    def _trades(self, request: Request) -> Response:
        tape = self._pairs.get(request.query.get("pair", ""))
        if tape is None:
            return _error("EQuery:Unknown asset pair")
        since_text = request.query.get("since", "")
        count_text = request.query.get("count", str(MAX_ROWS))
        if not re.fullmatch(r"\d{0,19}", since_text, re.ASCII):
            return _error("EGeneral:Invalid arguments:since")
        if not re.fullmatch(r"\d{1,4}", count_text, re.ASCII) or not (
            1 <= int(count_text) <= MAX_ROWS
        ):
            return _error("EGeneral:Invalid arguments:count")
        if since_text:
            rows = tape.since(int(since_text), int(count_text))
        else:
            rows = tape.recent(int(count_text))
        rows = self.venue.spoiled(tape, rows)
        last = str(rows[-1].time_ns) if rows else since_text or "0"
        listed = ",".join([_row(r) for r in rows])
        key = _rest_name(tape.market)
        return Response(
            200, f'{{"error":[],"result":{{"{key}":[{listed}],"last":"{last}"}}}}'.encode()
        )


def _row(made: Made) -> str:
    side = "s" if made.side == SELL else "b"
    kind = "m" if _order_type(made.trade_id) == "market" else "l"
    seconds, ns = divmod(made.time_ns, 1_000_000_000)
    time = f"{seconds}.{ns // 100:07d}".rstrip("0")
    time += "0" if time.endswith(".") else ""
    return f'["{made.price}","{made.quantity}",{time},"{side}","{kind}","",{made.trade_id}]'


def _result(value: object) -> Response:
    return answer({"error": [], "result": value})


def _error(text: str, status: int = 200) -> Response:
    return answer({"error": [text]}, status)


DIALECT = Kraken
