"""Keeps a process's memory from creeping: a full garbage collection now and then.

CPython keeps freed tuples for the next of their size, up to 2,000 of each, and gives them back in
full collections only. A tuple made of a generator is allocated for ten items and freed as one of
fewer, so each adds one to those that are kept: up to 3 MiB a process within hours. What was frozen
before the fork is not looked at, so a collection takes well under a millisecond; some, where a
whole window waits in objects of Python.

Source: ``_PyTuple_ClearFreeList`` in Objects/tupleobject.c, ``clear_freelists`` in
Modules/gcmodule.c, CPython 3.11.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

PERIOD_S = 60.0


class Collector:
    """One process's; its loop calls `tick` about once a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_s = clock() + PERIOD_S

    def tick(self) -> None:
        """Collects once the period is over."""
        if (now_s := self._clock()) >= self._due_s:
            self._due_s = now_s + PERIOD_S
            gc.collect()
