"""What processes use: CPU, private memory, open files."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process, now."""

    pid: int
    cpu_s: float
    """Since it was started."""
    memory_bytes: int
    """Private: the pages that it shares with others, of files and shared memory, are left out."""
    open_files: int

    def waits_for_disk(self) -> bool:
        """Whether a thread of it is in an uninterruptible wait, which not even SIGKILL ends.
        It is looked up now: too dear for every second."""
        return any(state == "D" for state in thread_states(self.pid))


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
            # An OSError: this process has too many files open itself.
            with contextlib.suppress(psutil.Error, OSError):
                found[pid] = self._usage(pid)
        return found

    def _usage(self, pid: int) -> Usage:
        process = self._open.get(pid)
        if process is None:
            process = self._open[pid] = psutil.Process(pid)
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                files = process.num_fds()
        except (psutil.Error, OSError):
            del self._open[pid]
            raise
        return Usage(
            pid=pid,
            cpu_s=times.user + times.system,
            memory_bytes=memory.rss - memory.shared,
            open_files=files,
        )


def thread_states(pid: int) -> Iterator[str]:
    """The state of each thread of a process, a letter of proc(5); of none that can't be read."""
    tasks = Path(f"/proc/{pid}/task")
    with contextlib.suppress(OSError):
        for name in os.listdir(tasks):
            with contextlib.suppress(OSError):
                stat = (tasks / name / "stat").read_bytes()
                # The name in front of it stands in parentheses, and may have some itself.
                yield stat.rpartition(b") ")[2][:1].decode("ascii", "replace")


def open_files_limit() -> int:
    """How many files a process may have open; children inherit it."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
