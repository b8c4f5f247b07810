"""Connections are replaced before they end, and doubled: what is lost meanwhile is nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from unittest.mock import Mock

import pytest
from sim import Sim
from test_reader import Reading, toys
from toy import Events, Toy, events, trades, welcome, wire
from wsserver import CLOSE, Peer, Server, frame

from feedmono import messages
from feedmono.counters import Field
from feedmono.exchanges import load
from feedmono.network import slots
from feedmono.network.connection import Connection
from feedmono.network.contract import AGE
from feedmono.ring_layout import EVENT

__all__ = ["events"]

SYMBOLS = {"binance": ("BTCUSDT", "ETHUSDT", "SOLUSDT"), "kraken": ("BTC/USD", "ETH/USD")}
both = pytest.mark.parametrize("name", sorted(SYMBOLS))


@contextmanager
def reading_sim(
    tmp_path: Path, name: str, *args: str, ws_url: str = "", **settings: str
) -> Iterator[tuple[Sim, Reading]]:
    """A simulator and a reader process on it."""
    with (
        Sim(name, "--symbols", ",".join(SYMBOLS[name]), *args) as sim,
        Reading(
            tmp_path,
            ws_url or sim.ws_url,
            SYMBOLS[name],
            name=name,
            rest_url=sim.rest_url,
            **settings,
        ) as reading,
    ):
        yield sim, reading


def nothing(name: str) -> dict[str, list[int]]:
    return {symbol: [] for symbol in SYMBOLS[name]}


def more(reading: Reading, count: int = 200) -> None:
    """Waits until so many more frames have come."""
    before = len(reading.payloads)
    reading.wait(lambda: len(reading.payloads) > before + count)


def subscribed(reading: Reading, connections: int) -> None:
    """Waits until so many connections in all have had each symbol acknowledged, and flow."""
    symbols = len(reading.symbols)
    reading.wait(lambda: len(reading.told("subscribed")) == connections * symbols)
    reading.wait(reading.flowing)


class Relay:
    """Hands bytes on between clients and a server, so that a test can cut single connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def __enter__(self) -> Relay:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for number in range(len(self._pairs)):
            self.cut(number)

    def cut(self, number: int) -> None:
        """Ends a connection, counted from 0 in the order of their coming, in both directions."""
        for sock in self._pairs[number]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    client.close()
                    continue
                self._pairs.append((client, server))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._hand_on, args=pair, daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


# --- Rotation.


@both
def test_dozens_of_rotations_by_age_under_load_lose_nothing(tmp_path: Path, name: str) -> None:
    rotations = 24
    with reading_sim(tmp_path, name, "--rate", "1000", connections__max_age="300 ms") as (
        sim,
        reading,
    ):
        subscribed(reading, 1)
        counters = reading.counters
        seen: set[tuple[int, ...]] = set()

        def watched() -> bool:
            fields = Field.CONNECTED, Field.SUBSCRIBED, Field.REFUSED
            seen.add(tuple(counters[field] for field in fields))
            return counters[Field.ROTATIONS] >= rotations

        reading.wait(watched, 60)
        reading.stop()
        state = sim.state()
    assert seen == {(1, len(SYMBOLS[name]), 0)}, "what is counted flickered"
    assert reading.missing() == nothing(name)
    assert min(map(len, reading.ids().values())) > 1000
    assert counters[Field.RECONNECTS] == 0
    assert reading.told("lost") == []
    assert state["connections_accepted"] >= rotations + 1
    connected = [event["connection"] for event in reading.told("connected")]
    assert connected == list(range(len(connected))), "each has a number of its own"


@both
def test_after_a_rotation_every_symbol_is_subscribed_anew_before_its_frames(
    tmp_path: Path, name: str
) -> None:
    with reading_sim(tmp_path, name, "--rate", "500", connections__max_age="300 ms") as (
        _,
        reading,
    ):
        reading.wait(lambda: reading.counters[Field.ROTATIONS] >= 2)
    exchange = load(name)
    acknowledged: dict[int, set[str]] = {}
    for record in reading.records:
        if record.kind == EVENT:
            event = messages.read_event(record.payload)
            if event["event"] == "connected":
                acknowledged[record.connection] = set()
            elif event["event"] == "subscribed":
                acknowledged[record.connection].add(str(event["symbol"]))
        else:
            symbols = {trade.symbol for trade in exchange.decode(record.payload).trades}
            assert symbols <= acknowledged[record.connection]
    assert len(acknowledged) >= 3
    assert acknowledged[1] == set(SYMBOLS[name])


