"""The records of a mapped ring: the one at a position, and which are intact where some are not."""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator

from feedmono import ring_layout as layout
from feedmono.ring_layout import (
    HEADER_BYTES,
    PAD,
    RECORD,
    RECORD_BYTES,
    RECORD_FRONT,
    RECORD_REST,
    Record,
    record_bytes,
)

# So much is looked through at once for headers: a millisecond's work.
CHUNK_BYTES = 1 << 20
# By the byte where a kind may stand: whether it is one that is handed out.
_HANDED_OUT = bytes(kind in layout.KINDS and kind != PAD for kind in range(256))


def headers(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Where in *data*, at every eighth byte, the header of a record that is handed out may stand:
    its place, and the size and the sequence that it tells. Zeroes and text have none, noise has
    next to none."""
    kinds = data[layout.RECORD_KIND_AT :: layout.ALIGNMENT].translate(_HANDED_OUT)
    behind = len(data) - RECORD_BYTES
    found = kinds.find(1)
    while found >= 0 and (at := found * layout.ALIGNMENT) <= behind:
        size, _, sequence, _, _, _, _, spare = RECORD.unpack_from(data, at)
        if not spare:
            yield at, size, sequence
        found = kinds.find(1, found + 1)


class Records:
    """Finds and checks records, and changes nothing. Positions are those of the ring."""

    def __init__(self, data: mmap.mmap, capacity_bytes: int) -> None:
        """:param data: the whole file."""
        self._data = data
        self._capacity_bytes = capacity_bytes
        self._largest_bytes = layout.max_payload_bytes(capacity_bytes)

    def at(self, position: int, limit: int) -> Record | None:
        """The intact record at *position*, a `PAD` for the end of a lap; None if damaged."""
        offset = position % self._capacity_bytes
        left = self._capacity_bytes - offset
        if left < RECORD_BYTES:
            return Record(position + left, 1 << 64, 0, 0, PAD, 0, b"")
        at = HEADER_BYTES + offset
        size, crc, sequence, received_ns, connection, kind, flags, _ = RECORD.unpack_from(
            self._data, at
        )
        end = position + record_bytes(size)
        if size > left - RECORD_BYTES or end > limit or kind not in layout.KINDS:
            return None
        behind = at + RECORD_BYTES + (0 if kind == PAD else size)
        body = self._data[at + RECORD_FRONT.size : behind]
        if zlib.crc32(body) != crc:
            return None
        payload = body[RECORD_REST.size :]
        return Record(end, sequence, received_ns, connection, kind, flags, payload)

    def walk(self, position: int, limit: int, last: int | None = None) -> tuple[int, int | None]:
        """From a record's start over intact records with sequences that rise above *last*: where
        they end, at most at *limit*, and the last one's sequence."""
        while position < limit:
            record = self.at(position, limit)
            if record is None or (last is not None and record.sequence <= last):
                break
            if record.kind != PAD:
                last = record.sequence
            position = record.end
        return position, last

    def resynchronize(self, position: int, last: int, committed: int) -> tuple[int, int] | None:
        """The next intact record at or behind *position* with a sequence above *last*: where it
        begins, and its sequence."""
        begin, sequence = self.search(position, last, committed)
        return None if sequence is None else (begin, sequence)

    def search(
        self, position: int, last: int, limit: int, work_bytes: float = math.inf
    ) -> tuple[int, int | None]:
        """As `resynchronize`, but looks at no more than about *work_bytes*, or one record: where
        to go on then, and None in the place of the sequence. At *limit* there is nothing."""
        while position < limit:
            behind = self._chunk_end(position, limit)
            work_bytes -= behind - position
            for begin, size, sequence in self._headers_between(position, behind):
                if sequence <= last or begin + record_bytes(size) > limit:
                    continue
                if self.at(begin, limit) is not None:
                    return begin, sequence
                work_bytes -= size
                if work_bytes <= 0:
                    return begin + layout.ALIGNMENT, None
            position = behind
            if work_bytes <= 0:
                break
        return position, None

    def search_back(self, limit: int, begin: int) -> Iterator[tuple[int, int]]:
        """Where records may begin, from *limit* back to *begin*, and the size each tells."""
        while limit > begin:
            lap = (limit - 1) // self._capacity_bytes * self._capacity_bytes
            start = max(begin, lap, limit - CHUNK_BYTES)
            for position, size, _ in reversed([*self._headers_between(start, limit)]):
                yield position, size
            limit = start

    def _chunk_end(self, position: int, limit: int) -> int:
        left = self._capacity_bytes - position % self._capacity_bytes
        return min(limit, position + min(left, CHUNK_BYTES))

    def _headers_between(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """As `headers`, of a part of one lap, with positions for places. What can't be there,
        since the lap ends before, is left out."""
        offset = begin % self._capacity_bytes
        at = HEADER_BYTES + offset
        behind = at + end - begin + RECORD_BYTES - layout.ALIGNMENT
        for place, size, sequence in headers(self._data[at:behind]):
            left = self._capacity_bytes - offset - place
            if size <= min(self._largest_bytes, left - RECORD_BYTES):
                yield begin + place, size, sequence

    def newest(self, acknowledged: int, next_sequence: int) -> int:
        """Where the newest record ends that is not acknowledged; no record has *next_sequence*
        or more."""
        limit = acknowledged + self._capacity_bytes
        # In a drained ring, records of an earlier lap may stand exactly here.
        before = self.sequence_before(acknowledged)
        committed, last = self.walk(acknowledged, limit, before)
        position = committed
        while position < limit and (last or 0) + 1 < next_sequence:
            record = self.at(position, limit)
            if record is None:
                position = self.search(position + layout.ALIGNMENT, last or 0, limit)[0]
                continue
            position = record.end
            if record.kind != PAD and record.sequence > (last or 0):
                committed, last = record.end, record.sequence
        return committed

    def oldest(self, committed: int) -> int:
        """Where the oldest record begins that may still be there. What a killed writer left behind
        *committed* stands in front of it, with higher sequences."""
        oldest = position = max(0, committed - self._capacity_bytes)
        last = 0
        while found := self.resynchronize(position, 0, committed):
            if not last or found[1] <= last:
                oldest = found[0]
            position, highest = self.walk(found[0], committed)
            last = highest or found[1]
        return oldest

    def sequence_before(self, position: int) -> int | None:
        """The sequence of the record that ends at *position*; None if it is not intact."""
        lap = (position - 1) // self._capacity_bytes * self._capacity_bytes
        begin = max(0, lap, position - RECORD_BYTES - self._largest_bytes)
        for start, size in self.search_back(position, begin):
            if start + record_bytes(size) == position:
                record = self.at(start, position)
                if record is not None:
                    return record.sequence
        return None
