"""The ring where it is seldom: no room and no right, clocks, what changes while it is looked at."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import frame_twins
import pytest

from feedmono import native, ring, ring_layout
from feedmono.native import Frames
from feedmono.ring import RingError, RingReader, RingWriter, SalvagedReader, mapped
from feedmono.ring.records import Records
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    EVENT,
    FRAME,
    HEADER_BYTES,
    MIN_CAPACITY_BYTES,
    NEXT_SEQUENCE_WORD,
    RECORD,
    RECORD_BYTES,
    Record,
    cursor_word,
)

SMALL = MIN_CAPACITY_BYTES
KIB = 1024
FITS = KIB - RECORD_BYTES
"""A payload whose record takes one KiB."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ring"


def set_word(path: Path, word: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(word * 8)
        file.write(value.to_bytes(8, "little"))


def payloads(records: list[Record]) -> list[bytes]:
    return [record.payload for record in records]


def drained(reader: RingReader) -> list[bytes]:
    """All that can be read, damage passed over."""
    found: list[bytes] = []
    while reader.position != reader.committed:
        found += payloads(reader.read(100, 1 << 20))
    return found


# --- Made, or not.


@pytest.mark.parametrize("capacity", [SMALL - 1, ring_layout.MAX_CAPACITY_BYTES + 1])
def test_a_capacity_out_of_range_is_refused_and_leaves_no_file(path: Path, capacity: int) -> None:
    with pytest.raises(RingError, match="out of range"):
        ring.create(path, capacity)
    assert not list(path.parent.iterdir())


def test_where_the_folder_is_a_file_the_error_says_what_it_must_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RingError, match=r"Not a directory; ring_dir must be a folder"):
        ring.create(tmp_path / "file" / "x.ring", SMALL)


def test_what_stands_in_the_way_of_a_new_ring_is_told(path: Path) -> None:
    (path.parent / "x.ring.new").mkdir()
    with pytest.raises(RingError, match=r"Is a directory$"):
        ring.create(path, SMALL)


