"""Binance: frames and pages to trades, metadata."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import trade_twins
from sessions import START_S, frame, recorded

from feedmono.exchanges._rows import read_rows
from feedmono.exchanges.base import Data, Market, PageRequest, Session, Undecodable, Unknown
from feedmono.exchanges.binance import Binance
from feedmono.trade import BACKFILL, BUY, MAX_TIME_US, SELL, STREAM, Trade

BINANCE = Binance()
TIME_US = 1_723_161_255_342_123
TRADE: dict[str, Any] = {
    "e": "trade",
    "E": TIME_US + 1000,
    "s": "BTCUSDT",
    "t": 3_735_683_259,
    "p": "61837.63000000",
    "q": "0.02000000",
    "T": TIME_US,
    "m": True,
    "M": True,
}


@pytest.fixture(params=trade_twins.TWINS, autouse=True)
def _twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    trade_twins.choose(request.param, monkeypatch)
    monkeypatch.setitem(globals(), "BINANCE", Binance())


def combined(**changes: Any) -> bytes:
    """A trade's frame with other fields; None takes a field away."""
    event = {key: value for key, value in {**TRADE, **changes}.items() if value is not None}
    return frame({"stream": f"{str(event.get('s')).lower()}@trade", "data": event})


def only(data: bytes) -> Trade:
    decoded = BINANCE.decode(data)
    assert decoded.problems == ()
    assert decoded.origin == STREAM
    (trade,) = decoded.trades
    return trade


def session(*symbols: str) -> Session:
    return BINANCE.session(symbols)


# --- Frames


def test_every_recorded_trade_is_read_with_its_exact_text() -> None:
    frames = recorded("binance-btcusdt-2024-08.jsonl.gz")
    assert len(frames) == 19_904
    for number, data in enumerate(frames):
        event = json.loads(data)["data"]
        assert BINANCE.is_data(data)
        assert only(data) == Trade(
            symbol="BTCUSDT",
            trade_id=3_735_683_259 + number,
            price=event["p"],
            quantity=event["q"],
            side=SELL if event["m"] else BUY,
            time_us=event["T"] * 1000,
            is_buyer_maker=event["m"],
        )
        assert event["t"] == 3_735_683_259 + number


def test_a_buyer_who_is_maker_means_that_the_taker_sold() -> None:
    assert only(combined(m=True)).side == SELL
    assert only(combined(m=False)).side == BUY
    assert only(combined(m=False)).is_buyer_maker is False


@pytest.mark.parametrize(
    ("time", "time_us"),
    [
        (TIME_US, TIME_US),
        (1_723_161_255_342, 1_723_161_255_342_000),
        (10**14, 10**14),
        (10**14 - 1, None),
        (1, 1000),
        (MAX_TIME_US, MAX_TIME_US),
        (MAX_TIME_US + 1, None),
        (MAX_TIME_US // 1000, MAX_TIME_US // 1000 * 1000),
        (MAX_TIME_US // 1000 + 1, None),
        (0, None),
        (-1, None),
    ],
)
def test_times_are_microseconds_or_milliseconds_by_their_magnitude(
    time: int, time_us: int | None
) -> None:
    if time_us is None:
        with pytest.raises(Undecodable, match=r"time \(T\)"):
            BINANCE.decode(combined(T=time))
    else:
        assert only(combined(T=time)).time_us == time_us


def test_the_order_ids_of_old_recordings_are_read() -> None:
    trade = only(combined(b=27_000_000_001, a=2**63 - 1))
    assert (trade.buyer_order_id, trade.seller_order_id) == (27_000_000_001, 2**63 - 1)
    assert trade._replace(buyer_order_id=None, seller_order_id=None) == only(combined())


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"T": 1_723_161_255_342}, "time_us", 1_723_161_255_342_000),
        ({"T": 10**14}, "time_us", 10**14),
        ({"T": 1}, "time_us", 1000),
        ({"T": MAX_TIME_US}, "time_us", MAX_TIME_US),
        ({"t": 0}, "trade_id", 0),
        ({"t": 2**63 - 1}, "trade_id", 2**63 - 1),
        ({"b": 0}, "buyer_order_id", 0),
        ({"s": "X" * 64}, "symbol", "X" * 64),
        ({"p": "5"}, "price", "5"),
    ],
)
def test_what_an_event_with_order_ids_may_hold_is_no_less(
    changes: dict[str, Any], field: str, value: object
) -> None:
    """Such an event is read with more care, and must be read as any other."""
    assert getattr(only(combined(**{"a": 28, **changes})), field) == value


@pytest.mark.parametrize(
    "changes", [{"T": 0}, {"T": -1}, {"T": MAX_TIME_US + 1}, {"T": 10**14 - 1}]
)
def test_a_time_that_can_not_be_is_told_of_an_event_with_order_ids(changes: dict[str, int]) -> None:
    with pytest.raises(Undecodable, match=r"time \(T\)"):
        BINANCE.decode(combined(a=28, **changes))


