"""The end of the ring that a reader process appends to."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from feedmono import native
from feedmono import ring_layout as layout
from feedmono.ring.mapped import Ring
from feedmono.ring_layout import (
    COMMITTED_WORD,
    NEXT_SEQUENCE_WORD,
    RECORD_BYTES,
    cursor_word,
    record_bytes,
)

# 50 days: a clock may be set back, but a sequence further ahead is damage.
_SEQUENCE_LEAD_US = 1 << 42
# A writer looks through so much of a damaged end, about a second, and follows so many bytes of
# intact records, before it relies on the clock and the told sequence alone.
_LAST_SEARCH_BYTES = 1 << 30
_LAST_WALK_BYTES = 64 << 20
SKIPPED = 1 << 20
"""A writer killed before it committed skips the numbers of one batch: never so many."""


class RingWriter(Ring):
    """Appends. One process at a time; its threads may share the object."""

    def __init__(self, path: Path) -> None:
        """Opens the ring and goes on behind its last committed record.

        :raises ForeignRingError: this is no ring, or a damaged one.
        :raises RingError: it can't be opened.
        """
        super().__init__(path)
        self._largest_bytes = layout.max_payload_bytes(self.capacity_bytes)
        self._lock = threading.Lock()
        self._room_bytes = self.capacity_bytes - layout.reserve_bytes(self.capacity_bytes)
        # A batch that is never committed must not cover a whole lap: `RingReader.seek` tells it
        # from what was there by what it left.
        self._last_room_bytes = self.capacity_bytes - RECORD_BYTES
        self._position = self.committed
        self._sequence = self._settled_sequence()
        self._words[NEXT_SEQUENCE_WORD] = self._sequence

    def _settled_sequence(self) -> int:
        """A sequence above all that were given before."""
        committed = self._position
        last = self._records.sequence_before(committed)
        told = self._words[NEXT_SEQUENCE_WORD]
        if self.same_boot and (last is not None or not committed):
            least = max(self.first_sequence, (last or 0) + 1)
            return told if least < told < least + SKIPPED else least
        # Damage, or pages that a lost machine had not written, may hide the last one.
        if last is None:
            last = self._last_intact(committed) or 0
        now = time.time_ns() // 1000
        if told > max(now, last, self.first_sequence) + _SEQUENCE_LEAD_US:
            told = 0
        return max(self.first_sequence, last + 1, told, now)

    def _last_intact(self, committed: int) -> int | None:
        """The sequence of the newest record that is intact, as far as a second's work tells."""
        acknowledged = self.acknowledged
        begin = max(acknowledged, committed - _LAST_SEARCH_BYTES)
        work_bytes = _LAST_SEARCH_BYTES
        for start, size in self._records.search_back(committed, begin):
            if start + record_bytes(size) > committed:
                continue
            record = self._records.at(start, committed)
            if record is not None:
                return record.sequence
            work_bytes -= size
            if work_bytes <= 0:
                break
        return self._records.walk(acknowledged, min(committed, acknowledged + _LAST_WALK_BYTES))[1]

    @property
    def next_sequence(self) -> int:
        """What the next record gets."""
        return self._sequence

    def append(
        self,
        payloads: Sequence[bytes],
        kind: int,
        connection: int,
        received_ns: int,
        flags: int = 0,
        last: bool = False,
    ) -> int:
        """Appends records in order, visible all at once; returns how many fitted.

        Fewer than all: the ring is full. Events may use the room that frames leave to them, and
        so may the *last* frames before a stop.

        :raises ValueError: a payload above `feedmono.ring_layout.max_payload_bytes`; none of them
            is taken then.
        """
        with self._lock:
            reserve = last or kind == layout.EVENT
            room_bytes = self._last_room_bytes if reserve else self._room_bytes
            taken, position = native.frames.append(
                self._map,
                self.capacity_bytes,
                self._position,
                self.acknowledged + room_bytes,
                self._largest_bytes,
                self._sequence,
                received_ns,
                connection,
                kind,
                flags,
                payloads,
            )
            if taken < len(payloads) and (size := len(payloads[taken])) > self._largest_bytes:
                raise ValueError(f"{size} B are too large for ring {self.path}")
            if taken:
                self._commit(position, self._sequence + taken)
            return taken

    def _commit(self, position: int, sequence: int) -> None:
        # The sequence first: killed in between, a number is skipped; the other way round one
        # would be given twice.
        self._words[NEXT_SEQUENCE_WORD] = sequence
        self._words[COMMITTED_WORD] = cursor_word(position)
        self._position = position
        self._sequence = sequence
