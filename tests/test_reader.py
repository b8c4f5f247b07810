"""The reader process: what it puts into the ring, counts, and syncs; and `Reading`, one at work."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sim import Sim, wait_until
from toy import Reply, RestServer, Toy, events, trades, welcome, wire
from wsserver import Peer, Server, frame

from feedmono import config, log, messages, reader, ring, workers
from feedmono.counters import Counters, Field
from feedmono.exchanges import load
from feedmono.exchanges.base import Exchange, PageRequest, Undecodable
from feedmono.network import limiter
from feedmono.network.slots import Numbers
from feedmono.ring_layout import EVENT, FRAME, PAGE, Record
from feedmono.trade import STREAM

__all__ = ["events"]

NOWHERE = "http://127.0.0.1:9"


class Reading:
    """A reader process's life in a thread, on a ring in *folder*; the test reads the ring.

    *settings*: keys of the configuration, with ``__`` for each point.
    """

    def __init__(
        self,
        folder: Path,
        ws_url: str,
        symbols: Sequence[str],
        *,
        name: str = "binance",
        rest_url: str = NOWHERE,
        **settings: str,
    ) -> None:
        overrides = {
            "state_dir": str(folder / "state"),
            "ring_dir": str(folder),
            f"exchanges.{name}.ws_url": ws_url,
            f"exchanges.{name}.rest_url": rest_url,
            f"exchanges.{name}.symbols": ",".join(symbols),
        }
        overrides |= {key.replace("__", "."): text for key, text in settings.items()}
        self.config = config.load(None, {}, overrides, folder).config
        self.symbols = tuple(symbols)
        self.shared = workers.Shared.of(self.config, name)
        self.config.state_dir.mkdir()
        ring.create(self.shared.ring, self.config.ring_capacity_bytes)
        self.counters = Counters.create(self.shared.counters)
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.requests, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        self._ours = ours
        self._process = reader.Process(
            self.config, name, self.wake_fd, ours.fileno(), log.get(exchange=name)
        )
        self._ring = ring.RingReader(self.shared.ring)
        self._records: list[Record] = []
        self._thread = threading.Thread(target=self._process.run)
        self.exchange = load(name)

    def __enter__(self) -> Reading:
        # As the supervisor forks it: it and its threads never see the signal but by asking.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        os.close(self.wake_fd)
        self.requests.close()
        self._ours.close()

    def stop(self) -> float:
        """Ends it as the supervisor does; how many seconds that took."""
        started = time.monotonic()
        if self._thread.is_alive():
            assert self._thread.ident is not None
            signal.pthread_kill(self._thread.ident, signal.SIGTERM)
            self._thread.join(20)
            assert not self._thread.is_alive()
        return time.monotonic() - started

    @property
    def records(self) -> list[Record]:
        """All that it has put into the ring so far, in order."""
        while batch := self._ring.read(10_000, 1 << 30):
            self._records += batch
        return self._records

    def free(self) -> None:
        """Acknowledges what was read: the ring has room again."""
        if self._records:
            self._ring.acknowledge(self._ring.position)

    @property
    def payloads(self) -> list[bytes]:
        return [r.payload for r in self.records if r.kind == FRAME]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [dict(messages.read_event(r.payload)) for r in self.records if r.kind == EVENT]

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def ids(self) -> dict[str, list[int]]:
        """The ids of the live trades that it has put into the ring, by symbol."""
        found: dict[str, list[int]] = defaultdict(list)
        for payload in self.payloads:
            try:
                decoded = self.exchange.decode(payload)
            except Undecodable:
                continue
            for trade in decoded.trades if decoded.origin == STREAM else ():
                found[trade.symbol].append(trade.trade_id)
        return found

    def missing(self) -> dict[str, list[int]]:
        """Which ids between the first and the last of each symbol are not there."""
        return {
            symbol: sorted(set(range(min(ids), max(ids) + 1)) - set(ids))
            for symbol, ids in self.ids().items()
        }

    def wait(self, condition: Callable[[], bool], limit_s: float = 30.0) -> None:
        wait_until(condition, bool, limit_s)

    def flowing(self) -> bool:
        """Whether every slot and every symbol is served."""
        counters = self.counters
        return 0 < counters[Field.CONNECTIONS] == counters[Field.CONNECTED]


def toys(monkeypatch: pytest.MonkeyPatch, exchange: Exchange | None = None) -> None:
    """From here on every exchange is the toy one."""
    monkeypatch.setattr(reader, "load", lambda name: exchange or Toy())


# --- Events.


def test_events_stand_in_the_ring_before_the_frames_that_follow_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(monkeypatch)

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(wire(trades(number * 10, 2)))
        if number == 0:
            reading.wait(lambda: len(reading.payloads) == 2)
            peer.sock.close()
        else:
            peer.hold()

    with Server(script) as server, Reading(tmp_path, server.url, ("A", "B")) as reading:
        reading.wait(lambda: len(reading.payloads) == 4)
    told = [
        messages.read_event(r.payload) if r.kind == EVENT else r.payload for r in reading.records
    ]
    opening = [
        {"event": "connected", "connection": 0},
        {"event": "subscribed", "connection": 0, "symbol": "A"},
        {"event": "subscribed", "connection": 0, "symbol": "B"},
    ]
    assert told == [
        {"event": "reader"},
        *opening,
        *trades(0, 2),
        {"event": "lost", "connection": 0, "reason": "lost"},
        *opening,
        *trades(10, 2),
    ]
    assert all(r.flags == 0 for r in reading.records)
    assert reading.counters[Field.FRAMES] == 4
    assert reading.counters[Field.RECONNECTS] == 1
    assert reading.counters[Field.ROTATIONS] == 0


def test_an_attempt_in_vain_is_no_connection_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    with Reading(tmp_path, f"ws://127.0.0.1:{port}", ("A",)) as reading:
        reading.wait(lambda: reading.counters[Field.RECONNECTS] >= 2)
    assert reading.events == [{"event": "reader"}]


def test_a_full_ring_is_told_through_its_reserve_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(monkeypatch)
    expected = [m + b"x" * 500 for m in trades(0, 400)]

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(wire(expected))
        peer.hold()

    settings = {"ring_capacity": "64 KiB"}
    with Server(script) as server, Reading(tmp_path, server.url, ("A",), **settings) as reading:
        reading.wait(lambda: bool(reading.told("full")))
        taken = len(reading.payloads)
        assert reading.records[-1].kind == EVENT
        assert reading.told("room") == []
        assert reading.counters[Field.RING_FULL] == 1
        time.sleep(0.1)

        def all_there() -> bool:
            reading.free()
            return len(reading.payloads) == len(expected)

        reading.wait(all_there)
        reading.wait(lambda: len(reading.told("room")) == len(reading.told("full")))
    assert 0 < taken < len(expected)
    assert reading.payloads == expected
    first = reading.told("room")[0]
    assert first["connection"] == 0
    assert first["seconds"] >= 0.1
    assert reading.counters[Field.LOST_FRAMES] == 0


def test_each_event_wakes_who_reads_the_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(monkeypatch)
    reading = Reading(tmp_path, "ws://127.0.0.1:9", ("A",))
    with reading:
        assert select.select([reading.wake_fd], [], [], 10)[0]
        assert len(reading.events) == 1


# --- Errands.


def test_a_page_that_is_asked_for_lies_in_the_ring_as_it_came(tmp_path: Path) -> None:
    with (
        Sim("binance", "--symbols", "BTCUSDT", "--rate", "1000") as sim,
        Reading(tmp_path, sim.ws_url, ("BTCUSDT",), rest_url=sim.rest_url) as reading,
    ):
        reading.wait(lambda: len(reading.payloads) > 100 and reading.shared.metadata.exists())
        wish = PageRequest("BTCUSDT", min(reading.ids()["BTCUSDT"]) + 10, 0, 20, False)
        reading.requests.send(messages.request(wish))
        reading.wait(lambda: reading.counters[Field.PAGES] == 1)
        unknown = wish._replace(symbol="NOSUCH")
        reading.requests.send(messages.request(unknown))
        reading.wait(lambda: reading.counters[Field.PAGES_FAILED] == 1)
        reading.wait(lambda: bool(reading.told("page failed")))
    page = next(r for r in reading.records if r.kind == PAGE)
    assert (page.connection, page.flags) == (0, 0)
    assert abs(page.received_ns - time.time_ns()) < 60e9
    read = messages.read_page(page.payload)
    assert read is not None
    assert read[0] == wish
    told = reading.exchange.decode_page("BTCUSDT", read[1])
    assert [t.trade_id for t in told.trades] == list(range(wish.first_id, wish.first_id + 20))
    failed = reading.told("page failed")[0]
    assert (failed["symbol"], failed["first_id"]) == ("NOSUCH", wish.first_id)


# --- What is counted.


def test_a_symbol_counts_as_refused_where_no_connection_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(monkeypatch)

    def script(peer: Peer, number: int) -> None:
        peer.until(1)
        # The two connections disagree about B.
        peer.send(wire([b"ok A", b"no B not here" if number else b"ok B", b"no C no such"]))
        peer.hold()

    with (
        Server(script) as server,
        Reading(tmp_path, server.url, ("A", "B", "C"), connections__redundancy="2") as reading,
    ):
        reading.wait(reading.flowing)
        assert reading.counters[Field.CONNECTIONS] == 2
        assert reading.counters[Field.SUBSCRIBED] == 2
        assert reading.counters[Field.REFUSED] == 1
        assert workers.published(reading.shared.reader_note) == {"refused": {"C": "no such"}}


def test_numbers_wrap_and_leave_those_in_use_out() -> None:
    numbers = Numbers()
    assert [numbers.take() for _ in range(3)] == [0, 1, 2]
    numbers.free(0)
    for expected in range(3, 1 << 16):
        assert numbers.take() == expected
        numbers.free(expected)
    assert numbers.take() == 0
    assert numbers.take() == 3


# --- The clock.


def test_a_wall_clock_that_is_set_moves_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = limiter.steady_time()
    assert abs(before - time.time()) < 60.0
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0.0 <= limiter.steady_time() - before < 60.0


# --- The disk.


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /dev rw,nosuid - devtmpfs udev rw
24 23 0:21 / /dev/shm rw,nosuid shared:3 master:1 - tmpfs tmpfs rw
25 22 8:2 / /var/my\\040rings rw - xfs /dev/sda2 rw
26 25 0:30 / /var/my\\040rings/fast rw - ramfs none rw
27 22 8:3 / /mnt rw - tmpfs none rw
28 22 8:3 / /mnt rw - ext4 /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/dev/shm", "tmpfs"),
        ("/dev/shm/a/b", "tmpfs"),
        ("/dev/shmoo", "devtmpfs"),
        ("/var/my rings", "xfs"),
        ("/var/my rings/fast/x", "ramfs"),
        ("/mnt/rings", "ext4"),
    ],
)
def test_a_folder_lies_on_the_nearest_mount_above_it(folder: str, kind: str) -> None:
    assert reader.file_system(Path(folder), MOUNTS) == kind


class Syncs:
    """Counts the syncs, and lets them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        self.done = 0
        self.error: OSError | None = None
        monkeypatch.setattr(os, "fdatasync", self._sync)
        monkeypatch.setattr(reader, "file_system", lambda place, mounts: kind)
        monkeypatch.setattr(reader, "_SYNC_S", 0.02)

    def _sync(self, fd: int) -> None:
        assert os.fstat(fd).st_size > 64 * 1024, "not the ring"
        self.done += 1
        if self.error is not None:
            raise self.error