def test_after_a_shutdown_notice_the_successor_flows_before_the_old_one_closes(
    tmp_path: Path,
) -> None:
    with reading_sim(tmp_path, "binance", "--rate", "500") as (sim, reading):
        reading.wait(lambda: reading.flowing() and len(reading.payloads) > 50)
        sim.fault("shutdown")
        # It closes after 3 s: that would count as a reconnect.
        reading.wait(lambda: reading.counters[Field.ROTATIONS] == 1)
        sim.wait(lambda s: s["connections_open"] == 1)
        more(reading)
        assert reading.flowing()
    assert reading.missing() == nothing("binance")
    assert reading.counters[Field.RECONNECTS] == 0
    assert reading.told("lost") == []
    assert [e["connection"] for e in reading.told("connected")] == [0, 1]


def test_maintenance_after_trading_rotates_but_not_at_once_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    monkeypatch.setattr(slots, "MAINTENANCE_INTERVAL_S", 1.5)
    with reading_sim(tmp_path, "kraken", "--rate", "500") as (sim, reading):
        reading.wait(lambda: reading.flowing() and len(reading.payloads) > 50)
        sim.fault("status", "maintenance")
        reading.wait(lambda: reading.counters[Field.ROTATIONS] == 1)
        sim.fault("status", "maintenance")
        sim.fault("status", "online")
        sim.fault("status", "maintenance")
        reading.wait(lambda: reading.counters[Field.ROTATIONS] == 2)
    assert reading.missing() == nothing("kraken")
    told = events.named("to be replaced")
    assert [e["reason"] for e in told] == ["maintenance"] * 2
    first = datetime.fromisoformat(str(told[0]["timestamp"]).replace("Z", "+00:00"))
    second = next(r for r in reading.records if r.connection == 2)
    assert second.received_ns / 1e9 - first.timestamp() >= 1.5
    assert reading.counters[Field.RECONNECTS] == 0


def test_a_successor_that_cannot_connect_leaves_the_old_one_flowing(tmp_path: Path) -> None:
    with reading_sim(
        tmp_path,
        "binance",
        "--rate",
        "500",
        connections__max_age="500 ms",
        connections__backoff_cap="50 ms",
    ) as (sim, reading):
        reading.wait(reading.flowing)
        sim.fault("refuse-connections")
        before = reading.counters[Field.ROTATIONS]
        sim.wait(lambda s: s["faults"].get("refuse-connections", 0) >= 5)
        more(reading)
        assert reading.flowing()
        assert reading.counters[Field.ROTATIONS] == before
        sim.fault("refuse-connections", False)
        reading.wait(lambda: reading.counters[Field.ROTATIONS] > before)
    assert reading.missing() == nothing("binance")
    assert reading.counters[Field.RECONNECTS] == 0
    assert reading.told("lost") == []


def test_an_old_one_that_is_cut_during_the_succession_does_not_come_back(
    tmp_path: Path, events: Events
) -> None:
    with reading_sim(
        tmp_path,
        "binance",
        "--rate",
        "500",
        connections__max_age="500 ms",
        connections__backoff_cap="50 ms",
    ) as (sim, reading):
        reading.wait(reading.flowing)
        sim.fault("refuse-connections")
        sim.wait(lambda s: s["faults"].get("refuse-connections", 0) >= 3)
        rotations = reading.counters[Field.ROTATIONS]
        old = reading.told("connected")[-1]["connection"]
        assert reading.counters[Field.RECONNECTS] == 0
        sim.fault("cut")
        reading.wait(lambda: bool(reading.told("lost")))
        reading.wait(lambda: not reading.flowing())
        assert reading.counters[Field.SUBSCRIBED] == 0
        refused = sim.state()["faults"]["refuse-connections"]
        sim.wait(lambda s: s["faults"]["refuse-connections"] >= refused + 3)
        sim.fault("refuse-connections", False)
        reading.wait(reading.flowing)
        more(reading)
    assert [(e["connection"], e["reason"]) for e in reading.told("lost")] == [(old, "lost")]
    connected = [e["connection"] for e in reading.told("connected")]
    assert connected[: old + 2] == list(range(old + 2))
    assert connected.count(old) == 1
    # The old one's end, and each of its successor's attempts since then.
    assert reading.counters[Field.RECONNECTS] >= 4
    refusals = [e for e in events.named("not connected") if e["connection"] == old + 1]
    assert len(refusals) >= 6
    assert rotations == old


