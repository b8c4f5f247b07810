"""Kraken spot, WebSocket v2: the trade channel.

Source of all facts: docs.kraken.com of 2026-05 (spot-websocket-v2: trade, status, ping) and
recorded sessions. Version 1 of the API has no trade ids and is not used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Context, Decimal
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote

import msgspec

from feedmono.exchanges import _shape
from feedmono.exchanges._rows import UNREADABLE, read_rows
from feedmono.exchanges._shape import Shape
from feedmono.exchanges._subscriptions import Request, Subscriptions
from feedmono.exchanges.base import (
    Data,
    Decoded,
    Event,
    Exchange,
    Limits,
    Market,
    PageRequest,
    Refusal,
    Session,
    SystemStatus,
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
    SNAPSHOT,
    STREAM,
    Trade,
    is_decimal,
    is_symbol,
)

# Bursts of subscriptions are refused ("Exceeded msg rate"); no document gives the rate.
_MESSAGE_INTERVAL_S = 1.0
_SYMBOLS_PER_REQUEST = 50
# A connection is closed after about a minute in which nothing was sent.
_KEEP_ALIVE_S = 20.0

# Refusals that speak of the server's state and not of the symbol, so that asking again later
# helps: the message rate, and the errors of the class EService (unavailable, busy …).
_PASSING = re.compile(
    r"exceeded msg rate|rate limit|too many requests|EService:|internal error|unavailable",
    re.IGNORECASE,
)
_ALREADY_SUBSCRIBED = "Already subscribed"
_METHODS = ("subscribe", "unsubscribe")

# A REST answer that is an error has status 200, and its list of errors comes first.
_REFUSAL = re.compile(rb'\s*\{\s*"error"\s*:\s*\[\s*"')
# EGeneral:Too many requests, EAPI:Rate limit exceeded, EService:Throttled.
_TOO_MANY = re.compile(r"too many|rate limit|throttled", re.IGNORECASE)
_PAGE_ROWS = 1000

# The status channel's document: no orders are matched while the system is in one of these.
_NOT_MATCHING = frozenset({"maintenance", "cancel_only", "post_only"})

# REST still gives the names of version 1 for two assets; version 2 refuses those.
_ALIASES = {"XBT": "BTC", "XDG": "DOGE"}

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EXACT = Context(prec=MAX_DECIMAL_CHARS)

_ORIGINS = {"update": STREAM, "snapshot": SNAPSHOT}
_SIDES = {"buy": BUY, "sell": SELL}
_PAGE_SIDES = {"b": BUY, "s": SELL}


class _Row(msgspec.Struct, gc=False):
    symbol: str
    side: str
    # JSON numbers whose digits count: 2688.30 is not 2688.3.
    price: msgspec.Raw
    qty: msgspec.Raw
    trade_id: int
    timestamp: str


class _UsualRow(msgspec.Struct, gc=False):
    """A trade as it always looks. Bounds stand here where msgspec checks them for nothing."""

    symbol: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SYMBOL_CHARS)]
    side: Literal["buy", "sell"]
    price: msgspec.Raw
    qty: msgspec.Raw
    trade_id: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRADE_ID)]
    timestamp: str


class _UsualTrades(msgspec.Struct, gc=False):
    channel: Literal["trade"]
    type: Literal["update", "snapshot"]
    data: list[_UsualRow]


class _LooseTrades(msgspec.Struct):
    channel: Any = None
    type: Any = None
    data: list[msgspec.Raw] | None = None


class _Message(msgspec.Struct):
    """Whatever the server sends; which of the fields are there tells what it is."""

    channel: Any = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    method: Any = None
    req_id: Any = None
    success: Any = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    symbol: Any = None
    error: Any = None
    # As one old recording has it.
    other_error: Any = msgspec.field(name="Error", default=None)


class _Acknowledged(msgspec.Struct):
    channel: Any = None
    symbol: Any = None


class _Status(msgspec.Struct):
    # Its connection_id exceeds 63 bits, and nobody needs it.
    system: str


class _Pair(msgspec.Struct):
    wsname: str | None = None


class _AssetPairs(msgspec.Struct):
    error: list[str] = msgspec.field(default_factory=list)
    result: dict[str, _Pair] = msgspec.field(default_factory=dict)


class _Page(msgspec.Struct):
    error: list[str] = msgspec.field(default_factory=list)
    # The rows, by a name of the pair that may be any, and "last".
    result: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)


class _PageRow(msgspec.Struct, array_like=True, gc=False):
    price: msgspec.Raw
    volume: msgspec.Raw
    time: msgspec.Raw
    side: str
    order_type: msgspec.Raw
    misc: msgspec.Raw
    trade_id: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRADE_ID)]


class _Errors(msgspec.Struct):
    error: list[str]


_decode_usual = msgspec.json.Decoder(_UsualTrades).decode
_decode_loose = msgspec.json.Decoder(_LooseTrades).decode
_decode_row = msgspec.json.Decoder(_Row).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_acknowledged = msgspec.json.Decoder(_Acknowledged | None).decode
_decode_status = msgspec.json.Decoder(list[_Status]).decode
_decode_pairs = msgspec.json.Decoder(_AssetPairs).decode
_decode_page = msgspec.json.Decoder(_Page).decode
_decode_page_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_page_row = msgspec.json.Decoder(_PageRow).decode
_decode_errors = msgspec.json.Decoder(_Errors).decode
_new = tuple.__new__


# A message with trades as it always looks, for the native reader.
_SHAPE = Shape(
    frame={
        "channel": _shape.only("trade"),
        "type": _shape.one_of({name: {"origin": origin} for name, origin in _ORIGINS.items()}),
        "data": _shape.MANY_TRADES,
    },
    trade={
        "symbol": _shape.SYMBOL,
        "side": _shape.one_of({name: {"side": side} for name, side in _SIDES.items()}),
        "price": _shape.PRICE,
        "qty": _shape.QUANTITY,
        "trade_id": _shape.TRADE_ID,
        "timestamp": _shape.RFC_3339_TIME,
    },
)


class Kraken(Exchange):
    name = "kraken"
    # 150 attempts per rolling 10 minutes and address, then banned for 10 minutes. The documents
    # name no limit of symbols per connection: 200 are four requests, subscribed within seconds.
    # Nor do they name an age at which a connection ends. About one REST request a second and
    # address: a weight of 1 in a window of 1 s, so that there is never a burst.
    limits: ClassVar[Limits] = Limits(
        symbols_per_connection=200,
        connections=150,
        connections_window_s=600.0,
        connection_age_s=math.inf,
        rest_weight=1,
        rest_window_s=1.0,
        metadata_weight=1,
        page_weight=1,
        page_rows=_PAGE_ROWS,
    )
    metadata_path = "/0/public/AssetPairs"
    pages_by_id = False

    def __init__(self) -> None:
        self.native_reader = _SHAPE.reader(_decode)
        self._read = self.native_reader.read if self.native_reader else _decode

    def session(self, symbols: Sequence[str]) -> Session:
        return _KrakenSession(symbols)

    def is_data(self, frame: bytes) -> bool:
        return frame.startswith(b'{"channel":"trade"')

    def decode(self, frame: bytes) -> Decoded:
        return self._read(frame)

    def read_metadata(self, body: bytes) -> Mapping[str, Market]:
        try:
            answer = _decode_pairs(body)
        except UNREADABLE as error:
            raise ValueError(f"not an AssetPairs answer: {error}: {excerpt(body)}") from error
        if answer.error:
            raise ValueError(f"the exchange refused AssetPairs: {'; '.join(answer.error)[:200]}")
        markets: dict[str, Market] = {}
        for key, pair in answer.result.items():
            assets = pair.wsname.split("/") if pair.wsname else []
            if len(assets) == 2 and all(assets):
                name = "/".join(_ALIASES.get(asset, asset) for asset in assets)
                # Requests take the altname, too; but answers name the pair by its key.
                markets[name] = Market(name, key)
        if not markets:
            raise ValueError(f"an AssetPairs answer without any market: {excerpt(body)}")
        return markets

    def page_path(self, request: PageRequest, rest_name: str) -> str:
        rows = max(1, min(request.rows, _PAGE_ROWS))
        # The trade's time is known to the microsecond; since is inclusive, in nanoseconds.
        since_ns = max(0, request.since_us * 1000 - 1000)
        pair = quote(rest_name, safe="")
        return f"/0/public/Trades?pair={pair}&since={since_ns}&count={rows}"

    def decode_page(self, symbol: str, body: bytes) -> Decoded:
        if not is_symbol(symbol):
            raise Undecodable(f"the symbol asked for can't be one: {symbol[:60]!r}")
        try:
            page = _decode_page(body)
            if page.error:
                raise Undecodable(f"the exchange refused it: {'; '.join(page.error)[:200]}")
            books = [rows for name, rows in page.result.items() if name != "last"]
            if len(books) != 1:
                raise Undecodable(f"a page of {len(books)} markets, not of one: {excerpt(body)}")
            rows = _decode_page_rows(books[0])
        except UNREADABLE as error:
            raise Undecodable(f"not a page of trades: {error}: {excerpt(body)}") from error
        return read_rows(rows, lambda row: _page_trade(symbol, _decode_page_row(row)), BACKFILL)

    def is_page_of(self, body: bytes, rest_name: str) -> bool:
        try:
            result = _decode_page(body).result
        except UNREADABLE:
            return True
        return [name for name in result if name != "last"] == [rest_name]

    def refusal(self, body: bytes) -> Refusal | None:
        if _REFUSAL.match(body) is None:
            return None
        try:
            text = "; ".join(_decode_errors(body).error)[:200]
        except UNREADABLE:
            text = excerpt(body)
        return Refusal(text, _TOO_MANY.search(text) is not None)


EXCHANGE = Kraken


def _careful_trade(row: _Row) -> Trade:
    """:raises ValueError: why it is none."""
    price = _number(row.price)
    quantity = _number(row.qty)
    time_us = _time_us(row.timestamp)
    if not is_symbol(row.symbol):
        raise ValueError(f"the symbol can't be one: {row.symbol[:60]!r}")
    where = f"of a trade of {row.symbol}"
    if not 0 <= row.trade_id <= MAX_TRADE_ID:
        raise ValueError(f"the trade_id {where} is no number of 63 bits")
    side = _SIDES.get(row.side)
    if side is None:
        raise ValueError(f"the side {where} is neither buy nor sell: {row.side[:60]!r}")
    for name, text in (("price", price), ("qty", quantity)):
        if not is_decimal(text):
            raise ValueError(f"the {name} {where} is no decimal number: {text[:60]!r}")
    if not 0 < time_us <= MAX_TIME_US:
        raise ValueError(f"the timestamp {where} is before 1970 or after 2262: {row.timestamp!r}")
    return Trade(row.symbol, row.trade_id, price, quantity, side, time_us)


def _number(raw: msgspec.Raw) -> str:
    """The exact text of a JSON number, or of one that is written as a string.

    :raises ValueError: it isn't ASCII.
    """
    text = str(raw, "ascii")
    return text[1:-1] if text[0] == '"' else text


# RFC 3339: with or without decimals, UTC or an offset.
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:)(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def _time_us(text: str) -> int:
    """Unix time in microseconds, cut off below, of an RFC 3339 time.

    :raises ValueError: it is none.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"the timestamp is no RFC 3339 time: {text[:60]!r}")
    minute, second, decimals, sign, hours, minutes = match.groups()
    # 60 is a leap second, the next minute's first for Unix time.
    if int(second) > 60 or (sign and (int(hours) > 23 or int(minutes) > 59)):
        raise ValueError(f"the timestamp is no time that exists: {text[:60]!r}")
    time_us = _minute_us(minute) + int(second + (decimals or "")[:6].ljust(6, "0"))
    if sign:
        offset_us = (int(hours) * 60 + int(minutes)) * 60_000_000
        time_us += offset_us if sign == "-" else -offset_us
    return time_us