def test_a_ring_on_a_disk_is_synced_while_something_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(monkeypatch)
    syncs = Syncs(monkeypatch, "ext4")
    more = threading.Event()

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        more.wait(20)
        peer.send(frame(b"trade 1"))
        peer.hold()

    with Server(script) as server, Reading(tmp_path, server.url, ("A", "B")) as reading:
        reading.wait(lambda: len(reading.events) == 4 and syncs.done > 0)
        time.sleep(0.2)
        quiet = syncs.done
        time.sleep(0.2)
        assert syncs.done == quiet, "nothing was appended"
        more.set()
        reading.wait(lambda: syncs.done > quiet)
        assert len(reading.payloads) == 1


def test_a_ring_in_memory_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys(monkeypatch)
    syncs = Syncs(monkeypatch, "tmpfs")
    with Reading(tmp_path, "ws://127.0.0.1:9", ("A",)) as reading:
        reading.wait(lambda: bool(reading.events))
        time.sleep(0.2)
    assert syncs.done == 0


def test_a_sync_that_fails_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Any
) -> None:
    toys(monkeypatch)
    syncs = Syncs(monkeypatch, "xfs")
    syncs.error = OSError(5, "Input/output error")
    with Reading(tmp_path, "ws://127.0.0.1:9", ("A",)) as reading:
        reading.wait(lambda: syncs.done > 3)
    told = [e for e in events.named("the ring can't be synced") if e["error"]]
    assert [e["error"] for e in told] == ["Input/output error"]


