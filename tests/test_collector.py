"""A process's memory does not creep: full collections, a minute apart."""

from __future__ import annotations

import gc
import subprocess
import sys

from feedmono.collector import PERIOD_S, Collector

# Prints how many freed tuples of seven CPython keeps, before and after a tick that is due.
_KEPT = f"""
import sys
from feedmono.collector import Collector
now = 0.0
collector = Collector(lambda: now)
for _ in range(1500):
    tuple(x for x in range(7))
sys._debugmallocstats()
now = {PERIOD_S}
collector.tick()
sys._debugmallocstats()
"""


def _collections() -> int:
    return int(gc.get_stats()[2]["collections"])


def test_it_collects_once_a_period() -> None:
    now_s = [5.0]
    collector = Collector(lambda: now_s[0])
    counts = []
    for now_s[0] in (5.0, 64.9, 65.0, 66.0, 124.9, 500.0, 501.0):
        before = _collections()
        collector.tick()
        counts.append(_collections() - before)
    assert counts == [0, 0, 1, 0, 0, 1, 0]


def test_it_gives_back_what_the_interpreter_keeps_of_freed_tuples() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KEPT], capture_output=True, text=True, timeout=60, check=True
    )
    kept = [
        int(line.split()[0]) for line in done.stderr.splitlines() if "free 7-sized PyTuple" in line
    ]
    assert len(kept) == 2
    assert kept[0] >= 1000
    assert kept[1] < 100
