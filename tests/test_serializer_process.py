"""A serializer process alone: what it waits for, what ends it, and rings that were set aside."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from instance import read_avro
from sim import wait_until

from feedmono import config, log, ring, serializer, workers
from feedmono.counters import Counters, Field
from feedmono.delivery import ledger_file
from feedmono.ring_layout import FRAME

SYMBOL = "BTCUSDT"
STOP_S = 30.0


def frame(trade_id: int) -> bytes:
    event = {
        "e": "trade", "E": 1, "s": SYMBOL, "t": trade_id, "p": "1.50", "q": "2.0",
        "T": 1723161255342 + trade_id, "m": True, "M": True,
    }  # fmt: skip
    return json.dumps({"stream": "x@trade", "data": event}, separators=(",", ":")).encode()


_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


class Serializer:
    """A serializer of Binance in *folder*, with its ring, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        overrides = {
            "state_dir": str(folder / "state"),
            "ring_dir": str(folder),
            "files.dir": str(folder / "data"),
            "files.sync_interval": "50 ms",
            "sink": "files",
            "ring_capacity": "1 MiB",
            "exchanges.binance.symbols": SYMBOL,
        }
        self.config = config.load(None, {}, overrides, folder).config
        self.shared = workers.Shared.of(self.config, "binance")
        self.data = folder / "data" / "binance"
        self.config.state_dir.mkdir()
        ring.create(self.shared.ring, self.config.ring_capacity_bytes)
        self.counters = Counters.create(self.shared.counters)
        self.name_symbols()
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.requests, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.pid = 0

    def name_symbols(self) -> None:
        workers.publish(self.shared.metadata, {"symbols": {SYMBOL: "BTC/USDT"}})

    def append(self, *numbers: int) -> None:
        with contextlib.closing(ring.RingWriter(self.shared.ring)) as writer:
            assert writer.append([frame(n) for n in numbers], FRAME, 0, 10**18) == len(numbers)
        os.eventfd_write(self.wake_fd, 1)

    def start(self) -> None:
        """As the supervisor forks it: signals wait until it takes them."""
        waiting = {signal.SIGTERM, signal.SIGHUP, workers.YIELD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
        try:
            self.pid = os.fork()
            if not self.pid:
                status = 99
                try:
                    status = serializer.main(
                        self.config, "binance", self.wake_fd, self._theirs.fileno(), log.get()
                    )
                finally:
                    os._exit(status)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends it the signal; its exit status."""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Its exit status, once it ends by itself."""
        pid, self.pid = self.pid, 0
        killer = threading.Timer(STOP_S, os.kill, (pid, signal.SIGKILL))
        killer.start()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        killer.cancel()
        return status

    @property
    def trouble(self) -> str:
        """What it says that it waits for."""
        try:
            return str(json.loads(self.shared.serializer_note.read_text())["trouble"])
        except FileNotFoundError:
            return ""

    def wait_trouble(self, text: str) -> None:
        wait_until(lambda: self.trouble, lambda told: text in told)

    def wait_delivered(self, count: int) -> None:
        """Counted over all its lives."""
        wait_until(lambda: self.counters[Field.DELIVERED_TRADES], lambda now: now >= count)

    def stored(self) -> list[int]:
        return [int(trade["trade_id"]) for trade in read_avro(self.data, "trades")]

    @contextlib.contextmanager
    def ledger_held(self) -> Iterator[None]:
        """Another process has begun to write the ledger."""
        held = [sys.executable, "-c", _HOLD, str(self.shared.ledger)]
        with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            yield
            other.communicate()

    def close(self) -> None:
        if self.pid:
            self.end(signal.SIGKILL)
        os.close(self.wake_fd)
        self.requests.close()
        self._theirs.close()


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serializer]:
    monkeypatch.setattr(ledger_file, "_BUSY_S", 0.05)
    monkeypatch.setattr(serializer, "_SILENT_S", 0.0)
    made = Serializer(tmp_path)
    yield made
    made.close()


# --- What it waits for.


def test_it_waits_for_the_symbols_names_and_a_stop_ends_that(one: Serializer) -> None:
    one.shared.metadata.unlink()
    one.append(1)
    one.start()
    one.wait_trouble(SYMBOL)
    assert one.end() == 0
    assert not one.shared.ledger.exists()
    one.start()
    one.name_symbols()
    one.wait_delivered(1)
    assert one.end() == 0
    assert one.stored() == [1]


