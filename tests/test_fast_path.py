"""The usual way of a trade, record by record: what is unusual is left untouched."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from feedmono.avro import TradeEncoder
from feedmono.delivery.fast_path import Batch, FastPath, Taken
from feedmono.delivery.ids import Ids
from feedmono.exchanges.base import Decoded, Undecodable
from feedmono.ring_layout import BINARY, EVENT, FRAME, Record
from feedmono.trade import BACKFILL, BUY, SNAPSHOT, STREAM, Trade

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


def made(decode: Decode) -> FastPath:
    return FastPath(decode, TradeEncoder("binance").encode)


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
    path: FastPath, records: list[Record], known: dict[str, Ids], at: int = 0
) -> tuple[int, Decoded | None, list[Taken], list[int]]:
    taken: list[Taken] = []
    latencies_us: list[int] = []
    place, decoded = path.take(records, at, BASE, NAMES, known, NOW_MS, taken, latencies_us)
    return place, decoded, taken, latencies_us


def test_the_next_trades_of_their_symbols_are_taken() -> None:
    found = [trade("AB", 11), trade("CD", 11), trade("AB", 12, 1_500_000)]
    known = symbols()
    records = [record(b"%d" % number, number) for number in range(3)]
    path = made(decoding(*(Decoded((one,)) for one in found)))
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


def test_it_goes_on_from_where_it_is_told() -> None:
    known = symbols()
    records = [record(b"0"), record(b"1", 1)]
    path = made(decoding(ValueError("not to be read"), Decoded((trade(),))))
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
def test_what_is_unusual_is_left_with_what_was_read(name: str) -> None:
    known = symbols()
    before = state(copy.deepcopy(known))
    path = made(decoding(Decoded((trade("CD"),)), UNUSUAL[name]))
    place, decoded, taken, latencies_us = take(path, [record(b"0"), record(b"1", 1)], known)
    assert place == 1
    assert decoded is UNUSUAL[name]
    assert len(taken) == len(latencies_us) == 1
    assert state(known)["AB"] == before["AB"]


def test_a_symbol_with_islands_or_strays_is_looked_at_closely() -> None:
    path = made(decoding(Decoded((trade(),))))
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
def test_what_can_not_be_read_is_left(error: Exception) -> None:
    place, decoded, taken, _ = take(made(decoding(error)), [record(b"0")], symbols())
    assert (place, decoded, taken) == (0, None, [])


def test_another_error_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        take(made(decoding(ZeroDivisionError())), [record(b"0")], symbols())


@pytest.mark.parametrize(("kind", "flags"), [(EVENT, 0), (FRAME, BINARY)])
def test_other_records_are_not_read(kind: int, flags: int) -> None:
    other = record(b"0", kind=kind, flags=flags)
    assert take(made(_no_decoder), [other], symbols())[:2] == (0, None)


def test_a_symbol_without_a_name_is_left_with_its_ids_unchanged() -> None:
    known = {"EF": Ids(trade("EF", 10))}
    found = Decoded((trade("EF"),))
    place, decoded, taken, latencies_us = take(made(decoding(found)), [record(b"0")], known)
    assert (place, decoded, taken, latencies_us) == (0, found, [], [])
    assert known["EF"].last_id == 10


# --- From the sink to the ledger


def outstanding(found: Sequence[Trade]) -> deque[Taken | Batch]:
    path = made(decoding(*(Decoded((one,)) for one in found)))
    records = [record(b"%d" % number, number) for number in range(len(found))]
    place, _, taken, _ = take(path, records, symbols())
    assert place == len(found)
    return deque(taken)


def deliver(
    path: FastPath, left: deque[Taken | Batch], end: int, known: dict[str, Ids]
) -> tuple[tuple[int, int, int], set[str], list[int]]:
    changed: set[str] = set()
    latencies_us: list[int] = []
    told = path.deliver(left, BASE + end, known, changed, NOW_NS, latencies_us)
    return told, changed, latencies_us


def test_what_is_stored_goes_into_the_ledger() -> None:
    found = [trade("AB", 11), trade("CD", 11), trade("AB", 12)]
    left, path, known = outstanding(found), made(_no_decoder), symbols()
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


def test_it_stops_before_a_batch_and_tells_the_highest_sequence_not_the_last() -> None:
    left, known = outstanding([trade("AB", 11), trade("CD", 11)]), symbols()
    assert isinstance(left[0], Taken)
    entry = left[0].entry
    left[0] = left[0]._replace(entry=entry._replace(frame=entry.frame._replace(sequence=9000)))
    batch = cast("Batch", object())
    left.append(batch)
    assert deliver(made(_no_decoder), left, 900, known)[0] == (2, BASE + 200, 9000)
    assert list(left) == [batch]


def test_a_clock_that_was_set_back_rounds_as_the_other_twin_does() -> None:
    left, latencies_us = outstanding([trade()]), list[int]()
    made(_no_decoder).deliver(left, BASE + 100, symbols(), set(), NOW_NS - 5_000_001, latencies_us)
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
def test_what_is_unusual_stays_for_the_caller(name: str) -> None:
    left = outstanding([trade("CD"), trade()])
    assert isinstance(left[1], Taken)
    left[1] = CHANGES[name](left[1])
    known = symbols()
    told, changed, _ = deliver(made(_no_decoder), left, 200, known)
    assert told == (1, BASE + 100, 7000)
    assert changed == {"CD"}
    assert len(left) == 1
    assert known["AB"].last_id == 10
