"""When the serializer's loop writes to its ledger, tells consumers and its clock's offset, and how
long it waits."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from delivery_rig import T0_US, ManualSink, Rig, clock, frame, rig, store

from feedmono import ring
from feedmono.counters import NO_OFFSET, OFFSET_SPAN_S, Field
from feedmono.delivery import ledger_file, loop
from feedmono.ring_layout import HEADER_BYTES, record_bytes

__all__ = ["clock", "rig"]


@pytest.mark.parametrize(("records", "after_s"), [(99, 1.0), (100, 0.2)])
def test_what_is_acknowledged_is_written_within_a_second_and_much_of_it_sooner(
    tmp_path: Path, clock: list[float], records: int, after_s: float
) -> None:
    rig = Rig(tmp_path, window=10_000)
    rig.append(*(frame(number) for number in range(1, records + 1)))
    rig.loop.step()
    for count in (1, records):
        rig.sink.acknowledge(count)
        rig.loop.step()
    clock[0] += after_s - 0.01
    rig.loop.step()
    assert rig.reader.acknowledged == 0
    clock[0] += 0.02
    rig.loop.step()
    assert rig.reader.used_bytes == 0
    rig.writer.close()


@pytest.mark.parametrize(("acknowledged", "at_once"), [(24, False), (25, True)])
def test_a_quarter_of_the_window_is_written_at_once(
    rig: Rig, clock: list[float], acknowledged: int, at_once: bool
) -> None:
    rig.append(*(frame(number) for number in range(1, 41)))
    rig.loop.step()
    rig.sink.acknowledge(acknowledged)
    rig.loop.step()
    assert rig.ids == [str(number) for number in range(1, 41)]
    assert bool(rig.reader.acknowledged) == at_once


@pytest.mark.parametrize(("read", "at_once"), [(49, False), (50, True)])
def test_half_a_window_that_waits_is_reason_to_write_at_once(
    rig: Rig, clock: list[float], read: int, at_once: bool
) -> None:
    rig.append(*(frame(number) for number in range(1, read + 1)))
    rig.loop.step()
    rig.sink.acknowledge(1)
    rig.loop.step()
    assert len(rig.ids) == read
    assert bool(rig.reader.acknowledged) == at_once


def test_a_ledger_that_is_busy_is_told_and_tried_again_a_second_later(
    rig: Rig, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "_BUSY_S", 0.01)
    rig.restart()
    rig.append(frame(1))
    rig.step()
    other = sqlite3.connect(rig.ledger_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    rig.sink.acknowledge(1)
    rig.step()
    assert "locked" in rig.loop.trouble
    assert rig.counters[Field.LEDGER_ERRORS] == 1
    assert (rig.reader.acknowledged, rig.loop.idle, rig.sink.settled) == (0, False, 0)
    other.close()
    clock[0] += 0.99
    rig.step()
    assert rig.loop.trouble, "not before its time, whatever the hurry"
    clock[0] += 0.02
    rig.step()
    assert (rig.loop.trouble, rig.loop.idle, rig.sink.settled) == ("", True, 1)
    assert rig.reader.used_bytes == 0
    assert rig.counters[Field.LEDGER_ERRORS] == 1


def test_in_the_end_consumers_are_told_how_far_all_is_there(rig: Rig) -> None:
    rig.append(frame(1))
    store(rig)
    rig.append(frame(2))
    store(rig)
    assert [coverage.to_id for coverage in rig.sink.coverages] == [1], "the next in ten seconds"
    flushes, settled = rig.sink.flushes, rig.sink.settled
    rig.loop.finish()
    assert [coverage.to_id for coverage in rig.sink.coverages] == [1, 2]
    assert rig.sink.settled == settled + 1, "its last mark is in the ledger"
    assert rig.sink.flushes == flushes + 1
    rig.loop.finish()
    assert len(rig.sink.coverages) == 2, "once"


class Patient(ManualSink):
    def wait_s(self) -> float:
        return 60.0


def test_it_waits_until_something_is_due(rig: Rig, clock: list[float]) -> None:
    rig.sink = Patient()
    rig.restart()
    assert rig.loop.wait_s() == 0.0, "its first chores"
    rig.loop.step()
    assert rig.loop.wait_s() == pytest.approx(loop.IDLE_CHORES_S)
    rig.append(frame(1))
    rig.loop.step()
    assert rig.loop.wait_s() == pytest.approx(loop.CHORES_S), "trades come"
    rig.sink.acknowledge(1)
    clock[0] += 0.5
    rig.loop.step()
    assert rig.loop.wait_s() == pytest.approx(loop.CHORES_S)
    clock[0] += 0.9
    rig.loop.step()
    assert rig.loop.wait_s() == pytest.approx(0.1), "until what is stored is written"
    clock[0] += 5
    assert rig.loop.wait_s() == 0.0


def test_it_does_not_wait_while_a_damaged_part_is_looked_through(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring.reader, "_SEARCH_BYTES", 4096)
    monkeypatch.setattr(ring.records, "CHUNK_BYTES", 4096)
    rig.sink = Patient()
    rig.restart()
    rig.append(frame(1, price="1" * 50_000), frame(2))
    damaged = rig.writer.committed - record_bytes(len(frame(2)))
    with rig.path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(bytes(damaged))
    waits: list[float] = []
    while not rig.sink.taken:
        rig.loop.step()
        waits.append(rig.loop.wait_s())
    assert waits.count(0.0) >= 10
    assert waits[0] > 0.0, "it may only not be there yet"


def test_the_clock_s_offset_is_told_once_a_second_and_only_if_trades_came(
    rig: Rig, clock: list[float]
) -> None:
    rig.append(frame(1))
    rig.step()
    offset_ns = 10**18 - T0_US * 1000
    assert rig.counters.signed(Field.CLOCK_OFFSET_NS) == pytest.approx(offset_ns)
    lower_ns = offset_ns - 10**15
    rig.append(frame(2, T0_US + 10**12))
    clock[0] += 0.5
    rig.step()
    assert rig.counters.signed(Field.CLOCK_OFFSET_NS) == pytest.approx(offset_ns)
    clock[0] += 0.5
    rig.step()
    assert rig.counters.signed(Field.CLOCK_OFFSET_NS) == pytest.approx(lower_ns)
    clock[0] += 10 * OFFSET_SPAN_S
    rig.step()
    assert rig.counters.signed(Field.CLOCK_OFFSET_NS) == NO_OFFSET