def test_an_old_one_goes_on_beside_a_successor_that_lacks_symbols_until_one_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    monkeypatch.setattr(slots, "RENEW_FIRST_S", 0.3)
    with reading_sim(tmp_path, "kraken", "--rate", "500", connections__max_age="3 s") as (
        sim,
        reading,
    ):
        subscribed(reading, 1)
        sim.fault("refuse", "ETH/USD")
        # The first successor, and the ones after 0.3 and 0.6 s.
        reading.wait(lambda: len(reading.told("connected")) == 4)
        more(reading)
        assert reading.counters[Field.ROTATIONS] == 0
        assert reading.counters[Field.SUBSCRIBED] == 2
        assert reading.counters[Field.REFUSED] == 0
        sim.wait(lambda s: s["connections_open"] == 2)
        sim.fault("refuse", False)
        reading.wait(lambda: reading.counters[Field.ROTATIONS] == 1)
        more(reading)
    assert reading.missing() == nothing("kraken")
    assert reading.counters[Field.RECONNECTS] == 0
    assert reading.told("lost") == []
    told = events.named("not replaced: the successor lacks symbols")
    assert [e["retry_in_s"] for e in told[:3]] == [0.3, 0.6, 1.2]
    assert {e["connection"] for e in told[:3]} == {0}
    assert [e["successor"] for e in told[:3]] == [1, 2, 3]
    assert told[0]["symbols"] == ["ETH/USD"]


def test_a_successor_that_lacks_symbols_is_there_when_the_old_one_ends(
    tmp_path: Path, events: Events
) -> None:
    with (
        Sim("kraken", "--symbols", ",".join(SYMBOLS["kraken"]), "--rate", "500") as sim,
        Relay(sim.port) as relay,
        Reading(
            tmp_path,
            relay.url,
            SYMBOLS["kraken"],
            name="kraken",
            rest_url=sim.rest_url,
            connections__max_age="3 s",
        ) as reading,
    ):
        subscribed(reading, 1)
        sim.fault("refuse", "ETH/USD")
        reading.wait(lambda: events.named("not replaced: the successor lacks symbols") != [])
        more(reading)
        # On a busy machine a whole successor may have come before the refusals.
        (told,) = events.named("not replaced: the successor lacks symbols")
        relay.cut(int(str(told["connection"])))
        reading.wait(lambda: len(reading.told("lost")) == 1)
        # The ring tells of it before the counters do.
        reading.wait(lambda: reading.counters[Field.SUBSCRIBED] == 1)
        assert reading.counters[Field.CONNECTED] == 1
        sim.fault("refuse", False)
        # It is as old by now as its predecessor was, and has its own successor.
        reading.wait(lambda: reading.counters[Field.ROTATIONS] >= 1)
        assert reading.counters[Field.SUBSCRIBED] == 2
    assert reading.missing()["BTC/USD"] == []
    assert reading.counters[Field.RECONNECTS] == 1


class Told(slots.Owner):
    """An owner that nothing is told to but how often something is counted."""

    def __init__(self) -> None:
        self.counts: Counter[Field] = Counter()

    def count(self, field: Field, amount: int = 1) -> None:
        self.counts[field] += amount

    def event(self, kind: str, connection: int, **fields: object) -> None:
        """Nobody reads them."""

    def changed(self) -> None:
        """Nobody looks."""


