"""Kraken: frames to trades, metadata."""

from __future__ import annotations

import json
import math
from urllib.parse import parse_qs, urlsplit

import pytest
import trade_twins
from sessions import START_S, frame, recorded

from feedmono.exchanges.base import (
    Data,
    Market,
    PageRequest,
    Refusal,
    Session,
    Undecodable,
    Unknown,
)
from feedmono.exchanges.kraken import Kraken
from feedmono.trade import BACKFILL, BUY, MAX_TIME_US, SELL, SNAPSHOT, STREAM, Trade

KRAKEN = Kraken()
ROW = (
    '{"symbol":"BTC/USD","side":"buy","price":68500.0,"qty":0.01044926,"ord_type":"limit",'
    '"trade_id":70635299,"timestamp":"2024-05-27T12:43:11.798009Z"}'
)
TRADE = Trade("BTC/USD", 70_635_299, "68500.0", "0.01044926", BUY, 1_716_813_791_798_009)


@pytest.fixture(params=trade_twins.TWINS, autouse=True)
def _twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    trade_twins.choose(request.param, monkeypatch)
    monkeypatch.setitem(globals(), "KRAKEN", Kraken())


def row(**changes: str) -> str:
    """A trade with other fields, given as JSON; an empty text takes a field away."""
    fields = {key: json.dumps(value) for key, value in json.loads(ROW).items()}
    fields |= {"price": "68500.0", "qty": "0.01044926"} | changes
    return "{" + ",".join(f'"{key}":{text}' for key, text in fields.items() if text) + "}"


def message(*rows: str, kind: str = "update") -> bytes:
    return f'{{"channel":"trade","type":"{kind}","data":[{",".join(rows)}]}}'.encode()


def only(data: bytes) -> Trade:
    decoded = KRAKEN.decode(data)
    assert decoded.problems == ()
    (trade,) = decoded.trades
    return trade


def session(*symbols: str) -> Session:
    return KRAKEN.session(symbols)


# --- Frames


def test_every_recorded_trade_is_read_with_its_exact_text() -> None:
    snapshot, update = recorded("kraken-v2-trade.jsonl")
    for data, origin in ((snapshot, SNAPSHOT), (update, STREAM)):
        assert KRAKEN.is_data(data)
        decoded = KRAKEN.decode(data)
        assert (decoded.origin, decoded.problems) == (origin, ())
        rows = json.loads(data, parse_float=str)["data"]
        assert [
            (t.symbol, ["buy", "sell"][t.side], t.price, t.quantity, t.trade_id)
            for t in decoded.trades
        ] == [(r["symbol"], r["side"], r["price"], r["qty"], r["trade_id"]) for r in rows]
    assert [trade.time_us for trade in KRAKEN.decode(snapshot).trades] == [
        1_716_813_190_826_003,
        1_716_813_190_980_704,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "2688.30",
        "0.00010000",
        "68500.0",
        "68500",
        "1e-8",
        "1.50E+3",
        "0",
        "0.0",
        "123456789.12345678",
    ],
)
def test_a_number_keeps_its_digits_zeros_and_exponent(text: str) -> None:
    trade = only(message(row(price=text, qty=f" {text} ")))
    assert (trade.price, trade.quantity) == (text, text)
    assert only(message(row(price=f'"{text}"'))).price == text


def test_a_frame_of_several_trades_gives_all_of_them_in_order() -> None:
    rows = [
        row(trade_id=str(number), side=f'"{side}"') for number in range(735) for side in ("buy",)
    ]
    rows[7] = row(trade_id="7", side='"sell"', symbol='"ETH/USD"')
    trades = KRAKEN.decode(message(*rows)).trades
    assert [trade.trade_id for trade in trades] == list(range(735))
    assert [trade.trade_id for trade in trades if trade.side == SELL] == [7]
    assert trades[7].symbol == "ETH/USD"


