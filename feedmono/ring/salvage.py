"""What is still intact in a file that is no ring any more."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from feedmono import ring_layout as layout
from feedmono.ring import records as search
from feedmono.ring.mapped import RingError
from feedmono.ring.reader import Damage
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    HEADER_BYTES,
    PAD,
    RECORD,
    RECORD_BYTES,
    Record,
    cursor_position,
    record_bytes,
)


class SalvagedReader:
    """Reads a file that can't be opened as a ring any more, as `RingReader` reads a ring: every
    intact record, in the order of their sequences. If the cursors can be believed, those that were
    acknowledged are left out. Positions count from 0, and acknowledging leaves no trace in the
    file: begun again, it is read again."""

    def __init__(self, path: Path) -> None:
        """:raises RingError: the file can't be read."""
        try:
            with path.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                self._data: mmap.mmap | bytes = b""
                if size_bytes:
                    self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RingError(f"ring {path}: can't read it: {error.strerror}") from error
        self.damage: list[Damage] = []
        self.searching = False
        """As of `RingReader`: all of it was searched at once."""
        self.position = 0
        self._acknowledged = 0
        wanted = self._unacknowledged()
        self._places = sorted(place for place in self._scan() if wanted(place[1]))

    def _unacknowledged(self) -> Callable[[int], bool]:
        """Tells of a place in the file whether what stands there was not acknowledged."""
        data = self._data
        capacity = len(data) - HEADER_BYTES
        if (
            capacity <= 0
            or capacity % layout.CAPACITY_STEP_BYTES
            or _stated_capacity(data) not in (None, capacity)
        ):
            return lambda _: True
        words = [
            cursor_position(int.from_bytes(data[word * 8 : word * 8 + 8], "little"))
            for word in (COMMITTED_WORD, ACKNOWLEDGED_WORD)
        ]
        committed, acknowledged = words
        if committed is None or acknowledged is None:
            return lambda _: True
        if not 0 <= committed - acknowledged <= capacity:
            return lambda _: True
        begin, used = acknowledged, committed - acknowledged
        return lambda at: (at - HEADER_BYTES - begin) % capacity < used

    def _scan(self) -> Iterator[tuple[int, int]]:
        """Sequence and place of each intact record."""
        data, free_from = self._data, HEADER_BYTES
        for begin in range(HEADER_BYTES, len(data), search.CHUNK_BYTES):
            chunk = data[begin : begin + search.CHUNK_BYTES + RECORD_BYTES - layout.ALIGNMENT]
            for place, *_ in search.headers(chunk):
                at = begin + place
                record = self._record(at, 0) if at >= free_from else None
                if record is not None:
                    yield record.sequence, at
                    free_from = at + record_bytes(len(record.payload))

    def _record(self, at: int, end: int) -> Record | None:
        data = self._data
        size, crc, sequence, received_ns, connection, kind, flags, _ = RECORD.unpack_from(data, at)
        body_at = at + RECORD_BYTES
        if kind not in layout.KINDS or kind == PAD or size > len(data) - body_at:
            return None
        body = data[body_at : body_at + size]
        if zlib.crc32(body, zlib.crc32(data[at + layout.RECORD_FRONT.size : body_at])) != crc:
            return None
        return Record(end, sequence, received_ns, connection, kind, flags, body)

    @property
    def used_bytes(self) -> int:
        """How many records are not acknowledged yet."""
        return len(self._places) - self._acknowledged

    def read(self, max_records: int, max_bytes: int) -> list[Record]:
        """As `RingReader.read`."""
        records: list[Record] = []
        size_bytes = 0
        for _, at in self._places[self.position : self.position + max_records]:
            if records and size_bytes > max_bytes:
                break
            record = self._record(at, self.position + 1)
            assert record is not None
            records.append(record)
            size_bytes += len(record.payload)
            self.position += 1
        return records

    def acknowledge(self, position: int) -> None:
        """As `RingReader.acknowledge`."""
        assert self._acknowledged <= position <= self.position, "acknowledged what was not read"
        self._acknowledged = position

    def close(self) -> None:
        if isinstance(self._data, mmap.mmap):
            self._data.close()


def _stated_capacity(data: mmap.mmap | bytes) -> int | None:
    """The capacity that a header tells; None if the header is damaged."""
    fields = layout.STATIC.unpack_from(data)
    magic, _, crc, capacity, *_ = fields
    return capacity if magic == layout.MAGIC and layout.static_crc(fields) == crc else None
