"""What an operator should know of: conditions that begin, last and end, each said once.

`conditions` judges a sample; `Alarms` remembers since when, and logs beginnings and ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from feedmono.log import Log
from feedmono.supervision.snapshot import CPU, Alarm, Disk, ExchangeStatus, Snapshot

RING_SHARE = 0.5
"""A ring filled so far is worth an alarm."""
FILES_SHARE = 0.8
"""Of the open files that a process may have."""
DISK_SHARE = 0.02
DISK_BYTES = 1 << 30
"""A disk with less than this free, or less than `DISK_SHARE` of it, is nearly full."""
BEHIND_S = -0.1
"""A trade can't be received before it was made: this clock is behind the exchange's, or that is
ahead."""
AHEAD_S = 2.0
"""Longer than any way from the exchange: this clock is ahead."""
CPU_KINDS = frozenset({CPU.name, CPU.total})
# Until what is above a limit counts as below it again.
_CALM = 0.9


class Condition(NamedTuple):
    kind: str
    """As in `feedmono.supervision.snapshot.Alarm`."""
    exchange: str
    text: str


class Alarms:
    """The alarms of one instance, look by look."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lasting: dict[tuple[str, str], Alarm] = {}

    @property
    def kinds(self) -> frozenset[tuple[str, str]]:
        """Kind and exchange of those that last: a limit counts until it is well kept again."""
        return frozenset(self._lasting)

    def look(self, found: Iterable[Condition], now_at_s: float) -> tuple[Alarm, ...]:
        """Those that last, oldest first.

        :param now_at_s: Unix time.
        """
        lasting: dict[tuple[str, str], Alarm] = {}
        for kind, exchange, text in found:
            before = self._lasting.get((kind, exchange))
            since_s = before.since_s if before else now_at_s
            lasting[kind, exchange] = Alarm(kind, exchange, text, since_s)
            if before is None:
                self._log.warning("alarm", **_fields(lasting[kind, exchange]))
        for key, alarm in self._lasting.items():
            if key not in lasting:
                lasted_s = round(now_at_s - alarm.since_s, 1)
                self._log.info("alarm is over", **_fields(alarm), lasted_s=lasted_s)
        self._lasting = lasting
        return tuple(sorted(lasting.values(), key=lambda alarm: alarm.since_s))


def _fields(alarm: Alarm) -> Mapping[str, str]:
    fields = {"kind": alarm.kind, "text": alarm.text}
    return {"exchange": alarm.exchange, **fields} if alarm.exchange else fields


def conditions(state: Snapshot, lasting: frozenset[tuple[str, str]]) -> Iterator[Condition]:
    """What is not as it should be.

    :param lasting: `Alarms.kinds`; what lasts ends below nine tenths of its limit.
    """

    def over(kind: str, exchange: str, actual: float, limit: float) -> bool:
        return actual > limit * (_CALM if (kind, exchange) in lasting else 1.0)

    for exchange in state.exchanges:
        for kind, actual, limit, text in _of_exchange(exchange):
            if over(kind, exchange.name, actual, limit):
                yield Condition(kind, exchange.name, text)
    for kind, actual, limit, text in _of_all(state) if state.exchanges else ():
        if over(kind, "", actual, limit):
            yield Condition(kind, "", text)
    if low := [disk for disk in state.disks if over("disk", "", _least(disk), disk.free_bytes)]:
        parts = [f"{disk.name} {disk.path}: {_mib(disk.free_bytes)} free" for disk in low]
        yield Condition("disk", "", "; ".join(parts))


def _least(disk: Disk) -> float:
    """How much of it should be free, in bytes."""
    return max(DISK_SHARE * disk.total_bytes, min(DISK_BYTES, disk.total_bytes / 10))


def _of_exchange(e: ExchangeStatus) -> Iterator[tuple[str, float, float, str]]:
    """Kind, actual, limit and text of each thing that has a limit."""
    for balance in e.balances:
        text = balance.alarm_text
        if balance.resource is CPU and e.throttle < 1.0:
            text += f", the serializer throttled to {e.throttle:.2f}"
        yield balance.resource.name, balance.actual, balance.target, text
    ring = f"{_mib(e.ring_used_bytes)} of {_mib(e.ring_capacity_bytes)} wait to be delivered"
    yield "ring", e.ring_used_bytes, e.ring_capacity_bytes * RING_SHARE, ring
    if e.clock_offset_s is not None:
        behind = f"trades come {-e.clock_offset_s:.3f} s before their time: the clock is behind"
        yield "clock", -e.clock_offset_s, -BEHIND_S, behind
        ahead = f"no trade was younger than {e.clock_offset_s:.3f} s: is the clock ahead?"
        if e.clock_offset_s > 0:
            yield "clock", e.clock_offset_s, AHEAD_S, ahead


def _of_all(state: Snapshot) -> Iterator[tuple[str, float, float, str]]:
    for balance in state.balances:
        text = f"{balance.alarm_text} in all"
        yield balance.resource.total, balance.actual, balance.target, text
    tree = state.tree
    files = f"{tree.open_files} of {tree.open_files_limit} open files"
    yield "files", tree.open_files, tree.open_files_limit * FILES_SHARE, files


def disks(folders: Mapping[str, Path]) -> tuple[Disk, ...]:
    """The file systems of the folders that are there, by configuration key."""
    found = []
    for name, folder in folders.items():
        try:
            stat = os.statvfs(folder)
        except OSError:
            continue
        total_bytes = stat.f_blocks * stat.f_frsize
        found.append(Disk(name, str(folder), stat.f_bavail * stat.f_frsize, total_bytes))
    return tuple(found)


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"