@pytest.mark.parametrize(
    ("timestamp", "time_us"),
    [
        ("2024-05-27T12:43:11.798009Z", 1_716_813_791_798_009),
        ("2024-05-27T12:43:11Z", 1_716_813_791_000_000),
        ("2024-05-27T12:43:11.7Z", 1_716_813_791_700_000),
        ("2024-05-27T12:43:11.000001Z", 1_716_813_791_000_001),
        ("2024-05-27T12:43:11.7980099Z", 1_716_813_791_798_009),
        ("2024-05-27T12:43:11.999999999Z", 1_716_813_791_999_999),
        ("2024-05-27t12:43:11.798009z", 1_716_813_791_798_009),
        ("2024-05-27T14:43:11.798009+02:00", 1_716_813_791_798_009),
        ("2024-05-27T07:13:11.798009-05:30", 1_716_813_791_798_009),
        ("2024-05-28T00:13:11.798009+11:30", 1_716_813_791_798_009),
        ("2024-02-29T00:00:00.000000Z", 1_709_164_800_000_000),
        ("2016-12-31T23:59:60.500000Z", 1_483_228_800_500_000),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("2262-04-11T23:47:16.854775Z", MAX_TIME_US),
    ],
)
def test_times_are_read_to_the_microsecond(timestamp: str, time_us: int) -> None:
    assert only(message(row(timestamp=f'"{timestamp}"'))).time_us == time_us


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        "now",
        "2024-05-27",
        "2024-05-27 12:43:11.798009Z",
        "2024-05-27T12:43:11.798009",
        "2024-05-27T12:43:11.Z",
        "2024-05-27T12:43:11.1234567890Z",
        "2024-02-30T12:43:11.798009Z",
        "2023-02-29T12:43:11.798009Z",
        "2024-13-27T12:43:11.798009Z",
        "2024-05-27T24:00:00.000000Z",
        "2024-05-27T12:60:11.798009Z",
        "2024-05-27T12:43:61.798009Z",
        "2024-05-27T12:43:75.798009Z",
        "2024-05-27T12:43:+1.798009Z",
        "2024-05-27T12:43:11.+98009Z",
        "2024-05-27T12:43:11.79_009Z",
        "2024-05-27T12:43:1٣.798009Z",
        "2024-05-27T12:43:11.798009+24:00",
        "2024-05-27T12:43:11.798009+02:60",
        "0000-05-27T12:43:11.798009Z",
        "1970-01-01T00:00:00.000000Z",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00.000001+00:01",
        "2262-04-11T23:47:16.854776Z",
        "9999-12-31T23:59:59.999999Z",
        "２024-05-27T12:43:11.798009Z",
    ],
)
def test_what_is_no_time_of_a_trade_is_told(timestamp: str) -> None:
    with pytest.raises(Undecodable, match="timestamp"):
        KRAKEN.decode(message(row(timestamp=json.dumps(timestamp))))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"symbol": '""'}, "symbol"),
        ({"symbol": '"BTC\\u0000"'}, "symbol"),
        ({"symbol": "5"}, "symbol"),
        ({"side": '"BUY"'}, "side of a trade of BTC/USD"),
        ({"side": "null"}, "side"),
        ({"price": "-1.0"}, "price of a trade of BTC/USD"),
        ({"price": "1e400"}, "price"),
        ({"price": "1" * 5000}, "price"),
        ({"price": '"1,5"'}, "price"),
        ({"price": '"٣"'}, "ascii"),
        ({"price": "null"}, "price"),
        ({"price": ""}, "price"),
        ({"qty": "[1]"}, "qty of a trade of BTC/USD"),
        ({"qty": "{}"}, "qty"),
        ({"qty": "true"}, "qty"),
        ({"trade_id": "-1"}, "trade_id of a trade of BTC/USD"),
        ({"trade_id": str(2**63)}, "trade_id"),
        ({"trade_id": "1" * 4000}, "trade_id"),
        ({"trade_id": "1" * 5000}, "trade_id|Integer"),
        ({"trade_id": "true"}, "trade_id"),
        ({"trade_id": "1.0"}, "trade_id"),
        ({"trade_id": '"1"'}, "trade_id"),
        ({"trade_id": ""}, "trade_id"),
        ({"timestamp": "1716813791798009"}, "timestamp"),
        ({"timestamp": ""}, "timestamp"),
    ],
)
def test_a_malformed_trade_costs_only_itself(changes: dict[str, str], reason: str) -> None:
    bad = row(**changes)
    decoded = KRAKEN.decode(message(row(trade_id="1"), bad, row(trade_id="3"), kind="snapshot"))
    assert [trade.trade_id for trade in decoded.trades] == [1, 3]
    assert decoded.origin == SNAPSHOT
    (problem,) = decoded.problems
    assert problem.startswith("trade 2 of 3: ")
    with pytest.raises(Undecodable, match=reason) as told:
        KRAKEN.decode(message(bad))
    assert len(str(told.value)) < 300


