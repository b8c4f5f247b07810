"""What processes use: CPU, private memory, open files."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process, now."""

    cpu_s: float
    """Since it was started."""
    memory_bytes: int
    """Private: the pages that it shares with others, of files and shared memory, are left out."""
    open_files: int
    waits_for_disk: bool
    """It is in an uninterruptible wait, which not even SIGKILL ends."""


class Processes:
    """Looks at processes by their pid; remembers what it opened for each."""

    def __init__(self) -> None:
        self._open: dict[int, psutil.Process] = {}

    def look(self, pids: Iterable[int]) -> dict[int, Usage]:
        """The usage of those that are there."""
        wanted = set(pids)
        self._open = {pid: process for pid, process in self._open.items() if pid in wanted}
        found: dict[int, Usage] = {}
        for pid in wanted:
            with contextlib.suppress(psutil.Error):
                found[pid] = self._usage(pid)
        return found

    def _usage(self, pid: int) -> Usage:
        process = self._open.get(pid)
        if process is None:
            process = self._open[pid] = psutil.Process(pid)
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                state, files = process.status(), process.num_fds()
        except psutil.Error:
            del self._open[pid]
            raise
        return Usage(
            cpu_s=times.user + times.system,
            memory_bytes=memory.rss - memory.shared,
            open_files=files,
            waits_for_disk=state == psutil.STATUS_DISK_SLEEP,
        )


def open_files_limit() -> int:
    """How many files a process may have open; children inherit it."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
