"""What the tests of the files sink share: entries, clocks, and a sink on a folder of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
import pytest

from feedmono.avro import TradeEncoder
from feedmono.config import FilesConfig
from feedmono.sinks.base import Coverage, DeadLetter, Entry, Frame
from feedmono.sinks.files import FilesSink, read_trades
from feedmono.sinks.files_source import read_records
from feedmono.trade import BUY, Trade

EXCHANGE = "binance"
FIRST_SEQUENCE = 1_795_392_281_000_000
START_S = 1_795_392_281.5  # 2026-11-23T00:04:41Z
ENCODER = TradeEncoder(EXCHANGE)
CANONICAL = {"BTCUSDT": "BTC/USDT"}


class Clock:
    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def entry(number: int, *, dead: DeadLetter | None = None, padding: bytes = b"") -> Entry:
    """Ring record *number*, of one trade with that id, acknowledged as number + 1."""
    frame = Frame(b'{"t":%d}' % number + padding, 1, FIRST_SEQUENCE + number, number * 1000, 0)
    trade = Trade("BTCUSDT", number, "61837.63", "0.02", BUY, 1_723_161_255_342_000 + number, True)
    encoded = ENCODER.encode([trade], CANONICAL, 0, number * 1000, frame.sequence, 5)
    return Entry(number + 1, frame, "BTCUSDT", encoded, dead)


def entries(first: int, behind: int) -> list[Entry]:
    return [entry(number) for number in range(first, behind)]


def coverage(to_id: int, symbol: str = "BTCUSDT") -> Coverage:
    return Coverage(symbol, 0, 0, to_id, (), 0, 0, 0, 1_723_161_255_342_000 + to_id)


class Rig:
    """A sink on a folder of its own with clocks that the test turns, and in `committed` and
    `mark` what a ledger would hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.committed = 0
        self.mark: Mapping[str, int] | None = None
        self.clock = Clock(50.0)
        self.wall = Clock(START_S)

    def config(self, **changes: Any) -> FilesConfig:
        values = {"roll_interval_s": 3600.0, "roll_size_bytes": 1 << 28, "sync_interval_s": 1.0}
        return FilesConfig(dir=self.folder, **{**values, **changes})

    def sink(self, *, max_buffered_bytes: int = 1 << 26, **changes: Any) -> FilesSink:
        return FilesSink(
            self.config(**changes),
            EXCHANGE,
            mark=self.mark,
            clock=self.clock,
            wall=self.wall,
            max_buffered_bytes=max_buffered_bytes,
        )

    def opened(self, **changes: Any) -> FilesSink:
        sink = self.sink(**changes)
        assert sink.open(), sink.trouble
        return sink

    def commit(self, sink: FilesSink) -> int | None:
        """As the serializer does it: the ledger first, then the sink may publish."""
        end = sink.poll(0)
        self.mark = sink.mark()
        self.committed = self.committed if end is None else end
        sink.settle()
        return end

    def store(self, sink: FilesSink, batch: Sequence[Entry]) -> int | None:
        """Hands all of *batch* over, over any number of rolls, and commits it; the position."""
        taken = 0
        while True:
            before, taken = taken, taken + sink.write(batch[taken:])
            sink.flush()
            end = self.commit(sink)
            if taken == len(batch):
                return end
            assert taken > before or not sink.trouble, sink.trouble

    def names(self, pattern: str = "*") -> list[str]:
        return sorted(path.name for path in (self.folder / EXCHANGE).glob(pattern))

    def ids(self) -> list[int]:
        """The ids of all trades in all files, as feedmono reads them."""
        return [int(trade["trade_id"]) for trade in read_trades(self.folder, EXCHANGE)]

    def finished_ids(self) -> list[int]:
        """The same as fastavro's own reader reads the finished files."""
        found: list[int] = []
        for name in self.names("trades-*.avro"):
            with (self.folder / EXCHANGE / name).open("rb") as file:
                found += [int(trade["trade_id"]) for trade in fastavro.reader(file)]  # type: ignore[index,call-overload]
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def incompressible(first: int, behind: int) -> list[Entry]:
    chance = random.Random(first)
    return [entry(number, padding=chance.randbytes(2000)) for number in range(first, behind)]


def leave_part_file(rig: Rig, tail: bytes) -> Path:
    """As a kill leaves it: trades 0 … 19 in two blocks, and *tail* behind. No mark tells of it."""
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    rig.store(sink, entries(10, 20))
    (part,) = (rig.folder / EXCHANGE).glob("trades-*.part")
    data = part.read_bytes()
    sink.close()
    for path in (rig.folder / EXCHANGE).iterdir():
        path.unlink()
    part.write_bytes(data + tail)
    rig.mark = None
    return part


def crashed(rig: Rig, folder: Path, batch: Sequence[Entry]) -> None:
    """As if the process ended now: in a copy of the folder, a successor that knows what was
    committed delivers the rest of *batch*; then all of it is there once and in order."""
    shutil.copytree(rig.folder, folder)
    successor = Rig(folder)
    successor.mark, successor.wall.now_s = rig.mark, rig.wall.now_s
    sink = successor.opened()
    assert successor.finished_ids() == list(range(rig.committed))
    assert successor.names("*.part") == []
    # No coverage promises more than what was committed.
    covered = [record["to_id"] for record in read_records(folder, EXCHANGE, "coverage")]
    assert covered == sorted(covered)
    assert all(to_id < rig.committed for to_id in covered)
    successor.store(sink, batch[rig.committed :])
    sink.close()
    assert successor.finished_ids() == [item.end - 1 for item in batch]
    raw = [frame["payload"] for frame in read_records(folder, EXCHANGE, "raw")]
    assert raw == [item.frame.payload for item in batch]
    dead = [letter["reason"] for letter in read_records(folder, EXCHANGE, "dead")]
    assert dead == [item.dead.reason for item in batch if item.dead]
    assert successor.names("*.part") == successor.names("*.damaged*") == []
    shutil.rmtree(folder)


STEPS = ("opened", "written", "synced", "committed", "publishing", "linked", "settled", "covered")
"""Where a process may be killed."""


def deliver_and_die(folder: Path, die_at: str, times: int) -> None:
    """The serializer's part, without end: goes on from what the ledger in *folder* says, and
    kills itself when it comes to the step *die_at* for the *times*-th time."""
    ledger, left = folder / "ledger", times
    held: dict[str, Any] = (
        json.loads(ledger.read_text()) if ledger.exists() else {"end": 0, "mark": {}}
    )
    link = os.link

    def step(name: str) -> None:
        nonlocal left
        left -= name == die_at
        if die_at and not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def linked(source: Path, target: Path) -> None:
        step("publishing")
        link(source, target)
        step("linked")

    os.link = linked  # type: ignore[assignment]
    config = FilesConfig(folder, 3600.0, 5000, 0.005)
    sink = FilesSink(config, EXCHANGE, mark=held["mark"])
    assert sink.open()
    number = held["end"]
    while True:
        if die_at == "opened":
            step("opened")
        number += sink.write(entries(number, number + 40))
        step("written")
        sink.flush()
        held = {"end": sink.poll(0) or held["end"], "mark": sink.mark()}
        step("synced")
        ledger.with_suffix(".new").write_text(json.dumps(held))
        ledger.with_suffix(".new").rename(ledger)
        step("committed")
        sink.settle()
        step("settled")
        sink.cover([coverage(held["end"] - 1)])
        step("covered")
