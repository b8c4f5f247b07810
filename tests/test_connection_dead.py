"""Connections that are dead or of no use: which are asked by a ping, and which are replaced."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from toy import Desk, Dice, events, limits, running, welcome
from wsserver import CLOSE, PING, PONG, Peer, Server, frame

__all__ = ["events"]


def test_a_mute_connection_is_asked_by_a_ping_and_then_replaced(tmp_path: Path) -> None:
    pings: list[float] = []
    gone: list[float] = []

    def script(peer: Peer, number: int) -> None:
        if number == 0:
            opened = time.monotonic()
            peer.until(PING)
            pings.append(time.monotonic() - opened)
            peer.hold()
            gone.append(time.monotonic() - opened)
        else:
            welcome(peer)
            peer.hold()

    desk = Desk()
    config = limits(silence_limit_s=0.9)
    with Server(script) as server, running(tmp_path, server.url, desk, config=config):
        desk.wait(lambda: "A" in desk.symbols)
    assert desk.reconnects == ["silent"]
    assert 0.2 < pings[0] < gone[0]
    assert gone[0] > 0.8


def test_a_half_open_connection_is_found_though_it_flowed_before(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade %d" % number))
        # Reads nothing, answers nothing, ends nothing, as behind a cable that was pulled.
        desk.wait(lambda: len(desk.reconnects) > number)

    desk = Desk()
    config = limits(silence_limit_s=0.2)
    with Server(script) as server, running(tmp_path, server.url, desk, config=config):
        desk.wait(lambda: len(desk.delivered) == 2)
        desk.wait(lambda: len(desk.reconnects) >= 2)
    assert desk.reconnects[:2] == ["silent", "silent"]


def test_a_quiet_server_that_answers_pings_is_alive(tmp_path: Path) -> None:
    answered = threading.Semaphore(0)

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        while (got := peer.receive()) is not None:
            peer.send(frame(got.payload, PONG if got.opcode == PING else CLOSE))
            answered.release()

    desk = Desk()
    config = limits(silence_limit_s=0.3)
    with Server(script) as server, running(tmp_path, server.url, desk, config=config):
        for _ in range(6):
            assert answered.acquire(timeout=10)
    assert desk.reconnects == []


def test_a_connection_that_beats_without_trades_is_stale_ever_later_until_data_comes(
    tmp_path: Path,
) -> None:
    lives: list[float] = []

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        opened = time.monotonic()
        if number == 2:
            peer.send(frame(b"trade 1"))
        try:
            peer.sock.settimeout(0.02)
            while True:
                try:
                    if peer.sock.recv(100) == b"":
                        break
                    peer.send(frame((1000).to_bytes(2, "big"), CLOSE))
                    break
                except TimeoutError:
                    peer.send(frame(b"beat"))
        finally:
            lives.append(time.monotonic() - opened)

    desk, dice = Desk(), Dice()
    config = limits(stale_limit_s=0.2)
    with (
        Server(script) as server,
        running(tmp_path, server.url, desk, config=config, dice=dice),
    ):
        desk.wait(lambda: len(desk.reconnects) == 4)
    assert desk.reconnects == ["stale"] * 4
    first, second, third, fourth = lives[:4]
    assert 0.15 < first < second
    assert second > 0.35
    # The third had data at its begin: back from 0.8 to 0.2, and the fourth as well.
    assert third < 0.75
    assert fourth < 0.75
    assert dice.bounds == [0.5, 1.0, 0.5, 1.0]


def test_silence_is_legitimate_while_the_exchange_does_not_trade(tmp_path: Path) -> None:
    beats = 0

    def script(peer: Peer, number: int) -> None:
        nonlocal beats
        welcome(peer)
        peer.send(frame(b"status maintenance"))
        while number == 0 and beats < 80:
            peer.send(frame(b"beat"))
            beats += 1
            time.sleep(0.01)
        if number == 0:
            assert peer.is_quiet(), "the client is about to go"
            peer.send(frame(b"status online"))
        peer.hold()

    desk = Desk()
    config = limits(stale_limit_s=0.5)
    with Server(script) as server, running(tmp_path, server.url, desk, config=config):
        desk.wait(lambda: len(desk.reconnects) == 1)
    assert beats == 80
    assert desk.reconnects[0] == "stale"


def test_what_waits_in_the_socket_is_read_before_silence_is_judged(tmp_path: Path) -> None:
    """After a suspend the clock has jumped: the exchange is not to blame."""
    ahead_s = 0.0

    def script(peer: Peer, number: int) -> None:
        nonlocal ahead_s
        welcome(peer)
        peer.send(frame(b"trade 1"))
        desk.wait(lambda: len(desk.delivered) == 1)
        # While the connection waits in poll(): data and the jump come together.
        ahead_s = 1000.0
        peer.send(frame(b"trade 2"))
        desk.wait(lambda: len(desk.delivered) == 2)
        peer.hold()

    desk = Desk()
    with (
        Server(script) as server,
        running(tmp_path, server.url, desk, clock=lambda: time.monotonic() + ahead_s),
    ):
        desk.wait(lambda: len(desk.delivered) == 2)
        assert desk.reconnects == []
