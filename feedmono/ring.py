"""The ring: the one log between a reader process and its serializer, in shared memory.

One process appends (its threads share a lock), one reads and acknowledges. The ring is a
memory-mapped file, so it outlives both, and the supervisor. `feedmono.ring_layout` draws it.

Promises, and what they rest on:

- What `RingWriter.append` has taken is read exactly once by one `RingReader`, in order, and again
  by its successor unless it was acknowledged. Records are written first, then *one* cursor word is
  stored: a writer killed at any point leaves all of a batch or nothing.
- *Full* is a return value. Nothing is overwritten before it was acknowledged.
- A record that was damaged is never handed out: what is intact behind it is, and the damage is
  reported (`RingReader.damage`).

CPython issues no memory barrier for the cursor's store; the native extension issues one before it.
x86 keeps the order of stores; elsewhere, without the extension, the reader may see the cursor
before the record. The crc finds that, and the reader looks again.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from feedmono import native
from feedmono import ring_layout as layout
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    HEADER_BYTES,
    NEXT_SEQUENCE_WORD,
    PAD,
    RECORD,
    RECORD_BYTES,
    RECORD_FRONT,
    RECORD_REST,
    Record,
    cursor_position,
    cursor_word,
    record_bytes,
)

# How often a record that does not fit its crc is looked at again before it counts as damaged:
# the caller waits some milliseconds between two looks, a store is visible within a microsecond.
_LOOKS = 3
# 50 days: a clock may be set back, but a sequence further ahead is damage.
_SEQUENCE_LEAD_US = 1 << 42
# A writer killed before it committed skips the numbers of one batch: never so many.
_SKIPPED = 1 << 20
# So much is looked through at once for headers: a millisecond's work.
_CHUNK_BYTES = 1 << 20
# One `RingReader.read` searches so much for intact records, about 0.1 s: its caller must show that
# it lives.
_SEARCH_BYTES = 64 << 20
# A writer looks through so much of a damaged end, about a second, and follows so many bytes of
# intact records, before it relies on the clock and the told sequence alone.
_LAST_SEARCH_BYTES = 1 << 30
_LAST_WALK_BYTES = 64 << 20
_KIND_AT = 26
# By the byte where a kind may stand: whether it is one that is handed out.
_HANDED_OUT = bytes(kind in layout.KINDS and kind != PAD for kind in range(256))


class RingError(Exception):
    """A ring that can't be made or opened; its text says what to do."""


class ForeignRingError(RingError):
    """A file that is no ring of this layout version, or whose header is damaged."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of the ring that could not be read."""

    position: int
    payload: bytes
    """The damaged bytes, cut to 64 KiB."""
    lost_bytes: int
    lost_records: int | None
    """None if nothing intact is behind it."""


def boot_id() -> bytes:
    """The 16 bytes that change with each start of the machine; zeroes where there are none."""
    try:
        return bytes.fromhex(
            Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", "")
        )
    except (OSError, ValueError):
        return bytes(16)


