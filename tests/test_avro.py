"""The generated encoders write what fastavro writes, byte for byte."""

from __future__ import annotations

import copy
import io
import itertools
import json
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, cast, get_type_hints

import fastavro
import pytest
import trade_twins
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmono import avro, native
from feedmono.avro import (
    MAX_TIME_US,
    SchemaError,
    TradeEncoder,
    decode_records,
    generate_encoder,
    load_schema,
    parse_schema,
)
from feedmono.trade import BUY, MAX_TRADE_ID, NOT_TOLD, ORIGINS, SELL, SIDES, Trade, multiply


@pytest.fixture(params=trade_twins.TWINS, autouse=True)
def _twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    trade_twins.choose(request.param, monkeypatch)


CANONICAL = {"BTCUSDT": "BTC/USDT", "BTC/USD": "BTC/USD", "币安人生USDT": "币安人生/USDT"}
FIRST_TWELVE = 12

INTS = st.integers(-(2**31), 2**31 - 1)
EDGES = [
    sign * (1 << bits) + step for bits in range(63) for sign in (1, -1) for step in (-1, 0, 1)
] + [2**63 - 1, -(2**63)]
LONGS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(EDGES)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["", "x" * 63, "x" * 64, "é" * 32, "x" * 8191, "x" * 8192, "\x00\x7f\x80ÿ"]
)
BYTES = st.binary() | st.sampled_from([bytes(range(256)), bytes(9000)])
SIMPLE: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int": INTS,
    "long": LONGS,
    "string": TEXTS,
    "bytes": BYTES,
}


def fastavro_bytes(schema: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(copy.deepcopy(schema)), value)
    return stream.getvalue()


@st.composite
def typed(draw: st.DrawFn, names: itertools.count[int], depth: int) -> tuple[Any, Any]:
    """A schema of one of the supported kinds and a value of it."""
    kinds = [*SIMPLE, "time", "enum", "union"] + (["record", "record"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "time":
        logical = draw(st.sampled_from(["timestamp-millis", "timestamp-micros"]))
        return {"type": "long", "logicalType": logical}, draw(LONGS)
    if kind == "enum":
        symbols = draw(st.lists(st.from_regex(r"\A[A-Z_]{1,4}\Z"), min_size=1, unique=True))
        schema = {"type": "enum", "name": f"E{next(names)}", "symbols": symbols}
        return schema, draw(st.sampled_from(symbols))
    if kind == "union":
        inner, value = draw(typed(names, depth).filter(lambda t: not isinstance(t[0], list)))
        return ["null", inner], draw(st.sampled_from([None, value]))
    if kind == "record":
        return draw(records(names, depth - 1))
    return kind, draw(SIMPLE[kind])


@st.composite
def records(draw: st.DrawFn, names: itertools.count[int], depth: int) -> tuple[Any, Any]:
    fields = draw(st.lists(typed(names, depth), min_size=1, max_size=6))
    schema = {
        "type": "record",
        "name": f"R{next(names)}",
        "fields": [{"name": f"f{i}", "type": inner} for i, (inner, _) in enumerate(fields)],
    }
    return schema, {f"f{i}": value for i, (_, value) in enumerate(fields)}


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.builds(itertools.count).flatmap(lambda names: typed(names, 3)))
def test_a_generated_encoder_writes_what_fastavro_writes(pair: tuple[Any, Any]) -> None:
    schema, value = pair
    assert generate_encoder(schema)(value) == fastavro_bytes(schema, value)


def values_of(schema: Any) -> st.SearchStrategy[Any]:
    if isinstance(schema, list):
        return st.none() | values_of(schema[1])
    if isinstance(schema, str):
        return SIMPLE[schema]
    if schema["type"] == "enum":
        return st.sampled_from(schema["symbols"])
    if schema["type"] == "record":
        return st.fixed_dictionaries({f["name"]: values_of(f["type"]) for f in schema["fields"]})
    return SIMPLE[schema["type"]]


@pytest.mark.parametrize("name", ["trade", "raw", "dead"])
def test_the_schemas_of_feedmono_are_encoded_as_fastavro_does_at_all_extremes(name: str) -> None:
    schema = load_schema(name)
    encoder = generate_encoder(schema)

    @settings(derandomize=True, max_examples=150, deadline=None)
    @given(values_of(schema))
    def check(value: Any) -> None:
        assert encoder(value) == fastavro_bytes(schema, value)

    check()


@pytest.mark.parametrize("logical", [None, "timestamp-millis", "timestamp-micros"])
def test_longs_at_the_edges_of_all_their_lengths(logical: str | None) -> None:
    schema = {"type": "long", "logicalType": logical} if logical else "long"
    encoder = generate_encoder(schema)
    for value in EDGES:
        assert encoder(value) == fastavro_bytes(schema, value)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 8191, 8192, 1 << 20, (1 << 20) - 1])
