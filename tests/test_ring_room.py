"""How much fits into a ring, a lap and a read, to the byte."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import frame_twins
import pytest
from ring_rig import FITS, KIB, SMALL, path

from feedmono import ring, ring_layout
from feedmono.native import Frames
from feedmono.ring import RingReader, RingWriter
from feedmono.ring_layout import EVENT, FRAME, RECORD_BYTES

__all__ = ["path"]


def test_what_is_used_is_what_is_not_acknowledged(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"x" * FITS] * 5, FRAME, 0, 1)
    assert writer.used_bytes == 5 * KIB
    reader.acknowledge(reader.read(3, 1 << 20)[2].end)
    assert writer.used_bytes == reader.used_bytes == 2 * KIB


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


def test_so_many_bytes_and_no_more_are_read_at_once(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([bytes(FITS)] * 5, FRAME, 0, 1)
    assert [len(reader.read(9, limit)) for limit in (1, KIB, KIB + 1)] == [1, 1, 2]


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
