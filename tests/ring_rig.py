"""What the tests of the ring's edges share: a ring full of records of one KiB, and damage to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedmono import ring
from feedmono.ring import RingReader, RingWriter
from feedmono.ring_layout import FRAME, HEADER_BYTES, MIN_CAPACITY_BYTES, RECORD_BYTES, Record

SMALL = MIN_CAPACITY_BYTES
KIB = 1024
FITS = KIB - RECORD_BYTES
"""A payload whose record takes one KiB."""
FRESH = [bytes([100 + number]) * FITS for number in range(20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ring"


def payloads(records: list[Record]) -> list[bytes]:
    return [record.payload for record in records]


def full(path: Path) -> tuple[RingWriter, RingReader, list[bytes], list[Record]]:
    """A ring of 62 records of one KiB each, two fewer than it holds, all read and acknowledged."""
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    old = [bytes([number]) * FITS for number in range(62)]
    assert writer.append(old, FRAME, 0, 1, last=True) == 62
    records = reader.read(100, 1 << 20)
    reader.acknowledge(reader.position)
    return writer, reader, old, records


def damage(path: Path, position: int) -> None:
    """One byte of the record there."""
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + position % SMALL + RECORD_BYTES)
        file.write(b"?")