def test_texts_and_bytes_at_the_edges_of_their_lengths(length: int) -> None:
    assert generate_encoder("string")("x" * length) == fastavro_bytes("string", "x" * length)
    assert generate_encoder("bytes")(bytes(length)) == fastavro_bytes("bytes", bytes(length))


def test_the_tables_are_the_same_whether_made_at_once_or_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for entry in (avro._more, avro._last):
        monkeypatch.setattr(native, "trades", None)
        table = avro._table(entry)
        assert isinstance(table, tuple)
        monkeypatch.setattr(native, "trades", object())
        growing = avro._table(entry)
        assert table == tuple(growing[k] for k in range(len(table)))
        assert table == tuple(growing[k] for k in range(len(table))), "the second look as well"


def test_a_growing_table_keeps_no_more_than_its_limit() -> None:
    table = avro._Growing(avro._varint, 8)
    for k in range(1 << 14, (1 << 14) + 100):
        assert table[k] == table[k] == avro._varint(k)
        assert len(table) <= 8


def test_an_enum_takes_its_symbol_or_its_index() -> None:
    encoder = generate_encoder({"type": "enum", "name": "Side", "symbols": ["BUY", "SELL"]})
    assert encoder("SELL") == encoder(1) == b"\x02"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ("long", 2**63),
        ("long", -(2**63) - 1),
        ({"type": "long", "logicalType": "timestamp-micros"}, 2**70),
        ("int", 2**31),
        ("int", -(2**31) - 1),
        ("string", "\ud800"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, "B"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, 1),
    ],
)
def test_a_value_that_the_schema_can_not_hold_is_a_value_error(schema: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"fit|Avro|surrogates"):
        generate_encoder(schema)(value)