def test_a_moment_s_wait_at_the_start_is_not_worth_a_word(
    one: Serializer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serializer, "_SILENT_S", 1e9)
    one.shared.metadata.unlink()
    one.append(1)
    one.start()
    # A beat before the first look, one behind it, and those of the wait.
    wait_until(lambda: one.counters[Field.SERIALIZER_BEATS], lambda now: now > 3)
    assert not one.shared.serializer_note.exists()
    one.name_symbols()
    one.wait_delivered(1)
    assert one.end() == 0


def test_what_a_serializer_waited_for_when_it_was_killed_is_taken_back_by_its_successor(
    one: Serializer,
) -> None:
    one.shared.metadata.unlink()
    one.start()
    one.wait_trouble(SYMBOL)
    assert one.end(signal.SIGKILL) == -signal.SIGKILL
    one.name_symbols()
    one.start()
    wait_until(lambda: one.trouble, lambda told: not told)
    assert one.end() == 0


def test_it_waits_for_a_ledger_that_can_not_be_opened(one: Serializer) -> None:
    one.shared.ledger.mkdir()
    one.append(1)
    one.start()
    one.wait_trouble("the ledger: ")
    assert one.end() == 0
    one.start()
    one.wait_trouble("can't be opened")
    one.shared.ledger.rmdir()
    one.wait_delivered(1)
    assert one.end() == 0
    assert one.stored() == [1]


def test_it_waits_for_a_ledger_that_somebody_holds_before_it_begins(one: Serializer) -> None:
    one.start()
    wait_until(lambda: one.counters[Field.SINK_READY], bool)
    assert one.end() == 0
    with contextlib.closing(sqlite3.connect(one.shared.ledger)) as connection:
        connection.execute("DELETE FROM meta")
        connection.commit()
    away = one.data.with_name("away")
    one.data.rename(away)
    one.data.write_bytes(b"no folder")
    one.append(1)
    one.start()
    one.wait_trouble(str(one.data))
    with one.ledger_held():
        one.data.unlink()
        away.rename(one.data)
        one.wait_trouble("locked")
        assert one.counters[Field.SINK_READY] == 0
    one.wait_delivered(1)
    assert one.end() == 0
    assert one.stored() == [1]


def test_it_waits_for_a_sink_that_is_not_ready(one: Serializer) -> None:
    one.data.parent.write_bytes(b"no folder")
    one.append(1)
    one.start()
    one.wait_trouble(str(one.data.parent))
    assert one.end() == 0, "nothing was begun"
    assert one.counters[Field.SINK_ERRORS] > 0
    one.data.parent.unlink()
    one.start()
    one.wait_delivered(1)
    assert one.end() == 0
    assert one.stored() == [1]


