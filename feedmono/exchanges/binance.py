"""Binance spot: combined trade streams, subscribed to by messages.

Source of all facts: binance-spot-api-docs of 2026-07-21 (web-socket-streams.md, rest-api.md,
errors.md) and recorded sessions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import quote

import msgspec

from feedmono.exchanges import _shape
from feedmono.exchanges._rows import UNREADABLE, read_rows
from feedmono.exchanges._shape import FIRST_MICROSECOND, Shape
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
    MAX_DECIMAL_CHARS,
    MAX_SYMBOL_CHARS,
    MAX_TIME_US,
    MAX_TRADE_ID,
    NOT_TOLD,
    SELL,
    STREAM,
    Trade,
    is_decimal,
    is_symbol,
)

# The server takes 5 messages a second of a connection, pings and pongs included, and bans who
# repeatedly sends more. Ours come at 2 a second, which leaves 3 for the connection's own.
_MESSAGE_INTERVAL_S = 0.5
_SYMBOLS_PER_REQUEST = 100
# What the usual frame does not tell: order ids.
_NO_ORDERS = NOT_TOLD[1:]

# errors.md, 10xx: the server's troubles, which say nothing about the symbols asked for
# (unknown, disconnected, too many requests, unexpected response, timeout, busy, too many
# connections).
_PASSING_CODES = frozenset({-1000, -1001, -1003, -1006, -1007, -1008, -1034})

# rest-api.md, historicalTrades.
_PAGE_ROWS = 1000

_T = TypeVar("_T")


_Decimal = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_DECIMAL_CHARS)]


class _Event(
    msgspec.Struct,
    gc=False,
    rename={
        "kind": "e",
        "symbol": "s",
        "trade_id": "t",
        "price": "p",
        "quantity": "q",
        "time": "T",
        "buyer_is_maker": "m",
        "buyer_order_id": "b",
        "seller_order_id": "a",
    },
):
    """A trade as it always looks. Bounds stand here where msgspec checks them for nothing."""

    kind: Literal["trade"]
    symbol: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SYMBOL_CHARS)]
    trade_id: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRADE_ID)]
    price: _Decimal
    quantity: _Decimal
    time: Annotated[int, msgspec.Meta(gt=0, le=MAX_TIME_US)]
    buyer_is_maker: bool
    # There were such until 2024-06: a frame that carries them is read the careful way.
    buyer_order_id: None = None
    seller_order_id: None = None


class _Combined(msgspec.Struct, gc=False):
    data: _Event


class _PageRow(msgspec.Struct, gc=False):
    trade_id: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRADE_ID)] = msgspec.field(name="id")
    price: str
    quantity: str = msgspec.field(name="qty")
    time: Annotated[int, msgspec.Meta(gt=0, le=MAX_TIME_US)]
    buyer_is_maker: bool = msgspec.field(name="isBuyerMaker")


class _Kind(msgspec.Struct):
    e: Any = None


class _Message(msgspec.Struct):
    """Whatever the server sends; which of the fields are there tells what it is."""

    stream: Any = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    e: Any = None
    id: Any = None
    result: Any = msgspec.UNSET
    error: Any = None
    code: Any = None
    msg: Any = None


class _Listed(msgspec.Struct):
    symbol: str
    base: str = msgspec.field(name="baseAsset")
    quote: str = msgspec.field(name="quoteAsset")


class _ExchangeInfo(msgspec.Struct):
    symbols: list[_Listed]


_new = tuple.__new__
_decode_combined = msgspec.json.Decoder(_Combined).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_any = msgspec.json.Decoder().decode
_decode_info = msgspec.json.Decoder(_ExchangeInfo).decode
_decode_page = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_row = msgspec.json.Decoder(_PageRow).decode


# A combined event as it always looks, for the native reader: the same as `_Combined`.
_SHAPE = Shape(
    frame={"data": _shape.ONE_TRADE},
    trade={
        "e": _shape.only("trade"),
        "s": _shape.SYMBOL,
        "t": _shape.TRADE_ID,
        "p": _shape.QUOTED_PRICE,
        "q": _shape.QUOTED_QUANTITY,
        "T": _shape.UNIX_TIME,
        "m": _shape.one_of(
            {
                True: {"side": SELL, "is_buyer_maker": True},
                False: {"side": BUY, "is_buyer_maker": False},
            }
        ),
        "b": _shape.ABSENT,
        "a": _shape.ABSENT,
    },
)


class Binance(Exchange):
    name = "binance"
    # web-socket-streams.md: 1024 streams per connection, 300 attempts per 5 minutes and address,
    # a connection ends after 24 hours. rest-api.md: the weights of an address and a minute.
    limits: ClassVar[Limits] = Limits(
        symbols_per_connection=1024,
        connections=300,
        connections_window_s=300.0,
        connection_age_s=86_400.0,
        rest_weight=6000,
        rest_window_s=60.0,
        metadata_weight=20,
        page_weight=25,
        page_rows=_PAGE_ROWS,
    )
    metadata_path = "/api/v3/exchangeInfo"
    pages_by_id = True
    # rest-api.md: times are milliseconds without it.
    rest_headers: ClassVar[Mapping[str, str]] = {"X-MBX-TIME-UNIT": "MICROSECOND"}

    def __init__(self) -> None:
        self.native_reader = _SHAPE.reader(_decode)
        self._read = self.native_reader.read if self.native_reader else _decode

    def session(self, symbols: Sequence[str]) -> Session:
        return _BinanceSession(symbols)

    def is_data(self, frame: bytes) -> bool:
        # All that begins with {"stream":" and goes on with neither " nor ! (streams that are no
        # symbol's, such as !serverShutdown). Two comparisons of bytes take 0.06 µs;
        # startswith and a slice take 0.15.
        return b'{"stream":"#' <= frame < b'{"stream":"\xff'

    def decode(self, frame: bytes) -> Decoded:
        return self._read(frame)

    def read_metadata(self, body: bytes) -> Mapping[str, Market]:
        try:
            listed = _decode_info(body).symbols
        except UNREADABLE as error:
            raise ValueError(f"not an exchangeInfo answer: {error}: {excerpt(body)}") from error
        if not listed:
            raise ValueError(f"an exchangeInfo answer without any symbol: {excerpt(body)}")
        return {each.symbol: Market(f"{each.base}/{each.quote}", each.symbol) for each in listed}

    def page_path(self, request: PageRequest, rest_name: str) -> str:
        rows = max(1, min(request.rows, _PAGE_ROWS))
        symbol = quote(rest_name, safe="")
        return f"/api/v3/historicalTrades?symbol={symbol}&fromId={request.first_id}&limit={rows}"

    def decode_page(self, symbol: str, body: bytes) -> Decoded:
        if not is_symbol(symbol):
            raise Undecodable(f"the symbol asked for can't be one: {symbol[:60]!r}")
        try:
            rows = _decode_page(body)
        except UNREADABLE as error:
            raise Undecodable(f"not a list of trades: {error}: {excerpt(body)}") from error
        return read_rows(rows, lambda row: _page_trade(symbol, _decode_row(row)), BACKFILL)

    def used_weight(self, headers: Mapping[str, str]) -> int | None:
        text = headers.get("x-mbx-used-weight-1m", "")
        return int(text) if text.isdecimal() and len(text) < 10 else None


EXCHANGE = Binance


def _decode(frame: bytes) -> Decoded:
    # Every trade passes here where there is no native reader (which takes a quarter of the time).
    # 1.6 µs, of which reading the JSON takes 0.6; with is_decimal, is_symbol and the classes' own
    # __new__ it took twice that. Many frames read as one JSON list would save 0.03 µs a frame, and
    # take for whole what is cut in one frame and goes on in the next. What does not look as always
    # (order ids, a number without a point, an exponent) is read carefully instead.
    try:
        event = _decode_combined(frame).data
        symbol = event.symbol
        price = event.price
        quantity = event.quantity
        time_us = event.time
        if time_us < FIRST_MICROSECOND:
            time_us *= 1000
        if (
            price.strip("0123456789") == "."
            and price[-1] != "."
            and (price[0] > "0" or price[1] == ".")
            and quantity.strip("0123456789") == "."
            and quantity[-1] != "."
            and (quantity[0] > "0" or quantity[1] == ".")
            and symbol.isprintable()
            and time_us <= MAX_TIME_US
        ):
            maker = event.buyer_is_maker
            side = SELL if maker else BUY
            told = (symbol, event.trade_id, price, quantity, side, time_us, maker)
            trade = _new(Trade, told + _NO_ORDERS)
            return _new(Decoded, ((trade,), STREAM, ()))
    except UNREADABLE:
        pass
    return _decode_carefully(frame)


def _decode_carefully(frame: bytes) -> Decoded:
    """The same for frames that are rare (order ids, not combined) or wrong, with reasons.

    :raises Undecodable: it holds no trade.
    """
    try:
        message = _decode_any(frame)
    except UNREADABLE as error:
        raise Undecodable(f"not JSON: {error}") from error
    event = message.get("data", message) if isinstance(message, dict) else None
    if not isinstance(event, dict):
        raise Undecodable("not an event: no JSON object, or its data is none")
    kind = _field(event, "e", str)
    if kind != "trade":
        raise Undecodable(f"not a trade but the event {kind[:60]!r}")
    symbol = _field(event, "s", str)
    trade_id = _field(event, "t", int)
    price = _field(event, "p", str)
    quantity = _field(event, "q", str)
    time_us = _field(event, "T", int)
    if time_us < FIRST_MICROSECOND:
        time_us *= 1000
    maker = _field(event, "m", bool)
    if not is_symbol(symbol):
        raise Undecodable(f"the symbol (s) can't be one: {symbol[:60]!r}")
    if not 0 <= trade_id <= MAX_TRADE_ID:
        raise Undecodable("the trade id (t) is no number of 63 bits")
    for name, text in (("price (p)", price), ("quantity (q)", quantity)):
        if not is_decimal(text):
            raise Undecodable(f"the {name} is no decimal number: {text[:60]!r}")
    if not 0 < time_us <= MAX_TIME_US:
        raise Undecodable("the time (T) is before 1970 or after 2262")
    # A trade is worth more than its order ids: it goes on without those that can't be read.
    problems: list[str] = []
    buyer, seller = (_order_id(event, key, problems) for key in ("b", "a"))
    side = SELL if maker else BUY
    trade = Trade(symbol, trade_id, price, quantity, side, time_us, maker, buyer, seller)
    return Decoded((trade,), STREAM, tuple(problems))


def _page_trade(symbol: str, row: _PageRow) -> Trade:
    """:raises ValueError: why it is none."""
    time_us = row.time * 1000 if row.time < FIRST_MICROSECOND else row.time
    for name, text in (("price", row.price), ("quantity (qty)", row.quantity)):
        if not is_decimal(text):
            raise ValueError(f"the {name} is no decimal number: {text[:60]!r}")
    if time_us > MAX_TIME_US:
        raise ValueError("the time is after 2262")
    maker = row.buyer_is_maker
    side = SELL if maker else BUY
    return Trade(symbol, row.trade_id, row.price, row.quantity, side, time_us, maker)


def _field(event: dict[str, object], key: str, kind: type[_T]) -> _T:
    """A field of exactly that type: true is no number here."""
    if key not in event:
        raise Undecodable(f"a trade without {key!r}")
    value = event[key]
    # isinstance is for the type checker only.
    if type(value) is not kind or not isinstance(value, kind):
        raise Undecodable(f"{key!r} of a trade is {type(value).__name__}, not {kind.__name__}")
    return value


def _kind(data: msgspec.Raw) -> object:
    """What a combined message's event is; None if it is no event."""
    try:
        return _decode_kind(data).e
    except UNREADABLE:
        return None


