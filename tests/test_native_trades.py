"""The native reader and encoder give what their twins in Python give, whatever comes."""

from __future__ import annotations

import gc
import itertools
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exchange_fuzz import GOOD, MUTATIONS, SEEDS, swap_value
from test_exchange_fuzz import insert as put_in

from feedmono import native
from feedmono.avro import MAX_TIME_US as MAX_AVRO_TIME_US
from feedmono.avro import TradeEncoder
from feedmono.exchanges import _shape, binance, kraken, load
from feedmono.exchanges._shape import Shape
from feedmono.exchanges.base import Decoded, Undecodable
from feedmono.trade import (
    BUY,
    MAX_DECIMAL_CHARS,
    MAX_SYMBOL_CHARS,
    MAX_TIME_US,
    MAX_TRADE_ID,
    SELL,
    Trade,
)

if native.trades is None:
    pytest.skip(f"no native twin to test: {native.describe()}", allow_module_level=True)

Decode = Callable[[bytes], Decoded]
LAW = settings(derandomize=True, max_examples=300, deadline=None)
SHAPES: Mapping[str, tuple[Shape, Decode, Decode]] = {
    "binance": (binance._SHAPE, binance._decode, binance._decode_carefully),
    "kraken": (kraken._SHAPE, kraken._decode, kraken._decode_carefully),
}
CANONICAL = {"BTCUSDT": "BTC/USDT", "BTC/USD": "BTC/USD", "币安人生USDT": "币安人生/USDT"}


def answer(function: Callable[..., object], *arguments: object) -> str:
    """What it gives, types included, or the error that it raises."""
    try:
        return repr(function(*arguments))
    except (Undecodable, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"


def native_read(shape: Shape, otherwise: Decode) -> Decode:
    """The native reader of a shape."""
    reader = shape.reader(otherwise)
    assert reader is not None
    return reader.read


@dataclass
class Reader:
    """The native reader of an exchange, which keeps what it left to Python."""

    name: str
    left: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape, self._decode, self._carefully = SHAPES[self.name]
        self.read = native_read(shape, self._leave)

    def _leave(self, frame: bytes) -> Decoded:
        self.left.append(frame)
        return self._decode(frame)

    def reads(self, frame: bytes) -> bool:
        """Whether it read the frame itself; in any case, whether the answer is Python's."""
        self.left.clear()
        found = answer(self.read, frame)
        assert found == answer(self._decode, frame), frame
        if self.left:
            return False
        assert found == answer(self._carefully, frame), frame
        return True


@pytest.fixture(params=sorted(SHAPES))
def reader(request: pytest.FixtureRequest) -> Reader:
    return Reader(request.param)


# --- Reading


def test_broken_frames_get_the_answer_of_python(reader: Reader, full: bool) -> None:
    rng = random.Random(f"{reader.name} native")
    seeds = [*SEEDS[reader.name], *[USUAL[reader.name]] * 9]
    frames = 1_000_000 if full else 30_000
    itself = 0
    for _ in range(frames):
        frame = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2))):
            frame = rng.choice(MUTATIONS)(rng, frame) or b"{"
        itself += reader.reads(frame)
    # Neither all nor none: else nothing would have been compared.
    assert frames / 100 < itself < frames / 2


def test_changed_values_get_the_answer_of_python(reader: Reader) -> None:
    rng = random.Random(f"{reader.name} values")
    itself = sum(
        reader.reads(put_in(rng, swap_value(rng, GOOD[reader.name])))
        + reader.reads(swap_value(rng, USUAL[reader.name]))
        for _ in range(10_000)
    )
    assert itself > 500


USUAL = {
    "binance": GOOD["binance"],
    "kraken": GOOD["kraken"].replace(b"1e-8", b"0.00000001").replace(b"7980091+02:00", b"798009Z"),
}


def test_the_usual_frames_are_read_natively(reader: Reader) -> None:
    assert reader.reads(USUAL[reader.name])
    assert reader.reads(b" " + USUAL[reader.name].replace(b",", b" ,\n ") + b"\t\r\n")


def test_a_single_changed_byte_gets_the_answer_of_python(reader: Reader) -> None:
    usual = USUAL[reader.name]
    for at in range(len(usual)):
        for byte in b'\x00\x1f "\\{}[],:.-+eE019tfn\x7f\x80\xff':
            reader.reads(usual[:at] + bytes([byte]) + usual[at + 1 :])
        reader.reads(usual[:at] + usual[at + 1 :])
        reader.reads(usual[:at] + b"0" + usual[at:])
        assert not reader.reads(usual[:at])
        assert not reader.reads(usual + usual[at:])


