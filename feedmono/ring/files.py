"""A ring's file: made, taken over, or set aside."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from feedmono import ring_layout as layout
from feedmono.ring import mapped
from feedmono.ring.mapped import ForeignRingError, RingError
from feedmono.ring.writer import SKIPPED, RingWriter
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    HEADER_BYTES,
    NEXT_SEQUENCE_WORD,
    RECORD_BYTES,
    cursor_word,
)

# Between a ring's name and a number: one that was replaced and is not drained yet; one that was
# damaged, and is kept for the operator.
_ASIDE, _DAMAGED = ".aside-", ".damaged-"


def create(path: Path, capacity_bytes: int, first_sequence: int | None = None) -> None:
    """Makes an empty ring with all its space reserved; *path* must not exist.

    :param first_sequence: the ring's identity; the Unix time in microseconds if it is None.
    :raises RingError: there is no room or no right for it.
    """
    if not layout.MIN_CAPACITY_BYTES <= capacity_bytes <= layout.MAX_CAPACITY_BYTES:
        raise RingError(f"ring {path}: capacity {capacity_bytes} B is out of range")
    capacity_bytes = layout.whole_capacity(capacity_bytes)
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
        # What could not be made for this reason can't be removed for the same one.
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise RingError(_no_room(path, capacity_bytes, error)) from error


def _static(capacity_bytes: int, first_sequence: int) -> bytes:
    tail = (capacity_bytes, first_sequence, mapped.boot_id(), time.time_ns(), 0)
    crc = layout.static_crc((layout.MAGIC, layout.VERSION, 0, *tail))
    return layout.STATIC.pack(layout.MAGIC, layout.VERSION, crc, *tail)


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
    wanted = layout.whole_capacity(capacity_bytes)
    first_sequence = max(time.time_ns() // 1000, least_sequence)
    set_aside: Path | None = None
    reason = ""
    if path.exists():
        old = _look_at(path, wanted, least_sequence)
        if old.stays:
            return Prepared(old.used_bytes, None, "")
        first_sequence = max(first_sequence, old.next_sequence)
        reason = old.reason
        if reason:
            while path.with_name(f"{path.name}{_ASIDE}{first_sequence}").exists():
                first_sequence += 1
            set_aside = path.with_name(f"{path.name}{_ASIDE}{first_sequence}")
        else:
            path.unlink()
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


class _Old(NamedTuple):
    """The ring that is there."""

    next_sequence: int
    """Its successor's first is no lower."""
    stays: bool
    used_bytes: int = 0
    reason: str = ""
    """Why it is set aside; empty: it stays, or holds nothing."""


def _look_at(path: Path, wanted_bytes: int, least_sequence: int) -> _Old:
    try:
        ring = RingWriter(path)
    except ForeignRingError as error:
        # Above all that it may hold, too, should the clock have been set back.
        held = path.stat().st_size // RECORD_BYTES + SKIPPED
        return _Old(least_sequence + held, False, reason=str(error))
    following, used_bytes, capacity_bytes = ring.next_sequence, ring.used_bytes, ring.capacity_bytes
    ring.close()
    lacking = least_sequence - following
    if capacity_bytes == wanted_bytes and lacking <= 0:
        return _Old(following, True, used_bytes)
    reason = ""
    if used_bytes and lacking > 0:
        reason = f"it lacks the last {lacking} records"
    elif used_bytes:
        reason = f"its capacity was {capacity_bytes >> 10} KiB"
    return _Old(following, False, used_bytes, reason)


def set_aside_of(path: Path) -> list[Path]:
    """The rings that were replaced by the one at *path* and are not drained yet, oldest first."""
    return sorted(path.parent.glob(f"{path.name}{_ASIDE}*"))


def keep_damaged(set_aside: Path) -> None:
    """Renames a ring that is drained as far as it is intact, for the operator to look at."""
    set_aside.rename(set_aside.with_name(set_aside.name.replace(_ASIDE, _DAMAGED)))