def test_the_largest_trade_id_and_every_unknown_field_are_accepted() -> None:
    data = message(row(trade_id=str(2**63 - 1), extra="1e999", more='[{"a":null}]'))
    assert only(data).trade_id == 2**63 - 1


@pytest.mark.parametrize("number", [0, 2**63 - 1])
@pytest.mark.parametrize("price", ["68500.0", "6.85e4"])
def test_every_trade_id_of_63_bits_is_read_however_the_price_is_written(
    number: int, price: str
) -> None:
    assert only(message(row(trade_id=str(number), price=price))).trade_id == number


@pytest.mark.parametrize("number", [-1, 2**63])
def test_no_other_trade_id_is_read(number: int) -> None:
    with pytest.raises(Undecodable):
        KRAKEN.decode(message(row(trade_id=str(number), price="6.85e4")))


def test_a_frame_of_a_thousand_bad_trades_gives_a_short_reason() -> None:
    with pytest.raises(Undecodable, match="and 980 more") as told:
        KRAKEN.decode(message(*["1"] * 1000))
    assert len(str(told.value)) < 5000


def test_a_new_type_of_message_keeps_its_trades() -> None:
    decoded = KRAKEN.decode(message(ROW, kind="correction"))
    assert (list(decoded.trades), decoded.origin) == ([TRADE], STREAM)
    assert len(decoded.problems) == 1


def test_the_snapshot_of_a_market_without_trades_is_empty_and_no_problem() -> None:
    assert KRAKEN.decode(message(kind="snapshot")) == ((), SNAPSHOT, ())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"null",
        b"[]",
        b'{"channel":"trade"}',
        b'{"channel":"trade","type":"update","data":null}',
        b'{"channel":"trade","type":"update","data":{}}',
        b'{"channel":"trade","type":"update","data":[null]}',
        b'{"channel":"ticker","type":"update","data":[' + ROW.encode() + b"]}",
        b'{"type":"update","data":[' + ROW.encode() + b"]}",
        message(ROW)[:-1],
        message(ROW).replace(b"BTC", b"\xff\xfe"),
        message(ROW).replace(b"BTC", b"\\ud800"),
        b'{"channel":"trade","data":' + b"[" * 1_000_000,
        b"[" * 10_000_000,
        b'{"a":' * 1_000_000,
    ],
)
def test_what_is_no_trade_at_all_is_undecodable_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(Undecodable):
        KRAKEN.decode(data)
    assert all(isinstance(e, (Unknown, Data)) for e in session("BTC/USD").receive(data, START_S))


# --- Which frames are data


def test_the_fast_test_takes_trades_only() -> None:
    assert KRAKEN.is_data(message(ROW))
    for data in [*recorded("kraken-v2-control.jsonl"), *recorded("kraken-v2-errors.jsonl")]:
        assert not KRAKEN.is_data(data)
    assert not KRAKEN.is_data(b"")
    assert not KRAKEN.is_data(b'{"channel":"trad')


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"update","channel":"trade","data":[]}',
        b'{ "channel": "trade", "data": "nothing" }',
        b'{"data":[{"price":1e400}],"channel":"trade"}',
    ],
)
def test_trades_that_are_written_otherwise_are_data_by_the_slow_way(data: bytes) -> None:
    assert not KRAKEN.is_data(data)
    assert session("BTC/USD").receive(data, START_S) == (Data(),)