def test_a_sink_that_can_not_go_on_ends_it_and_a_successor_goes_on(
    one: Serializer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    one.append(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        one.start()
        assert one.wait() == 1
    assert one.counters[Field.SINK_ERRORS_FATAL] == 1
    assert one.counters[Field.SINK_READY] == 0
    one.start()
    one.wait_delivered(2)
    assert one.end() == 0
    assert one.stored() == [1, 2]


def test_orders_that_were_given_before_it_began_hold_from_its_first_trade(
    one: Serializer,
) -> None:
    workers.Orders((SYMBOL,), {SYMBOL: "XBT/USDT"}, "info", "json").give(one.shared.orders)
    one.append(1)
    one.start()
    one.wait_delivered(1)
    assert one.end() == 0
    (trade,) = read_avro(one.data, "trades")
    assert trade["canonical_symbol"] == "XBT/USDT"


# --- Rings that were set aside.


def test_rings_that_were_set_aside_come_first_and_a_damaged_one_is_kept(one: Serializer) -> None:
    one.append(1, 2)
    bigger = ring.prepare(one.shared.ring, 2 << 20)
    assert bigger.set_aside is not None
    one.append(3, 4)
    one.shared.ring.write_bytes(b"foreign " + one.shared.ring.read_bytes()[8:])
    damaged = ring.prepare(one.shared.ring, 2 << 20)
    assert damaged.set_aside is not None
    one.append(5)
    one.start()
    one.wait_delivered(5)
    assert one.end() == 0
    assert one.stored() == [1, 2, 3, 4, 5]
    assert ring.set_aside_of(one.shared.ring) == []
    (kept,) = one.shared.ring.parent.glob("*.damaged-*")
    assert kept.name == damaged.set_aside.name.replace(".aside-", ".damaged-")


def test_a_serializer_that_is_to_yield_in_a_ring_set_aside_leaves_it_to_its_successor(
    one: Serializer,
) -> None:
    one.start()
    wait_until(lambda: one.counters[Field.SINK_READY], bool)
    assert one.end() == 0
    one.append(1, 2)
    assert ring.prepare(one.shared.ring, 2 << 20).set_aside is not None
    one.append(3)
    away = one.data.with_name("away")
    one.data.rename(away)
    one.data.write_bytes(b"no folder")
    one.start()
    one.wait_trouble(str(one.data))
    with one.ledger_held():
        one.data.unlink()
        away.rename(one.data)
        wait_until(lambda: one.counters[Field.LEDGER_ERRORS], bool)
        os.kill(one.pid, workers.YIELD)
        wait_until(lambda: one.counters[Field.LEDGER_ERRORS], lambda times: times >= 2)
    assert one.wait() == 0
    assert len(ring.set_aside_of(one.shared.ring)) == 1
    assert one.counters[Field.DELIVERED_TRADES] == 2
    one.start()
    one.wait_delivered(3)
    assert one.end() == 0
    assert ring.set_aside_of(one.shared.ring) == []
    assert one.stored() == [1, 2, 3]


# --- While it works.


def test_a_reader_that_takes_no_request_does_not_stop_it(one: Serializer) -> None:
    """The hole is asked for again when there is one that does."""
    one.start()
    one.append(1, 5)
    asked: list[Any] = json.loads(_received(one.requests))
    assert asked[:2] == [SYMBOL, 1]
    assert one.end() == 0
    one.requests.close()
    one.start()
    one.append(6)
    one.wait_delivered(3)
    beats = one.counters[Field.SERIALIZER_BEATS]
    # The request is due after a moment, and is tried in vain then.
    wait_until(lambda: one.counters[Field.SERIALIZER_BEATS], lambda now: now > beats + 3)
    one.append(7)
    one.wait_delivered(4)
    assert one.end() == 0
    assert one.stored() == [1, 5, 6, 7]


def _received(requests: socket.socket) -> bytes:
    requests.settimeout(STOP_S)
    return requests.recv(4096)


def test_after_a_full_batch_it_reads_on_without_a_wait(one: Serializer) -> None:
    one.append(*range(1, 701))
    one.start()
    one.wait_delivered(700)
    assert one.end() == 0
    assert one.stored() == [*range(1, 701)]


def test_a_stop_does_not_wait_until_a_throttle_lets_go(one: Serializer) -> None:
    """One thousandth of a core: it owes more than it can ever pay."""
    one.start()
    one.append(1)
    one.wait_delivered(1)
    one.counters[Field.THROTTLE] = 1
    beats = one.counters[Field.SERIALIZER_BEATS]
    wait_until(lambda: one.counters[Field.SERIALIZER_BEATS], lambda now: now > beats + 4)
    one.append(2)
    assert one.end() == 0
    assert one.stored() == [1, 2], "a stop drains the ring all the same"


def test_orders_are_taken_while_it_is_throttled(one: Serializer) -> None:
    one.start()
    one.append(1)
    one.wait_delivered(1)
    one.counters[Field.THROTTLE] = 1
    beats = one.counters[Field.SERIALIZER_BEATS]
    wait_until(lambda: one.counters[Field.SERIALIZER_BEATS], lambda now: now > beats + 4)
    other = {SYMBOL: "XBT/USDT"}
    workers.Orders((SYMBOL,), other, "info", "json").give(one.shared.orders)
    os.kill(one.pid, signal.SIGHUP)
    beats = one.counters[Field.SERIALIZER_BEATS]
    wait_until(lambda: one.counters[Field.SERIALIZER_BEATS], lambda now: now > beats + 2)
    one.append(2)
    assert one.end() == 0
    trades = read_avro(one.data, "trades")
    assert [trade["canonical_symbol"] for trade in trades] == ["BTC/USDT", "XBT/USDT"]
