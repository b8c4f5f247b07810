"""100,000 broken frames per exchange: no crash, no hang, and what follows them is read."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from sessions import START_S

from feedmono.exchanges import load, names
from feedmono.exchanges.base import (
    Data,
    Decoded,
    Exchange,
    Refused,
    Shutdown,
    Subscribed,
    SystemStatus,
    Undecodable,
    Unknown,
)
from feedmono.trade import BACKFILL, MAX_TIME_US, MAX_TRADE_ID, is_decimal, is_symbol

FRAMES = 100_000
BLOCK = 1_000

BINANCE_TRADE = (
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161255343100,"s":"BTCUSDT",'
    b'"t":3735683259,"p":"61837.63000000","q":"0.02000000","T":1723161255342123,"m":true,"M":true}}'
)
KRAKEN_TRADES = (
    b'{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"buy","price":68500.0,'
    b'"qty":0.01044926,"ord_type":"limit","trade_id":70635299,"timestamp":'
    b'"2024-05-27T12:43:11.798009Z"},{"symbol":"BTC/USD","side":"sell","price":68500.10,"qty":1e-8,'
    b'"ord_type":"market","trade_id":70635300,"timestamp":"2024-05-27T12:43:11.7980091+02:00"}]}'
)

KRAKEN_STATUS = (
    b'{"channel":"status","data":[{"api_version":"v2","connection_id":12393906104898154338,'
    b'"system":"online","version":"2.0.4"}],"type":"update"}'
)
KRAKEN_ACKNOWLEDGED = (
    b'{"method":"subscribe","req_id":1,"result":{"channel":"trade","snapshot":true,'
    b'"symbol":"BTC/USD"},"success":true}'
)
KRAKEN_REFUSED = (
    b'{"error":"Currency pair not supported XBT/USDT","method":"subscribe","req_id":1,'
    b'"success":false,"symbol":"BTC/USD"}'
)

BINANCE_PAGE = (
    b'[{"id":28457,"price":"4.00000100","qty":"12.00000000","quoteQty":"48.000012",'
    b'"time":1499865549590,"isBuyerMaker":true,"isBestMatch":true},{"id":28458,"price":"1e-7",'
    b'"qty":"2","quoteQty":"0","time":1723161255342123,"isBuyerMaker":false,"isBestMatch":true}]'
)
KRAKEN_PAGE = (
    b'{"error":[],"result":{"XXBTZUSD":[["68500.0","0.01044926",1716813791.7980099,"b","l","",'
    b'70635299],["68500.10","1e-8",1716813791.8,"s","m","",70635300]],"last":"1716813791800000000"}}'
)


class Sample(NamedTuple):
    """What is broken of an exchange's."""

    symbol: str
    """Of the good frame."""
    good: bytes
    """A frame of trades."""
    others: Sequence[bytes]
    """Trades that are written otherwise, and control messages."""
    page: bytes
    """A REST page of two trades."""
    other_pages: Sequence[bytes]
    rows: Callable[[Any], Sequence[object]]
    """What of a frame (as JSON) should be trades, and the other reader's figures of one:"""
    figures: Callable[[Any], list[object]]
    """symbol, trade id, price, quantity."""
    refuses: bool = False
    """Whether one of *other_pages* is an error with status 200."""


