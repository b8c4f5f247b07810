"""Steps of the local clock (NTP, suspend) break no timer, no order, no file roll."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from delivery import feedmono as command
from delivery import ids_of, independent, parts, wait_complete
from instance import Instance, read_avro
from sim import Sim, wait_until

from feedmono import ring, supervisor
from feedmono.ids import Ids, State
from feedmono.ledger import Ledger
from feedmono.log import get
from feedmono.ring_layout import FRAME
from feedmono.sinks.segment import list_files
from feedmono.snapshot import Snapshot, publish
from feedmono.statelock import hold
from feedmono.workers import Shared

HOUR_S = 3600
DAY_S = 24 * HOUR_S
RATE = 500
# How many trades pass until all is as usual again: eight seconds, and no hour.
USUAL = 8 * RATE
SOON = {
    "BACKFILL_CONFIRM_AFTER": "200 ms",
    "COVERAGE_INTERVAL": "200 ms",
    "FILES_ROLL_INTERVAL": "500 ms",
}


class Shifted(Instance):
    """An instance whose wall clock a test sets."""

    def __init__(self, folder: Path, *sims: Sim, **variables: object) -> None:
        super().__init__(folder, *sims, **variables)
        self._file = folder / "clockshift"
        self.set_clock(0)
        self.environ = {
            **self.environ,
            "PYTHONPATH": str(Path(__file__).parent / "clockshift"),
            "CLOCKSHIFT_FILE": str(self._file),
        }

    def set_clock(self, ahead_s: float) -> None:
        """Steps the clock of all its processes: so far is it ahead from now on."""
        with open(self._file, "ab") as file:
            os.pwrite(os.dup(file.fileno()), b"", 0)
        fd = os.open(self._file, os.O_RDWR)
        os.pwrite(fd, int(ahead_s * 1e9).to_bytes(8, "little", signed=True), 0)
        os.close(fd)


def made(sim: Sim) -> int:
    return sum(int(totals["made"]) for totals in sim.state()["symbols"].values())