def record(*fields: Any) -> dict[str, Any]:
    named = [{"name": f"f{i}", "type": field} for i, field in enumerate(fields)]
    return {"type": "record", "name": "R", "fields": named}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (record("long", "double"), 'f1: Avro type "double" is not supported'),
        (record({"type": "array", "items": "long"}), 'f0: Avro type "array" is not supported'),
        (record({"type": "fixed", "name": "F", "size": 4}), "fixed"),
        (record(["null", "long", "string"]), "f0: the union .* is not supported"),
        (record(["long", "null"]), "f0: the union .* is not supported"),
        (record(["null", "R"]), "holds itself"),
        (record("nonsense"), "not an Avro schema"),
        ({"type": "record"}, "not an Avro schema"),
        (17, "not an Avro schema"),
    ],
)
def test_an_unsupported_schema_is_refused_when_the_encoder_is_made(
    schema: Any, message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        generate_encoder(schema)


def test_a_named_type_may_be_used_twice() -> None:
    enum = {"type": "enum", "name": "E", "symbols": ["A", "B"]}
    schema = record(enum, "E", ["null", "E"])
    value = {"f0": "B", "f1": "A", "f2": "B"}
    assert generate_encoder(schema)(value) == fastavro_bytes(schema, value)


DIGITS = st.integers(0, 10**18).map(str)
DECIMALS = st.builds(lambda a, b: f"{a}.{b}", DIGITS, DIGITS) | DIGITS | st.just("1.5e-7")
TRADES = st.builds(
    Trade,
    symbol=st.sampled_from(sorted(CANONICAL)),
    trade_id=st.integers(0, MAX_TRADE_ID),
    price=DECIMALS,
    quantity=DECIMALS,
    side=st.sampled_from([BUY, SELL]),
    time_us=st.integers(0, MAX_TIME_US - 1),
    is_buyer_maker=st.none() | st.booleans(),
    buyer_order_id=st.none() | LONGS,
    seller_order_id=st.none() | LONGS,
)


def normalized(
    trade: Trade, exchange: str, origin: int, received_ns: int, sequence: int, now_ms: int
) -> dict[str, Any]:
    """The record as interface.md has it, written down once more."""
    return {
        "schema_version": "1.1.0",
        "exchange": exchange,
        "symbol": trade.symbol,
        "canonical_symbol": CANONICAL[trade.symbol],
        "trade_id": str(trade.trade_id),
        "price": trade.price,
        "quantity": trade.quantity,
        "quote_volume": multiply(trade.price, trade.quantity),
        "side": SIDES[trade.side],
        "timestamp": now_ms,
        "exchange_timestamp": trade.time_us // 1000,
        "metadata": {
            "sequence_number": trade.trade_id,
            **{name: getattr(trade, name) for name in Trade._field_defaults},
        },
        "exchange_timestamp_us": trade.time_us,
        "received_timestamp_us": received_ns // 1000,
        "origin": ORIGINS[origin],
        "frame_sequence": sequence,
    }


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    trades=st.lists(TRADES, max_size=4),
    origin=st.sampled_from(range(len(ORIGINS))),
    received_ns=st.integers(0, 2**63 - 1),
    sequence=LONGS,
    now_ms=st.integers(0, MAX_TIME_US // 1000),
)
def test_trades_are_encoded_as_fastavro_would_encode_their_records(
    trades: list[Trade], origin: int, received_ns: int, sequence: int, now_ms: int
) -> None:
    encoder, schema = TradeEncoder("binance"), load_schema("trade")
    for _ in range(2):  # from the cache of constant parts as well
        encoded = encoder.encode(trades, CANONICAL, origin, received_ns, sequence, now_ms)
        assert [e.symbol for e in encoded] == [t.symbol for t in trades]
        assert [e.body for e in encoded] == [
            fastavro_bytes(schema, normalized(t, "binance", origin, received_ns, sequence, now_ms))
            for t in trades
        ]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(TRADES)
def test_a_reader_that_only_knows_the_first_twelve_fields_reads_every_trade(trade: Trade) -> None:
    schema = load_schema("trade")
    old = {**schema, "fields": schema["fields"][:FIRST_TWELVE]}
    (encoded,) = TradeEncoder("kraken").encode([trade], CANONICAL, 2, 5, 6, 7)
    read = fastavro.schemaless_reader(
        io.BytesIO(encoded.body), fastavro.parse_schema(schema), fastavro.parse_schema(old)
    )
    assert isinstance(read, dict)
    assert list(read) == [field["name"] for field in schema["fields"][:FIRST_TWELVE]]
    assert (read["trade_id"], read["price"]) == (str(trade.trade_id), trade.price)
    assert read["metadata"]["sequence_number"] == trade.trade_id


TRADE = Trade("BTCUSDT", 17, "2688.30", "0.0001", SELL, 1_795_392_281_123_456, True)


def encode(trade: Trade, canonical: Mapping[str, str] = CANONICAL) -> bytes:
    (encoded,) = TradeEncoder("binance").encode([trade], canonical, 0, 1, 2, 3)
    return encoded.body


@pytest.mark.parametrize(
    "bad",
    [
        TRADE._replace(price="1.2.3"),
        TRADE._replace(quantity="-1"),
        TRADE._replace(time_us=-1),
        TRADE._replace(time_us=MAX_TIME_US),
        TRADE._replace(trade_id=2**63),
        TRADE._replace(side=2),
        TRADE._replace(buyer_order_id=2**63),
    ],
)
def test_a_trade_that_can_not_be_stored_is_named_by_symbol_and_id(bad: Trade) -> None:
    with pytest.raises(ValueError, match=f"trade {bad.trade_id} of BTCUSDT: "):
        encode(bad)


def test_times_are_read_back_by_fastavro_up_to_the_last_one_that_is_taken() -> None:
    schema = parse_schema(json.dumps(load_schema("trade")))
    (read,) = decode_records(schema, encode(TRADE._replace(time_us=MAX_TIME_US - 1)), 1)
    assert read["exchange_timestamp_us"].isoformat() == "9999-12-31T23:59:59.999999+00:00"


def test_another_canonical_symbol_takes_effect_at_once() -> None:
    encoder = TradeEncoder("binance")
    bodies = [
        encoder.encode([TRADE], {"BTCUSDT": name}, 0, 1, 2, 3)[0].body
        for name in ("BTC/USDT", "XBT/USDT")
    ]
    assert b"BTC/USDT" in bodies[0]
    assert b"XBT/USDT" in bodies[1]


def test_a_field_that_no_code_fills_is_an_error_at_the_start() -> None:
    schema = load_schema("trade")
    schema["fields"].append({"name": "fee", "type": "string", "default": ""})
    with pytest.raises(SchemaError, match="a field that no code fills: fee"):
        TradeEncoder("binance", schema)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.append({"name": "fee", "type": ["null", "long"]}), "fee"),
        (lambda fields: fields.pop(1), "the trade schema lacks metadata.is_buyer_maker"),
        (
            lambda fields: fields[1].update(type=["null", "long"]),
            r"metadata.is_buyer_maker: it says null\|long, the code null\|boolean",
        ),
    ],
)
def test_the_metadata_are_exactly_what_a_trade_may_lack(
    change: Callable[[list[Any]], object], message: str
) -> None:
    schema = load_schema("trade")
    change(metadata_of(schema))
    with pytest.raises(SchemaError, match=message):
        TradeEncoder("binance", schema)