SAMPLES = {
    "binance": Sample(
        symbol="BTCUSDT",
        good=BINANCE_TRADE,
        others=[
            BINANCE_TRADE.replace(b"btc", "币安人生".encode()).replace(b"BTC", "币安人生".encode()),
            BINANCE_TRADE.replace(b'"m":', b'"b":12,"a":13,"m":'),
            b'{"e":"trade","s":"BTCUSDT","t":7,"p":"1e-7","q":"2","T":1723161255342,"m":false}',
            b'{"result":null,"id":1}',
            b'{"code":2,"msg":"Invalid request","id":1}',
            b'{"error":{"code":2,"msg":"Invalid request"},"id":1}',
            b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}',
        ],
        page=BINANCE_PAGE,
        other_pages=[b"[]", b'{"code":-1121,"msg":"Invalid symbol."}'],
        rows=lambda message: [message["data"]],
        figures=lambda row: [row.get("s"), row.get("t"), str(row.get("p")), str(row.get("q"))],
    ),
    "kraken": Sample(
        symbol="BTC/USD",
        good=KRAKEN_TRADES,
        others=[
            KRAKEN_TRADES.replace(b"update", b"snapshot"),
            KRAKEN_STATUS,
            KRAKEN_ACKNOWLEDGED,
            KRAKEN_REFUSED,
            b'{"channel":"heartbeat"}',
            b'{"method":"pong","req_id":1,"time_in":"2024-05-20T11:08:49.272922Z"}',
            b'{"error":"Exceeded msg rate","method":"subscribe","req_id":1,"success":false}',
        ],
        page=KRAKEN_PAGE,
        other_pages=[
            b'{"error":[],"result":{"XDGUSD":[],"last":"0"}}',
            b'{"error":["EGeneral:Too many requests"]}',
        ],
        rows=lambda message: message["data"],
        figures=lambda row: [
            *(row.get("symbol"), row.get("trade_id")),
            *(str(row.get("price")), str(row.get("qty"))),
        ],
        refuses=True,
    ),
}
GOOD = {name: sample.good for name, sample in SAMPLES.items()}
# A good frame is broken more often than each of the others.
SEEDS = {name: [each.good, each.good, *each.others] for name, each in SAMPLES.items()}


def sample_of(name: str) -> Sample:
    assert name in SAMPLES, f"no frames of {name} to break: give it a `Sample` here"
    return SAMPLES[name]


NUMBERS = b"-0 1 -1 1.0 1e400 -1e-400 9223372036854775808 18446744073709551616 NaN Infinity".split()
TEXTS = [
    b"",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00x",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"1_0.5",
    b"1.5",
    b"trade",
]
VALUES = [
    *NUMBERS,
    b"1" * 30,
    b"9" * 5000,
    *(b'"' + text + b'"' for text in TEXTS),
    b'"' + b"9" * 300 + b'"',
    '"٣.٣"'.encode(),
    *(b"null", b"true", b"[]", b"{}", b"[[[]]]", b'{"e":"trade"}', b"[" * 200 + b"]" * 200),
]
ALPHABET = b'{}[]",:\\.-+eE0123456789 \x00\xff\n@!/_trade'


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.choice(
            (rng.randrange(256), rng.choice(ALPHABET))
        )
    return bytes(changed)


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    length = rng.randint(1, 8)
    return data[:at] + bytes(rng.choice(ALPHABET) for _ in range(length)) + data[at:]


def cut_out(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 30) :]