# --- Metadata and limits


def test_canonical_symbols_come_from_wsname_with_the_new_names_of_assets() -> None:
    result = {
        "XXBTZUSD": {"altname": "XBTUSD", "wsname": "XBT/USD", "base": "XXBT", "quote": "ZUSD"},
        "XDGUSD": {"altname": "XDGUSD", "wsname": "XDG/USD"},
        "XETHXXBT": {"altname": "ETHXBT", "wsname": "ETH/XBT"},
        "WXBTUSD": {"wsname": "WXBT/USD"},
        "AAPLxUSD": {"wsname": "AAPLx/USD"},
        "XBTUSD.d": {"altname": "XBTUSD.d", "base": "XXBT"},
        "ODD": {"wsname": "A/B/C"},
        "HALF": {"wsname": "A/"},
    }
    # As answers name it.
    rest_names = {
        "BTC/USD": "XXBTZUSD",
        "DOGE/USD": "XDGUSD",
        "ETH/BTC": "XETHXXBT",
        "WXBT/USD": "WXBTUSD",
        "AAPLx/USD": "AAPLxUSD",
    }
    assert KRAKEN.read_metadata(frame({"error": [], "result": result})) == {
        symbol: Market(symbol, rest_name) for symbol, rest_name in rest_names.items()
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b"[]",
        b'{"error":["EGeneral:Too many requests"]}',
        b'{"error":["EService:Unavailable"],"result":{"X":{"wsname":"A/B"}}}',
        b'{"error":[],"result":{}}',
        b'{"error":[],"result":{"X":{"altname":"XBTUSD"}}}',
        b'{"error":[],"result":[' + b"[" * 100_000,
        b'{"error":[],"result":{"X":{"wsname":"\xff"}}}',
    ],
)
def test_another_answer_is_not_taken_for_metadata(body: bytes) -> None:
    with pytest.raises(ValueError, match="AssetPairs"):
        KRAKEN.read_metadata(body)


def test_the_limits_are_the_documented_ones() -> None:
    limits = KRAKEN.limits
    assert (limits.connections, limits.connections_window_s) == (150, 600.0)
    assert limits.connection_age_s == math.inf
    assert limits.rest_weight / limits.rest_window_s == 1.0
    assert (limits.metadata_weight, limits.page_weight, limits.page_rows) == (1, 1, 1000)
    assert KRAKEN.metadata_path == "/0/public/AssetPairs"


# --- Pages

PAGE_ROW = '["68500.0","0.01044926",1716813791.7980099,"b","l","",70635299]'


def page(*rows: str, name: str = "XXBTZUSD", error: str = "") -> bytes:
    result = f'{{"{name}":[{",".join(rows)}],"last":"1716813791798009999"}}'
    return f'{{"error":[{error}],"result":{result}}}'.encode()


def page_row(**changes: str) -> str:
    """A row with other elements, given as JSON."""
    names = "price", "volume", "time", "side", "kind", "misc", "trade_id"
    texts = '"68500.0"', '"0.01044926"', "1716813791.7980099", '"b"', '"l"', '""', "70635299"
    return f"[{','.join((dict(zip(names, texts, strict=True)) | changes).values())}]"


def test_a_page_is_asked_for_from_a_microsecond_before_its_first_trade() -> None:
    wish = PageRequest("BTC/USD", 12, 1_716_813_791_798_009, 700, False)
    url = urlsplit(KRAKEN.page_path(wish, "XBT/U&D"))
    assert url.path == "/0/public/Trades"
    since = "1716813791798008000"
    assert parse_qs(url.query) == {"pair": ["XBT/U&D"], "since": [since], "count": ["700"]}
    assert not KRAKEN.pages_by_id


@pytest.mark.parametrize(
    ("rows", "since_us", "tail"),
    [
        (5000, 0, "since=0&count=1000"),
        (0, -7, "since=0&count=1"),
        (10, 1, "since=0&count=10"),
        (1000, 2, "since=1000&count=1000"),
    ],
)
def test_a_page_is_asked_for_within_bounds(rows: int, since_us: int, tail: str) -> None:
    wish = PageRequest("BTC/USD", 1, since_us, rows, True)
    assert KRAKEN.page_path(wish, "XBTUSD").endswith(tail)


