"""A connection and its socket where it is seldom: half a record, a peer that goes in between."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import websocket
from authority import Authority
from test_connection_open import ends_at_once, flow
from toy import LIMIT_S, Desk, Events, Toy, ToySession, events, make, running, trades, welcome, wire
from wsserver import PING, TEXT, Peer, Server, answer, frame

from feedmono.exchanges import base
from feedmono.exchanges.base import Event, Session
from feedmono.network import connection, handshake
from feedmono.network.wire import Ended, Wake, Wire

__all__ = ["events"]


# --- A connection.


def test_a_connection_that_is_the_last_is_not_opened_again(tmp_path: Path) -> None:
    desk = Desk()
    with Server(ends_at_once) as server:
        last = make(tmp_path, server.url, desk)
        last.make_last()
        last.run()
    assert (server.accepted, desk.reconnects) == (1, ["lost"])


def test_a_long_wait_for_the_exchange_s_limit_is_told_once(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks again now and then, since others use the same limit."""
    monkeypatch.setattr(connection, "WAIT_LIMIT_S", 0.02)
    one_in_half_a_second = replace(Toy.limits, connections=1, connections_window_s=0.5)
    asked: list[float] = []
    desk = Desk()
    with Server(ends_at_once) as server:
        made = make(tmp_path, server.url, desk, attempts=one_in_half_a_second)
        reserve = made._limiter.reserve

        def counted(now_s: float) -> float:
            asked.append(now_s)
            return reserve(now_s)

        monkeypatch.setattr(made._limiter, "reserve", counted)
        thread = threading.Thread(target=made.run, daemon=True)
        thread.start()
        desk.wait(lambda: len(desk.reconnects) == 2)
        made.stop()
        thread.join(LIMIT_S)
    assert len(asked) > 4
    told = events.named("waiting for the exchange's limit of connection attempts")
    # One more, should the third attempt have waited before the stop.
    assert 1 <= len(told) <= 2


def test_what_came_before_an_answer_that_can_not_be_sent_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ping among trades, from a peer that is gone when it is to be answered."""
    received, gone = threading.Event(), threading.Event()
    read = Wire.read

    def slow(self: Wire) -> memoryview:
        data = read(self)
        if b"trade 1" in bytes(data):
            received.set()
            assert gone.wait(LIMIT_S)
        return data

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        if number:
            peer.hold()
            return
        peer.send(frame(b"trade 0") + frame(b"alive?", PING) + wire(trades(1, 2)))
        assert received.wait(LIMIT_S)
        peer.reset()
        gone.set()

    monkeypatch.setattr(Wire, "read", slow)
    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: len(desk.reconnects) == 1)
    assert desk.payloads == trades(0, 3)
    assert desk.reconnects == ["lost"]


def test_half_a_record_of_tls_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is something to read, and nothing for us in it."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    flowing, halved, nothing = threading.Event(), threading.Event(), threading.Event()
    read = Wire.read

    def noted(self: Wire) -> memoryview:
        data = read(self)
        if not data and halved.is_set():
            nothing.set()
        return data

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 0"))
        assert flowing.wait(LIMIT_S)
        peer.send(frame(b"trade 1"))
        peer.hold()

    def relay(source: socket.socket, target: socket.socket, halves: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if halves and flowing.is_set() and not halved.is_set():
                    halved.set()
                    target.sendall(data[:10])
                    assert nothing.wait(LIMIT_S)
                    data = data[10:]
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr(Wire, "read", noted)
    desk = Desk()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Server(script, tls=authority.server("localhost")) as server,
    ):

        def between() -> None:
            client, _ = listener.accept()
            behind = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
            with client, behind:
                back = threading.Thread(target=relay, args=(behind, client, True), daemon=True)
                back.start()
                relay(client, behind, False)
                back.join(LIMIT_S)

        threading.Thread(target=between, daemon=True).start()
        url = f"wss://localhost:{listener.getsockname()[1]}"
        with running(tmp_path, url, desk):
            desk.wait(lambda: desk.payloads == [b"trade 0"])
            flowing.set()
            desk.wait(lambda: desk.payloads == [b"trade 0", b"trade 1"])
    assert nothing.is_set()
    assert desk.reconnects == []


def test_a_symbol_that_was_refused_and_is_subscribed_after_all_is_told(
    tmp_path: Path, events: Events
) -> None:
    def script(peer: Peer, number: int) -> None:
        peer.until(TEXT)
        peer.send(wire([b"ok A", b"no B not now", b"no X unasked", b"trade 0", b"ok B", b"ok A"]))
        peer.hold()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.symbols == {"A": "subscribed", "B": "subscribed"})
    assert [entry["symbol"] for entry in events.named("refused")] == ["B"], "X is not ours"
    assert [entry["symbol"] for entry in events.named("subscribed, refused before")] == ["B"]


def test_an_end_of_a_subscription_that_nobody_answers_is_told(tmp_path: Path) -> None:
    class Tired(ToySession):
        """Gives up the answer to an unsubscription, as the exchanges' sessions do."""

        def poll(self, now_s: float) -> tuple[Sequence[str], Sequence[Event]]:
            asked, given_up = super().poll(now_s)
            if any(each.startswith("unsubscribe") for each in asked):
                return asked, [*given_up, base.Unsubscribed("B")]
            return asked, given_up

    class Unanswering(Toy):
        def session(self, symbols: Sequence[str]) -> Session:
            return Tired(symbols, self._answer_limit_s)

    desk = Desk()
    with (
        Server(flow) as server,
        running(tmp_path, server.url, desk, exchange=Unanswering()) as run,
    ):
        desk.wait(lambda: desk.symbols == {"A": "subscribed", "B": "subscribed"})
        desk.wait(lambda: desk.payloads == [b"trade 0"])
        run.connection.set_symbols(["A"])
        desk.wait(lambda: desk.symbols["B"] == "unsubscribed behind 1")
    assert desk.symbols["A"] == "subscribed"


