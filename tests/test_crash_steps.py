"""A serializer that is killed between any two of its steps: what is stored, what the ledger says
and what the ring still holds fit together in the end, and nothing is there twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feedmono import log, messages, ring
from feedmono.config import BackfillConfig, Budget, ExchangeConfig, FilesConfig
from feedmono.counters import Counters
from feedmono.delivery import ledger_file
from feedmono.delivery.backfill import Backfill
from feedmono.delivery.coverage import News
from feedmono.delivery.holes import State
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.loop import Delivery, Parts
from feedmono.delivery.normalizer import Normalizer
from feedmono.delivery.seen import Seen
from feedmono.exchanges import load
from feedmono.exchanges.base import PageRequest
from feedmono.network.metadata import CanonicalSymbols
from feedmono.ring_layout import EVENT, FRAME, PAGE
from feedmono.sinks.files import FilesSink, read_trades

LAST = 40
# Trades that the stream does not bring, those that a page brings, and one that nobody has.
MISSED = {11, 12, 13, 30}
ABSENT = 30
T0_US = 1_723_161_255_342_000

BUDGET = Budget(1, "warn", 1, 30)


def frame(trade_id: int) -> bytes:
    event = {
        "e": "trade", "E": 1, "s": "BTCUSDT", "t": trade_id, "p": "1.50", "q": "2.0",
        "T": T0_US + trade_id, "m": True, "M": True,
    }  # fmt: skip
    return json.dumps({"stream": "x@trade", "data": event}, separators=(",", ":")).encode()


def page(first_id: int, last_id: int) -> bytes:
    rows = [
        {"id": i, "price": "1.50000", "qty": "2.0", "quoteQty": "3", "time": T0_US + i,
         "isBuyerMaker": True, "isBestMatch": True}
        for i in range(first_id, last_id + 1) if i != ABSENT
    ]  # fmt: skip
    wish = PageRequest("BTCUSDT", first_id, T0_US + first_id, last_id - first_id + 1, False)
    return messages.page(wish, json.dumps(rows).encode())


def fill(path: Path) -> None:
    """A ring with frames, repeats, late ones, events, garbage, and the pages that fill its holes;
    the second look at the id that nobody has comes within the same second."""
    ring.create(path, 1 << 20)
    writer = ring.RingWriter(path)

    def append(payload: bytes, kind: int = FRAME) -> None:
        assert writer.append([payload], kind, 0, 10**18) == 1

    append(messages.event(messages.READER), EVENT)
    for trade_id in range(1, LAST + 1):
        if trade_id in MISSED:
            continue
        if trade_id == 14:
            append(messages.event(messages.LOST, connection=0, reason="lost"), EVENT)
        append(frame(trade_id))
        if trade_id % 7 == 0:
            append(frame(trade_id))
        if trade_id == 20:
            append(b"garbage")
            append(page(10, 14), PAGE)
    append(page(29, 31), PAGE)
    append(page(29, 31), PAGE)
    writer.close()


class Rig:
    """What a serializer process has, on the files in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "x.ledger", log.get())
        files = FilesConfig(folder / "data", 3600, 2500, 0)
        self.sink = FilesSink(files, "binance", mark=self.ledger.mark)
        assert self.sink.open()
        self.ledger.begin(self.sink.mark())
        self.reader = ring.RingReader(folder / "x.ring")
        exchange = load("binance")
        names = {"BTCUSDT": "BTC/USDT"}
        config = ExchangeConfig("binance", True, ("BTCUSDT",), "", "", names, BUDGET)
        canonical = CanonicalSymbols(config, folder / "symbols.json")
        seen = Seen(self.ledger.copy(), 1000, self.ledger.sequence)
        backfill = Backfill(seen, exchange, BackfillConfig(86400, 1000, 0), (), lambda _: True)
        counters = Counters.create(folder / "counters")
        normalizer = Normalizer(exchange, canonical, seen, backfill, counters, log.get())
        parts = Parts(normalizer, seen, backfill, self.sink, self.ledger, News(0.001))
        self.loop = Delivery(self.reader, parts, counters, 8)

    def run(self) -> None:
        """Until everything is delivered, and an orderly end."""
        serializer = self.loop
        while not (serializer.idle and not self.reader.used_bytes):
            if not serializer.step(hurry=True):
                self.sink.flush()
        serializer.finish()
        self.sink.close()
        self.ledger.close()


class Fuse:
    """Kills the process at its step number *step*."""

    def __init__(self, step: int) -> None:
        self.left = step

    def burn(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.burn()
            result = function(*args, **kwargs)
            self.burn()
            return result

        return wrapped

    def lay(self) -> None:
        """Through everything that leaves a trace on a disk."""
        for name in ("fsync", "fdatasync", "ftruncate", "link", "rename", "unlink", "write"):
            setattr(os, name, self.around(getattr(os, name)))
        for cls, name in (
            (FilesSink, "mark"),
            (FilesSink, "settle"),
            (FilesSink, "write"),
            (Ledger, "commit"),
            (ring.RingReader, "acknowledge"),
        ):
            setattr(cls, name, self.around(getattr(cls, name)))
        connect = sqlite3.connect

        def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **kwargs)
            connection.set_trace_callback(self.burn)
            return connection

        sqlite3.connect = traced  # type: ignore[assignment]


def killed_at(folder: Path, step: int) -> bool:
    """Runs a serializer in a child that dies at that step; False: it was through before."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            Fuse(step).lay()
            Rig(folder).run()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, f"step {step} failed"
    return False


def check(folder: Path, context: str) -> None:
    """What must be true once a successor is through."""
    stored = [int(t["trade_id"]) for t in read_trades(folder / "data", "binance")]
    wanted = [i for i in range(1, LAST + 1) if i != ABSENT]
    assert sorted(stored) == wanted, context
    content = ledger_file.read(folder / "x.ledger")
    assert content is not None
    ids = content.symbols["BTCUSDT"]
    assert (ids.first_id, ids.last_id) == (1, LAST), context
    holes = [(h.first_id, h.last_id, h.state) for h in ids.holes]
    # Its first look may be lost with a crash, but no look is counted twice.
    assert holes in ([(ABSENT, ABSENT, State.ABSENT)], [(ABSENT, ABSENT, State.OPEN)]), context
    assert ring.Ring(folder / "x.ring").used_bytes == 0, context
    assert not list((folder / "data" / "binance").glob("*.part*")), context


@pytest.fixture
def template(tmp_path: Path) -> Path:
    folder = tmp_path / "template"
    folder.mkdir()
    fill(folder / "x.ring")
    return folder


@pytest.mark.timeout(600)
def test_a_kill_at_any_step_leaves_neither_a_lie_nor_a_hole(
    template: Path, tmp_path: Path, full: bool
) -> None:
    step, dead = 1, 0
    while True:
        folder = tmp_path / f"step{step}"
        shutil.copytree(template, folder)
        killed = killed_at(folder, step)
        Rig(folder).run() if killed else None
        check(folder, f"killed at step {step}")
        shutil.rmtree(folder)
        if not killed:
            break
        dead += 1
        # A stride of three comes past each kind of step all the same: there are many of each.
        step += 1 if full else 3
    print(f"killed at {dead} of {step} steps")
    assert dead > 50


def test_successors_that_are_killed_as_well_change_nothing(template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "often"
    shutil.copytree(template, folder)
    for step in range(20, 400, 13):
        if not killed_at(folder, step):
            break
    Rig(folder).run()
    check(folder, "killed again and again")
