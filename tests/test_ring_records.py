"""Which records are found in a ring: the newest and the oldest, and those behind a damaged one or
the end of a lap."""

from __future__ import annotations

from pathlib import Path

import frame_twins
import pytest
from ring_rig import FITS, FRESH, KIB, SMALL, damage, full, path, payloads

from feedmono import ring, ring_layout
from feedmono.native import Frames
from feedmono.ring import RingReader, RingWriter
from feedmono.ring_layout import FRAME, HEADER_BYTES, Record

__all__ = ["path"]


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