@pytest.mark.parametrize("order_id", ["27", 2**63, -1, True, [1]])
def test_an_unreadable_order_id_costs_only_itself(order_id: object) -> None:
    decoded = BINANCE.decode(combined(b=order_id, a=28))
    assert [trade._replace(seller_order_id=None) for trade in decoded.trades] == [only(combined())]
    assert decoded.trades[0].seller_order_id == 28
    assert decoded.problems == ("the order id 'b' is no number of 63 bits",)


@pytest.mark.parametrize("symbol", ["币安人生USDT", "1000SATSUSDT"])
def test_a_symbol_need_not_be_of_letters(symbol: str) -> None:
    assert BINANCE.is_data(combined(s=symbol))
    assert only(combined(s=symbol)).symbol == symbol
    escaped = json.dumps({"stream": "x@trade", "data": {**TRADE, "s": symbol}}).encode()
    assert only(escaped).symbol == symbol


@pytest.mark.parametrize("text", ["0.00000001", "5", "0", "1e-7", "1.50E+3", "123456789.12345678"])
def test_a_number_keeps_its_text(text: str) -> None:
    trade = only(combined(p=text, q=text))
    assert (trade.price, trade.quantity) == (text, text)


def test_bare_and_reordered_events_are_read_as_well() -> None:
    assert only(frame(TRADE)) == only(combined())
    backwards = {"data": dict(reversed(TRADE.items())), "stream": "btcusdt@trade"}
    assert only(json.dumps(backwards, indent=2).encode()) == only(combined())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"s": ""}, r"symbol \(s\)"),
        ({"s": "BTC\0"}, r"symbol \(s\)"),
        ({"s": 5}, "'s' of a trade is int, not str"),
        ({"s": "X" * 65}, r"symbol \(s\)"),
        ({"t": -1}, r"trade id \(t\)"),
        ({"t": 2**63}, r"trade id \(t\)"),
        ({"t": 10**4000}, r"trade id \(t\)"),
        ({"t": "3"}, "'t' of a trade is str, not int"),
        ({"t": True}, "'t' of a trade is bool, not int"),
        ({"t": 3.0}, "'t' of a trade is float, not int"),
        ({"t": None}, "a trade without 't'"),
        ({"p": 61837.63}, "'p' of a trade is float, not str"),
        ({"q": None}, "a trade without 'q'"),
        ({"T": None}, "a trade without 'T'"),
        ({"T": "1723161255342"}, "'T' of a trade is str, not int"),
        ({"m": 1}, "'m' of a trade is int, not bool"),
        ({"m": None}, "a trade without 'm'"),
        ({"e": "aggTrade"}, "not a trade but the event 'aggTrade'"),
        ({"e": None}, "a trade without 'e'"),
    ],
)
def test_a_malformed_trade_is_told_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    # json.dumps refuses 10**4000 as Python refuses to print it: written by hand.
    data = combined(**{k: v for k, v in changes.items() if v != 10**4000})
    if changes.get("t") == 10**4000:
        data = data.replace(b"3735683259", b"1" * 4000)
    with pytest.raises(Undecodable, match=reason) as told:
        BINANCE.decode(data)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    "text",
    ["", "1,5", "-1.0", ".", ".5", "5.", "007.5", "00.5", "٣.٣", "nan", "1." + "0" * 47, "1.5 "],
)
def test_a_price_or_quantity_that_is_no_decimal_is_told(text: str) -> None:
    with pytest.raises(Undecodable, match=r"the price \(p\) is no decimal"):
        BINANCE.decode(combined(p=text))
    with pytest.raises(Undecodable, match=r"the quantity \(q\) is no decimal"):
        BINANCE.decode(combined(q=text))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"null",
        b"[]",
        b"7",
        b'{"stream":"btcusdt@trade"}',
        b'{"stream":"btcusdt@trade","data":null}',
        b'{"stream":"btcusdt@trade","data":[1]}',
        combined()[:-1],
        combined().replace(b"BTCUSDT", b"BTC\xffUSDT"),
        combined().replace(b"BTCUSDT", b"\\ud800USDT"),
        combined().replace(b"3735683259", b"1" * 5000),
        combined().replace(b'"61837.63000000"', b"1e400"),
        b'{"stream":"btcusdt@trade","data":' + b"[" * 1_000_000,
        b"[" * 10_000_000,
        b'{"a":' * 1_000_000,
        combined(b="x").replace(b'"b":"x"', b'"b":' + b"[" * 900 + b"]" * 900)[:-1],
    ],
)
def test_what_is_no_trade_at_all_is_undecodable_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(Undecodable):
        BINANCE.decode(data)
    assert all(isinstance(e, (Unknown, Data)) for e in session("BTCUSDT").receive(data, START_S))