def create(path: Path, capacity_bytes: int, first_sequence: int | None = None) -> None:
    """Makes an empty ring with all its space reserved; *path* must not exist.

    :param first_sequence: the ring's identity; the Unix time in microseconds if it is None.
    :raises RingError: there is no room or no right for it.
    """
    if not layout.MIN_CAPACITY_BYTES <= capacity_bytes <= layout.MAX_CAPACITY_BYTES:
        raise RingError(f"ring {path}: capacity {capacity_bytes} B is out of range")
    capacity_bytes = (capacity_bytes + 4095) & -4096
    if first_sequence is None:
        first_sequence = time.time_ns() // 1000
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # A sparse file on a full tmpfs would die by SIGBUS later.
            _reserve(fd, HEADER_BYTES + capacity_bytes)
            os.pwrite(fd, _static(capacity_bytes, first_sequence), 0)
            words = ((COMMITTED_WORD, cursor_word(0)), (ACKNOWLEDGED_WORD, cursor_word(0)))
            for word, value in (*words, (NEXT_SEQUENCE_WORD, first_sequence)):
                os.pwrite(fd, value.to_bytes(8, "little"), word * 8)
        finally:
            os.close(fd)
        os.rename(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise RingError(_no_room(path, capacity_bytes, error)) from error


def _static(capacity_bytes: int, first_sequence: int) -> bytes:
    tail = (capacity_bytes, first_sequence, boot_id(), time.time_ns(), 0)
    crc = zlib.crc32(layout.STATIC.pack(layout.MAGIC, layout.VERSION, 0, *tail))
    return layout.STATIC.pack(layout.MAGIC, layout.VERSION, crc, *tail)


def _headers(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Where in *data*, at every eighth byte, the header of a record that is handed out may stand:
    its place, and the size and the sequence that it tells. Zeroes and text have none, noise has
    next to none."""
    kinds = data[_KIND_AT :: layout.ALIGNMENT].translate(_HANDED_OUT)
    behind = len(data) - RECORD_BYTES
    found = kinds.find(1)
    while found >= 0 and (at := found * layout.ALIGNMENT) <= behind:
        size, _, sequence, _, _, _, _, spare = RECORD.unpack_from(data, at)
        if not spare:
            yield at, size, sequence
        found = kinds.find(1, found + 1)


def _reserve(fd: int, size_bytes: int) -> None:
    """:raises OSError: there is no room. An attempt in vain would fill the disk for a moment, so
    what is free is looked at first."""
    free = os.fstatvfs(fd)
    if free.f_bavail * free.f_frsize < size_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.posix_fallocate(fd, 0, size_bytes)


def _no_room(path: Path, capacity_bytes: int, error: OSError) -> str:
    text = f"ring {path}: can't reserve {capacity_bytes >> 10} KiB: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        try:
            free = os.statvfs(path.parent)
            text += f", {free.f_bavail * free.f_frsize >> 10} KiB are free"
        except OSError:
            pass
        text += "; make room, or set a smaller ring_capacity or another ring_dir"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EROFS):
        text += "; ring_dir must be a folder that this user may write to"
    return text


class Ring:
    """The mapped file, to be looked at; what writer and reader share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = self._mapped()
        size_bytes = len(self._map)
        fields = layout.STATIC.unpack_from(self._map)
        magic, version, crc, capacity, first, boot, created, zero = fields
        fields = (magic, version, 0, capacity, first, boot, created, zero)
        if magic != layout.MAGIC:
            raise ForeignRingError(f"ring {path}: this is no ring")
        if version != layout.VERSION:
            raise ForeignRingError(f"ring {path}: layout {version}, known is {layout.VERSION}")
        if zlib.crc32(layout.STATIC.pack(*fields)) != crc:
            raise ForeignRingError(f"ring {path}: its header is damaged")
        # Whoever forged the header can forge its crc as well.
        if capacity % 4096 or capacity < layout.MIN_CAPACITY_BYTES:
            raise ForeignRingError(f"ring {path}: no ring has {capacity} B")
        if size_bytes != HEADER_BYTES + capacity:
            raise ForeignRingError(f"ring {path}: {size_bytes} B are not header and {capacity} B")
        self.capacity_bytes: int = capacity
        self.first_sequence: int = first
        self.same_boot: bool = boot == boot_id()
        self._largest_bytes = layout.max_payload_bytes(capacity)
        self._view = memoryview(self._map)
        self._words = self._view.cast("Q")
        self._recover_cursors()

    def _mapped(self) -> mmap.mmap:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise RingError(f"ring {self.path}: can't open it: {error.strerror}") from error
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes < HEADER_BYTES:
                raise ForeignRingError(f"ring {self.path}: {size_bytes} B is too short for a ring")
            return mmap.mmap(fd, size_bytes)
        finally:
            os.close(fd)

    def _recover_cursors(self) -> None:
        """Settles what the two cursors say; see `ForeignRingError` for what can't be settled."""
        committed = cursor_position(self._words[COMMITTED_WORD])
        acknowledged = cursor_position(self._words[ACKNOWLEDGED_WORD])
        if committed is None and acknowledged is None:
            raise ForeignRingError(f"ring {self.path}: both cursors are damaged")
        if committed is None:
            assert acknowledged is not None
            committed = self._newest(acknowledged)
            self._words[COMMITTED_WORD] = cursor_word(committed)
        if acknowledged is None:
            acknowledged = self._oldest(committed)
            self._words[ACKNOWLEDGED_WORD] = cursor_word(acknowledged)
        if not 0 <= committed - acknowledged <= self.capacity_bytes:
            raise ForeignRingError(
                f"ring {self.path}: acknowledged {acknowledged} and committed {committed} B "
                "do not fit together"
            )

    def _walk(self, position: int, limit: int, last: int | None = None) -> tuple[int, int | None]:
        """From a record's start over intact records with sequences that rise above *last*: where
        they end, at most at *limit*, and the last one's sequence."""
        while position < limit:
            record = self._record(position, limit)
            if record is None or (last is not None and record.sequence <= last):
                break
            if record.kind != PAD:
                last = record.sequence
            position = record.end
        return position, last

    def _resynchronize(self, position: int, last: int, committed: int) -> tuple[int, int] | None:
        """The next intact record at or behind *position* with a sequence above *last*: where it
        begins, and its sequence."""
        begin, sequence = self._search(position, last, committed)
        return None if sequence is None else (begin, sequence)

    def _search(
        self, position: int, last: int, limit: int, work_bytes: float = math.inf
    ) -> tuple[int, int | None]:
        """As `_resynchronize`, but looks at no more than about *work_bytes*, or one record: where
        to go on then, and None in the place of the sequence. At *limit* there is nothing."""
        while position < limit:
            behind = self._chunk_end(position, limit)
            work_bytes -= behind - position
            for begin, size, sequence in self._headers_between(position, behind):
                if sequence <= last or begin + record_bytes(size) > limit:
                    continue
                if self._record(begin, limit) is not None:
                    return begin, sequence
                work_bytes -= size
                if work_bytes <= 0:
                    return begin + layout.ALIGNMENT, None
            position = behind
            if work_bytes <= 0:
                break
        return position, None

    def _search_back(self, limit: int, begin: int) -> Iterator[tuple[int, int]]:
        """Where records may begin, from *limit* back to *begin*, and the size each tells."""
        while limit > begin:
            lap = (limit - 1) // self.capacity_bytes * self.capacity_bytes
            start = max(begin, lap, limit - _CHUNK_BYTES)
            for position, size, _ in reversed([*self._headers_between(start, limit)]):
                yield position, size
            limit = start

    def _chunk_end(self, position: int, limit: int) -> int:
        left = self.capacity_bytes - position % self.capacity_bytes
        return min(limit, position + min(left, _CHUNK_BYTES))

    def _headers_between(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """As `_headers`, of a part of one lap, with positions for places. What can't be there,
        since the lap ends before, is left out."""
        offset = begin % self.capacity_bytes
        at = HEADER_BYTES + offset
        behind = at + end - begin + RECORD_BYTES - layout.ALIGNMENT
        for place, size, sequence in _headers(self._map[at:behind]):
            left = self.capacity_bytes - offset - place
            if size <= min(self._largest_bytes, left - RECORD_BYTES):
                yield begin + place, size, sequence

    def _newest(self, acknowledged: int) -> int:
        """Where the newest record ends that is not acknowledged."""
        limit = acknowledged + self.capacity_bytes
        # In a drained ring, records of an earlier lap may stand exactly here.
        before = self._sequence_before(acknowledged)
        committed, last = self._walk(acknowledged, limit, before)
        position = committed
        while position < limit and (last or 0) + 1 < self._words[NEXT_SEQUENCE_WORD]:
            record = self._record(position, limit)
            if record is None:
                position = self._search(position + layout.ALIGNMENT, last or 0, limit)[0]
                continue
            position = record.end
            if record.kind != PAD and record.sequence > (last or 0):
                committed, last = record.end, record.sequence
        return committed

    def _oldest(self, committed: int) -> int:
        """Where the oldest record begins that may still be there. What a killed writer left behind
        *committed* stands in front of it, with higher sequences."""
        oldest = position = max(0, committed - self.capacity_bytes)
        last = 0
        while found := self._resynchronize(position, 0, committed):
            if not last or found[1] <= last:
                oldest = found[0]
            position, highest = self._walk(found[0], committed)
            last = highest or found[1]
        return oldest

    def _sequence_before(self, position: int) -> int | None:
        """The sequence of the record that ends at *position*; None if it is not intact."""
        lap = (position - 1) // self.capacity_bytes * self.capacity_bytes
        begin = max(0, lap, position - RECORD_BYTES - self._largest_bytes)
        for start, size in self._search_back(position, begin):
            if start + record_bytes(size) == position:
                record = self._record(start, position)
                if record is not None:
                    return record.sequence
        return None

    def _record(self, position: int, limit: int) -> Record | None:
        """The intact record at *position*, a `PAD` for the end of a lap; None if damaged."""
        offset = position % self.capacity_bytes
        left = self.capacity_bytes - offset
        if left < RECORD_BYTES:
            return Record(position + left, 1 << 64, 0, 0, PAD, 0, b"")
        at = HEADER_BYTES + offset
        size, crc, sequence, received_ns, connection, kind, flags, _ = RECORD.unpack_from(
            self._map, at
        )
        end = position + record_bytes(size)
        if size > left - RECORD_BYTES or end > limit or kind not in layout.KINDS:
            return None
        behind = at + RECORD_BYTES + (0 if kind == PAD else size)
        body = self._map[at + RECORD_FRONT.size : behind]
        if zlib.crc32(body) != crc:
            return None
        payload = body[RECORD_REST.size :]
        return Record(end, sequence, received_ns, connection, kind, flags, payload)

    @property
    def committed(self) -> int:
        """The position up to which records are there."""
        return self._words[COMMITTED_WORD] & 0xFFFF_FFFF_FFFF

    @property
    def acknowledged(self) -> int:
        """The position up to which the space may be used again."""
        return self._words[ACKNOWLEDGED_WORD] & 0xFFFF_FFFF_FFFF

    @property
    def used_bytes(self) -> int:
        return self.committed - self.acknowledged

    def close(self) -> None:
        self._words.release()
        self._view.release()
        self._map.close()


class RingWriter(Ring):
    """Appends. One process at a time; its threads may share the object."""

    def __init__(self, path: Path) -> None:
        """Opens the ring and goes on behind its last committed record.

        :raises ForeignRingError: this is no ring, or a damaged one.
        :raises RingError: it can't be opened.
        """
        super().__init__(path)
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
        last = self._sequence_before(committed)
        told = self._words[NEXT_SEQUENCE_WORD]
        if self.same_boot and (last is not None or not committed):
            least = max(self.first_sequence, (last or 0) + 1)
            return told if least < told < least + _SKIPPED else least
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
        for start, size in self._search_back(committed, begin):
            if start + record_bytes(size) > committed:
                continue
            record = self._record(start, committed)
            if record is not None:
                return record.sequence
            work_bytes -= size
            if work_bytes <= 0:
                break
        return self._walk(acknowledged, min(committed, acknowledged + _LAST_WALK_BYTES))[1]

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

        :raises ValueError: a payload above `feedmono.ring_layout.max_payload_bytes`.
        """
        with self._lock:
            reserve = last or kind == layout.EVENT
            room_bytes = self._last_room_bytes if reserve else self._room_bytes
            return self._append(payloads, kind, connection, received_ns, flags, room_bytes)

    def _append(
        self,
        payloads: Sequence[bytes],
        kind: int,
        connection: int,
        received_ns: int,
        flags: int,
        room_bytes: int,
    ) -> int:
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
        if taken < len(payloads):
            size = len(payloads[taken])
            if size > self._largest_bytes:
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
            record = self._record(position, committed)
            if record is not None and record.kind == PAD:
                record = self._record(record.end, committed)
            if record is None:
                return False
        self._position, self._last_sequence, self._looks = position, 0, 0
        self._searched = None
        return True

    def _move_back(self, position: int, acknowledged: int, committed: int) -> bool:
        """Moves the acknowledged cursor back to *position*, if all from there on is intact."""
        found = self._resynchronize(acknowledged, 0, committed)
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
        reached, last = self._walk(position, end)
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
            record = self._record(position, committed)
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
            records = [r for r in records if r.sequence < self._old_below]
            if records:
                position, last = records[-1].end, records[-1].sequence
            else:
                self._looks = _LOOKS
                position, last = self._doubt(self._position, self._last_sequence, committed)
        self._position, self._last_sequence = position, last
        return records

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
        end, sequence = self._search(self._searched, last, committed, _SEARCH_BYTES)
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
        if capacity <= 0 or capacity % 4096 or _stated_capacity(data) not in (None, capacity):
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
        for begin in range(HEADER_BYTES, len(data), _CHUNK_BYTES):
            chunk = data[begin : begin + _CHUNK_BYTES + RECORD_BYTES - layout.ALIGNMENT]
            for place, *_ in _headers(chunk):
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
        if zlib.crc32(body, zlib.crc32(data[at + 8 : body_at])) != crc:
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
    magic, version, crc, capacity, *tail = layout.STATIC.unpack_from(data)
    intact = zlib.crc32(layout.STATIC.pack(magic, version, 0, capacity, *tail)) == crc
    return capacity if intact and magic == layout.MAGIC else None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` found."""

    kept_bytes: int
    """What the ring holds from before, not acknowledged yet."""
    set_aside: Path | None
    """The ring that this one replaces, still to be drained."""
    reason: str
    """Why it was replaced."""


def prepare(path: Path, capacity_bytes: int, least_sequence: int = 0) -> Prepared:
    """Makes sure that a ring of that capacity is at *path*, before its processes start.

    :param least_sequence: the next record's sequence is no lower.

    A ring that is there is kept as it is. One of another capacity, or with lower sequences (a crash
    of the host took its end, and the clock was set back), is removed if it is empty; if not, or if
    it is damaged or of another layout, it is set aside as ``<name>.aside-<n>``, and nothing of it
    is lost: the serializer reads what is intact there first.

    :raises RingError: there is no room or no right for it; what was there is untouched then, but
        for an empty ring.
    """
    wanted = (capacity_bytes + 4095) & -4096
    first_sequence = max(time.time_ns() // 1000, least_sequence)
    set_aside: Path | None = None
    reason = ""
    if path.exists():
        try:
            old = RingWriter(path)
        except ForeignRingError as error:
            reason = str(error)
            # Above all that it may hold, too, should the clock have been set back.
            held = path.stat().st_size // RECORD_BYTES + _SKIPPED
            first_sequence = max(first_sequence, least_sequence + held)
        else:
            used_bytes, old_bytes = old.used_bytes, old.capacity_bytes
            lacking = least_sequence - old.next_sequence
            first_sequence = max(first_sequence, old.next_sequence)
            old.close()
            if old_bytes == wanted and lacking <= 0:
                return Prepared(used_bytes, None, "")
            if not used_bytes:
                path.unlink()
            elif lacking > 0:
                reason = f"it lacks the last {lacking} records"
            else:
                reason = f"its capacity was {old_bytes >> 10} KiB"
        if reason:
            while path.with_name(f"{path.name}.aside-{first_sequence}").exists():
                first_sequence += 1
            set_aside = path.with_name(f"{path.name}.aside-{first_sequence}")
    following = path.with_name(path.name + ".next")
    following.unlink(missing_ok=True)
    if set_aside is None:
        create(path, capacity_bytes, first_sequence)
        return Prepared(0, None, "")
    # First the new one: where there is no room for two, the old one stays where it is.
    create(following, capacity_bytes, first_sequence)
    path.rename(set_aside)
    following.rename(path)
    return Prepared(0, set_aside, reason)