# --- Signs of life.


class Silence:
    """Whether the reader's beats have stood still for longer than it takes to tick twice."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._beats, self._since_s = -1, 0.0

    def __call__(self) -> bool:
        beats = self._counters[Field.READER_BEATS]
        if beats != self._beats:
            self._beats, self._since_s = beats, time.monotonic()
        return time.monotonic() - self._since_s > 2.5


@pytest.mark.parametrize("thread", ["metadata", "ring-sync"])
def test_a_reader_beats_only_while_the_threads_of_metadata_and_sync_come_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    go_on, held = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        held.set()
        go_on.wait(60)
        if thread == "metadata":
            raise ValueError("no metadata")

    toys(monkeypatch)
    Syncs(monkeypatch, "ext4")
    if thread == "metadata":
        monkeypatch.setattr(reader, "REQUEST_LIMIT_S", 0.0)
        monkeypatch.setattr(Toy, "read_metadata", hang)
    else:
        monkeypatch.setattr(reader, "_SYNC_ALLOWANCE_S", 0.0)
        monkeypatch.setattr(reader, "_sync", hang)
    with (
        RestServer(lambda _: Reply(body=b"A")) as rest,
        Reading(tmp_path, "ws://127.0.0.1:9", ("A",), rest_url=rest.url) as reading,
    ):
        reading.wait(held.is_set)
        silent = Silence(reading.counters)
        reading.wait(silent)
        beats = reading.counters[Field.READER_BEATS]
        go_on.set()
        reading.wait(lambda: reading.counters[Field.READER_BEATS] > beats + 2)


def test_a_slow_sync_and_a_slow_answer_are_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(monkeypatch)
    go_on = threading.Event()
    Syncs(monkeypatch, "ext4")
    monkeypatch.setattr(reader, "_sync", lambda _: go_on.wait(60))

    def answer(_: str) -> Reply:
        go_on.wait(60)
        return Reply(503)

    with (
        RestServer(answer) as rest,
        Reading(tmp_path, "ws://127.0.0.1:9", ("A",), rest_url=rest.url) as reading,
    ):
        reading.wait(lambda: bool(rest.paths))
        # More ticks than a thread without an allowance would have.
        reading.wait(lambda: reading.counters[Field.READER_BEATS] > 6)
        go_on.set()


# --- The stop.


def test_a_stop_delivers_what_was_on_its_way_and_tells_of_no_loss(tmp_path: Path) -> None:
    symbols = ("BTCUSDT", "ETHUSDT")
    with (
        Sim("binance", "--symbols", ",".join(symbols), "--rate", "2000") as sim,
        Reading(tmp_path, sim.ws_url, symbols, rest_url=sim.rest_url) as reading,
    ):
        reading.wait(lambda: len(reading.payloads) > 500)
        assert reading.stop() < 3.0
    assert reading.missing() == {"BTCUSDT": [], "ETHUSDT": []}
    assert reading.told("lost") == []
    assert reading.counters[Field.RECONNECTS] == 0