def test_no_room_is_told_though_what_is_free_can_not_be_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder goes while the ring is made."""
    folder = tmp_path / "rings"
    folder.mkdir()
    look = os.fstatvfs

    def gone(fd: int) -> object:
        shutil.rmtree(folder)
        free = look(fd)
        return SimpleNamespace(f_bavail=0, f_frsize=free.f_frsize)

    monkeypatch.setattr(os, "fstatvfs", gone)
    with pytest.raises(RingError, match="No space left on device; make room, or set"):
        ring.create(folder / "x.ring", SMALL)


def test_a_ring_that_is_not_there_can_not_be_opened(path: Path) -> None:
    for opened in (RingReader, RingWriter):
        with pytest.raises(RingError, match="can't open it: No such file"):
            opened(path)
    with pytest.raises(RingError, match="can't read it: No such file"):
        SalvagedReader(path)


def test_rings_that_were_set_aside_are_named_oldest_first_and_kept_when_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        monkeypatch.setattr(time, "time_ns", lambda number=number: (10**12 + number) * 10**6)
        ring.prepare(path, SMALL)
        RingWriter(path).append([b"%d" % number], FRAME, 0, 1)
        path.write_bytes(b"foreign " + path.read_bytes()[8:])
        assert ring.prepare(path, SMALL).set_aside
    first, second = ring.set_aside_of(path)
    assert [SalvagedReader(each).read(9, 9)[0].payload for each in (first, second)] == [b"0", b"1"]
    ring.keep_damaged(first)
    assert ring.set_aside_of(path) == [second]
    (kept,) = path.parent.glob("x.ring.damaged-*")
    assert payloads(SalvagedReader(kept).read(9, 9)) == [b"0"]


def test_a_machine_that_tells_no_boot_id_has_one_of_zeroes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = path.with_name("boot_id")
    monkeypatch.setattr(mapped, "Path", lambda _: proc)
    assert mapped.boot_id() == bytes(16)
    proc.write_text("not hexadecimal")
    assert mapped.boot_id() == bytes(16)
    proc.write_text("12345678-9abc-def0-1234-56789abcdef0\n")
    assert mapped.boot_id().hex() == "123456789abcdef0123456789abcdef0"


def test_a_ring_that_was_closed_holds_nothing_of_the_process(path: Path) -> None:
    ring.create(path, SMALL)
    before = len(os.listdir("/proc/self/fd"))
    for opened in (RingReader, RingWriter):
        one = opened(path)
        one.close()
        assert one._map.closed
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_used_is_what_is_not_acknowledged(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"x" * FITS] * 5, FRAME, 0, 1)
    assert writer.used_bytes == 5 * KIB
    reader.acknowledge(reader.read(3, 1 << 20)[2].end)
    assert writer.used_bytes == reader.used_bytes == 2 * KIB


# --- Cursors and sequences that can't be.


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


@pytest.mark.parametrize(
    ("kind", "last", "left_bytes"),
    [(FRAME, False, SMALL // 8), (EVENT, False, RECORD_BYTES), (FRAME, True, RECORD_BYTES)],
)
def test_so_much_of_a_ring_is_left_free(path: Path, kind: int, last: bool, left_bytes: int) -> None:
    """For events; and for nobody, so that no batch covers a whole lap."""
    ring.create(path, SMALL)
    writer = RingWriter(path)
    empty = [b""] * (SMALL // RECORD_BYTES + 1)
    append = partial(writer.append, last=True) if last else writer.append
    taken = append(empty, kind, 0, 1)
    assert taken * RECORD_BYTES == SMALL - left_bytes == writer.used_bytes
    assert append([b""], kind, 0, 1) == 0


def test_the_largest_payload_waits_for_room_as_any_other(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    largest = [bytes(ring_layout.max_payload_bytes(SMALL))]
    while writer.append(largest, FRAME, 0, 1):
        pass
    assert writer.append(largest, FRAME, 0, 1) == 0
    records = reader.read(9, 1 << 20)
    assert [record.flags for record in records] == [0] * 3, "unless it is said to be binary"
    reader.acknowledge(reader.position)
    assert writer.append(largest, FRAME, 0, 1) == 1


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


# --- What changes while it is looked at.


def full(path: Path) -> tuple[RingWriter, RingReader, list[bytes], list[Record]]:
    """A ring whose records, of one KiB each, were read and acknowledged: but for two, as many as
    there can be."""
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    old = [bytes([number]) * FITS for number in range(62)]
    assert writer.append(old, FRAME, 0, 1, last=True) == 62
    records = reader.read(100, 1 << 20)
    reader.acknowledge(reader.position)
    return writer, reader, old, records


FRESH = [bytes([100 + number]) * FITS for number in range(20)]


def test_room_that_is_used_while_the_cursor_moves_back_is_not_gone_back_to(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has looked at what is there, the writer writes over it, then the cursor moves."""
    writer, reader, _, records = full(path)
    before = reader.acknowledged

    def late(position: int) -> int:
        monkeypatch.undo()
        assert writer.append(FRESH, FRAME, 0, 1) == 20
        return cursor_word(position)

    monkeypatch.setattr(ring.reader, "cursor_word", late)
    assert not reader.seek(records[3].end)
    assert (reader.acknowledged, reader.position) == (before, before)
    assert payloads(reader.read(100, 1 << 20)) == FRESH
    assert not reader.damage
    assert reader.seek(before), "nothing has changed"