@pytest.mark.parametrize(
    "value",
    [
        "01", "1.", ".5", "-0", "-1", "1.5", "1e5", "1E-400", "+1", "0x1", "NaN", "Infinity", "1_0",
        "9223372036854775807", "9223372036854775808", "18446744073709551615", "9" * 400,
        f"0.{'1' * 45}", f"0.{'1' * 46}", f"0.{'1' * 47}", "1" * 48, "1" * 49,
        "0", "1", "00", "0.0", "0.10", "10.0", '"1"', '"1.5"', '"1."', '"1e5"', '"-1.5"', '"01.5"',
        '""', '"', "'1'", "true", "false", "True", "null", "nul", "nulll", "truefalse",
        "[]", "{}", "[1,]", '{"a":1,}', '{"a"}', '{1:2}', '[1 2]', "[" * 15 + "]" * 15,
        "[" * 17 + "]" * 17, "[" * 2000 + "]" * 2000, '{"e":"trade"}', '["\\u0041"]', '"\\u0041"',
        '"é"', '"\x7f"', '"\t"', '"buy"', '"BUY"', '"sell"', '"trade"', '"trade "', '"snapshot"',
        f'"{"X" * 64}"', f'"{"X" * 65}"', "99999999999999", "100000000000000",
        "9223372036854775", "9223372036854776", "9223372036854", "1 ", " 1",
        '"2024-02-29T23:59:59.999999Z"', '"2023-02-29T00:00:00.000000Z"',
        '"1969-12-31T23:59:59.999999Z"', '"1970-01-01T00:00:00.000000Z"',
        '"1970-01-01T00:00:00.000001Z"', '"2262-04-11T23:47:16.854775Z"',
        '"2262-04-11T23:47:16.854776Z"', '"2100-02-29T00:00:00.000000Z"',
        '"2000-02-29T00:00:00.000000Z"', '"2024-13-01T00:00:00.000000Z"',
        '"2024-01-32T00:00:00.000000Z"', '"2024-01-00T00:00:00.000000Z"',
        '"2024-01-01T24:00:00.000000Z"', '"2024-01-01T00:60:00.000000Z"',
        '"2024-01-01T00:00:60.000000Z"', '"2024-01-01t00:00:00.000000z"',
        '"2024-01-01T00:00:00,000000Z"', '"2024-01-01T00:00:00.00000Z"',
        '"2024-01-01T00:00:00.-00001Z"', '"0000-01-01T00:00:00.000000Z"',
        '"2024-01-01T00:00:00.000000+"',
    ],
)  # fmt: skip
def test_any_value_under_any_key_gets_the_answer_of_python(reader: Reader, value: str) -> None:
    usual = USUAL[reader.name]
    colons = [at for at, byte in enumerate(usual) if usual[at - 1 : at + 1] == b'":']
    for colon in colons:
        end = next(at for at in range(colon + 1, len(usual)) if usual[at] in b",}")
        reader.reads(usual[: colon + 1] + value.encode() + usual[end:])
        reader.reads(usual[: colon + 1] + b'"' + value.encode() + b'"' + usual[end:])


def test_keys_may_come_in_any_order_and_beside_others(reader: Reader) -> None:
    rng = random.Random("order")
    message = json.loads(USUAL[reader.name], parse_float=Exact)
    for _ in range(500):
        assert reader.reads(write(rng, message).encode())


class Exact(str):
    """The text of a number."""


def write(rng: random.Random, value: Any, depth: int = 0) -> str:
    """JSON of the same meaning, its keys in any order, with others and white space between."""
    space = rng.choice(["", "", " ", "\n\t"])
    if isinstance(value, dict):
        items = [*value.items(), *((f"x{i}", i) for i in range(rng.randrange(3)))]
        rng.shuffle(items)
        pairs = (f'"{key}"{space}:{space}{write(rng, each)}' for key, each in items)
        return f"{{{space}{f'{space},'.join(pairs)}{space}}}"
    if isinstance(value, list):
        return f"[{space}{','.join(write(rng, each) for each in value)}{space}]"
    return value if isinstance(value, Exact) else json.dumps(value)