# --- The opening.


def test_tls_to_a_server_that_speaks_none_is_told(tmp_path: Path, events: Events) -> None:
    def plain(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    sock.recv(1 << 16)
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    desk = Desk()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=plain, args=(listener,), daemon=True).start()
        with running(tmp_path, f"wss://localhost:{listener.getsockname()[1]}", desk):
            desk.wait(lambda: bool(desk.reconnects))
        listener.shutdown(socket.SHUT_RDWR)
    assert desk.reconnects[0] == "tls"
    assert "SSL_CERT_FILE" not in str(events.named("not connected")[0]["detail"])


def test_a_handshake_is_tried_and_the_connection_closed_again() -> None:
    closed = threading.Event()

    def script(peer: Peer, number: int) -> None:
        while peer.receive() is not None:
            pass
        closed.set()

    with Server(script) as server:
        handshake.try_handshake(server.url)
        assert closed.wait(LIMIT_S)
    with (
        Server(flow, handshake=answer("HTTP/1.1 403 Forbidden")) as server,
        pytest.raises(websocket.WebSocketBadStatusException, match="403"),
    ):
        handshake.try_handshake(server.url)


# --- Waking.


def test_a_wake_that_was_taken_waits_for_the_next() -> None:
    wake = Wake()
    wake.clear()
    wake.set()
    assert wake.wait(LIMIT_S), "before it was opened"
    wake.open()
    assert wake.wait(LIMIT_S)
    wake.clear()
    wake.clear()
    assert not wake.wait(0.001)
    assert not select.select([wake], [], [], 0)[0]
    wake.set()
    wake.set()
    assert wake.wait(LIMIT_S)
    wake.clear()
    assert not select.select([wake], [], [], 0)[0], "two calls, one wake"
    wake.close()
    wake.set()
    wake.clear()
    assert not wake.is_set