def unready_successor() -> tuple[list[Mock], Told, slots.Slot]:
    """SOL is wanted again before the old connection has left it, and the successor, which has
    not asked for it yet, says that all its symbols are answered."""
    made: list[Mock] = []

    def make(number: int, slot: slots.Slot, delay_s: float) -> Connection:
        made.append(Mock(spec=Connection, number=number))
        return made[-1]

    told = Told()
    slot = slots.Slot(
        ("BTC", "SOL"), make, Mock(), slots.Numbers(), told, threading.RLock(), Mock()
    )
    slot.start()
    for symbol in ("BTC", "SOL"):
        slot.subscribed(0, symbol)
    slot.ready(0)
    slot.set_symbols(("BTC",))
    slot.aging(0, AGE)
    slot.subscribed(1, "BTC")
    slot.set_symbols(("BTC", "SOL"))
    slot.ready(1)
    return made, told, slot


def test_a_symbol_that_is_ordered_while_the_successor_gets_ready_delays_it_by_one_answer() -> None:
    made, told, slot = unready_successor()
    assert told.counts[Field.ROTATIONS] == 0
    assert not made[0].retire.called
    slot.subscribed(1, "SOL")
    assert told.counts[Field.ROTATIONS] == 1
    made[0].retire.assert_called_once()


def test_what_is_answered_while_all_retires_changes_no_places() -> None:
    made, told, slot = unready_successor()
    slot.retire()
    slot.subscribed(1, "SOL")
    assert told.counts[Field.ROTATIONS] == 0
    assert [one.retire.call_count for one in made] == [1, 1]


def test_what_the_old_one_sends_before_it_answers_the_close_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(monkeypatch)
    codes: list[int] = []

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade %d" % number))
        if number:
            peer.hold()
            return
        peer.send(frame(b"bye now"))
        close = peer.until(CLOSE)
        codes.append(int.from_bytes(close.payload[:2], "big"))
        peer.send(wire(trades(10, 50)) + frame(close.payload, CLOSE))

    with Server(script) as server, Reading(tmp_path, server.url, ("A", "B")) as reading:
        reading.wait(lambda: len(reading.payloads) == 52)
    assert reading.payloads == [b"trade 0", b"trade 1", *trades(10, 50)]
    assert codes == [1000]
    assert reading.counters[Field.ROTATIONS] == 1