# --- Which frames are data


@pytest.mark.parametrize(
    ("data", "is_data"),
    [
        (combined(), True),
        (combined(s="币安人生USDT"), True),
        (b'{"result":null,"id":1}', False),
        (b'{"error":{"code":2,"msg":"x"},"id":2}', False),
        (b'{"e":"serverShutdown","E":1770123456789}', False),
        (b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}', False),
        (b'{"stream":"#', True),
        (b'{"stream":"\xff', False),
        (b'{"stream":"', False),
        (b'{"stream":""', False),
        (b"", False),
        (b"{", False),
    ],
)
def test_the_fast_test_never_takes_a_control_message_for_data(data: bytes, is_data: bool) -> None:
    assert BINANCE.is_data(data) is is_data


@pytest.mark.parametrize(
    "data",
    [
        frame(TRADE),
        frame({"data": TRADE, "stream": "btcusdt@trade"}),
        json.dumps({"stream": "btcusdt@trade", "data": TRADE}).encode(),
        b'{"data":{"e":"trade","p":1e400}}',
        b'{ "stream": "btcusdt@trade" , "data": null}',
    ],
)
def test_a_trade_that_is_written_otherwise_is_data_by_the_slow_way(data: bytes) -> None:
    assert not BINANCE.is_data(data)
    assert session("BTCUSDT").receive(data, START_S) == (Data(),)


# --- Metadata and limits


def test_canonical_symbols_come_from_base_and_quote() -> None:
    rows = [
        {"symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT"},
        {"symbol": "币安人生USDT", "baseAsset": "币安人生", "quoteAsset": "USDT", "filters": [{}]},
    ]
    body = frame({"timezone": "UTC", "rateLimits": [], "symbols": rows})
    assert BINANCE.read_metadata(body) == {
        "BTCUSDT": Market("BTC/USDT", "BTCUSDT"),
        "币安人生USDT": Market("币安人生/USDT", "币安人生USDT"),
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"code":-1003,"msg":"Too many requests"}',
        b'{"symbols":[]}',
        b'{"symbols":[{"symbol":"X"}]}',
        b'{"symbols":' + b"[" * 100_000,
        b'{"symbols":[{"symbol":"\xff","baseAsset":"B","quoteAsset":"Q"}]}',
    ],
)
def test_another_answer_is_not_taken_for_metadata(body: bytes) -> None:
    with pytest.raises(ValueError, match="exchangeInfo"):
        BINANCE.read_metadata(body)


def test_the_limits_are_the_documented_ones() -> None:
    limits = BINANCE.limits
    assert limits.symbols_per_connection <= 1024
    assert (limits.connections, limits.connections_window_s) == (300, 300.0)
    assert limits.connection_age_s == 86_400.0
    assert (limits.rest_weight, limits.rest_window_s) == (6000, 60.0)
    assert (limits.metadata_weight, limits.page_weight, limits.page_rows) == (20, 25, 1000)
    assert BINANCE.metadata_path == "/api/v3/exchangeInfo"


# --- Pages


PAGE_ROW: dict[str, Any] = {
    "id": 3_735_683_259,
    "price": "61837.63000000",
    "qty": "0.02000000",
    "quoteQty": "1236.75260000",
    "time": TIME_US,
    "isBuyerMaker": True,
    "isBestMatch": True,
}


def page(*rows: dict[str, Any]) -> bytes:
    """Rows with other fields; None takes a field away."""
    full = [{**PAGE_ROW, **row} for row in rows]
    return frame([{k: v for k, v in row.items() if v is not None} for row in full])


@pytest.mark.parametrize("symbol", ["BTCUSDT", "币安人生USDT", "A&fromId=7 /?#%"])
def test_a_page_is_asked_for_by_its_first_id(symbol: str) -> None:
    path = BINANCE.page_path(PageRequest(symbol, 12, 5, 700, False), symbol)
    assert path.isascii()
    url = urlsplit(path)
    assert url.path == "/api/v3/historicalTrades"
    assert parse_qs(url.query) == {"symbol": [symbol], "fromId": ["12"], "limit": ["700"]}
    assert BINANCE.pages_by_id


@pytest.mark.parametrize(("rows", "limit"), [(-3, 1), (0, 1), (1, 1), (1000, 1000), (5000, 1000)])
def test_a_page_has_a_thousand_rows_at_most(rows: int, limit: int) -> None:
    assert BINANCE.page_path(PageRequest("A", 1, 1, rows, True), "A").endswith(f"&limit={limit}")


