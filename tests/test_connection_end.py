"""What ends a connection, and what is told of it when its turn comes to be followed by another."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy import Desk, Dice, Events, Toy, events, limits, running, trades, welcome, wire
from wsserver import CLOSE, TEXT, Peer, Server, frame

from feedmono.network import connection, life
from feedmono.network.connection import AGE_JITTER, FAREWELL_LIMIT_S
from feedmono.network.contract import State

__all__ = ["events"]


# --- What ends it.


def run_ends(
    tmp_path: Path,
    ending: bytes,
    *,
    frame_limit_bytes: int = 1 << 20,
    reset: bool = False,
    eof: bool = False,
) -> tuple[Desk, list[int]]:
    """First two trades and *ending*; on the next connection one more trade. What was told, and
    the close codes that the server got."""
    codes: list[int] = []

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        if number:
            peer.send(frame(b"trade after"))
            peer.hold()
            return
        peer.send(wire(trades(0, 2)) + ending)
        if reset or eof:
            desk.wait(lambda: len(desk.delivered) == 2)
            peer.reset() if reset else peer.sock.close()
            return
        codes.append(int.from_bytes(peer.until(CLOSE).payload[:2], "big"))

    desk = Desk()
    config = limits(frame_limit_bytes=frame_limit_bytes)
    with Server(script) as server, running(tmp_path, server.url, desk, config=config):
        desk.wait(lambda: b"trade after" in desk.payloads)
    assert desk.payloads == [*trades(0, 2), b"trade after"]
    return desk, codes


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 1013, 4000])
def test_a_close_frame_is_echoed_and_its_code_is_the_reason(tmp_path: Path, code: int) -> None:
    desk, codes = run_ends(tmp_path, frame(code.to_bytes(2, "big") + b"why", CLOSE))
    assert desk.reconnects == [f"closed {code}"]
    assert codes == [code]


def test_a_close_frame_without_a_code_is_answered(tmp_path: Path, events: Events) -> None:
    desk, codes = run_ends(tmp_path, frame(b"", CLOSE))
    assert desk.reconnects == ["closed 1005"]
    assert codes == [1000]
    assert events.named("disconnected")[0]["reason"] == "closed 1005"


def test_a_message_above_the_limit_ends_the_connection_with_1009(tmp_path: Path) -> None:
    too_large = frame(b"trade " + b"x" * 1000)
    desk, codes = run_ends(tmp_path, too_large, frame_limit_bytes=1000)
    assert desk.reconnects == ["too large"]
    assert codes == [1009]


def test_garbage_ends_the_connection_with_1002(tmp_path: Path) -> None:
    desk, codes = run_ends(tmp_path, b"\xde\xad\xbe\xef" * 10)
    assert desk.reconnects == ["protocol error"]
    assert codes == [1002]


def test_nothing_is_awaited_from_a_server_that_sent_garbage(tmp_path: Path) -> None:
    times: list[float] = []

    def script(peer: Peer, number: int) -> None:
        times.append(time.monotonic())
        if number == 0:
            peer.send(b"\xff" * 10)
            desk.wait(lambda: len(times) == 2)
        else:
            peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.states.count(State.SUBSCRIBING) == 2)
    assert times[1] - times[0] < FAREWELL_LIMIT_S * 0.8


@pytest.mark.parametrize("kind", ["reset", "eof"])
def test_a_cut_inside_a_frame_loses_only_that_frame(tmp_path: Path, kind: str) -> None:
    torn = frame(b"trade torn")[:5]
    desk, _ = run_ends(tmp_path, torn, reset=kind == "reset", eof=kind == "eof")
    assert desk.reconnects == ["lost"]


def test_an_announced_shutdown_is_told_once_and_the_connection_read_on_until_it_ends(
    tmp_path: Path,
) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        if number:
            peer.hold()
            return
        peer.send(wire([b"trade 1", b"bye maintenance", b"trade 2"]))
        desk.wait(lambda: len(desk.delivered) == 2)
        peer.send(wire([b"bye maintenance", b"trade 3"]))
        desk.wait(lambda: len(desk.delivered) == 3)
        assert peer.is_quiet()
        peer.send(wire([b"trade 4"]) + frame((1001).to_bytes(2, "big"), CLOSE))
        assert peer.until(CLOSE).payload[:2] == (1001).to_bytes(2, "big")

    desk, dice = Desk(), Dice()
    with Server(script) as server, running(tmp_path, server.url, desk, dice=dice):
        desk.wait(lambda: desk.states.count(State.SUBSCRIBING) == 2)
        desk.wait(lambda: desk.states[-1] is State.FLOWING)
    assert desk.agings == ["shutdown"]
    # Nobody succeeded it, so it comes back itself.
    assert desk.reconnects == ["closed 1001"]
    assert desk.payloads == trades(1, 4)
    assert dice.bounds == [0.5]


def test_a_connection_retired_in_front_of_a_full_ring_gives_nothing_up(
    tmp_path: Path, events: Events
) -> None:
    closed = threading.Event()

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(wire(trades(0, 100)))
        close = peer.until(CLOSE)
        closed.set()
        peer.send(wire(trades(100, 50)) + frame(close.payload, CLOSE))

    desk = Desk(room=40)
    with Server(script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: desk.offers > 3)
        run.connection.retire()
        offers = desk.offers
        desk.wait(lambda: desk.offers > offers + 20)
        assert not closed.is_set(), "what was read waits for room first"
        assert desk.full_rings == 1
        desk.make_room()
        run.join()
    assert desk.payloads == trades(0, 150)
    assert desk.lost_frames == 0
    assert desk.reconnects == []
    assert [e["reason"] for e in events.named("disconnected")] == ["replaced"]


def test_the_farewell_of_a_retired_connection_does_not_count_the_time_of_a_full_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FAREWELL_LIMIT_S", 0.8)

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 0"))
        close = peer.until(CLOSE)
        peer.send(wire(trades(1, 9)))
        desk.wait(lambda: len(desk.delivered) == 10)
        peer.send(wire(trades(10, 10)) + frame(close.payload, CLOSE))

    desk = Desk(room=5)
    with Server(script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: len(desk.delivered) == 1)
        run.connection.retire()
        desk.wait(lambda: desk.room == 0)
        time.sleep(1.2)
        desk.make_room()
        run.join()
    assert desk.payloads == trades(0, 20)


# --- What is told of its turn.


def test_a_connection_that_grew_old_says_so_once_and_goes_on(
    tmp_path: Path, events: Events
) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        desk.wait(lambda: desk.agings == ["age"])
        peer.send(wire(trades(0, 3)))
        peer.hold()

    desk = Desk()
    config = limits(max_age_s=0.3)
    started = time.monotonic()
    with Server(script) as server, running(tmp_path, server.url, desk, config=config):
        desk.wait(lambda: desk.agings == ["age"])
        assert time.monotonic() - started >= 0.3 * (1 - AGE_JITTER)
        desk.wait(lambda: len(desk.delivered) == 3)
        time.sleep(0.4)
    assert desk.agings == ["age"]
    assert desk.reconnects == []
    assert [e["reason"] for e in events.named("to be replaced")] == ["age"]


def test_no_connection_grows_as_old_as_the_exchange_allows(tmp_path: Path) -> None:
    class Impatient(Toy):
        limits = replace(Toy.limits, connection_age_s=0.4)

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.hold()

    desk = Desk()
    exchange = Impatient()
    with Server(script) as server, running(tmp_path, server.url, desk, exchange=exchange):
        desk.wait(lambda: State.FLOWING in desk.states)
        # max_age is an hour.
        desk.wait(lambda: desk.agings == ["age"])


def test_only_maintenance_after_trading_ages_a_connection(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(wire([b"status maintenance", b"trade 1"]))
        desk.wait(lambda: len(desk.delivered) == 1)
        assert desk.agings == []
        peer.send(wire([b"status online", b"status maintenance", b"status maintenance"]))
        desk.wait(lambda: desk.agings == ["maintenance"])
        peer.send(wire([b"status online", b"status maintenance", b"trade 2"]))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.delivered) == 2)
    assert desk.agings == ["maintenance"]
    assert desk.reconnects == []


def test_ready_is_told_when_all_is_answered_and_data_came(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        peer.until(TEXT)
        peer.send(wire([b"ok A", b"trade 1"]))
        desk.wait(lambda: len(desk.delivered) == 1)
        time.sleep(0.1)
        assert desk.readies == 0
        peer.send(wire([b"no B not listed"]))
        desk.wait(lambda: desk.readies == 1)
        peer.send(wire([b"trade 2"]))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.delivered) == 2)
    assert desk.readies == 1


def test_ready_is_told_without_data_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "READY_AFTER_S", 0.3)

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.hold()

    desk = Desk()
    started = time.monotonic()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.readies == 1)
        assert time.monotonic() - started > 0.3
    assert desk.delivered == []


def test_subscriptions_that_are_never_answered_bring_a_new_connection(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        if number:
            welcome(peer)
        else:
            peer.send(frame(b"ok A"))
        peer.hold()

    desk = Desk()
    exchange = Toy(answer_limit_s=0.1)
    with Server(script) as server, running(tmp_path, server.url, desk, exchange=exchange):
        desk.wait(lambda: "B" in desk.symbols)
    assert desk.reconnects == ["unanswered"]