def test_a_notice_before_the_connection_has_proved_itself_waits_until_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that greets each connection with its goodbye is not asked ever faster."""
    toys(monkeypatch)
    go = threading.Event()

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"bye soon"))
        if number == 0:
            go.wait(20)
        if number < 3:
            peer.send(frame(b"trade %d" % number))
        peer.hold()

    with Server(script) as server, Reading(tmp_path, server.url, ("A", "B")) as reading:
        reading.wait(reading.flowing)
        time.sleep(0.3)
        assert server.accepted == 1
        go.set()
        reading.wait(lambda: len(reading.told("connected")) == 4)
        time.sleep(0.3)
        # The fourth never had data: its predecessor flows on, and no fifth is tried.
        assert server.accepted == 4
    assert reading.counters[Field.ROTATIONS] == 2
    assert reading.payloads == trades(0, 3)


def test_a_stop_during_a_rotation_ends_both_quickly(tmp_path: Path, events: Events) -> None:
    with reading_sim(tmp_path, "binance", "--rate", "500", connections__max_age="1 s") as (
        sim,
        reading,
    ):
        reading.wait(reading.flowing)
        # New connections are accepted and never answered.
        sim.fault("mute", 1)
        sim.wait(lambda s: s["connections_silent"] == 1)
        reading.wait(lambda: len(reading.told("connected")) == 2)
        more(reading, 50)
        assert reading.stop() < 3.0
        sim.wait(lambda s: s["connections_open"] == 0 or s["connections_silent"] == 1)
    assert [e["reason"] for e in events.named("disconnected")] == ["stopped"] * 2
    assert reading.missing() == nothing("binance")
    assert reading.told("lost") == []


def test_rotations_keep_to_the_exchanges_limit_of_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    binance = load("binance")
    limits = replace(binance.limits, connections=10, connections_window_s=600.0)
    monkeypatch.setattr(type(binance), "limits", limits)
    with reading_sim(tmp_path, "binance", "--rate", "500", connections__max_age="100 ms") as (
        sim,
        reading,
    ):
        # Of the eight that may be made, the first half at once.
        reading.wait(lambda: reading.counters[Field.ROTATIONS] == 3)
        reading.wait(
            lambda: bool(events.named("waiting for the exchange's limit of connection attempts"))
        )
        more(reading)
        assert reading.flowing()
        assert sim.state()["connections_accepted"] == 4
    assert reading.missing() == nothing("binance")


def test_a_full_ring_during_a_rotation_loses_nothing(tmp_path: Path) -> None:
    with reading_sim(
        tmp_path,
        "binance",
        "--rate",
        "1000",
        ring_capacity="128 KiB",
        connections__max_age="300 ms",
    ) as (_, reading):
        deadline = time.monotonic() + 4.0
        while time.monotonic() < deadline:
            reading.wait(lambda: len(reading.told("full")) > len(reading.told("room")))
            time.sleep(0.2)
            assert reading.records
            reading.free()

        def freed() -> bool:
            assert reading.records
            reading.free()
            return reading.counters[Field.ROTATIONS] >= 3

        reading.wait(freed)
        reading.free()
    assert reading.missing() == nothing("binance")
    assert reading.counters[Field.LOST_FRAMES] == 0
    assert reading.counters[Field.RECONNECTS] == 0


# --- Redundancy.


@both
def test_with_two_connections_a_cut_of_one_loses_nothing(tmp_path: Path, name: str) -> None:
    symbols = SYMBOLS[name]
    with (
        Sim(name, "--symbols", ",".join(symbols), "--rate", "1000") as sim,
        Relay(sim.port) as relay,
        Reading(
            tmp_path,
            relay.url,
            symbols,
            name=name,
            rest_url=sim.rest_url,
            connections__redundancy="2",
        ) as reading,
    ):
        assert reading.config.connections.redundancy == 2
        for number in range(6):
            subscribed(reading, number + 2)
            assert reading.counters[Field.CONNECTED] == 2
            more(reading)
            relay.cut(number)
            reading.wait(lambda: len(reading.told("lost")) == number + 1)  # noqa: B023
            assert reading.counters[Field.SUBSCRIBED] == len(symbols)
        subscribed(reading, 8)
        more(reading)
    assert reading.missing() == nothing(name)
    assert {e["connection"] for e in reading.told("lost")} == {0, 1}
    assert reading.counters[Field.RECONNECTS] == 6
    assert reading.counters[Field.ROTATIONS] == 0


def test_two_connections_rotate_each_for_itself(tmp_path: Path) -> None:
    with reading_sim(
        tmp_path,
        "binance",
        "--rate",
        "500",
        connections__redundancy="2",
        connections__max_age="300 ms",
    ) as (_, reading):
        reading.wait(lambda: reading.counters[Field.ROTATIONS] >= 10)
        assert reading.counters[Field.CONNECTED] == 2
    assert reading.missing() == nothing("binance")
    assert reading.counters[Field.RECONNECTS] == 0
    numbers = [e["connection"] for e in reading.told("connected")]
    assert len(set(numbers)) == len(numbers)


def test_each_share_of_the_symbols_has_its_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrow(Toy):
        limits = replace(Toy.limits, symbols_per_connection=1)

    toys(monkeypatch, Narrow())

    def script(peer: Peer, number: int) -> None:
        asked = peer.until(1).payload.decode().removeprefix("subscribe ")
        peer.send(wire([f"ok {asked}".encode(), f"trade {asked}".encode()]))
        peer.hold()

    with (
        Server(script) as server,
        Reading(tmp_path, server.url, ("A", "B"), connections__redundancy="2") as reading,
    ):
        reading.wait(lambda: len(reading.payloads) == 4)
        reading.wait(reading.flowing)
        assert reading.counters[Field.CONNECTIONS] == 4
        assert reading.counters[Field.SUBSCRIBED] == 2
    assert sorted(reading.payloads) == [b"trade A", b"trade A", b"trade B", b"trade B"]