def test_room_that_is_used_while_it_is_read_gives_what_was_read_before(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer has looked for room before the cursor moved back, and passes the reader."""
    writer, reader, old, records = full(path)
    frames = native.frames
    found: list[list[Record]] = []
    written: list[tuple[int, int]] = []

    def late(*given: Any) -> tuple[int, int]:
        assert reader.seek(records[3].end)

        def overtaken(*asked: Any) -> tuple[int, int]:
            data, capacity, position, _, *rest = asked
            if not asked[-2]:
                one_record: tuple[Any, ...] = (data, capacity, position, position + KIB, *rest)
                return frames.read(*one_record)
            if not written:
                written.append(frames.append(*given))
            return frames.read(*asked)

        native.frames.read = overtaken  # type: ignore[method-assign]
        found.append(reader.read(100, 1 << 20))
        native.frames.read = frames.read  # type: ignore[method-assign]
        return written[0]

    monkeypatch.setattr(native, "frames", SimpleNamespace(append=late, read=frames.read))
    assert writer.append(FRESH, FRAME, 0, 1) == 20
    monkeypatch.undo()
    assert payloads(found[0]) == old[4:5]
    assert (reader.position, reader.last_sequence) == (records[4].end, records[4].sequence)
    again = drained(reader)
    assert again[-20:] == FRESH
    assert set(again[:-20]) <= set(old[5:])
    assert [d.position for d in reader.damage] == [n * KIB for n in range(5, 18)], "written over"
    assert {d.lost_bytes for d in reader.damage} == {KIB}


def test_a_record_that_is_seen_late_is_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look finds it not whole yet, the next one a moment later does."""
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"one", b"two", b"three"], FRAME, 0, 1)
    frames = native.frames
    late: list[int] = []

    def read(*given: Any) -> tuple[int, int]:
        position, last = given[2], given[5]
        if position not in late:
            late.append(position)
            return position, last
        return frames.read(*given)

    monkeypatch.setattr(native, "frames", SimpleNamespace(read=read))
    records = reader.read(9, 999)
    assert payloads(records) == [b"one", b"two", b"three"]
    assert reader.last_sequence == records[-1].sequence
    assert reader.position == writer.committed
    assert not reader.damage


def test_what_was_gone_back_over_can_be_gone_back_over_again(path: Path) -> None:
    _, reader, old, records = full(path)
    assert reader.seek(records[3].end)
    some = reader.read(2, 1 << 20)
    reader.acknowledge(some[-1].end)
    assert reader.seek(records[3].end)
    assert payloads(reader.read(100, 1 << 20)) == old[4:]


def test_so_many_bytes_and_no_more_are_read_at_once(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([bytes(FITS)] * 5, FRAME, 0, 1)
    assert [len(reader.read(9, limit)) for limit in (1, KIB, KIB + 1)] == [1, 1, 2]


def test_a_seek_forward_goes_to_what_is_intact(path: Path) -> None:
    """To the filling of a lap as well, if a record is behind it."""
    writer, reader, _, records = full(path)
    writer.append([bytes(2 * FITS), bytes(FITS)], FRAME, 0, 1)
    begin = records[-1].end
    assert reader.seek(begin)
    first, second = reader.read(9, 1 << 20)
    assert RingReader(path).seek(begin)
    damage(path, second.end - KIB)
    assert not reader.seek(first.end)
    assert reader.position == second.end


# --- Where a damaged cursor was.


def damage(path: Path, position: int) -> None:
    """One byte of the record there."""
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + position % SMALL + RECORD_BYTES)
        file.write(b"?")


def uncommitted(path: Path, writer: RingWriter, batch: list[bytes]) -> None:
    """What a writer leaves that is killed before it commits."""
    header = path.read_bytes()[:HEADER_BYTES]
    assert writer.append(batch, FRAME, 0, 1, last=True) == len(batch)
    with path.open("r+b") as file:
        file.write(header)


def test_the_newest_record_is_found_behind_a_damaged_one_and_no_uncommitted_one(
    path: Path,
) -> None:
    ring.create(path, SMALL)
    writer = RingWriter(path)
    ends = []
    for number in range(5):
        writer.append([b"%d" % number * FITS], FRAME, 0, 1)
        ends.append(writer.committed)
    following = writer.next_sequence
    uncommitted(path, writer, [b"u" * FITS])
    damage(path, ends[1])
    assert writer._records.newest(ends[0], following) == ends[4]
    assert writer._records.newest(ends[0], following + 1) == ends[4] + KIB, "had it been told"


@pytest.mark.parametrize("behind", [[], [b"end"]], ids=["the last", "another"])
def test_the_newest_record_is_found_behind_the_filling_of_a_lap(
    path: Path, behind: list[bytes]
) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"x" * 15_000] * 3, FRAME, 0, 1)
    begin = reader.read(2, 1 << 20)[1].end
    reader.acknowledge(begin)
    writer.append([b"y" * 15_000, b"z" * 15_000, *behind], FRAME, 0, 1)
    assert writer.committed > SMALL
    damage(path, begin)
    assert writer._records.newest(begin, writer.next_sequence) == writer.committed