@pytest.mark.parametrize("name", ["XXBTZUSD", "XBTUSD", "anything", "币"])
def test_a_page_gives_the_same_trades_as_the_stream(name: str) -> None:
    rows = PAGE_ROW, page_row(side='"s"', trade_id="70635300", price="2688.30", volume="1e-8")
    sold = TRADE._replace(trade_id=70_635_300, price="2688.30", quantity="1e-8", side=SELL)
    assert KRAKEN.decode_page("BTC/USD", page(*rows, name=name)) == ((TRADE, sold), BACKFILL, ())
    assert KRAKEN.decode_page("BTC/USD", page(name=name)) == ((), BACKFILL, ())


@pytest.mark.parametrize(
    ("body", "is_it"),
    [
        (page(PAGE_ROW), True),
        (page(), True),
        (b'{"error":[],"result":{"last":"0","XXBTZUSD":[]}}', True),
        (b'{"result":{"XXBTZUSD":[]}}', True),
        (page(PAGE_ROW, name="XBTUSD"), False),
        (page(PAGE_ROW, name="XETHZUSD"), False),
        (page(name="XETHZUSD"), False),
        (b'{"error":[],"result":{"XXBTZUSD":[],"XETHZUSD":[],"last":"0"}}', False),
        (b'{"error":[],"result":{"last":"0"}}', False),
        (b"{}", False),
        # No page at all: `decode_page` says why.
        (b"", True),
        (b"<html>", True),
        (b"[" * 100_000, True),
        (b'{"error":[],"result":{"\xff":[]}}', True),
    ],
)
def test_a_page_tells_of_which_market_it_is(body: bytes, is_it: bool) -> None:
    assert KRAKEN.is_page_of(body, "XXBTZUSD") is is_it


@pytest.mark.parametrize(
    ("time", "time_us"),
    [
        ("1716813791.7980099", 1_716_813_791_798_009),
        ("1716813791.7980090", 1_716_813_791_798_009),
        ("1716813791.798009", 1_716_813_791_798_009),
        ("1716813791.7", 1_716_813_791_700_000),
        ("1716813791.0", 1_716_813_791_000_000),
        ("1716813791", 1_716_813_791_000_000),
        ("1716813791.9999999", 1_716_813_791_999_999),
        ("1716813791.99999999999999999999999999999999999", 1_716_813_791_999_999),
        ("1.7168137917980099e9", 1_716_813_791_798_009),
        ('"1716813791.7980099"', 1_716_813_791_798_009),
        ("0.000001", 1),
        ("9223372036.854775", MAX_TIME_US),
        ("9223372036.8547759", MAX_TIME_US),
    ],
)
def test_the_times_of_a_page_are_cut_to_the_microsecond(time: str, time_us: int) -> None:
    (trade,) = KRAKEN.decode_page("BTC/USD", page(page_row(time=time))).trades
    assert trade.time_us == time_us


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"price": '"-1.0"'}, "price is no decimal"),
        ({"price": '"1,5"'}, "price is no decimal"),
        ({"price": "null"}, "price is no decimal"),
        ({"price": '"٣"'}, "ascii"),
        ({"volume": "[1]"}, "volume is no decimal"),
        ({"volume": "1e400"}, "volume is no decimal"),
        ({"time": "0"}, "before 1970 or after 2262"),
        ({"time": "0.0000009"}, "before 1970 or after 2262"),
        ({"time": "-1716813791.7"}, "time is no decimal"),
        ({"time": "9223372036.854776"}, "before 1970 or after 2262"),
        ({"time": "1e99"}, "before 1970 or after 2262"),
        ({"time": "1" * 49}, "time is no decimal"),
        ({"time": "true"}, "time is no decimal"),
        ({"side": '"buy"'}, "side is neither b nor s"),
        ({"side": "null"}, "str"),
        ({"trade_id": "-1"}, "int"),
        ({"trade_id": str(2**63)}, "int"),
        ({"trade_id": "1.5"}, "int"),
        ({"trade_id": "true"}, "int"),
        ({"trade_id": '"7"'}, "int"),
        ({"trade_id": "9" * 5000}, "int|Integer|Number"),
    ],
)
def test_a_malformed_row_costs_only_itself(changes: dict[str, str], reason: str) -> None:
    rows = page_row(trade_id="1"), page_row(**changes), page_row(trade_id="3")
    decoded = KRAKEN.decode_page("BTC/USD", page(*rows))
    assert [trade.trade_id for trade in decoded.trades] == [1, 3]
    (problem,) = decoded.problems
    assert problem.startswith("trade 2 of 3: ")
    with pytest.raises(Undecodable, match=reason) as told:
        KRAKEN.decode_page("BTC/USD", page(rows[1]))
    assert len(str(told.value)) < 300