def metadata_of(schema: Any) -> list[Any]:
    """The fields of the trade schema's metadata."""
    by_name = {field["name"]: field for field in schema["fields"]}
    fields: list[Any] = by_name["metadata"]["type"][1]["fields"]
    return fields


@pytest.mark.parametrize(
    ("hint", "avro_type", "values"),
    [
        (bool | None, "boolean", [True, False, None]),
        (int | None, "long", [0, -1, 2**63 - 1, None]),
        (str | None, "string", ["", "block", "é" * 9000, "x" * 9000, None]),
    ],
)
def test_a_further_field_that_a_trade_may_lack_is_encoded_by_its_type(
    hint: Any, avro_type: str, values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    further = with_a_further_field(hint, monkeypatch)
    schema = load_schema("trade")
    metadata_of(schema).append({"name": "extra", "type": ["null", avro_type], "default": None})
    encoder = TradeEncoder("binance", schema)
    expected = [normalized(TRADE, "binance", 0, 1, 2, 3) for _ in values]
    for record, value in zip(expected, values, strict=True):
        record["metadata"]["extra"] = value
    trades = cast("list[Trade]", [further(*TRADE, value) for value in values])
    bodies = [each.body for each in encoder.encode(trades, CANONICAL, 0, 1, 2, 3)]
    assert bodies == [fastavro_bytes(schema, record) for record in expected]


def test_a_field_that_can_not_be_encoded_is_an_error_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_a_further_field(float | None, monkeypatch)
    schema = load_schema("trade")
    metadata_of(schema).append({"name": "extra", "type": ["null", "double"], "default": None})
    with pytest.raises(SchemaError, match=r"it says null\|double, the code float \| None"):
        TradeEncoder("binance", schema)


def with_a_further_field(hint: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the encoders made for trades that may have an ``extra`` as well; the type of those."""
    further = namedtuple("further", [*Trade._fields, "extra"], defaults=[*NOT_TOLD, None])  # type: ignore[misc]
    further.__annotations__ = {**get_type_hints(Trade), "extra": hint}
    monkeypatch.setattr(avro, "Trade", further)
    monkeypatch.setattr(avro, "_VALUES", (*further._fields, *avro._SHARED))
    monkeypatch.setattr(avro, "_FIELDS", {**avro._FIELDS, **avro._optional(further)})
    return further


def test_a_field_of_another_type_than_the_code_gives_is_an_error_at_the_start() -> None:
    schema = load_schema("trade")
    by_name = {field["name"]: field for field in schema["fields"]}
    by_name["exchange_timestamp_us"]["type"]["logicalType"] = "timestamp-millis"
    with pytest.raises(SchemaError, match="exchange_timestamp_us: it says long/timestamp-millis"):
        TradeEncoder("binance", schema)


def test_an_enum_in_another_order_is_an_error_at_the_start() -> None:
    schema = load_schema("trade")
    by_name = {field["name"]: field for field in schema["fields"]}
    by_name["side"]["type"]["symbols"] = ["SELL", "BUY"]
    with pytest.raises(SchemaError, match="side: it says enum SELL BUY"):
        TradeEncoder("binance", schema)


def test_a_missing_field_is_an_error_at_the_start() -> None:
    schema = load_schema("trade")
    schema["fields"] = [field for field in schema["fields"] if field["name"] != "origin"]
    with pytest.raises(SchemaError, match="lacks origin"):
        TradeEncoder("binance", schema)


def test_a_symbols_constant_fields_must_come_first() -> None:
    schema = load_schema("trade")
    schema["fields"].insert(0, schema["fields"].pop(4))
    with pytest.raises(SchemaError, match="must be its first fields"):
        TradeEncoder("binance", schema)


@pytest.mark.parametrize("change", [b"", b"\x00", b"\xff" * 12])
def test_records_that_do_not_fill_their_bytes_exactly_are_an_error(change: bytes) -> None:
    schema = parse_schema(
        '{"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"}]}'
    )
    with pytest.raises(ValueError, match="Avro records"):
        decode_records(schema, b"\x02" + change, 2 if not change else 1)
