"""The symbols of a connection, of slots and of a reader change while they work."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from test_reader import Reading, toys
from toy import Desk, Dice, Events, Reply, RestServer, Toy, events, running, wire
from wsserver import CLOSE, TEXT, Peer, Server, accept, frame

from feedmono import workers
from feedmono.counters import Field
from feedmono.exchanges.base import Limits, Market
from feedmono.network import life, metadata
from feedmono.network.contract import State

__all__ = ["events"]


class Exchange:
    """What a toy exchange serves, by connection."""

    def __init__(self) -> None:
        self.served: dict[int, set[str]] = {}
        """Of the open connections."""
        self.refuses: set[str] = set()
        self.asked: list[str] = []
        self.peers: dict[int, Peer] = {}
        self.silent: set[int] = set()
        """Connections on which nothing is answered."""

    def script(self, peer: Peer, number: int) -> None:
        self.served[number] = set()
        self.peers[number] = peer
        try:
            while (got := peer.receive()) is not None:
                if got.opcode == CLOSE:
                    peer.send(frame(got.payload, CLOSE))
                    return
                if got.opcode == TEXT and number not in self.silent:
                    peer.send(wire(self._answers(number, got.payload.decode())))
        finally:
            del self.served[number]

    def _answers(self, number: int, text: str) -> list[bytes]:
        self.asked.append(text)
        verb, _, names = text.partition(" ")
        answers: list[bytes] = []
        for symbol in names.split(","):
            if verb == "unsubscribe":
                self.served[number].discard(symbol)
                answers.append(f"left {symbol}".encode())
            elif symbol in self.refuses:
                answers.append(f"no {symbol} no such thing".encode())
            else:
                self.served[number].add(symbol)
                answers.append(f"ok {symbol}".encode())
        return answers

    @property
    def shares(self) -> list[str]:
        """What each open connection serves, such as ``AB``, sorted."""
        return sorted("".join(sorted(symbols)) for symbols in list(self.served.values()))


class Small(Toy):
    """A toy exchange with room for few symbols."""

    limits: ClassVar[Limits] = replace(Toy.limits, symbols_per_connection=3)


def order(reading: Reading, symbols: Sequence[str], **names: str) -> None:
    """Gives orders as the supervisor does."""
    workers.Orders(tuple(symbols), names, "info", "json").give(reading.shared.orders)
    thread = reading._thread
    assert thread.ident is not None
    signal.pthread_kill(thread.ident, signal.SIGHUP)


def named(reading: Reading, symbols: Sequence[str]) -> None:
    """As if the exchange had told what these are."""
    workers.publish(
        reading.shared.metadata, {"symbols": {s: s for s in symbols}, "asked": list(symbols)}
    )


@contextlib.contextmanager
def _hangup_waits() -> Iterator[None]:
    """A SIGHUP that comes before the reader waits for it does not end the test's process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- A connection.


def test_a_connection_that_waits_for_frames_changes_its_symbols_at_once(tmp_path: Path) -> None:
    exchange, desk = Exchange(), Desk()
    with Server(exchange.script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: State.FLOWING in desk.states)
        run.connection.set_symbols(("B", "C"))
        desk.wait(lambda: desk.symbols.get("C") == "subscribed")
        desk.wait(lambda: desk.symbols["A"] == "unsubscribed behind 0")
        assert exchange.asked == ["subscribe A,B", "unsubscribe A", "subscribe C"]
        assert desk.states == [State.CONNECTING, State.SUBSCRIBING, State.FLOWING]
        run.connection.set_symbols(("B", "C"))
        run.connection.set_symbols(("B",))
        desk.wait(lambda: exchange.shares == ["B"])
    assert desk.reconnects == []


def test_everything_that_came_before_the_end_of_a_subscription_is_delivered_before_it_is_told(
    tmp_path: Path,
) -> None:
    desk = Desk()

    def script(peer: Peer, number: int) -> None:
        peer.until(TEXT)
        peer.send(wire([b"ok A", b"ok B"]))
        peer.until(TEXT)
        peer.send(wire([b"trade 1", b"trade 2", b"left A", b"trade 3"]))
        peer.hold()

    with Server(script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: State.FLOWING in desk.states)
        run.connection.set_symbols(("B",))
        desk.wait(lambda: desk.symbols["A"].startswith("unsubscribed"))
        assert desk.symbols["A"] == "unsubscribed behind 3"


