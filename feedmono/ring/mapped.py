"""The mapped file that a reader process and its serializer share: its header and its cursors."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from feedmono import ring_layout as layout
from feedmono.ring.records import Records
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    HEADER_BYTES,
    NEXT_SEQUENCE_WORD,
    cursor_position,
    cursor_word,
)


class RingError(Exception):
    """A ring that can't be made or opened; its text says what to do."""


class ForeignRingError(RingError):
    """A file that is no ring of this layout version, or whose header is damaged."""


def boot_id() -> bytes:
    """The 16 bytes that change with each start of the machine; zeroes where there are none."""
    try:
        return bytes.fromhex(
            Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", "")
        )
    except (OSError, ValueError):
        return bytes(16)


class Ring:
    """The mapped file, to be looked at; what writer and reader share."""

    def __init__(self, path: Path) -> None:
        """Opens it; one cursor that is damaged is stored again as the records tell.

        :raises ForeignRingError: this is no ring, or a damaged one.
        :raises RingError: it can't be opened.
        """
        self.path = path
        self._map = self._mapped()
        size_bytes = len(self._map)
        fields = layout.STATIC.unpack_from(self._map)
        magic, version, crc, capacity, first, boot, *_ = fields
        if magic != layout.MAGIC:
            raise ForeignRingError(f"ring {path}: this is no ring")
        if version != layout.VERSION:
            raise ForeignRingError(f"ring {path}: layout {version}, known is {layout.VERSION}")
        if layout.static_crc(fields) != crc:
            raise ForeignRingError(f"ring {path}: its header is damaged")
        # Whoever forged the header can forge its crc as well.
        if capacity % layout.CAPACITY_STEP_BYTES or capacity < layout.MIN_CAPACITY_BYTES:
            raise ForeignRingError(f"ring {path}: no ring has {capacity} B")
        if size_bytes != HEADER_BYTES + capacity:
            raise ForeignRingError(f"ring {path}: {size_bytes} B are not header and {capacity} B")
        self.capacity_bytes: int = capacity
        self.first_sequence: int = first
        self.same_boot: bool = boot == boot_id()
        self._records = Records(self._map, capacity)
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
            committed = self._records.newest(acknowledged, self._words[NEXT_SEQUENCE_WORD])
            self._words[COMMITTED_WORD] = cursor_word(committed)
        if acknowledged is None:
            acknowledged = self._records.oldest(committed)
            self._words[ACKNOWLEDGED_WORD] = cursor_word(acknowledged)
        if not 0 <= committed - acknowledged <= self.capacity_bytes:
            raise ForeignRingError(
                f"ring {self.path}: acknowledged {acknowledged} and committed {committed} B "
                "do not fit together"
            )

    @property
    def committed(self) -> int:
        """The position up to which records are there; its check bits are not looked at."""
        return self._words[COMMITTED_WORD] & layout.POSITION_MASK

    @property
    def acknowledged(self) -> int:
        """The position up to which the space may be used again; its check bits are not looked
        at."""
        return self._words[ACKNOWLEDGED_WORD] & layout.POSITION_MASK

    @property
    def used_bytes(self) -> int:
        """What is committed and not acknowledged, what fills the ends of laps included."""
        return self.committed - self.acknowledged

    def close(self) -> None:
        self._words.release()
        self._view.release()
        self._map.close()
