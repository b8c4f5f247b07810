"""Toyex, an exchange made up for docs/ADD_AN_EXCHANGE.md: everything is a JSON array.

client  ["sub", 1, ["BTC-USD"]]   ["unsub", 2, ["BTC-USD"]]   ["pong", 7]
server  ["ok", 1, "BTC-USD"]   ["no", 1, "X-Y", "why not"]   ["ping", 7]   ["bye"]
        ["t", "BTC-USD", 1000001, "61837.63", "0.02", "b", 1723161255342123]
REST    /markets: [["BTC-USD", "BTC", "USD"], …]
        /trades?market=BTC-USD&from=7&rows=2: [[7, "61837.63", "0.02", "b", 1723161255342123], …]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote

import msgspec

from feedmono.exchanges._rows import UNREADABLE, read_rows
from feedmono.exchanges._subscriptions import Subscriptions
from feedmono.exchanges.base import (
    Data,
    Decoded,
    Event,
    Exchange,
    Limits,
    Market,
    PageRequest,
    Session,
    Shutdown,
    Undecodable,
    Unknown,
    excerpt,
)
from feedmono.trade import (
    BACKFILL,
    BUY,
    MAX_TIME_US,
    MAX_TRADE_ID,
    SELL,
    STREAM,
    Trade,
    is_decimal,
    is_symbol,
)

_PAGE_ROWS = 1000
_SIDES = {"b": BUY, "s": SELL}

_Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_TRADE_ID)]
_Time = Annotated[int, msgspec.Meta(gt=0, le=MAX_TIME_US)]


class _Row(msgspec.Struct, array_like=True):
    trade_id: _Id
    price: str
    quantity: str
    side: Literal["b", "s"]
    time_us: _Time


class _Print(msgspec.Struct, array_like=True):
    kind: Literal["t"]
    symbol: str
    trade_id: _Id
    price: str
    quantity: str
    side: Literal["b", "s"]
    time_us: _Time


_decode_print = msgspec.json.Decoder(_Print).decode
_decode_page = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_row = msgspec.json.Decoder(_Row).decode
_decode_markets = msgspec.json.Decoder(list[tuple[str, str, str]]).decode
_decode_any = msgspec.json.Decoder(list[Any]).decode


class Toyex(Exchange):
    name = "toyex"
    limits: ClassVar[Limits] = Limits(
        symbols_per_connection=50,
        connections=60,
        connections_window_s=60.0,
        connection_age_s=math.inf,
        rest_weight=1200,
        rest_window_s=60.0,
        metadata_weight=1,
        page_weight=1,
        page_rows=_PAGE_ROWS,
    )
    metadata_path = "/markets"
    pages_by_id = True

    def session(self, symbols: Sequence[str]) -> Session:
        return _ToyexSession(symbols)

    def is_data(self, frame: bytes) -> bool:
        return frame.startswith(b'["t",')

    def decode(self, frame: bytes) -> Decoded:
        try:
            row = _decode_print(frame)
            return Decoded((_trade(row.symbol, row),), STREAM)
        except UNREADABLE as error:
            raise Undecodable(f"not a trade: {error}: {excerpt(frame)}") from error

    def read_metadata(self, body: bytes) -> Mapping[str, Market]:
        try:
            listed = _decode_markets(body)
        except UNREADABLE as error:
            raise ValueError(f"not a list of markets: {error}: {excerpt(body)}") from error
        if not listed:
            raise ValueError("a list of markets without any")
        return {name: Market(f"{base}/{other}", name) for name, base, other in listed}

    def page_path(self, request: PageRequest, rest_name: str) -> str:
        rows = max(1, min(request.rows, _PAGE_ROWS))
        return f"/trades?market={quote(rest_name, safe='')}&from={request.first_id}&rows={rows}"

    def decode_page(self, symbol: str, body: bytes) -> Decoded:
        try:
            rows = _decode_page(body)
        except UNREADABLE as error:
            raise Undecodable(f"not a list of trades: {error}: {excerpt(body)}") from error
        return read_rows(rows, lambda row: _trade(symbol, _decode_row(row)), BACKFILL)


EXCHANGE = Toyex


def _trade(symbol: str, row: _Print | _Row) -> Trade:
    """:raises ValueError: why it is none."""
    if not is_symbol(symbol):
        raise ValueError(f"the symbol can't be one: {symbol[:60]!r}")
    for name, text in (("price", row.price), ("quantity", row.quantity)):
        if not is_decimal(text):
            raise ValueError(f"the {name} is no decimal number: {text[:60]!r}")
    return Trade(symbol, row.trade_id, row.price, row.quantity, _SIDES[row.side], row.time_us)


class _ToyexSession(Session):
    path = "/ws"

    def __init__(self, symbols: Sequence[str]) -> None:
        # 20 symbols a message, a message each 0.2 s at most.
        self._subscriptions = Subscriptions(symbols, 20, 0.2)
        self._pong: int | None = None

    def poll(self, now_s: float) -> tuple[Sequence[str], Sequence[Event]]:
        events = self._subscriptions.expire(now_s)
        messages: list[object] = []
        if self._pong is not None:
            messages.append(["pong", self._pong])
            self._pong = None
        request = self._subscriptions.due(now_s)
        if request is not None:
            kind = "sub" if request.joins else "unsub"
            messages.append([kind, request.id, request.symbols])
        return [json.dumps(each, ensure_ascii=False) for each in messages], events

    def change(self, symbols: Sequence[str]) -> None:
        self._subscriptions.change(symbols)

    def next_poll_s(self) -> float:
        # A ping is answered at once: 0 is past.
        return 0.0 if self._pong is not None else self._subscriptions.next_s()

    @property
    def pending(self) -> frozenset[str]:
        return self._subscriptions.pending

    def receive(self, frame: bytes, now_s: float) -> Sequence[Event]:
        try:
            message = _decode_any(frame)
        except UNREADABLE as error:
            return (Unknown(f"not a JSON array: {error}: {excerpt(frame)}"),)
        match message:
            case ["t", *_]:
                return (Data(),)
            case ["ping", int(number)]:
                self._pong = number
                return ()
            case ["bye"]:
                return (Shutdown("the exchange said bye"),)
            case ["ok", int(number), str(symbol)]:
                return self._answered(number, symbol, None)
            case ["no", int(number), str(symbol), str(reason)]:
                return self._answered(number, symbol, reason or "no reason given")
        return (Unknown(f"an unknown message: {excerpt(frame)}"),)

    def _answered(self, number: int, symbol: str, refusal: str | None) -> Sequence[Event]:
        if symbol not in self._subscriptions.of(number):
            # The answer to a repetition, after the first one was answered late, or to nothing.
            issued = self._subscriptions.issued(number)
            return () if issued else (Unknown(f"an answer to no request: {number}"),)
        return (self._subscriptions.settle(number, symbol, refusal and refusal[:200]),)