def test_symbols_that_change_while_it_connects_are_those_that_it_serves(tmp_path: Path) -> None:
    exchange, desk = Exchange(), Desk()
    arrived, go_on = threading.Event(), threading.Event()

    def handshake(sock: socket.socket, request: str, number: int) -> bool:
        arrived.set()
        assert go_on.wait(20)
        return accept(sock, request, number)

    with (
        Server(exchange.script, handshake=handshake) as server,
        running(tmp_path, server.url, desk) as run,
    ):
        assert arrived.wait(20)
        run.connection.set_symbols(("C", "D"))
        go_on.set()
        desk.wait(lambda: State.FLOWING in desk.states)
        desk.wait(lambda: exchange.shares == ["CD"])
    assert set(desk.symbols) == {"C", "D"}


def test_a_change_does_not_cut_a_backoff_short(tmp_path: Path) -> None:
    exchange, desk = Exchange(), Desk()
    dice = Dice(share=1.0)

    def script(peer: Peer, number: int) -> None:
        if number == 0:
            peer.until(TEXT)
            peer.sock.close()
        else:
            exchange.script(peer, number)

    with Server(script) as server, running(tmp_path, server.url, desk, dice=dice) as run:
        desk.wait(lambda: State.WAITING in desk.states)
        begun_s = time.monotonic()
        run.connection.set_symbols(("C",))
        desk.wait(lambda: exchange.shares == ["C"])
        assert time.monotonic() - begun_s > 0.5 * dice.bounds[-1] > 0.0
    assert set(desk.symbols) == {"C"}


def test_a_connection_whose_symbols_were_all_refused_expects_trades_of_new_ones(
    tmp_path: Path, events: Events
) -> None:
    exchange, desk = Exchange(), Desk()
    exchange.refuses = {"A", "B"}
    with Server(exchange.script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: bool(events.named("every symbol was refused")))
        assert desk.states[-1] is State.SUBSCRIBING
        run.connection.set_symbols(("A", "C"))
        desk.wait(lambda: desk.states[-1] is State.FLOWING)
        desk.wait(lambda: bool(events.named("subscribed")))
        (told,) = events.named("subscribed")
        assert (told["symbols"], told["refused"]) == (1, 1)


# --- A reader and its slots.


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


def test_symbols_stay_where_they_are_and_new_ones_go_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    toys(monkeypatch, Small())
    with (
        _hangup_waits(),
        Server(exchange.script) as server,
        Reading(tmp_path, server.url, tuple("ABCDE")) as reading,
    ):
        named(reading, "ABCDEFGHIJ")

        def ordered(symbols: str, *shares: str) -> None:
            order(reading, symbols)
            reading.wait(lambda: exchange.shares == sorted(shares))
            reading.wait(lambda: reading.counters[Field.SUBSCRIBED] == len(symbols))
            reading.wait(reading.flowing)
            assert reading.counters[Field.CONNECTIONS] == len(shares)

        reading.wait(lambda: exchange.shares == ["ACE", "BD"])
        ordered("ABCDEF", "ACE", "BDF")
        ordered("ABCDEFGH", "ACE", "BDF", "GH")
        ordered("ABCEFGH", "ACE", "BF", "GH")
        ordered("ABCEFGHIJ", "ACE", "BFI", "GHJ")
        ordered("ABCEFI", "ACE", "BFI")
        ordered("FI", "FI")
        ordered("AFI", "AFI")
        ordered("B", "B")
        assert server.accepted == 3
        assert reading.counters[Field.RECONNECTS] == 0
        assert reading.told("lost") == []
        gone = [event["symbol"] for event in reading.told("unsubscribed")]
        assert sorted(gone) == sorted("DGHJACEBAFI")


def test_each_copy_has_every_symbol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    toys(monkeypatch, Small())
    settings = {"connections__redundancy": "2"}
    with (
        _hangup_waits(),
        Server(exchange.script) as server,
        Reading(tmp_path, server.url, ("A", "B"), **settings) as reading,
    ):
        named(reading, "ABCD")
        reading.wait(lambda: exchange.shares == ["AB", "AB"])
        order(reading, "ABCD")
        reading.wait(lambda: exchange.shares == ["ABC", "ABC", "D", "D"])
        order(reading, "BD")
        reading.wait(lambda: exchange.shares == ["B", "B", "D", "D"])
        assert reading.counters[Field.RECONNECTS] == 0


def test_a_successor_that_is_on_its_way_takes_over_with_the_ordered_symbols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    monkeypatch.setattr(life, "READY_AFTER_S", 0.0)
    toys(monkeypatch)
    exchange.silent = {1}
    with (
        _hangup_waits(),
        Server(exchange.script) as server,
        Reading(tmp_path, server.url, ("A", "B")) as reading,
    ):
        named(reading, "ABC")
        reading.wait(reading.flowing)
        exchange.peers[0].send(wire([b"bye maintenance"]))
        reading.wait(lambda: set(exchange.served) == {0, 1})
        order(reading, "BC")
        reading.wait(lambda: exchange.served[0] == {"B", "C"})
        # By now it answers, late.
        exchange.silent.clear()
        exchange.peers[1].send(wire([b"ok A", b"ok B", b"ok C"]))
        reading.wait(lambda: set(exchange.served) == {1})
        reading.wait(lambda: reading.counters[Field.ROTATIONS] == 1)
        assert reading.counters[Field.SUBSCRIBED] == 2
        assert reading.counters[Field.RECONNECTS] == 0


