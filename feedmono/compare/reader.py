"""Reads both sides at the same time, each in a process of its own: reading takes most of the time.

A child opens its source, sets its trades aside in a file that both processes have open, tells how
far it is, and at last what it has read. Whatever ends this process ends the children.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from feedmono.compare.result import CompareError
from feedmono.compare.side import Collector, Side
from feedmono.compare.source import Origin
from feedmono.compare.spill import Spill
from feedmono.compare.trade import Taken, taker
from feedmono.workers import OrphanedError, settle

STEPS = 1000
"""In so many steps each side is read."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Of a stage and how much there is to do in it: what is told how much more is done."""

_TELL_EVERY_S = 0.1
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of both sides."""

    wanted: Callable[[Taken], bool] | None
    """Which trades; None: all."""
    max_named: int
    """How many examples of what can't be read."""


class _Report(NamedTuple):
    """What a child tells at last."""

    side: Side
    pieces: list[array[int]]
    length: int


def collect(origin: Origin, rows: Spill, wish: Wish, advance: Callable[[float], None]) -> Side:
    """Reads a side to its end, in this process.

    :param advance: told the share that is read.
    :raises Exception: what the source or the spill could not do.
    """
    source = origin.open()
    collector = Collector(taker(origin.mapping), wish.wanted, rows, wish.max_named)
    total, done = max(source.total(), 1), 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        advance(min(done / total, 1.0))

    collector.run(source, count)
    return collector.side


def read_both(
    origins: Sequence[Origin], spills: Sequence[Spill], wish: Wish, progress: Progress
) -> list[Side]:
    """Reads the sources, each into its spill.

    :raises CompareError: a child was killed.
    :raises Exception: what a source or its spill could not do.
    """
    children = []
    connections = []
    try:
        for origin, spill in zip(origins, spills, strict=True):
            here, there = _FORK.Pipe(duplex=False)
            connections.append(here)
            child = _FORK.Process(target=_run, args=(there, origin, spill, wish, os.getpid()))
            child.start()
            children.append(child)
            there.close()
        # The bar has a thread, and no process is to be forked beside one.
        with progress("reading", STEPS * len(origins)) as advance:
            reports = _wait(connections, origins, advance)
    finally:
        for child in children:
            child.kill()
            child.join()
        for here in connections:
            here.close()
    for report, spill in zip(reports, spills, strict=True):
        spill.pieces, spill.length = report.pieces, report.length
    return [report.side for report in reports]


def _wait(
    connections: Sequence[Connection], origins: Sequence[Origin], advance: Callable[[int], None]
) -> list[_Report]:
    """What the children tell at last, each in its place."""
    reports: dict[int, _Report] = {}
    steps = [0] * len(connections)
    while left := [here for i, here in enumerate(connections) if i not in reports]:
        for ready in wait(left):
            index = next(i for i, here in enumerate(connections) if here is ready)
            told = _receive(connections[index], origins[index])
            if isinstance(told, int):
                advance(told - steps[index])
                steps[index] = told
            else:
                advance(STEPS - steps[index])
                reports[index] = told
    return [reports[index] for index in range(len(connections))]


def _receive(connection: Connection, origin: Origin) -> int | _Report:
    try:
        told = connection.recv()
    except EOFError:
        raise CompareError(f"the process that read {origin.name} was killed") from None
    if isinstance(told, Exception):
        raise told
    assert isinstance(told, int | _Report)
    return told


def _run(connection: Connection, origin: Origin, rows: Spill, wish: Wish, parent_pid: int) -> None:
    """The child."""
    # A stop that is meant for the parent; it ends its children.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    told_at_s, told = time.monotonic(), 0

    def advance(share: float) -> None:
        nonlocal told_at_s, told
        now_s, steps = time.monotonic(), int(share * STEPS)
        if now_s - told_at_s >= _TELL_EVERY_S and steps > told:
            told_at_s, told = now_s, steps
            connection.send(steps)

    with contextlib.suppress(BrokenPipeError, OrphanedError):  # nobody asks any more
        settle("compare", parent_pid)
        try:
            side = collect(origin, rows, wish, advance)
        except Exception as error:
            connection.send(error)
        else:
            connection.send(_Report(side, rows.pieces, rows.length))