_MINUTE = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):", re.ASCII)


@lru_cache(maxsize=64)
def _minute_us(text: str) -> int:
    """Unix time in microseconds of the begin of a minute, ``2024-05-27T12:33:`` in UTC. Trades
    come in order, so nearly all find their minute remembered.

    :raises ValueError: there is no such minute.
    """
    match = _MINUTE.fullmatch(text)
    if match is None:
        raise ValueError(f"the timestamp is no RFC 3339 time: it begins {text!r}")
    year, month, day, hour, minute = map(int, match.groups())
    try:
        begin = datetime(year, month, day, hour, minute, tzinfo=timezone.utc)
    except ValueError as error:
        raise ValueError(f"the timestamp is no time that exists: {text!r}: {error}") from error
    return (begin - _EPOCH) // timedelta(microseconds=1)


def _decode(frame: bytes) -> Decoded:
    try:
        message = _decode_usual(frame)
        trades = tuple([_usual_trade(row) for row in message.data])
        return _new(Decoded, (trades, _ORIGINS[message.type], ()))
    except UNREADABLE:
        return _decode_carefully(frame)


def _usual_trade(row: _UsualRow) -> Trade:
    """:raises ValueError: it is to be read carefully."""
    # Every trade passes here where there is no native reader (which takes an eighth of the time).
    # A seventh less than `_careful_trade` takes. The numbers are JSON's: of digits and a point,
    # they are decimals.
    price = str(row.price, "ascii")
    quantity = str(row.qty, "ascii")
    time = row.timestamp
    # Seconds and decimals are one whole number.
    micros = time[17:19] + time[20:26]
    if (
        price.strip("0123456789") == "."
        and quantity.strip("0123456789") == "."
        and len(price) <= MAX_DECIMAL_CHARS
        and len(quantity) <= MAX_DECIMAL_CHARS
        and len(time) == 27
        and time[19] == "."
        and time[26] == "Z"
        and micros.isdecimal()
        and micros.isascii()
        and micros < "60"
        and row.symbol.isprintable()
    ):
        time_us = _minute_us(time[:17]) + int(micros)
        if 0 < time_us <= MAX_TIME_US:
            side = _SIDES[row.side]
            told = (row.symbol, row.trade_id, price, quantity, side, time_us)
            return _new(Trade, told + NOT_TOLD)
    raise ValueError("not as always")