def test_a_successor_that_lacks_only_what_is_not_wanted_any_more_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange, events: Events
) -> None:
    monkeypatch.setattr(life, "READY_AFTER_S", 0.0)
    toys(monkeypatch)
    with (
        _hangup_waits(),
        Server(exchange.script) as server,
        Reading(tmp_path, server.url, ("A", "B")) as reading,
    ):
        reading.wait(reading.flowing)
        exchange.refuses = {"A"}
        exchange.peers[0].send(wire([b"bye maintenance"]))
        reading.wait(lambda: bool(events.named("not replaced: the successor lacks symbols")))
        order(reading, "B")
        reading.wait(lambda: exchange.served == {1: {"B"}})
        reading.wait(lambda: reading.counters[Field.ROTATIONS] == 1)
        assert reading.counters[Field.REFUSED] == 0


def test_a_slot_without_symbols_ends_with_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    toys(monkeypatch, Small())
    exchange.silent = {2}
    with (
        _hangup_waits(),
        Server(exchange.script) as server,
        Reading(tmp_path, server.url, tuple("ABCD")) as reading,
    ):
        reading.wait(reading.flowing)
        (number,) = [n for n, symbols in exchange.served.items() if "A" in symbols]
        monkeypatch.setattr(life, "READY_AFTER_S", 0.0)
        reading.wait(lambda: reading.counters[Field.SUBSCRIBED] == 4)
        exchange.peers[number].send(wire([b"trade 1", b"bye maintenance"]))
        reading.wait(lambda: set(exchange.served) == {0, 1, 2})
        order(reading, "BD")
        reading.wait(lambda: exchange.served == {1 - number: {"B", "D"}})
        reading.wait(reading.flowing)
        assert reading.counters[Field.CONNECTIONS] == 1
        assert reading.counters[Field.SUBSCRIBED] == 2


def test_refused_symbols_count_as_long_as_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    toys(monkeypatch)
    exchange.refuses = {"X"}
    with (
        _hangup_waits(),
        Server(exchange.script) as server,
        Reading(tmp_path, server.url, ("A",)) as reading,
    ):
        named(reading, "AX")
        for _ in range(2):
            order(reading, "AX")
            reading.wait(lambda: reading.counters[Field.REFUSED] == 1)
            note = {"refused": {"X": "no such thing"}}
            reading.wait(partial(_tells, reading, note))
            order(reading, "A")
            reading.wait(lambda: reading.counters[Field.REFUSED] == 0)
        exchange.refuses.clear()
        order(reading, "AX")
        reading.wait(lambda: reading.counters[Field.SUBSCRIBED] == 2)


def _tells(reading: Reading, note: object) -> bool:
    return workers.published(reading.shared.reader_note) == note


def test_orders_that_were_given_before_the_reader_looked_hold_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    toys(monkeypatch)
    with Server(exchange.script) as server:
        reading = Reading(tmp_path, server.url, ("A", "B"))
        workers.Orders(("B", "C"), {}, "info", "json").give(reading.shared.orders)
        with reading:
            reading.wait(lambda: exchange.shares == ["BC"])
            assert exchange.asked == ["subscribe B,C"]


def test_orders_that_are_what_is_in_force_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange, events: Events
) -> None:
    toys(monkeypatch)
    with (
        _hangup_waits(),
        Server(exchange.script) as server,
        Reading(tmp_path, server.url, ("A", "B")) as reading,
    ):
        named(reading, "ABC")
        reading.wait(reading.flowing)
        order(reading, "AB")
        order(reading, "ABC")
        reading.wait(lambda: exchange.shares == ["ABC"])
        assert len(events.named("orders taken over")) == 1


def test_reconnects_are_counted_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    toys(monkeypatch)
    with Server(exchange.script) as server, Reading(tmp_path, server.url, ("A",)) as reading:
        reading.wait(reading.flowing)
        exchange.peers[0].send(frame((1001).to_bytes(2, "big"), CLOSE))
        reading.wait(lambda: reading.counters[Field.RECONNECTS] == 1)
        reading.wait(reading.flowing)
        exchange.peers[1].sock.shutdown(socket.SHUT_RDWR)
        reading.wait(lambda: reading.counters[Field.RECONNECTS] == 2)
        assert reading.counters[Field.RECONNECTS_CLOSED] == 1
        assert reading.counters[Field.RECONNECTS_LOST] == 1


# --- New symbols and their names.


