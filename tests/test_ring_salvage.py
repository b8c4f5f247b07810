"""What is salvaged of a ring that can't be believed: all that waits, nothing that was
acknowledged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ring_rig import FRESH, SMALL, full, path, payloads

from feedmono import ring, ring_layout
from feedmono.ring import RingReader, RingWriter, SalvagedReader
from feedmono.ring_layout import FRAME, HEADER_BYTES, RECORD_BYTES

__all__ = ["path"]


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