@pytest.mark.parametrize("left", [0, 3])
def test_the_oldest_record_is_the_one_behind_what_a_killed_writer_left(
    path: Path, left: int
) -> None:
    writer, reader, _, _ = full(path)
    writer.append(FRESH, FRAME, 0, 1)
    reader.acknowledge(reader.read(100, 1 << 20)[-1].end)
    committed = writer.committed
    uncommitted(path, writer, [b"u" * FITS] * left)
    assert writer._records.oldest(committed) == committed - SMALL + left * KIB
    damage(path, committed + left * KIB)
    assert writer._records.oldest(committed) == committed - SMALL + (left + 1) * KIB


def test_a_lap_that_ends_with_a_record_has_that_as_its_last(path: Path) -> None:
    writer, reader, _, _ = full(path)
    assert writer.append([b"y" * FITS, b"z" * FITS], FRAME, 0, 1) == 2
    assert writer.committed == SMALL
    last = writer.next_sequence - 1
    assert writer._records.sequence_before(SMALL) == last
    damage(path, SMALL - 2 * KIB)
    assert writer._records.resynchronize(SMALL - 2 * KIB, 0, SMALL) == (SMALL - KIB, last)
    assert payloads(_patient(reader)) == [b"z" * FITS]


def test_the_largest_record_is_found_behind_a_damaged_one(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    largest = bytes(ring_layout.max_payload_bytes(SMALL))
    writer.append([b"damaged", largest], FRAME, 0, 1)
    damage(path, 0)
    assert payloads(_patient(reader)) == [largest]


def _patient(reader: RingReader) -> list[Record]:
    """What comes behind a damaged record, once that is believed."""
    for _ in range(10):
        if records := reader.read(9, 1 << 20):
            return records
    return []


@pytest.mark.parametrize("left", [8, 16, 24])
def test_a_walk_ends_at_its_limit_before_the_end_of_a_lap(path: Path, left: int) -> None:
    ring.create(path, SMALL)
    writer = RingWriter(path)
    assert writer._records.walk(SMALL - left, SMALL - left) == (SMALL - left, None)
    assert writer._records.walk(SMALL - left, SMALL) == (SMALL, None)


def test_headers_are_found_at_every_eighth_byte_and_none_that_is_cut() -> None:
    data = bytearray(48)
    for at in (0, 8, 16):
        data[at + ring_layout.RECORD_KIND_AT] = FRAME
    # The spare of the first one, which lies where the second one's sequence does, is zero.
    assert [place for place, *_ in ring.records.headers(bytes(data))] == [0, 8, 16]
    assert [place for place, *_ in ring.records.headers(bytes(data[:47]))] == [0, 8]
    assert [place for place, *_ in ring.records.headers(bytes(data[:40]))] == [0, 8]
    assert list(ring.records.headers(bytes(data[:31]))) == []


# --- What is salvaged.


def test_a_salvaged_ring_is_read_in_pieces_and_counts_what_is_left(path: Path) -> None:
    ring.create(path, SMALL)
    writer = RingWriter(path)
    sent = [bytes([65 + number]) * 100 for number in range(6)]
    writer.append(sent, FRAME, 0, 1)
    path.write_bytes(b"foreign " + path.read_bytes()[8:])
    source = SalvagedReader(path)
    assert source.used_bytes == 6
    assert payloads(source.read(1, 1 << 20)) == sent[:1]
    assert payloads(source.read(9, 100)) == sent[1:3], "one more than the bytes allow"
    source.acknowledge(2)
    assert source.used_bytes == 4
    assert [record.end for record in source.read(9, 1 << 20)] == [4, 5, 6]
    source.acknowledge(6)
    assert (source.used_bytes, source.read(9, 9)) == (0, [])
    wrong: list[Callable[[], None]] = [lambda: source.acknowledge(5), lambda: source.acknowledge(7)]
    for back_or_too_far in wrong:
        with pytest.raises(AssertionError, match="acknowledged what was not read"):
            back_or_too_far()
    source.close()
    assert SalvagedReader(path).used_bytes == 6, "begun again, it is read again"


def half_delivered(path: Path, capacity: int) -> None:
    """Three records, the first of which is acknowledged."""
    ring.create(path, capacity)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"done", b"waits", b"waits too"], FRAME, 0, 1)
    reader.acknowledge(reader.read(1, 1)[0].end)