class Listing(Toy):
    """A toy exchange with metadata: symbols with commas."""

    def read_metadata(self, body: bytes) -> Mapping[str, Market]:
        return {symbol: Market(symbol, symbol) for symbol in body.decode().split(",")}


@contextlib.contextmanager
def _listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange, answer: Callable[[], Reply]
) -> Iterator[tuple[Reading, RestServer]]:
    """A reader with A, whose metadata are there, on an exchange that tells what *answer* gives."""
    toys(monkeypatch, Listing())
    with (
        _hangup_waits(),
        RestServer(lambda _: answer()) as rest,
        Server(exchange.script) as server,
        Reading(tmp_path, server.url, ("A",), rest_url=rest.url) as reading,
    ):
        reading.wait(reading.flowing)
        reading.wait(reading.shared.metadata.exists)
        yield reading, rest


def test_a_new_symbol_waits_for_the_exchange_to_tell_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    go_on = threading.Event()
    go_on.set()
    bodies = [b"A,B", b"A"]

    def answer() -> Reply:
        assert go_on.wait(20)
        return Reply(body=bodies.pop())

    with _listed(tmp_path, monkeypatch, exchange, answer) as (reading, rest):
        go_on.clear()
        order(reading, "AB")
        reading.wait(lambda: len(rest.paths) == 2)
        assert exchange.shares == ["A"]
        go_on.set()
        reading.wait(lambda: exchange.shares == ["AB"])
        content = workers.published(reading.shared.metadata)
        assert content is not None
        assert content["asked"] == ["A", "B"]
        # It is known now: nobody asks.
        order(reading, "A")
        order(reading, "AB")
        reading.wait(lambda: exchange.shares == ["AB"])
        assert len(rest.paths) == 2


def test_a_name_of_the_operators_needs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    with _listed(tmp_path, monkeypatch, exchange, lambda: Reply(body=b"A")) as (reading, rest):
        order(reading, "AB", B="the/B")
        reading.wait(lambda: exchange.shares == ["AB"])
        assert len(rest.paths) == 1


def test_a_new_symbol_that_the_exchange_does_not_list_is_subscribed_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    with _listed(tmp_path, monkeypatch, exchange, lambda: Reply(body=b"A")) as (reading, rest):
        for times in (2, 3):
            order(reading, "AX")
            reading.wait(lambda: exchange.shares == ["AX"])
            reading.wait(lambda: reading.counters[Field.REFUSED] == 1)
            assert len(rest.paths) == times
            order(reading, "A")
            reading.wait(lambda: exchange.shares == ["A"])
            reading.wait(lambda: reading.counters[Field.REFUSED] == 0)


def test_without_any_answer_a_new_symbol_is_subscribed_when_patience_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange, events: Events
) -> None:
    monkeypatch.setattr(metadata, "PATIENCE_S", 1.0)
    replies = [Reply(body=b"A")]

    def answer() -> Reply:
        return replies.pop() if replies else Reply(503)

    with _listed(tmp_path, monkeypatch, exchange, answer) as (reading, _):
        order(reading, "AB")
        reading.wait(lambda: bool(events.named("no metadata")))
        assert exchange.shares == ["A"]
        reading.wait(lambda: exchange.shares == ["AB"])
        assert events.named("subscribed without metadata")[0]["symbols"] == ["B"]


def test_an_answer_that_does_not_end_holds_a_new_symbol_no_longer_than_patience_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange, events: Events
) -> None:
    monkeypatch.setattr(metadata, "PATIENCE_S", 1.0)
    go_on = threading.Event()
    replies = [Reply(body=b"A")]

    def answer() -> Reply:
        if replies:
            return replies.pop()
        go_on.wait(60)
        return Reply(503)

    with _listed(tmp_path, monkeypatch, exchange, answer) as (reading, rest):
        order(reading, "AB")
        reading.wait(lambda: len(rest.paths) == 2)
        reading.wait(lambda: exchange.shares == ["AB"])
        assert events.named("subscribed without metadata")[0]["symbols"] == ["B"]
        assert not events.named("no metadata"), "the request is still under way"
        go_on.set()


def test_a_reader_that_starts_with_a_symbol_nobody_knows_yet_asks_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Exchange
) -> None:
    go_on = threading.Event()
    toys(monkeypatch, Listing())

    def answer(_: str) -> Reply:
        assert go_on.wait(20)
        return Reply(body=b"A,B")

    with RestServer(answer) as rest, Server(exchange.script) as server:
        reading = Reading(tmp_path, server.url, ("A", "B"), rest_url=rest.url)
        named(reading, "A")
        with reading:
            reading.wait(lambda: exchange.shares == ["A"])
            reading.wait(lambda: len(rest.paths) == 1)
            go_on.set()
            reading.wait(lambda: exchange.shares == ["AB"])