def test_a_missing_or_doubled_key_is_left_to_python(reader: Reader) -> None:
    def each(message: Any) -> Iterator[dict[str, Any]]:
        yield message
        yield from message["data"] if isinstance(message["data"], list) else [message["data"]]

    message = json.loads(USUAL[reader.name], parse_float=Exact)
    rng = random.Random(0)
    shape = SHAPES[reader.name][0]
    for part in each(message):
        known = shape.frame if part is message else shape.trade
        for key in list(part):
            value = part.pop(key)
            assert reader.reads(write(rng, message).encode()) == (key not in known)
            part[key] = value
            doubled = write(rng, {**part, f"{key}!": value}).replace(f'"{key}!"', f'"{key}"')
            if part is message:
                assert reader.reads(doubled.encode()) == (key not in known)


@LAW
@given(
    trade_id=st.integers(0, MAX_TRADE_ID),
    price=st.decimals(0, 10**20, places=8, allow_nan=False).map(lambda d: format(d, "f")),
    quantity=st.from_regex(r"\A(0|[1-9][0-9]{0,30})\.[0-9]{1,20}\Z"),
    time=st.integers(1, MAX_TIME_US),
    maker=st.booleans(),
    symbol=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=66),
)
def test_a_frame_of_extreme_values_gets_the_answer_of_python(
    trade_id: int, price: str, quantity: str, time: int, maker: bool, symbol: str
) -> None:
    reader = Reader("binance")
    event = {"e": "trade", "s": symbol, "t": trade_id, "p": price, "q": quantity, "T": time}
    frame = json.dumps({"stream": "x@trade", "data": {**event, "m": maker}}).encode()
    usual = 0 < len(symbol) <= MAX_SYMBOL_CHARS and not set(symbol) & set('"\\')
    usual &= max(len(price), len(quantity)) <= MAX_DECIMAL_CHARS
    usual &= time >= 10**14 or time * 1000 <= MAX_TIME_US
    assert reader.reads(frame) == usual


@pytest.mark.parametrize("count", [0, 1, 50, 256, 257, 1000])
def test_a_frame_may_hold_any_number_of_trades(count: int) -> None:
    row = json.loads(USUAL["kraken"], parse_float=Exact)["data"][0]
    rows = [{**row, "trade_id": number} for number in range(count)]
    frame = write(random.Random(1), {"channel": "trade", "type": "snapshot", "data": rows})
    reader = Reader("kraken")
    assert reader.reads(frame.encode()) == (count <= 256)
    assert len(reader.read(frame.encode()).trades) == count


def test_what_is_no_bytes_object_is_left_to_python() -> None:
    seen: list[object] = []

    def otherwise(frame: bytes) -> Decoded:
        seen.append(frame)
        return Decoded(())

    read = native_read(binance._SHAPE, otherwise)
    frames: list[Any] = [bytearray(GOOD["binance"]), "text", None]
    for frame in frames:
        assert read(frame) == Decoded(())
    assert seen == frames


def test_without_the_extension_a_shape_is_read_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "trades", None)
    exchange = load("binance")
    assert exchange.native_reader is None
    assert exchange.decode(USUAL["binance"]).trades


def test_neither_trades_nor_records_are_the_garbage_collectors_business(reader: Reader) -> None:
    decoded = reader.read(USUAL[reader.name])
    ours, _ = encoders()
    made: list[object] = [decoded, decoded.trades, *decoded.trades]
    made += ours.encode(decoded.trades, CANONICAL, 0, 5, 6, 7)
    gc.collect()
    assert not any(map(gc.is_tracked, made))


def test_a_symbol_is_one_object_however_often_it_is_read(reader: Reader) -> None:
    first, again = (reader.read(USUAL[reader.name]).trades[0].symbol for _ in range(2))
    assert first is again


def test_thousands_of_symbols_are_told_apart() -> None:
    reader = Reader("binance")
    for number in [*range(5_000), *range(5_000)]:
        symbol = f"S{number}USDT"
        (trade,) = reader.read(USUAL["binance"].replace(b"BTCUSDT", symbol.encode())).trades
        assert trade.symbol == symbol
    assert not reader.left


def test_a_shape_must_give_every_field_that_a_trade_needs() -> None:
    trade = dict(binance._SHAPE.trade)
    del trade["q"]
    with pytest.raises(ValueError, match="lack quantity"):
        Shape({"data": _shape.ONE_TRADE}, trade)


