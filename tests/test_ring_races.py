"""A ring that changes while it is looked at: a writer that passes the reader, a reader that goes
back, a record that is seen late."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ring_rig import FITS, FRESH, KIB, SMALL, damage, full, path, payloads

from feedmono import native, ring
from feedmono.ring import RingReader, RingWriter
from feedmono.ring_layout import FRAME, Record, cursor_word

__all__ = ["path"]


def drained(reader: RingReader) -> list[bytes]:
    """All that can be read, damage passed over."""
    found: list[bytes] = []
    while reader.position != reader.committed:
        found += payloads(reader.read(100, 1 << 20))
    return found


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
