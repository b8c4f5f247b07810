"""An open connection: what it delivers, what it answers, and what ends it."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy import Desk, Dice, Events, Toy, events, limits, running, trades, welcome, wire
from wsserver import BINARY, CLOSE, PING, PONG, TEXT, Peer, Server, frame

from feedmono.network import connection
from feedmono.network.connection import AGE_JITTER, FAREWELL_LIMIT_S, PONG_INTERVAL_S
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
    monkeypatch.setattr(connection, "READY_AFTER_S", 0.3)

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


# --- Dead and useless connections.


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