def _decode_carefully(frame: bytes) -> Decoded:
    """The same for a frame that is wrong somewhere: its good trades, and why the others are not.

    :raises Undecodable: it holds no good trade.
    """
    try:
        message = _decode_loose(frame)
    except UNREADABLE as error:
        raise Undecodable(f"not a message with a list of trades: {error}") from error
    if message.channel != "trade" or message.data is None:
        raise Undecodable(f"not a message of the channel trade: {excerpt(frame)}")
    known = isinstance(message.type, str) and message.type in _ORIGINS
    origin = _ORIGINS[message.type] if known else STREAM
    flaws = () if known else ("the type is neither snapshot nor update; taken as update",)
    return read_rows(message.data, lambda row: _careful_trade(_decode_row(row)), origin, flaws)


def _page_trade(symbol: str, row: _PageRow) -> Trade:
    """:raises ValueError: why it is none."""
    price, quantity, time = _number(row.price), _number(row.volume), _number(row.time)
    for name, text in (("price", price), ("volume", quantity), ("time", time)):
        if not is_decimal(text):
            raise ValueError(f"the {name} is no decimal number: {text[:60]!r}")
    # Seconds with up to 7 decimals, of which a float would not keep all.
    time_us = int(_EXACT.scaleb(Decimal(time), 6))
    if not 0 < time_us <= MAX_TIME_US:
        raise ValueError(f"the time is before 1970 or after 2262: {time}")
    side = _PAGE_SIDES.get(row.side)
    if side is None:
        raise ValueError(f"the side is neither b nor s: {row.side[:60]!r}")
    return Trade(symbol, row.trade_id, price, quantity, side, time_us)