@pytest.mark.parametrize("at", [0, 8, 12, 16, 17, 24, 40, 48])
def test_a_damaged_header_does_not_bring_back_what_was_acknowledged(path: Path, at: int) -> None:
    """Magic, version, crc, capacity and the rest: the file's own size tells where it lies."""
    half_delivered(path, SMALL)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)
    assert payloads(SalvagedReader(path).read(9, 1 << 20)) == [b"waits", b"waits too"]


@pytest.mark.parametrize("size", [2 * SMALL - 4096, 2 * SMALL + 4096])
def test_the_cursors_of_a_file_of_another_size_are_not_believed(path: Path, size: int) -> None:
    half_delivered(path, 2 * SMALL)
    os.truncate(path, HEADER_BYTES + size)
    found = payloads(SalvagedReader(path).read(9, 1 << 20))
    assert found == [b"done", b"waits", b"waits too"]


def test_of_a_drained_ring_nothing_is_salvaged(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"one", b"two"], FRAME, 0, 1)
    reader.acknowledge(reader.read(9, 99)[-1].end)
    path.write_bytes(b"foreign " + path.read_bytes()[8:])
    source = SalvagedReader(path)
    assert (source.used_bytes, source.read(9, 99), source.searching) == (0, [], False)


def test_of_a_ring_that_came_round_what_waits_is_salvaged_and_nothing_older(path: Path) -> None:
    writer, _, _, _ = full(path)
    assert writer.append(FRESH, FRAME, 0, 1) == 20
    path.write_bytes(b"foreign " + path.read_bytes()[8:])
    assert payloads(SalvagedReader(path).read(99, 1 << 20)) == FRESH


def test_a_file_that_ends_with_a_record_s_last_byte_has_that_record(path: Path) -> None:
    ring.create(path, SMALL)
    writer = RingWriter(path)
    writer.append([b"one", b"and two"], FRAME, 0, 1)
    end = HEADER_BYTES + ring_layout.record_bytes(3) + RECORD_BYTES + 7
    os.truncate(path, end)
    assert payloads(SalvagedReader(path).read(9, 99)) == [b"one", b"and two"]
    os.truncate(path, end - 1)
    assert payloads(SalvagedReader(path).read(9, 99)) == [b"one"]


@pytest.mark.parametrize("twin", frame_twins.FRAMES)
def test_either_twin_reads_a_batch_at_once_from_any_place_of_any_lap(
    path: Path, twin: Frames
) -> None:
    """Else the reader would take record by record, ten times as slowly."""
    writer, _, _, _ = full(path)
    assert writer.append(FRESH, FRAME, 0, 1) == 20
    behind_the_lap = SMALL + 3 * KIB
    found: list[Record] = []
    end = writer.committed
    given = (writer._map, SMALL, behind_the_lap, end, end, 0, 100, found, Record)
    assert twin.read(*given) == (end, writer.next_sequence - 1)
    assert payloads(found) == FRESH[5:]
    assert found[0].end == behind_the_lap + KIB


@pytest.mark.parametrize("twin", frame_twins.FRAMES)
@pytest.mark.parametrize("position", [0, SMALL - 40])
@pytest.mark.parametrize(("lacks_bytes", "taken"), [(0, 1), (8, 0)])
def test_what_ends_exactly_at_the_limit_fits_in_this_lap_or_the_next(
    path: Path, twin: Frames, position: int, lacks_bytes: int, taken: int
) -> None:
    ring.create(path, SMALL)
    data = RingWriter(path)._map
    begin = SMALL if position else 0
    end = begin + ring_layout.record_bytes(100)
    fields = (end - lacks_bytes, 1000, 1, 2, 3, FRAME, 0)
    written = twin.append(data, SMALL, position, *fields, [b"x" * 100, b"no more room"])
    assert written == ((1, end) if taken else (0, position))