def test_a_shape_must_say_where_its_trades_are() -> None:
    with pytest.raises(ValueError, match="ONE_TRADE or MANY_TRADES once"):
        Shape({"channel": _shape.only("trade")}, kraken._SHAPE.trade)


@pytest.mark.parametrize(
    "keys",
    [
        {"more": _shape.PRICE},
        {"more": _shape.Key("nonsense", ("buyer_order_id",))},
        {"more": _shape.Key("symbol", ("origin",))},
        {"more": _shape.Key("symbol")},
        {"more": _shape.ONE_TRADE},
        {"more": _shape.one_of({number: {} for number in range(9)})},
        {f"key{number}": _shape.only(number) for number in range(30)},
    ],
)
def test_a_shape_that_makes_no_sense_is_refused_when_the_reader_is_made(
    keys: dict[str, _shape.Key],
) -> None:
    shape = Shape({"data": _shape.ONE_TRADE}, {**binance._SHAPE.trade, **keys})
    with pytest.raises(ValueError, match=r"key|nonsense"):
        shape.reader(binance._decode)


# --- Encoding


@cache
def encoders() -> tuple[TradeEncoder, TradeEncoder]:
    """The native one and the one in Python."""
    with pytest.MonkeyPatch.context() as patch:
        ours = TradeEncoder("binance")
        patch.setattr(native, "trades", None)
        return ours, TradeEncoder("binance")


EDGES = sorted(
    {sign * (1 << bits) + step for bits in range(65) for sign in (1, -1) for step in (-1, 0, 1)}
)
NUMBERS = st.sampled_from(EDGES) | st.integers(-(2**66), 2**66)
PARTS = st.text("0123456789", max_size=24)
DECIMALS = (
    st.builds(lambda a, b: f"{a or 0}.{b}", PARTS, PARTS)
    | st.builds(lambda a, b: f"{a}.{b}", st.integers(0, 10**19), st.integers(0, 10**10))
    | st.from_regex(r"\A(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?\Z")
    | st.sampled_from(["", ".", "1e5", "1.5E-7", "-1.0", "٣.٣", "1.5é", " 1.5", "1" * 49])
)
ANY = NUMBERS | st.none() | st.booleans() | DECIMALS
TRADES = st.builds(
    Trade,
    symbol=st.sampled_from([*CANONICAL, "NONE"]),
    trade_id=st.integers(0, MAX_TRADE_ID) | NUMBERS,
    price=DECIMALS,
    quantity=DECIMALS,
    side=st.sampled_from([BUY, SELL, SELL, 2, -1]),
    time_us=st.integers(0, MAX_AVRO_TIME_US) | NUMBERS,
    is_buyer_maker=st.none() | st.booleans(),
    buyer_order_id=st.none() | NUMBERS,
    seller_order_id=st.none() | NUMBERS,
)


@settings(LAW, max_examples=800)
@given(
    trades=st.lists(TRADES, max_size=3),
    origin=st.sampled_from([0, 1, 2, 3, -1]),
    shared=st.tuples(NUMBERS, NUMBERS, NUMBERS),
)
def test_any_trades_are_encoded_or_refused_as_in_python(
    trades: list[Trade], origin: int, shared: tuple[int, int, int]
) -> None:
    ours, theirs = encoders()
    for _ in range(2):
        given_ = (trades, CANONICAL, origin, *shared)
        assert answer(ours.encode, *given_) == answer(theirs.encode, *given_)


USUAL_TRADE = Trade("BTCUSDT", 3, "61837.63000000", "0.02000000", SELL, 1_723_161_255_342_123, True)


@LAW
@given(number=st.integers(0, 8), value=ANY)
def test_a_field_of_any_value_is_encoded_or_refused_as_in_python(number: int, value: Any) -> None:
    # A text where a number belongs is no case of its own: the types forbid it.
    if isinstance(value, str) != (number in (0, 2, 3)) or (value is None and number < 6):
        return
    trade = USUAL_TRADE._replace(**{Trade._fields[number]: value})
    ours, theirs = encoders()
    arguments = ((trade,), CANONICAL, 0, 5, 6, 7)
    assert answer(ours.encode, *arguments) == answer(theirs.encode, *arguments)