def _order_id(event: dict[str, object], key: str, problems: list[str]) -> int | None:
    value = event.get(key)
    if value is None:
        return None
    if type(value) is int and 0 <= value <= MAX_TRADE_ID:
        return value
    problems.append(f"the order id {key!r} is no number of 63 bits")
    return None


class _BinanceSession(Session):
    def __init__(self, symbols: Sequence[str]) -> None:
        self.path = "/stream?timeUnit=MICROSECOND"
        self._subscriptions = Subscriptions(symbols, _SYMBOLS_PER_REQUEST, _MESSAGE_INTERVAL_S)

    def poll(self, now_s: float) -> tuple[Sequence[str], Sequence[Event]]:
        events = self._subscriptions.expire(now_s)
        request = self._subscriptions.due(now_s)
        if request is None:
            return (), events
        message = {
            "method": "SUBSCRIBE" if request.joins else "UNSUBSCRIBE",
            # Stream names are lower case: a stream of another name is accepted and stays mute.
            "params": [f"{symbol.lower()}@trade" for symbol in request.symbols],
            "id": request.id,
        }
        return (json.dumps(message, ensure_ascii=False, separators=(",", ":")),), events

    def change(self, symbols: Sequence[str]) -> None:
        self._subscriptions.change(symbols)

    def next_poll_s(self) -> float:
        return self._subscriptions.next_s()

    @property
    def pending(self) -> frozenset[str]:
        return self._subscriptions.pending

    def receive(self, frame: bytes, now_s: float) -> Sequence[Event]:
        try:
            message = _decode_message(frame)
        except UNREADABLE as error:
            return (Unknown(f"not a JSON object: {error}: {excerpt(frame)}"),)
        kind = message.e if message.e is not None else _kind(message.data)
        stream = message.stream
        if kind == "trade" or (isinstance(stream, str) and stream.endswith("@trade")):
            return (Data(),)
        # Bare on /ws; in combined form its stream is !serverShutdown.
        if kind == "serverShutdown" or stream == "!serverShutdown":
            return (Shutdown("the server announced its shutdown (serverShutdown)"),)
        if not self._subscriptions.issued(message.id):
            return (Unknown(f"an unknown message: {excerpt(frame)}"),)
        if message.error is not None or message.code is not None:
            return self._refused(message, now_s)
        if message.result is not None:
            return (Unknown(f"an answer to no request of ours: {excerpt(frame)}"),)
        return self._acknowledged(message.id)

    def _acknowledged(self, request_id: int) -> Sequence[Event]:
        """One answer for all symbols of a request; a second one, to its repetition, for none."""
        symbols = self._subscriptions.of(request_id)
        return tuple(self._subscriptions.settle(request_id, symbol) for symbol in symbols)

    def _refused(self, message: _Message, now_s: float) -> Sequence[Event]:
        """The error stands flat in the message or in an object of its own."""
        code, text = message.code, message.msg
        if isinstance(message.error, dict):
            code, text = message.error.get("code"), message.error.get("msg")
        # Both are whatever came: only what is surely harmless is quoted.
        told = text[:200] if isinstance(text, str) else "no message"
        number = code if type(code) is int and abs(code) < 100_000 else None
        reason = f"{told} (code {number})"
        symbols = self._subscriptions.of(message.id)
        if not symbols:
            return ()
        if number in _PASSING_CODES:
            self._subscriptions.postpone(message.id, now_s)
            return (Unknown(f"the server can't take a subscription now: {reason}"),)
        if len(symbols) > 1:
            self._subscriptions.split(message.id, now_s)
            return ()
        return (self._subscriptions.settle(message.id, symbols[0], reason),)
