"""A call in a process of its own: what it imports and allocates ends with it."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from feedmono import log as logs
from feedmono import workers

_READ_BYTES = 64 * 1024


class Failed(Exception):
    """The call raised, was killed, or took too long; its text says which."""


def call(title: str, function: Callable[[], Any], limit_s: float) -> Any:
    """What *function* returns, which must be picklable. It runs in a fork of this process, which
    must have no thread that may hold a lock of Python's; the fork ends with this process.

    :param title: what ``ps`` shows, and what the errors call it.
    :raises Failed: it raised, with its text; it was killed, or not done within the limit.
    """
    parent_pid = os.getpid()
    result_fd, told_fd = os.pipe2(os.O_CLOEXEC)
    # A signal for the parent's handlers is not to be taken by the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _become(title, parent_pid, function, told_fd)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(told_fd)
    try:
        told = _read(result_fd, time.monotonic() + limit_s)
    finally:
        os.close(result_fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if told is None:
        raise Failed(f"{title}: not done within {limit_s:g} s")
    try:
        # Of a fork of this very process.
        result, error = pickle.loads(told)  # noqa: S301
    except (EOFError, pickle.UnpicklingError) as broken:
        raise Failed(f"{title}: its process ended ({status:#06x})") from broken
    if error:
        raise Failed(error)
    return result


def _become(title: str, parent_pid: int, function: Callable[[], Any], told_fd: int) -> None:
    """The child's life; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        workers.settle(title, parent_pid)
        logs.begin_child()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            answer = pickle.dumps((function(), ""))
        except Exception as error:
            answer = pickle.dumps((None, str(error) or repr(error)))
        logs.close()
        with open(told_fd, "wb", closefd=False) as told:
            told.write(answer)
    finally:
        os._exit(0)


def _read(fd: int, until_s: float) -> bytes | None:
    """All that is written until the other end is closed; None: not by then."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    told = b""
    while (left_s := until_s - time.monotonic()) > 0:
        if poll.poll(left_s * 1000):
            more = os.read(fd, _READ_BYTES)
            if not more:
                return told
            told += more
    return None