@LAW
@given(
    st.from_regex(r"\A(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?\Z"),
    st.from_regex(r"\A(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?\Z"),
)
def test_products_have_every_digit_that_python_gives_them(price: str, quantity: str) -> None:
    trade = USUAL_TRADE._replace(price=price, quantity=quantity)
    ours, theirs = encoders()
    arguments = ((trade,), CANONICAL, 0, 5, 6, 7)
    assert ours.encode(*arguments) == theirs.encode(*arguments)


FACTORS = [
    *("0", "0.0", "1", "0.1", "10", "9" * 19, "9" * 20, f"{'9' * 9}.{'9' * 10}", "1.0"),
    *(f"0.{'0' * 17}1", f"0.{'0' * 18}1", "1" + "0" * 18, f"1.{'0' * 18}", "4294967296"),
    *("18446744073.709551616", "1844674407370955161.5"),
]


@pytest.mark.parametrize(
    ("price", "quantity"),
    list(itertools.product(FACTORS, FACTORS)),
)
def test_products_at_the_edges_of_machine_words_are_exact(price: str, quantity: str) -> None:
    ours, theirs = encoders()
    trade = USUAL_TRADE._replace(price=price, quantity=quantity)
    assert ours.encode((trade,), CANONICAL, 0, 5, 6, 7) == theirs.encode(
        (trade,), CANONICAL, 0, 5, 6, 7
    )


def test_a_canonical_symbol_of_any_length_is_written() -> None:
    ours, theirs = encoders()
    for length in (1, 63, 64, 1_000, 2_000, 2_100, 100_000):
        names = {"BTCUSDT": "X" * length}
        arguments = ((USUAL_TRADE,), names, 0, 5, 6, 7)
        assert ours.encode(*arguments) == theirs.encode(*arguments)


def test_more_symbols_than_are_kept_are_written_all_the_same() -> None:
    ours, theirs = encoders()
    names = {f"S{number}": f"S/{number}" for number in range(20_001)}
    trades = [USUAL_TRADE._replace(symbol=symbol) for symbol in names]
    arguments = (names, 0, 5, 6, 7)
    assert ours.encode(trades, *arguments) == theirs.encode(trades, *arguments)


def test_a_canonical_symbol_that_can_not_be_written_is_pythons_error() -> None:
    ours, theirs = encoders()
    arguments = ((USUAL_TRADE,), {"BTCUSDT": "\ud800"}, 0, 5, 6, 7)
    assert answer(ours.encode, *arguments) == answer(theirs.encode, *arguments)
    assert "surrogates" in answer(ours.encode, *arguments)


def test_the_records_are_of_the_same_type_and_hold_the_trades_own_symbol() -> None:
    ours, theirs = encoders()
    (one,), (other,) = (
        each.encode((USUAL_TRADE,), CANONICAL, 0, 5, 6, 7) for each in (ours, theirs)
    )
    assert type(one) is type(other)
    assert one.symbol is USUAL_TRADE.symbol


# --- Memory


def growth_bytes(work: Callable[[], object], times: int) -> int:
    """How much more memory is in use after *times* times, past the first ones; what Python keeps
    for the next objects of a kind is not in use."""
    for _ in range(1_000):
        work()
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_what_is_read(reader: Reader) -> None:
    usual, broken = USUAL[reader.name], USUAL[reader.name].replace(b"true}", b"tru}")[:-3] + b"!"
    read = native_read(SHAPES[reader.name][0], lambda _: Decoded(()))

    def work() -> None:
        assert read(usual).trades
        assert not read(broken).trades

    assert growth_bytes(work, 100_000) < 20_000


def test_memory_does_not_grow_with_what_is_encoded() -> None:
    encoder, _ = encoders()
    good, bad = [USUAL_TRADE] * 2, [USUAL_TRADE, USUAL_TRADE._replace(price="x")]

    def work() -> None:
        assert len(encoder.encode(good, CANONICAL, 0, 5, 6, 7)) == 2
        with pytest.raises(ValueError, match="not a decimal"):
            encoder.encode(bad, CANONICAL, 0, 5, 6, 7)

    assert growth_bytes(work, 5_000) < 20_000


def test_memory_does_not_grow_with_readers_and_encoders_made() -> None:
    shape = binance._SHAPE

    def work() -> None:
        native_read(shape, binance._decode)(USUAL["binance"])

    assert growth_bytes(work, 5_000) < 20_000
