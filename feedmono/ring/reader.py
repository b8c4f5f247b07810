"""The end of the ring that a serializer reads and acknowledges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from feedmono import native
from feedmono import ring_layout as layout
from feedmono.ring.mapped import Ring
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    HEADER_BYTES,
    NEXT_SEQUENCE_WORD,
    PAD,
    Record,
    cursor_position,
    cursor_word,
)

# How often a record that does not fit its crc is looked at again before it counts as damaged:
# the caller waits some milliseconds between two looks, a store is visible within a microsecond.
_LOOKS = 3
# One `RingReader.read` searches so much for intact records, about 0.1 s: its caller must show that
# it lives.
_SEARCH_BYTES = 64 << 20


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of the ring that could not be read."""

    position: int
    payload: bytes
    """The damaged bytes, cut to 64 KiB."""
    lost_bytes: int
    lost_records: int | None
    """None if nothing intact is behind it."""


class RingReader(Ring):
    """Reads and acknowledges. One thread of one process at a time."""

    def __init__(self, path: Path) -> None:
        """Opens the ring at its acknowledged position.

        :raises ForeignRingError: this is no ring, or a damaged one.
        :raises RingError: it can't be opened.
        """
        super().__init__(path)
        self.damage: list[Damage] = []
        """What could not be read, oldest first; the caller takes it out."""
        self._position = self.acknowledged
        self._last_sequence = 0
        self._looks = 0
        # How far the search for what is intact behind a damaged record has come.
        self._searched: int | None = None
        # After a `seek` back: records before this end have sequences below that one.
        self._old_end = 0
        self._old_below = 0

    @property
    def position(self) -> int:
        """Where the next `read` begins."""
        return self._position

    @property
    def drained(self) -> bool:
        """Whether everything that is committed was read."""
        return self._position >= self.committed

    @property
    def searching(self) -> bool:
        """Whether a large damaged part is looked through, a slice with each `read`: the next call
        has something to do."""
        return self._searched is not None

    @property
    def last_sequence(self) -> int:
        """Of the last record that was read; 0 if there is none yet, or none since `seek`."""
        return self._last_sequence

    def seek(self, position: int) -> bool:
        """Goes on reading at *position*, the `Record.end` of a record that was read once, or 0.
        False, and nothing changes, if what followed it may be gone.

        Behind the acknowledged cursor, that one stays: `acknowledge` frees what was skipped. Before
        it, the cursor moves back, so that nothing from there on is overwritten.
        """
        committed = cursor_position(self._words[COMMITTED_WORD])
        if committed is None or position % layout.ALIGNMENT:
            return False
        if not max(0, committed - self.capacity_bytes) <= position <= committed:
            return False
        acknowledged = self.acknowledged
        if position < acknowledged:
            if not self._move_back(position, acknowledged, committed):
                return False
        elif position < committed:
            record = self._records.at(position, committed)
            if record is not None and record.kind == PAD:
                record = self._records.at(record.end, committed)
            if record is None:
                return False
        self._position, self._last_sequence, self._looks = position, 0, 0
        self._searched = None
        return True

    def _move_back(self, position: int, acknowledged: int, committed: int) -> bool:
        """Moves the acknowledged cursor back to *position*, if all from there on is intact."""
        found = self._records.resynchronize(acknowledged, 0, committed)
        below = found[1] if found else self._words[NEXT_SEQUENCE_WORD]
        if not self._stands(position, acknowledged, below):
            return False
        self._words[ACKNOWLEDGED_WORD] = cursor_word(position)
        # The writer may have used the room in between.
        if not self._stands(position, acknowledged, below):
            self._words[ACKNOWLEDGED_WORD] = cursor_word(acknowledged)
            return False
        # An append that is under way may still use it: `read` watches for that.
        if acknowledged > self._old_end:
            self._old_end, self._old_below = acknowledged, below
        return True

    def _stands(self, position: int, end: int, below: int) -> bool:
        """Whether there are intact records from *position* exactly to *end*, all of their lap:
        what was written over them has sequences from *below* on."""
        reached, last = self._records.walk(position, end)
        return reached == end and (last is None or last < below)

    def read(self, max_records: int, max_bytes: int) -> list[Record]:
        """The next committed records, at most so many and, but for the first, at most about so
        many bytes. Empty if there is none yet: wait some milliseconds before the next call, unless
        it is `searching`."""
        committed = cursor_position(self._words[COMMITTED_WORD])
        if committed is None:
            return []
        records: list[Record] = []
        position, last = self._position, self._last_sequence
        # Whatever the cursor says, there is no more than a lap to look at.
        committed = min(committed, position + self.capacity_bytes)
        if position < self._old_end:
            committed = self._old_end
        if self._searched is not None:
            self._position, self._last_sequence = self._search_on(position, last, committed)
            return []
        limit = position + max_bytes
        while position < committed and len(records) < max_records:
            if position >= limit and records:
                break
            before = position
            position, last = native.frames.read(
                self._map,
                self.capacity_bytes,
                position,
                committed,
                limit,
                last,
                max_records,
                records,
                Record,
            )
            if position != before:
                self._looks = 0
                continue
            # The end of a lap, or damage.
            record = self._records.at(position, committed)
            if record is None or record.sequence <= last:
                if not records:
                    position, last = self._doubt(position, last, committed)
                break
            position = record.end
            self._looks = 0
            if record.kind != PAD:
                last = record.sequence
                records.append(record)
        if self._position < self._old_end and last >= self._old_below:
            records, position, last = self._cut_overwritten(records, committed)
        self._position, self._last_sequence = position, last
        return records

    def take(
        self,
        take: Callable[..., tuple[int, int, T | None]],
        max_records: int,
        max_bytes: int,
        *further: object,
    ) -> T | None:
        """As `read`, but *take* reads, with the first seven arguments of
        `feedmono.native.Frames.read` and the *further* ones; it tells the position behind what it
        took, the last sequence, and what it made of it. None where it stops at once, or nothing is
        there, or what is there needs care: `read` that."""
        position = self._position
        committed = cursor_position(self._words[COMMITTED_WORD])
        if committed is None or committed <= position:
            return None
        if self._searched is not None or position < self._old_end:
            return None
        committed = min(committed, position + self.capacity_bytes)
        limit, last = position + max_bytes, self._last_sequence
        self._position, self._last_sequence, found = take(
            self._map, self.capacity_bytes, position, committed, limit, last, max_records, *further
        )
        if self._position != position:
            self._looks = 0
        return found

    def _cut_overwritten(
        self, records: Sequence[Record], committed: int
    ) -> tuple[list[Record], int, int]:
        """Those before the room that an append, under way while the cursor moved back, has used;
        where to read on, and the last sequence."""
        own = [record for record in records if record.sequence < self._old_below]
        if own:
            return own, own[-1].end, own[-1].sequence
        self._looks = _LOOKS
        return own, *self._doubt(self._position, self._last_sequence, committed)

    def _doubt(self, position: int, last: int, committed: int) -> tuple[int, int]:
        """What to do about a record that does not fit: look again, in the end skip it."""
        self._looks += 1
        if self._looks < _LOOKS:
            return position, last
        self._looks = 0
        self._searched = position + layout.ALIGNMENT
        return self._search_on(position, last, committed)

    def _search_on(self, position: int, last: int, committed: int) -> tuple[int, int]:
        """Looks through the next slice behind the damaged record at *position*; where to read on,
        which is there again until the search has ended."""
        assert self._searched is not None
        end, sequence = self._records.search(self._searched, last, committed, _SEARCH_BYTES)
        if sequence is None and end < committed:
            self._searched = end
            return position, last
        self._searched = None
        at = HEADER_BYTES + position % self.capacity_bytes
        shown = min(end - position, 64 * 1024, len(self._map) - at)
        lost = sequence - last - 1 if sequence is not None and last else None
        self.damage.append(Damage(position, self._map[at : at + shown], end - position, lost))
        return end, last

    def acknowledge(self, position: int) -> None:
        """Frees everything before *position*, which must be the `Record.end` of a record that
        was read, or not move at all."""
        assert self.acknowledged <= position <= self._position, "acknowledged what was not read"
        self._words[ACKNOWLEDGED_WORD] = cursor_word(position)