def double(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    end = start + rng.randint(1, 60)
    return data[:end] + data[start:end] + data[end:]


BEFORE_A_VALUE = re.compile(rb'[:\[,](?!"[^"]*":)')


def swap_value(rng: random.Random, data: bytes) -> bytes:
    """Another value for one of an object or an array, whatever stood there before."""
    starts = [found.end() for found in BEFORE_A_VALUE.finditer(data)] or [1]
    start = end = rng.choice(starts)
    while end < len(data) and data[end] not in b",}]":
        end += 1
    return data[:start] + rng.choice(VALUES) + data[end:]


def nest(rng: random.Random, data: bytes) -> bytes:
    depth = rng.choice((1, 10, 500, 3_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"data":', b"}")))
    return opening * depth + data + closing * rng.choice((0, depth))


def noise(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(rng.randrange(2 * len(data)))


# Nesting deep costs a hundred times as much as the others: it comes less often.
MUTATIONS: Sequence[Callable[[random.Random, bytes], bytes]] = [
    *[flip, truncate, insert, cut_out, double, swap_value, swap_value, noise] * 6,
    nest,
]


def assert_sound(decoded: Decoded, data: bytes) -> None:
    """What was read out of a broken frame may be odd, but it is a trade, and stood there."""
    assert decoded.trades or not decoded.problems
    for trade in decoded.trades:
        assert is_symbol(trade.symbol)
        trade.symbol.encode()
        assert type(trade.trade_id) is int
        assert 0 <= trade.trade_id <= MAX_TRADE_ID
        assert is_decimal(trade.price)
        assert is_decimal(trade.quantity)
        assert trade.price.encode() in data
        assert trade.quantity.encode() in data
        assert trade.side in (0, 1)
        assert 0 < trade.time_us <= MAX_TIME_US
    assert all(0 < len(problem) < 400 for problem in decoded.problems)


def try_decode(exchange: Exchange, data: bytes) -> bool:
    try:
        assert_sound(exchange.decode(data), data)
    except Undecodable as error:
        return not str(error)
    return True


EVENTS = (Data, Subscribed, Refused, Shutdown, SystemStatus, Unknown)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", names())
def test_broken_frames_are_survived_and_what_follows_is_read(name: str, full: bool) -> None:
    frames = FRAMES * 10 if full else FRAMES
    exchange, sample = load(name), sample_of(name)
    rng = random.Random(f"{name} 1")
    good = exchange.decode(sample.good)
    session = exchange.session([sample.symbol])
    readable = 0
    for number in range(1, frames + 1):
        data = rng.choice(SEEDS[name])
        for _ in range(rng.choice((1, 1, 2))):
            data = rng.choice(MUTATIONS)(rng, data) or b"{"
        now_s = START_S + number
        events = session.receive(data, now_s)
        readable += try_decode(exchange, data)
        assert all(isinstance(event, EVENTS) for event in events)
        if exchange.is_data(data):
            # The reader does not ask the session then: no verdict must get lost by that. (The
            # mutations make a shutdown notice that pretends to be a symbol's: a dead letter.)
            assert all(isinstance(event, (Data, Unknown, Shutdown)) for event in events), data
        if number % BLOCK == 0:
            assert exchange.decode(sample.good) == good
            assert exchange.is_data(sample.good)
            session.poll(now_s)
            session = exchange.session([sample.symbol])
            session.poll(now_s)
    # The mutations leave some frames readable; if none were, nothing would have been tested.
    assert frames / 100 < readable < frames / 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", names())
def test_broken_pages_are_survived_and_what_is_read_of_them_stood_there(
    name: str, full: bool
) -> None:
    bodies = FRAMES * 10 if full else FRAMES
    exchange, sample = load(name), sample_of(name)
    pages = [sample.page, sample.page, *sample.other_pages]
    rng = random.Random(f"{name} 3")
    good = exchange.decode_page(sample.symbol, sample.page)
    assert [len(good.trades), good.problems] == [2, ()]
    readable = flawed = refused = 0
    for _ in range(bodies):
        data = rng.choice(pages)
        for _ in range(rng.choice((1, 1, 2))):
            data = rng.choice(MUTATIONS)(rng, data) or b"{"
        refusal = exchange.refusal(data)
        refused += refusal is not None
        assert refusal is None or len(refusal.reason) < 600
        try:
            decoded = exchange.decode_page(sample.symbol, data)
        except Undecodable:
            continue
        readable += 1
        flawed += bool(decoded.problems)
        assert_sound(decoded, data)
        assert decoded.origin == BACKFILL
        assert {trade.symbol for trade in decoded.trades} <= {sample.symbol}
    assert bodies / 100 < readable < bodies
    assert flawed > bodies / 1000
    assert (refused > 0) == sample.refuses
    assert exchange.decode_page(sample.symbol, sample.page) == good


@pytest.mark.parametrize("name", names())
def test_what_is_read_out_of_a_broken_frame_is_what_another_reader_reads(name: str) -> None:
    exchange, sample = load(name), sample_of(name)
    good = sample.good
    rng = random.Random(f"{name} 2")
    compared = 0
    for _ in range(20_000):
        data = swap_value(rng, flip(rng, good)) if rng.random() < 0.5 else flip(rng, good)
        try:
            text = data.decode()
            message = json.loads(text, parse_float=str)
            decoded = exchange.decode(data)
        except (ValueError, RecursionError, Undecodable):
            continue
        compared += 1
        expected = [
            sample.figures(row) for row in sample.rows(message) if isinstance(row, dict | list)
        ]
        for trade in decoded.trades:
            assert [trade.symbol, trade.trade_id, trade.price, trade.quantity] in expected
    # In a frame with little beside the trade, little can be broken that leaves it readable.
    assert compared > 300
