"""The usual way of a trade: both twins do the same, and leave what is unusual untouched."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import trade_twins
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedmono import native
from feedmono.avro import TradeEncoder
from feedmono.delivery.fast_path import FastPath, Path, Taken, fast_path
from feedmono.delivery.ids import Ids
from feedmono.exchanges import load
from feedmono.exchanges.base import Decoded, Undecodable
from feedmono.ring_layout import BINARY, EVENT, FRAME, Record
from feedmono.trade import BACKFILL, BUY, SNAPSHOT, STREAM, EncodedTrade, Trade

NAMES = {"AB": "A/B", "CD": "C/D"}
NOW_MS = 1_732_320_000_123
NOW_NS = NOW_MS * 1_000_000
BASE = 1 << 40


def trade(symbol: str = "AB", trade_id: int = 11, time_us: int = 2_000_000) -> Trade:
    return Trade(symbol, trade_id, "1.50", "2", BUY, time_us)


def record(payload: bytes, number: int = 0, kind: int = FRAME, flags: int = 0) -> Record:
    return Record(100 * number + 100, 7000 + number, NOW_NS - 5_000_000, 3, kind, flags, payload)


def symbols(*, last_id: int = 10, time_us: int = 1_000_000) -> dict[str, Ids]:
    return {symbol: Ids(trade(symbol, last_id, time_us)) for symbol in NAMES}


def state(known: dict[str, Ids]) -> dict[str, dict[str, object]]:
    return {
        symbol: {name: getattr(ids, name) for name in Ids.__slots__}
        for symbol, ids in known.items()
    }


Decode = Callable[[bytes], Decoded]
Make = Callable[[Decode], Path]


@pytest.fixture(params=trade_twins.TWINS)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    trade_twins.choose(request.param, monkeypatch)

    def made(decode: Decode) -> Path:
        return fast_path(decode, TradeEncoder("binance").encode)

    assert isinstance(made(_no_decoder), FastPath) is (request.param == "python")
    return made


def _no_decoder(payload: bytes) -> Decoded:
    raise AssertionError("nothing is to be read")


def decoding(*found: Decoded | Exception) -> Decode:
    """A decoder of payloads that are numbers: that of *found*."""

    def decode(payload: bytes) -> Decoded:
        result = found[int(payload)]
        if isinstance(result, Exception):
            raise result
        return result

    return decode


def take(
    path: Path, records: list[Record], known: dict[str, Ids], at: int = 0
) -> tuple[int, Decoded | None, list[Taken], list[int]]:
    taken: list[Taken] = []
    latencies_us: list[int] = []
    place, decoded = path.take(records, at, BASE, NAMES, known, NOW_MS, taken, latencies_us)
    return place, decoded, taken, latencies_us


def test_the_next_trades_of_their_symbols_are_taken(make: Make) -> None:
    found = [trade("AB", 11), trade("CD", 11), trade("AB", 12, 1_500_000)]
    known = symbols()
    records = [record(b"%d" % number, number) for number in range(3)]
    path = make(decoding(*(Decoded((one,)) for one in found)))
    place, decoded, taken, latencies_us = take(path, records, known)
    assert (place, decoded) == (3, None)
    assert [item.trades for item in taken] == [(one,) for one in found]
    first = taken[0]
    assert (first.cause, first.settle) == ("", ())
    assert first.entry.end == BASE + 100
    assert first.entry.frame == (b"0", 3, 7000, NOW_NS - 5_000_000, STREAM)
    assert (first.entry.symbol, first.entry.dead) == ("AB", None)
    expected = TradeEncoder("binance").encode(
        (found[0],), NAMES, STREAM, NOW_NS - 5_000_000, 7000, NOW_MS
    )
    assert first.entry.trades == expected
    assert type(first) is Taken
    assert latencies_us == [NOW_NS // 1000 - 5000 - one.time_us for one in found]
    assert known["AB"].last == found[2]
    assert (known["AB"].last_id, known["AB"].sequence) == (12, 7002)
    assert known["AB"].newest_us == 2_000_000, "an older time is none"
    assert known["CD"].last_id == 11


def test_it_goes_on_from_where_it_is_told(make: Make) -> None:
    known = symbols()
    records = [record(b"0"), record(b"1", 1)]
    path = make(decoding(ValueError("not to be read"), Decoded((trade(),))))
    place, decoded, taken, _ = take(path, records, known, at=1)
    assert (place, decoded, len(taken)) == (2, None, 1)
    assert take(path, records, known, at=2) == (2, None, [], [])


UNUSUAL = {
    "a repeat": Decoded((trade(trade_id=10),)),
    "a jump": Decoded((trade(trade_id=12),)),
    "of an unknown symbol": Decoded((trade("EF"),)),
    "two": Decoded((trade(), trade(trade_id=12))),
    "none": Decoded(()),
    "a snapshot": Decoded((trade(),), SNAPSHOT),
    "a page": Decoded((trade(),), BACKFILL),
    "with a problem": Decoded((trade(),), STREAM, ("no order id",)),
    "of an older epoch": Decoded((trade(time_us=999_999),)),
    "a price that is none": Decoded((trade()._replace(price="x"),)),
    "a time that is none": Decoded((trade(time_us=1 << 62),)),
    "an id that is too large": Decoded((trade(trade_id=1 << 70),)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_left_with_what_was_read(make: Make, name: str) -> None:
    known = symbols()
    before = state(copy.deepcopy(known))
    path = make(decoding(Decoded((trade("CD"),)), UNUSUAL[name]))
    place, decoded, taken, latencies_us = take(path, [record(b"0"), record(b"1", 1)], known)
    assert place == 1
    assert decoded is UNUSUAL[name]
    assert len(taken) == len(latencies_us) == 1
    assert state(known)["AB"] == before["AB"]


def test_a_symbol_with_islands_or_strays_is_looked_at_closely(make: Make) -> None:
    path = make(decoding(Decoded((trade(),))))
    known = symbols()
    known["AB"].islands[99] = None
    assert take(path, [record(b"0")], known)[0] == 0
    known = symbols()
    known["AB"]._strays[11] = 2_000_000
    assert take(path, [record(b"0")], known)[0] == 0
    known = symbols()
    known["AB"]._strays[12] = 2_000_000
    assert take(path, [record(b"0")], known)[0] == 1


@pytest.mark.parametrize("error", [Undecodable("no"), ValueError("no"), KeyError("no")])
def test_what_can_not_be_read_is_left(make: Make, error: Exception) -> None:
    place, decoded, taken, _ = take(make(decoding(error)), [record(b"0")], symbols())
    assert (place, decoded, taken) == (0, None, [])


def test_another_error_is_the_callers(make: Make) -> None:
    with pytest.raises(ZeroDivisionError):
        take(make(decoding(ZeroDivisionError())), [record(b"0")], symbols())


@pytest.mark.parametrize(("kind", "flags"), [(EVENT, 0), (FRAME, BINARY)])
def test_other_records_are_not_read(make: Make, kind: int, flags: int) -> None:
    other = record(b"0", kind=kind, flags=flags)
    assert take(make(_no_decoder), [other], symbols())[:2] == (0, None)


def test_a_symbol_without_a_name_is_left_with_its_ids_unchanged(make: Make) -> None:
    known = {"EF": Ids(trade("EF", 10))}
    found = Decoded((trade("EF"),))
    place, decoded, taken, latencies_us = take(make(decoding(found)), [record(b"0")], known)
    assert (place, decoded, taken, latencies_us) == (0, found, [], [])
    assert known["EF"].last_id == 10


# --- From the sink to the ledger


def outstanding(path_of: Make, found: Sequence[Trade]) -> deque[Taken]:
    path = path_of(decoding(*(Decoded((one,)) for one in found)))
    records = [record(b"%d" % number, number) for number in range(len(found))]
    place, _, taken, _ = take(path, records, symbols())
    assert place == len(found)
    return deque(taken)


def deliver(
    path: Path, left: deque[Taken], end: int, known: dict[str, Ids]
) -> tuple[tuple[int, int, int], set[str], list[int]]:
    changed: set[str] = set()
    latencies_us: list[int] = []
    told = path.deliver(left, BASE + end, known, changed, NOW_NS, latencies_us)
    return told, changed, latencies_us


def test_what_is_stored_goes_into_the_ledger(make: Make) -> None:
    found = [trade("AB", 11), trade("CD", 11), trade("AB", 12)]
    left, path, known = outstanding(make, found), make(_no_decoder), symbols()
    told, changed, latencies_us = deliver(path, left, 250, known)
    assert told == (2, BASE + 200, 7001)
    assert changed == {"AB", "CD"}
    assert latencies_us == [5000, 5000]
    assert [item.trades for item in left] == [(found[2],)]
    assert known["AB"].last == found[0]
    assert deliver(path, left, 299, known)[0] == (0, -1, -1)
    assert deliver(path, left, 300, known)[0] == (1, BASE + 300, 7002)
    assert not left
    assert deliver(path, left, 300, known)[0] == (0, -1, -1)


def test_a_clock_that_was_set_back_rounds_as_the_other_twin_does(make: Make) -> None:
    left, latencies_us = outstanding(make, [trade()]), list[int]()
    make(_no_decoder).deliver(left, BASE + 100, symbols(), set(), NOW_NS - 5_000_001, latencies_us)
    assert latencies_us == [-1]


CHANGES: dict[str, Callable[[Taken], Taken]] = {
    "without a trade": lambda item: item._replace(trades=()),
    "with two": lambda item: item._replace(trades=(*item.trades, *item.trades)),
    "with a word to the ledger": lambda item: item._replace(settle=(print,)),
    "not encoded": lambda item: item._replace(entry=item.entry._replace(trades=())),
    "a repeat": lambda item: item._replace(trades=(trade(trade_id=10),)),
    "of an unknown symbol": lambda item: item._replace(trades=(trade("EF"),)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_unusual_stays_for_the_caller(make: Make, name: str) -> None:
    left = outstanding(make, [trade("CD"), trade()])
    left[1] = CHANGES[name](left[1])
    known = symbols()
    told, changed, _ = deliver(make(_no_decoder), left, 200, known)
    assert told == (1, BASE + 100, 7000)
    assert changed == {"CD"}
    assert len(left) == 1
    assert known["AB"].last_id == 10


# --- Both twins, whatever comes

_FOUND = st.one_of(
    st.builds(
        lambda symbol, step, time_us, origin, problems: Decoded(
            (trade(symbol, 10 + step, time_us),), origin, problems
        ),
        st.sampled_from(["AB", "AB", "CD", "EF"]),
        st.integers(-1, 4),
        st.sampled_from([2_000_000, 1_000_000, 999_999, 3_000_000]),
        st.sampled_from([STREAM] * 5 + [SNAPSHOT]),
        st.sampled_from([()] * 5 + [("odd",)]),
    ),
    st.sampled_from([Decoded(()), Decoded((trade(), trade(trade_id=12))), Undecodable("no")]),
)


@pytest.mark.skipif(native.trades is None, reason="there is no native twin")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(_FOUND, max_size=12), kinds=st.lists(st.sampled_from([FRAME] * 9 + [EVENT])))
def test_both_twins_do_the_same(found: list[Any], kinds: list[int]) -> None:
    results = []
    for twin in (True, False):
        path = _twin(twin, decoding(*found))
        known, ledger = symbols(), symbols()
        told: list[object] = []
        left: deque[Taken] = deque()
        for taken in _taken_in_runs(path, len(found), kinds, known, told):
            left.extend(taken)
        while left:
            told.append(deliver(path, left, 100 * len(found) // 2 + 200, ledger))
            if left:
                told.append(left.popleft())
        results.append((told, state(known), state(ledger)))
    assert results[0] == results[1]


def _twin(is_native: bool, decode: Decode) -> Path:
    encode = TradeEncoder("binance").encode
    return fast_path(decode, encode) if is_native else FastPath(decode, encode)


def _taken_in_runs(
    path: Path, count: int, kinds: list[int], known: dict[str, Ids], told: list[object]
) -> Iterator[list[Taken]]:
    """What is taken of so many records; the unusual ones are left out."""
    records = [
        record(b"%d" % number, number, kind=(kinds[number : number + 1] or [FRAME])[0])
        for number in range(count)
    ]
    at = 0
    while at < count:
        at, decoded, taken, latencies_us = take(path, records, known, at)
        told.append((at, decoded, taken, latencies_us))
        yield taken
        at += 1


def test_real_frames_of_an_exchange_take_the_usual_way() -> None:
    exchange = load("binance")
    path = fast_path(exchange.decode, TradeEncoder("binance").encode)
    payload = (
        b'{"stream":"ab@trade","data":{"e":"trade","E":1732320000000000,"s":"AB","t":11,'
        b'"p":"1.5","q":"2","T":1732320000000000,"m":true,"M":true}}'
    )
    place, _, taken, _ = take(path, [record(payload)], symbols())
    assert place == 1
    assert isinstance(taken[0].entry.trades[0], EncodedTrade)


@pytest.mark.skipif(native.trades is None, reason="there is no native twin")
def test_the_native_twin_refuses_what_it_can_not_work_with() -> None:
    assert native.trades is not None
    path = fast_path(_no_decoder, TradeEncoder("binance").encode)
    unfit: Any = path
    with pytest.raises(TypeError, match="take: a list"):
        unfit.take((), 0, BASE, NAMES, symbols(), NOW_MS, [], [])
    with pytest.raises(TypeError, match="take: a list"):
        unfit.take([], -1, BASE, NAMES, symbols(), NOW_MS, [], [])
    with pytest.raises(TypeError, match="deliver: a deque"):
        unfit.deliver(deque(), 0, symbols(), [], 0, [])
    with pytest.raises(TypeError, match="named tuples"):
        native.trades.FastPath(print, print, ValueError, int, Taken, Taken, 0, STREAM, 9, 0, 1, 5)
    with pytest.raises(TypeError, match="fields of a trade"):
        native.trades.FastPath(print, print, ValueError, Taken, Taken, Taken, 0, STREAM, 9, 0, 1, 9)
