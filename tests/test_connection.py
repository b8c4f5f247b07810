"""An open connection: what it delivers, what it answers, and what holds it up."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from toy import Desk, Events, events, limits, running, trades, welcome, wire
from wsserver import BINARY, PING, PONG, TEXT, Peer, Server, frame

from feedmono.network.connection import PONG_INTERVAL_S
from feedmono.network.contract import State

__all__ = ["events"]


# --- What is delivered.


def test_trades_and_whatever_is_not_understood_are_delivered_in_order_control_is_not(
    tmp_path: Path, events: Events
) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        mixed = [b"trade 1", b"odd 2", b"beat", b"\xff\x00", b"trade 3", b"status online", b""]
        peer.send(wire(mixed))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.delivered) == 5 and desk.frames == 9)
    assert desk.payloads == [b"trade 1", b"odd 2", b"\xff\x00", b"trade 3", b""]
    assert len(desk.unknowns) == 2
    assert desk.symbols == {"A": "subscribed", "B": "subscribed"}
    assert desk.states == [
        State.CONNECTING,
        State.SUBSCRIBING,
        State.FLOWING,
        State.STOPPED,
    ]
    assert events.named("connected")[0]["connection"] == 7
    assert events.named("subscribed")[0]["symbols"] == 2
    assert events.named("disconnected")[0]["frames"] == 9


def test_the_session_says_which_path_is_opened(tmp_path: Path) -> None:
    requests: list[str] = []

    def script(peer: Peer, number: int) -> None:
        requests.append(peer.request)
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: State.SUBSCRIBING in desk.states)
    assert requests[0].startswith("GET /toy?wanted=1 HTTP/1.1\r\n")
    assert "extensions" not in requests[0].lower()


def test_a_binary_message_is_delivered_as_such_in_its_place(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 1") + frame(b"\x00\x01", BINARY) + frame(b"trade 2"))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.delivered) == 3)
    assert [(d.payload, d.binary) for d in desk.delivered] == [
        (b"trade 1", False),
        (b"\x00\x01", True),
        (b"trade 2", False),
    ]
    assert desk.unknowns == ["a binary message"]


def test_a_batch_carries_the_time_of_its_read(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(wire(trades(0, 10)))
        desk.wait(lambda: len(desk.delivered) == 10)
        peer.send(wire(trades(10, 10)))
        peer.hold()

    desk = Desk()
    before = time.time_ns()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.delivered) == 20)
    times = [d.received_ns for d in desk.delivered]
    assert before <= times[0] < times[10] <= time.time_ns()
    assert times == sorted(times)
    assert len(set(times)) == 2


def test_what_follows_closely_waits_for_company_and_keeps_its_own_time(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        for each in range(1, 6):
            peer.send(frame(b"trade %d" % each))
            desk.wait(lambda each=each: len(desk.delivered) == each)  # type: ignore[misc]
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk, linger_s=2.0):
        desk.wait(lambda: 5 in desk.told)
    assert desk.payloads == [b"trade %d" % number for number in range(1, 6)]
    assert desk.told == [1, 5], "the first had no company to expect"
    assert len({d.received_ns for d in desk.delivered}) == 5


def test_much_at_once_is_company_enough(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 1"))
        desk.wait(lambda: len(desk.delivered) == 1)
        peer.send(wire(trades(2, 2000)))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk, linger_s=60.0):
        desk.wait(lambda: len(desk.told) > 1)


def test_what_waits_for_company_does_not_wait_for_the_next_connection(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        if not number:
            for each in range(1, 4):
                peer.send(frame(b"trade %d" % each))
                desk.wait(lambda each=each: len(desk.delivered) == each)  # type: ignore[misc]
            return
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk, linger_s=60.0):
        desk.wait(lambda: desk.reconnects == ["lost"])
        assert desk.told[-1] == 3


def test_a_stop_cuts_the_waiting_for_company_short(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 1"))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk, linger_s=60.0) as run:
        desk.wait(lambda: len(desk.delivered) == 1)
        assert run.stop() < 30.0


@pytest.mark.parametrize("piece_bytes", [1, 7, 1400])
def test_a_slow_server_and_fragments_change_nothing(tmp_path: Path, piece_bytes: int) -> None:
    stream = wire(trades(0, 30)) + frame(b"trade ", final=False) + frame(b"?", PING)
    stream += frame(b"30", 0) + wire(trades(31, 5))

    def script(peer: Peer, number: int) -> None:
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        welcome(peer)
        for start in range(0, len(stream), piece_bytes):
            peer.send(stream[start : start + piece_bytes])
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.delivered) == 36)
    assert desk.payloads == trades(0, 36)


def test_a_burst_far_above_the_buffer_arrives_whole(tmp_path: Path) -> None:
    expected = [m + b"x" * 300 for m in trades(0, 20_000)]

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(wire(expected))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.delivered) == len(expected))
        size_bytes = len(wire([b"ok A", b"ok B", *expected]))
        desk.wait(lambda: desk.size_bytes == size_bytes)
    assert desk.payloads == expected


# --- What is answered.


def test_a_ping_is_answered_with_its_payload(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"payload \x00\xff", PING))
        assert peer.until(PONG).payload == b"payload \x00\xff"
        peer.send(frame(b"trade 1"))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.payloads == [b"trade 1"])


def test_a_storm_of_pings_costs_few_answers_the_last_one_included(tmp_path: Path) -> None:
    answers: list[bytes] = []
    took_s = 0.0

    def script(peer: Peer, number: int) -> None:
        nonlocal took_s
        welcome(peer)
        started = time.monotonic()
        for first in range(0, 50_000, 1000):
            peer.send(b"".join(frame(b"%d" % i, PING) for i in range(first, first + 1000)))
            time.sleep(0.02)
        peer.send(frame(b"trade 1"))
        while b"49999" not in answers:
            answers.append(peer.until(PONG).payload)
            took_s = time.monotonic() - started
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.payloads == [b"trade 1"])
        deadline = time.monotonic() + 10
        while b"49999" not in answers and time.monotonic() < deadline:
            time.sleep(0.01)
    assert answers[-1] == b"49999"
    assert 2 <= len(answers) <= 1 + took_s / PONG_INTERVAL_S


# --- Refusals.


def test_a_refused_symbol_is_told_once_and_the_others_flow(tmp_path: Path, events: Events) -> None:
    def script(peer: Peer, number: int) -> None:
        peer.until(TEXT)
        peer.send(wire([b"ok A", b"no B not listed", b"trade 1"]))
        if number < 2:
            desk.wait(lambda: len(desk.delivered) == number + 1)
            peer.sock.close()
        else:
            peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.delivered) == 3)
    assert desk.symbols == {"A": "subscribed", "B": "not listed"}
    refused = events.named("refused")
    assert [(e["symbol"], e["reason"]) for e in refused] == [("B", "not listed")]


def test_when_every_symbol_is_refused_the_connection_stays_without_a_storm(
    tmp_path: Path, events: Events
) -> None:
    def script(peer: Peer, number: int) -> None:
        peer.until(TEXT)
        peer.send(wire([b"no A unknown", b"no B unknown"]))
        for _ in range(60):
            peer.send(frame(b"beat"))
            time.sleep(0.01)
        peer.send(frame(b"trade late"))
        peer.hold()

    desk = Desk()
    config = limits(stale_limit_s=0.4)
    with Server(script) as server, running(tmp_path, server.url, desk, config=config):
        desk.wait(lambda: desk.payloads == [b"trade late"])
    assert desk.reconnects == []
    assert server.accepted == 1
    assert [e["symbols"] for e in events.named("every symbol was refused")] == [2]


# --- A full ring.


def test_a_full_ring_stops_the_reading_and_loses_nothing_when_room_returns(
    tmp_path: Path,
) -> None:
    expected = [m + b"x" * 1000 for m in trades(0, 30_000)]
    sent = 0

    def script(peer: Peer, number: int) -> None:
        nonlocal sent
        welcome(peer)
        peer.send(frame(b"?", PING))
        for start in range(0, len(expected), 100):
            peer.send(wire(expected[start : start + 100]))
            sent = start + 100
        peer.hold()

    desk = Desk(room=10)
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.room == 0)
        offers = desk.offers
        desk.wait(lambda: desk.offers > offers + 20)
        assert sent < len(expected), "30 MB fit nowhere: the socket was not read"
        assert len(desk.delivered) == 10
        desk.make_room()
        desk.wait(lambda: len(desk.delivered) == len(expected))
        desk.wait(lambda: len(desk.blocks) == 1)
    assert desk.payloads == expected
    assert desk.blocks[0] > 0.1
    assert desk.lost_frames == 0
    assert desk.reconnects == []


def test_a_long_wait_for_room_is_not_held_against_the_exchange(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(wire(trades(0, 2)))
        desk.wait(lambda: len(desk.blocks) == 1)
        # Nothing is waiting in the socket when the connection looks at its limits again.
        time.sleep(0.05)
        peer.send(frame(b"beat"))
        desk.wait(lambda: desk.frames == 5)
        peer.send(frame(b"trade 2"))
        peer.hold()

    desk = Desk(room=1)
    config = limits(silence_limit_s=0.4, stale_limit_s=0.4)
    with Server(script) as server, running(tmp_path, server.url, desk, config=config):
        desk.wait(lambda: desk.offers > 80)
        desk.make_room()
        desk.wait(lambda: len(desk.delivered) == 3)
        assert desk.reconnects == []
    assert desk.blocks[0] > 0.6


def test_frames_without_room_at_the_stop_are_counted_as_lost(
    tmp_path: Path, events: Events
) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(wire(trades(0, 100)))
        peer.hold()

    desk = Desk(room=40)
    with Server(script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: desk.offers > 3)
        assert run.stop() < 1.0
    assert desk.payloads == trades(0, 40)
    assert desk.lost_frames == 60
    assert [e["lost"] for e in events.named("stopped while the ring was full")] == [60]


def test_an_error_of_the_ring_leaves_the_thread(tmp_path: Path) -> None:
    class Broken(Desk):
        def deliver(self, *_: object) -> int:
            raise OSError("the ring is gone")

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 1"))
        peer.hold()

    desk = Broken()
    with Server(script) as server, running(tmp_path, server.url, desk) as run:
        run.join()
        assert str(run.error) == "the ring is gone"
    assert desk.states[-1] is State.STOPPED
