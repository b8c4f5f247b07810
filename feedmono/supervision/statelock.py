"""Nothing runs twice on one ``state_dir``: a lock that the supervisor's children inherit.

The lock belongs to the open file, which a fork shares, so it is free only when the supervisor
*and* all its workers are gone: a start right after a kill can't meet an old worker on its ring.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_FILE = "lock"
_PATIENCE_S = 10.0
_RETRY_S = 0.02


class LockHeldError(Exception):
    """Another instance runs on this ``state_dir``; its text tells the pid."""


def hold(state_dir: Path) -> int:
    """Takes the lock, writes this process's pid into it, gives the descriptor to keep open.

    Waits up to 10 s for the workers of an instance whose supervisor is gone already.

    :raises LockHeldError: it is held by a running instance.
    :raises OSError: the folder can't be made or written to.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(state_dir / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _pid(fd)
            if _alive(pid) or time.monotonic() > deadline_s:
                os.close(fd)
                who = f"process {pid}" if pid else "another process"
                raise LockHeldError(
                    f"{state_dir} is in use by {who}: stop it first, or set another state_dir"
                ) from None
            time.sleep(_RETRY_S)
            continue
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd


def guard(ring: Path) -> int:
    """Locks a ring's file, for the case that ``state_dir`` and its lock were removed under a
    running instance; the descriptor to keep open.

    :raises LockHeldError: a running instance has it.
    :raises OSError: there is no such file.
    """
    fd = os.open(ring, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise LockHeldError(f"{ring} is in use by another process: stop it first") from None
    return fd


@contextlib.contextmanager
def guarded(ring: Path) -> Iterator[None]:
    """`guard` for the length of a block; a file that is not there needs none."""
    try:
        fd = guard(ring)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        os.close(fd)


def holder(state_dir: Path) -> int | None:
    """The pid of the running instance; None if none runs there.

    :raises PermissionError: that is not to be told without the right to read there.
    """
    try:
        fd = os.open(state_dir / _FILE, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        raise
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(fd)
    else:
        return None
    finally:
        os.close(fd)


def _pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