def test_a_row_may_get_more_elements_but_not_fewer() -> None:
    longer, shorter = page_row(more='"x",1e999'), '["68500.0","0.1",1.5,"b","l",""]'
    decoded = KRAKEN.decode_page("BTC/USD", page(longer, shorter))
    assert decoded.trades == (TRADE,)
    assert len(decoded.problems) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b'{"error":[]}',
        b'{"error":[],"result":null}',
        b'{"error":[],"result":[]}',
        b'{"error":[],"result":{"last":"5"}}',
        b'{"error":[],"result":{"A":[],"B":[],"last":"5"}}',
        b'{"error":[],"result":{"A":{},"last":"5"}}',
        b'{"error":[],"result":{"A":[[]],"last":"5"}}',
        b'{"error":[],"result":{"A":[1],"last":"5"}}',
        b'{"error":["EGeneral:Too many requests"]}',
        page(PAGE_ROW, error='"EService:Unavailable"'),
        page(PAGE_ROW)[:-1],
        page(PAGE_ROW).replace(b'"b"', b'"\xff"'),
        b'{"error":[],"result":{"A":' + b"[" * 1_000_000,
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
    ],
)
def test_what_is_no_page_is_undecodable_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(Undecodable) as told:
        KRAKEN.decode_page("BTC/USD", body)
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("symbol", ["", "A\0", "\ud800", "X" * 65])
def test_a_page_of_what_can_be_no_symbol_is_undecodable(symbol: str) -> None:
    with pytest.raises(Undecodable, match="symbol"):
        KRAKEN.decode_page(symbol, page(PAGE_ROW))


@pytest.mark.parametrize(
    ("body", "reason", "limited"),
    [
        (b'{"error":["EGeneral:Too many requests"]}', "EGeneral:Too many requests", True),
        (b'{"error":["EAPI:Rate limit exceeded"],"result":{}}', "EAPI:Rate limit exceeded", True),
        (b'{"error":["EService: Throttled: 1716"]}', "EService: Throttled: 1716", True),
        (b' {\n "error" : [ "EQuery:Unknown asset pair" ] }', "EQuery:Unknown asset pair", False),
        (b'{"error":["a","b"]}', "a; b", False),
        (b'{"error":["EGeneral:Too many', "EGeneral:Too many", True),
        (b'{"error":["\xff"]}', "error", False),
        (b'{"error":["' + b"x" * 5000 + b'"]}', "xxx", False),
    ],
)
def test_an_error_with_status_200_is_a_refusal(body: bytes, reason: str, limited: bool) -> None:
    refusal = KRAKEN.refusal(body)
    assert isinstance(refusal, Refusal)
    assert refusal.limited is limited
    assert reason in refusal.reason
    assert len(refusal.reason) < 600


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"error":[]}', page(PAGE_ROW), b'{"error":"x"}', b"\xff" * 9]
)
def test_what_is_no_error_is_no_refusal(body: bytes) -> None:
    assert KRAKEN.refusal(body) is None
    assert KRAKEN.used_weight({"x-mbx-used-weight-1m": "7"}) is None
