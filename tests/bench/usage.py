"""What processes have used, from /proc: CPU by process and by thread in ns, memory by its kind."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_MAIN, _OTHER = "main", "further threads"
# Mapped files that are no memory of the program's own: rings, and where the baseline handler leaves
# its figures for the benchmark.
_APART = (".ring", ".figures")
_SPAN = re.compile(r"[0-9a-f]+-[0-9a-f]+$")


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread so far."""

    name: str
    """``main``, or the kernel's name for it: librdkafka's begin with ``rdk:``."""
    cpu_ns: int


@dataclass(frozen=True, slots=True)
class Process:
    """One process so far."""

    role: str
    """Its title without what it shares with all others: ``reader``."""
    cpu_ns: int
    """Of all its threads, ended ones included."""
    threads: Mapping[int, Thread]


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in bytes."""

    pss_bytes: int
    """Its share of what it has in memory, without the rings."""
    private_bytes: int
    """What it has written and no other process has in memory, without the rings. Pages of files
    that are only read do not count: whether others have them depends on who else runs."""
    ring_bytes: int
    """Its share of the rings."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """What was used between two moments, in ns."""

    by_role: Mapping[str, int] = field(default_factory=dict)
    by_thread: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By role and thread."""
    ended: tuple[str, ...] = ()
    """Processes that ended meanwhile: what they used since the first moment is not known."""

    @property
    def total_ns(self) -> int:
        return sum(self.by_role.values())


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def look(pids: Iterable[int]) -> dict[int, Process]:
    """What each of the processes has used; those that are gone are left out."""
    found: dict[int, Process] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = Process(_role(pid), _cpu_ns(pid), _threads(pid))
    return found


def between(before: Mapping[int, Process], after: Mapping[int, Process]) -> Cpu:
    """What was used from one look to another."""
    by_role: Counter[str] = Counter()
    by_thread: Counter[tuple[str, str]] = Counter()
    for pid, process in after.items():
        earlier = before.get(pid)
        by_role[process.role] += process.cpu_ns - (earlier.cpu_ns if earlier else 0)
        for number, thread in process.threads.items():
            known = earlier.threads.get(number) if earlier else None
            by_thread[process.role, thread.name] += thread.cpu_ns - (known.cpu_ns if known else 0)
    ended = tuple(process.role for pid, process in before.items() if pid not in after)
    return Cpu(dict(by_role), dict(by_thread), ended)


def memory(pids: Iterable[int]) -> dict[str, Memory]:
    """By role; of processes of one role together."""
    found: dict[str, Memory] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            role, now = _role(pid), _memory(pid)
            if (other := found.get(role)) is not None:
                now = add(now, other)
            found[role] = now
    return found


def add(one: Memory, other: Memory) -> Memory:
    """Both together."""
    return Memory(
        one.pss_bytes + other.pss_bytes,
        one.private_bytes + other.private_bytes,
        one.ring_bytes + other.ring_bytes,
    )


def total(memories: Mapping[str, Memory]) -> Memory:
    """All of them together."""
    whole = Memory(0, 0, 0)
    for each in memories.values():
        whole = add(whole, each)
    return whole


def _role(pid: int) -> str:
    """By its title (``feedmono: reader binance``), or by the program that it runs."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    title = words[0].decode("utf-8", "replace")
    if title.startswith("feedmono: "):
        return title.split()[1]
    programs = [Path(os.fsdecode(word)).stem for word in words if word.endswith(b".py")]
    return programs[0] if programs else Path(title).name


def _cpu_ns(pid: int) -> int:
    # clock_getcpuclockid(3): exact, and without the 10 ms steps of /proc/PID/stat.
    return time.clock_gettime_ns(~pid << 3 | 2)


def _threads(pid: int) -> dict[int, Thread]:
    tasks = Path(f"/proc/{pid}/task")
    main = (tasks / f"{pid}" / "comm").read_text().strip()
    found = {}
    for name in os.listdir(tasks):
        # A thread may end while it is looked at.
        with contextlib.suppress(OSError):
            comm = (tasks / name / "comm").read_text().strip()
            # Time on a CPU, time in the queue for one, time slices: proc(5).
            cpu_ns = int((tasks / name / "schedstat").read_text().split()[0])
            if int(name) == pid:
                comm = _MAIN
            found[int(name)] = Thread(_OTHER if comm == main else comm, cpu_ns)
    return found


def _memory(pid: int) -> Memory:
    sizes: Counter[tuple[str, bool]] = Counter()
    apart = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if _SPAN.match(words[0]):
            apart = words[-1].endswith(_APART)
        elif words[-1] == "kB":
            sizes[words[0], apart] += int(words[1]) * 1024
    return Memory(sizes["Pss:", False], sizes["Private_Dirty:", False], sizes["Pss:", True])