# --- The socket.


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def wait_for(sock: socket.socket, condition: Callable[[int], bool]) -> None:
    """Until what poll tells of the socket is so."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    for _ in range(1000):
        if any(condition(told) for _, told in poll.poll(20)):
            return
    raise AssertionError("it never came")


def test_a_peer_that_is_gone_before_it_is_looked_at_has_no_address() -> None:
    ours, theirs = connected()
    host, port = ours.getpeername()
    one = Wire(ours, memoryview(bytearray(100)))
    assert one.peer == f"{host}:{port}"
    Peer(theirs, "").reset()
    wait_for(ours, lambda told: bool(told & select.POLLHUP))
    assert Wire(ours, memoryview(bytearray(100))).peer == "gone"
    one.close()


_NO_TLS = b"garbage " * 4


def _garbage(secured: ssl.SSLSocket) -> None:
    """What is no record of TLS."""
    socket.socket.send(secured, _NO_TLS)


def _reset(secured: ssl.SSLSocket) -> None:
    Peer(secured, "").reset()


@pytest.mark.parametrize("then", [_garbage, _reset])
def test_what_came_before_the_end_is_read_before_that_is_told(
    tmp_path: Path, then: Callable[[ssl.SSLSocket], None]
) -> None:
    """Over TLS, where one look takes several records."""
    authority = Authority(tmp_path)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority.file)
    plain, theirs = connected()
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ended = threading.Event()

    def serve() -> None:
        with authority.server("localhost").wrap_socket(theirs, server_side=True) as secured:
            secured.recv(1)
            for number in range(3):
                secured.sendall(b"record %d " % number)
            then(secured)
            ended.set()
            with contextlib.suppress(OSError):
                secured.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    ours = client.wrap_socket(plain, server_hostname="localhost")
    ours.sendall(b"!")
    assert ended.wait(LIMIT_S)
    if then is _reset:
        wait_for(ours, lambda told: bool(told & select.POLLHUP))
    else:
        # Past TLS: until all of it has come.
        wait_for(
            ours, lambda _: socket.socket.recv(ours, 1 << 16, socket.MSG_PEEK).endswith(_NO_TLS)
        )
    one = Wire(ours, memoryview(bytearray(1000)))
    with contextlib.closing(one):
        assert bytes(one.read()) == b"record 0 record 1 record 2 "
        with pytest.raises(Ended, match="lost"):
            one.read()


class Rekeying(socket.socket):
    """What OpenSSL does while keys are exchanged anew: the first read waits until it may write, a
    write until there is something to read. No server that can be had in a test asks for it."""

    reads = 0

    def recv_into(self, *given: object, **named: object) -> int:
        self.reads += 1
        if self.reads == 1:
            raise ssl.SSLWantWriteError
        return super().recv_into(*given, **named)  # type: ignore[arg-type]

    def send(self, *given: object) -> int:
        if not select.select([self], [], [], 0)[0]:
            raise ssl.SSLWantReadError
        return super().send(*given)  # type: ignore[arg-type]


def rekeying() -> tuple[Wire, socket.socket]:
    ours, theirs = connected()
    return Wire(Rekeying(fileno=ours.detach()), memoryview(bytearray(100))), theirs


def test_a_read_that_must_write_first_waits_for_that() -> None:
    one, theirs = rekeying()
    with theirs, contextlib.closing(one):
        theirs.sendall(b"something")
        assert one.wait(LIMIT_S, None)
        assert bytes(one.read()) == b""
        assert one.wait(LIMIT_S, None), "it can write"
        assert bytes(one.read()) == b"something"
        assert not one.wait(0.001, None), "that it can write does not wake it any more"


def test_a_write_that_must_read_first_waits_for_that() -> None:
    one, theirs = rekeying()
    with theirs, contextlib.closing(one), pytest.raises(Ended, match="unsent"):
        one.send(TEXT, b"in vain", 0.05, None)
    one, theirs = rekeying()
    with theirs, contextlib.closing(one):
        sender = threading.Thread(target=one.send, args=(TEXT, b"later", LIMIT_S, None))
        sender.start()
        theirs.sendall(b"now")
        sender.join(LIMIT_S)
        got = Peer(theirs, "").receive()
        assert got is not None
        assert (got.opcode, got.payload) == (TEXT, b"later")