def test_a_page_gives_the_same_trades_as_the_stream() -> None:
    decoded = BINANCE.decode_page("BTCUSDT", page({}, {"id": 7, "isBuyerMaker": False}))
    streamed = only(combined()), only(combined(t=7, m=False))
    assert decoded == (streamed, BACKFILL, ())
    assert BINANCE.decode_page("BTCUSDT", b"[]") == ((), BACKFILL, ())


@pytest.mark.parametrize(
    ("time", "time_us"),
    [
        (TIME_US, TIME_US),
        (1_723_161_255_342, 1_723_161_255_342_000),
        (10**14, 10**14),
        (1, 1000),
        (MAX_TIME_US, MAX_TIME_US),
    ],
)
def test_the_times_of_a_page_are_told_by_their_magnitude_too(time: int, time_us: int) -> None:
    (trade,) = BINANCE.decode_page("BTCUSDT", page({"time": time})).trades
    assert trade.time_us == time_us


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": -1}, "id"),
        ({"id": 2**63}, "id"),
        ({"id": "3"}, "id"),
        ({"id": True}, "id"),
        ({"id": None}, "`id`"),
        ({"price": 61837.63}, "price"),
        ({"price": "1,5"}, "price is no decimal"),
        ({"price": "-1"}, "price is no decimal"),
        ({"qty": ""}, r"quantity \(qty\) is no decimal"),
        ({"qty": None}, "`qty`"),
        ({"time": 0}, "time"),
        ({"time": -1}, "time"),
        ({"time": 10**14 - 1}, "time is after 2262"),
        ({"time": MAX_TIME_US + 1}, "time"),
        ({"time": "1723161255342"}, "time"),
        ({"isBuyerMaker": 1}, "isBuyerMaker"),
        ({"isBuyerMaker": None}, "isBuyerMaker"),
    ],
)
def test_a_malformed_row_costs_only_itself(changes: dict[str, Any], reason: str) -> None:
    decoded = BINANCE.decode_page("BTCUSDT", page({"id": 1}, changes, {"id": 3}))
    assert [trade.trade_id for trade in decoded.trades] == [1, 3]
    (problem,) = decoded.problems
    assert problem.startswith("trade 2 of 3: ")
    with pytest.raises(Undecodable, match=reason) as told:
        BINANCE.decode_page("BTCUSDT", page(changes))
    assert len(str(told.value)) < 300


def test_a_page_of_a_thousand_bad_rows_gives_a_short_reason() -> None:
    with pytest.raises(Undecodable, match="and 980 more") as told:
        BINANCE.decode_page("BTCUSDT", page(*[{"id": -1}] * 1000))
    assert len(str(told.value)) < 5000
    decoded = BINANCE.decode_page("BTCUSDT", page({}, *[{"id": -1}] * 1000))
    assert len(decoded.problems) == 21
    decoded = BINANCE.decode_page("BTCUSDT", page({}, *[{"id": -1}] * 20))
    assert len(decoded.problems) == 20
    assert decoded.problems[-1].startswith("trade 21 of 21: ")


def test_a_row_s_long_reason_is_cut() -> None:
    def read(_: msgspec.Raw) -> Trade:
        raise ValueError("x" * 201)

    with pytest.raises(Undecodable) as told:
        read_rows([msgspec.Raw(b"1")] * 2, read, BACKFILL)
    reason = "x" * 200
    assert str(told.value) == f"trade 1 of 2: {reason}; trade 2 of 2: {reason}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"{}",
        b'{"code":-1121,"msg":"Invalid symbol."}',
        b"[1]",
        b"[null]",
        b"[[]]",
        page({})[:-1],
        page({}).replace(b"61837", b"\xff"),
        page({}).replace(b"3735683259", b"1" * 5000),
        b"[" * 1_000_000,
        b"[" + b'{"a":' * 1_000_000,
    ],
)
def test_what_is_no_page_is_undecodable_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(Undecodable):
        BINANCE.decode_page("BTCUSDT", body)


@pytest.mark.parametrize("symbol", ["", "A\0", "\ud800", "X" * 65])
def test_a_page_of_what_can_be_no_symbol_is_undecodable(symbol: str) -> None:
    with pytest.raises(Undecodable, match="symbol"):
        BINANCE.decode_page(symbol, page({}))


@pytest.mark.parametrize(
    ("text", "used"),
    [("5700", 5700), ("0", 0), ("", None), ("-1", None), ("1e3", None), ("9" * 5000, None)],
)
def test_the_used_weight_stands_in_a_header(text: str, used: int | None) -> None:
    assert BINANCE.used_weight({"x-mbx-used-weight-1m": text}) == used
    assert BINANCE.used_weight({}) is None


def test_no_answer_with_status_200_is_a_refusal() -> None:
    assert BINANCE.refusal(b'{"error":["EGeneral:Too many requests"]}') is None
    assert BINANCE.rest_headers == {"X-MBX-TIME-UNIT": "MICROSECOND"}
