"""Cursors and sequences that can't be: found again, waited for, or not believed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ring_rig import SMALL, path, payloads

from feedmono import ring
from feedmono.ring import RingReader, RingWriter, SalvagedReader, mapped
from feedmono.ring.records import Records
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    FRAME,
    HEADER_BYTES,
    NEXT_SEQUENCE_WORD,
    RECORD,
    RECORD_BYTES,
    Record,
    cursor_word,
)

__all__ = ["path"]


def set_word(path: Path, word: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(word * 8)
        file.write(value.to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("words", "usable"),
    [
        ((), True),
        ((COMMITTED_WORD,), True),
        ((ACKNOWLEDGED_WORD,), True),
        ((COMMITTED_WORD, ACKNOWLEDGED_WORD), False),
    ],
)
def test_one_damaged_cursor_is_found_again_and_two_are_not(
    path: Path, words: tuple[int, ...], usable: bool
) -> None:
    ring.create(path, SMALL)
    writer = RingWriter(path)
    writer.append([b"one", b"two"], FRAME, 0, 1)
    committed = writer.committed
    for word in words:
        set_word(path, word, 1 << 60)
    if usable:
        reader = RingReader(path)
        assert (reader.committed, reader.acknowledged) == (committed, 0)
        assert payloads(reader.read(9, 99)) == [b"one", b"two"]
    else:
        with pytest.raises(ring.ForeignRingError, match="both cursors are damaged"):
            RingReader(path)


@pytest.mark.parametrize(
    ("committed", "acknowledged"), [(8, 16), (SMALL + 16, 8), (0, 1 << 40)], ids=str
)
def test_cursors_that_do_not_fit_together_make_it_no_ring_and_cost_no_record(
    path: Path, committed: int, acknowledged: int
) -> None:
    """Each with check bits that fit."""
    ring.create(path, SMALL)
    writer = RingWriter(path)
    writer.append([b"one", b"two"], FRAME, 0, 1)
    writer.close()
    set_word(path, COMMITTED_WORD, cursor_word(committed))
    set_word(path, ACKNOWLEDGED_WORD, cursor_word(acknowledged))
    with pytest.raises(ring.ForeignRingError, match="do not fit together"):
        RingReader(path)
    prepared = ring.prepare(path, SMALL)
    assert prepared.set_aside is not None
    assert payloads(SalvagedReader(prepared.set_aside).read(9, 9)) == [b"one", b"two"]


def test_a_cursor_that_is_damaged_while_it_is_read_is_waited_for(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"one"], FRAME, 0, 1)
    set_word(path, COMMITTED_WORD, cursor_word(writer.committed) ^ 1 << 60)
    for _ in range(5):
        assert (reader.read(9, 99), reader.position, reader.damage) == ([], 0, [])
        assert not reader.seek(0)
    writer.append([b"two"], FRAME, 0, 1)
    assert payloads(reader.read(9, 99)) == [b"one", b"two"]


@pytest.mark.parametrize("ahead", [0, 1])
def test_after_a_boot_a_sequence_is_believed_up_to_50_days_ahead_of_the_clock(
    path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    now = 10**12
    monkeypatch.setattr(time, "time_ns", lambda: now * 1000)
    ring.create(path, SMALL)
    told = now + (1 << 42) + ahead
    set_word(path, NEXT_SEQUENCE_WORD, told)
    monkeypatch.setattr(mapped, "boot_id", lambda: b"after the reboot")
    assert RingWriter(path).next_sequence == (now if ahead else told)


def test_after_a_boot_it_goes_on_with_the_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_us = [10**15]
    monkeypatch.setattr(time, "time_ns", lambda: now_us[0] * 1000)
    ring.create(path, SMALL)
    RingWriter(path).append([b"one", b"two"], FRAME, 0, 1)
    monkeypatch.setattr(mapped, "boot_id", lambda: b"after the reboot")
    assert RingWriter(path).next_sequence == 10**15 + 2, "the clock has not moved"
    now_us[0] += 10**12
    assert RingWriter(path).next_sequence == 10**15 + 10**12


SKIPPED = ring.writer.SKIPPED


@pytest.mark.parametrize(
    ("ahead", "goes_on"),
    [(0, 0), (5, 5), (SKIPPED - 1, SKIPPED - 1), (SKIPPED, 0), (-1, 0), (-2, 0)],
)
def test_within_a_boot_what_a_killed_writer_gave_is_skipped_and_no_more(
    path: Path, ahead: int, goes_on: int
) -> None:
    """Told is what it wrote before it could commit; far off, it is damage."""
    ring.create(path, SMALL)
    writer = RingWriter(path)
    writer.append([b"one", b"two"], FRAME, 0, 1)
    least = writer.next_sequence
    set_word(path, NEXT_SEQUENCE_WORD, least + ahead)
    assert RingWriter(path).next_sequence == least + goes_on


def test_a_damaged_end_full_of_what_looks_like_headers_is_not_searched_without_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each header is to be held against all the bytes that it claims."""
    ring.create(path, 1 << 20)
    writer = RingWriter(path)
    claims = RECORD.pack(8000, 0, 1, 0, 0, FRAME, 0, 0)
    writer.append([b"before", claims * 4000], FRAME, 0, 1)
    last = writer.next_sequence - 1
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + 2 * RECORD_BYTES + 8 + 4000)
        file.write(b"?" * 100)
    looked: list[int] = []
    at = Records.at

    def counted(self: Records, position: int, limit: int) -> Record | None:
        looked.append(position)
        return at(self, position, limit)

    def opened(work_bytes: int) -> tuple[int, int]:
        set_word(path, NEXT_SEQUENCE_WORD, 0)
        monkeypatch.setattr(ring.writer, "_LAST_SEARCH_BYTES", work_bytes)
        looked.clear()
        return RingWriter(path).next_sequence, len(looked)

    monkeypatch.setattr(time, "time_ns", lambda: 10**9)
    monkeypatch.setattr(mapped, "boot_id", lambda: b"after the reboot")
    monkeypatch.setattr(Records, "at", counted)
    sequence, without_limit = opened(1 << 30)
    assert sequence == last, "above the record before: the damaged one's number is lost"
    assert without_limit > 1000
    sequence, limited = opened(1 << 17)
    assert sequence == last
    assert limited < 30
