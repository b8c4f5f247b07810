"""Toyex as the simulator speaks it; the protocol stands in ``toyex_exchange.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

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
from feedmono.trade import SELL

MAX_ROWS = 1000

MARKETS = (
    Market("BTC-USD", "BTC", "USD", Shape(6_183_763, 2, 5)),
    Market("ETH-USD", "ETH", "USD", Shape(268_830, 2, 4)),
)


def _side(side: int) -> str:
    return "s" if side == SELL else "b"


@dataclass(slots=True)
class ToyexSession(Session):
    pings: int = 0

    def idle(self) -> str | None:
        self.pings += 1
        return dump(["ping", self.pings])

    def receive(self, message: bytes, now_s: float) -> Reply:
        try:
            request = json.loads(message)
        except (ValueError, RecursionError):
            return Reply(close=1003, reason="not JSON")
        match request:
            case ["pong", int()]:
                return Reply()
            case ["sub" | "unsub" as kind, int(number), [*symbols]]:
                change = self._join if kind == "sub" else self._leave
                return Reply([dump(change(number, str(symbol))) for symbol in symbols])
        return Reply(close=1003, reason="not understood")

    def _join(self, number: int, symbol: str) -> list[object]:
        if symbol not in self.venue.tapes or symbol in self.venue.faults.refuse:
            return ["no", number, symbol, "no such market"]
        self.subscribed[symbol] = None
        return ["ok", number, symbol]

    def _leave(self, number: int, symbol: str) -> list[object]:
        self.subscribed.pop(symbol, None)
        return ["ok", number, symbol]


class Toyex(Dialect):
    name = "toyex"
    markets: ClassVar[Mapping[str, Market]] = {m.symbol: m for m in MARKETS}
    default_symbols = ("BTC-USD", "ETH-USD")
    generic = Shape(1_237, 4, 3)
    batches = False
    rules = Rules(ping_interval_s=0.0, idle_limit_s=0.0, attempts=60, attempts_window_s=60.0)
    # Where a trade's id, price, quantity and time stand in its array.
    essential = (2, 3, 4, 6)
    default_variant = ""

    def session(self, path: str, query: Mapping[str, str]) -> Session | None:
        return ToyexSession(self.venue) if path == "/ws" else None

    def render(self, variant: str, symbol: str, prints: Sequence[Print]) -> str:
        trade_id, price, quantity, side, time = prints[0]
        return f'["t","{symbol}",{trade_id},"{price}","{quantity}","{_side(side)}",{time}]'

    def time_text(self, variant: str, time_us: int) -> str:
        return str(time_us)

    def placeholder(self, variant: str) -> str:
        return "\0" * len("1723161255342123")

    def shutdown_notice(self, variant: str) -> str:
        return dump(["bye"])

    def is_trades(self, path: str) -> bool:
        return path == "/trades"

    def rest(self, request: Request) -> Response:
        if request.path == "/markets":
            markets = [tape.market for tape in self.venue.tapes.values()]
            return answer([[m.symbol, m.base, m.quote] for m in markets])
        query = request.query
        tape = self.venue.tapes.get(query.get("market", ""))
        if request.path != "/trades" or tape is None:
            return self.failure(404)
        try:
            first_id, count = int(query["from"]), min(int(query["rows"]), MAX_ROWS)
        except (KeyError, ValueError):
            return self.failure(400)
        rows = self.venue.spoiled(tape, tape.from_id(first_id, count))
        return answer(
            [[r.trade_id, r.price, r.quantity, _side(r.side), r.time_ns // 1000] for r in rows]
        )

    def failure(self, status: int, retry_after_s: float = 0.0) -> Response:
        headers = {"Retry-After": str(max(1, round(retry_after_s)))} if retry_after_s > 0 else {}
        return answer(["error", status], status, headers)


DIALECT = Toyex