def _asking(request: Request) -> dict[str, object]:
    """The message that asks for subscriptions, or for their end."""
    params: dict[str, object] = {"channel": "trade", "symbol": request.symbols}
    if request.joins:
        # Its default differs between documents.
        params["snapshot"] = True
    return {"method": _METHODS[not request.joins], "params": params, "req_id": request.id}


class _KrakenSession(Session):
    path = "/v2"

    def __init__(self, symbols: Sequence[str]) -> None:
        self._subscriptions = Subscriptions(symbols, _SYMBOLS_PER_REQUEST, _MESSAGE_INTERVAL_S)
        self._keep_alive_s: float | None = None
        # Far from the ids of subscriptions: an error that names a ping refuses no symbol.
        self._pings = 1_000_000_000

    def poll(self, now_s: float) -> tuple[Sequence[str], Sequence[Event]]:
        events = self._subscriptions.expire(now_s)
        request = self._subscriptions.due(now_s)
        message: dict[str, object]
        if request is not None:
            message = _asking(request)
        elif self._keep_alive_s is not None and now_s >= self._keep_alive_s:
            self._pings += 1
            self._subscriptions.keep_distance(now_s)
            message = {"method": "ping", "req_id": self._pings}
        else:
            if self._keep_alive_s is None:
                self._keep_alive_s = now_s + _KEEP_ALIVE_S
            return (), events
        self._keep_alive_s = now_s + _KEEP_ALIVE_S
        return (json.dumps(message, ensure_ascii=False, separators=(",", ":")),), events

    def change(self, symbols: Sequence[str]) -> None:
        self._subscriptions.change(symbols)

    def next_poll_s(self) -> float:
        if self._keep_alive_s is None:
            return 0.0
        return min(self._subscriptions.next_s(), self._keep_alive_s)

    @property
    def pending(self) -> frozenset[str]:
        return self._subscriptions.pending

    def receive(self, frame: bytes, now_s: float) -> Sequence[Event]:
        try:
            message = _decode_message(frame)
        except UNREADABLE as error:
            return (Unknown(f"not a JSON object: {error}: {excerpt(frame)}"),)
        channel = message.channel
        if channel == "trade":
            return (Data(),)
        if channel == "heartbeat":
            return ()
        if channel == "status":
            return self._status(message, frame)
        told = message.other_error if message.error is None else message.error
        if message.method == "pong" and told is None:
            return ()
        # The old recording's error has no method.
        if message.method in _METHODS or (message.method is None and told is not None):
            if told is not None or message.success is False:
                text = told[:200] if isinstance(told, str) else "no reason given"
                return self._refused(message, text, frame, now_s)
            return self._acknowledged(message, frame)
        return (Unknown(f"an unknown message: {excerpt(frame)}"),)

    def _status(self, message: _Message, frame: bytes) -> Sequence[Event]:
        try:
            system = _decode_status(message.data)[-1].system[:60]
        except (*UNREADABLE, IndexError):
            return (Unknown(f"a status without a system: {excerpt(frame)}"),)
        return (SystemStatus(system, system not in _NOT_MATCHING),)

    def _acknowledged(self, message: _Message, frame: bytes) -> Sequence[Event]:
        try:
            result = _decode_acknowledged(message.result)
        except UNREADABLE:
            result = None
        if (
            result is None
            or message.success is not True
            or result.channel != "trade"
            or not isinstance(result.symbol, str)
        ):
            return (Unknown(f"an acknowledgement of nothing known: {excerpt(frame)}"),)
        return self._subscribed(message, result.symbol, frame)

    def _subscribed(self, message: _Message, symbol: str, frame: bytes) -> Sequence[Event]:
        request_id = self._request_of(message, symbol)
        if request_id is not None:
            return (self._subscriptions.settle(request_id, symbol),)
        if self._subscriptions.issued(message.req_id):
            # The answer to a repetition, after the first one was answered late.
            return ()
        return (Unknown(f"an acknowledgement of no request of ours: {excerpt(frame)}"),)

    def _request_of(self, message: _Message, symbol: str) -> int | None:
        """The request that an answer about *symbol* belongs to: by its number and its method as
        well, if it has them."""
        request_id = self._subscriptions.request_of(symbol)
        if request_id is None or message.req_id not in (None, request_id):
            return None
        method = _METHODS[not self._subscriptions.joins(request_id)]
        return request_id if message.method in (None, method) else None

    def _refused(self, message: _Message, text: str, frame: bytes, now_s: float) -> Sequence[Event]:
        symbol = message.symbol
        symbols: tuple[str, ...]
        if isinstance(symbol, str) and symbol:
            if text == _ALREADY_SUBSCRIBED:
                return self._subscribed(message, symbol, frame)
            request_id = self._request_of(message, symbol)
            symbols = (symbol,) if request_id is not None else ()
        else:
            symbols = self._subscriptions.of(message.req_id)
            request_id = message.req_id if symbols else None
        if _PASSING.search(text):
            self._postpone(request_id, now_s)
            return (Unknown(f"the server can't take a subscription now: {text}"),)
        if request_id is None:
            return (Unknown(f"an error that concerns no request of ours: {excerpt(frame)}"),)
        return tuple(self._subscriptions.settle(request_id, each, text) for each in symbols)

    def _postpone(self, request_id: int | None, now_s: float) -> None:
        """One request; all that are out if the server did not say which it means."""
        for each in [request_id] if request_id is not None else self._subscriptions.sent():
            self._subscriptions.postpone(each, now_s)
