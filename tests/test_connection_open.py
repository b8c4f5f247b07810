"""How a connection comes about or does not, when it is tried again, and how it is stopped."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from authority import Authority
from toy import Desk, Dice, Events, Toy, events, make, running, trades, welcome, wire
from wsserver import CLOSE, PONG, TEXT, Peer, Server, accept, answer, frame

from feedmono.network import connection, handshake
from feedmono.network.contract import State
from feedmono.network.handshake import Opening
from feedmono.network.wire import Ended, Wake, Wire

__all__ = ["events"]

PROMPT_S = 1.5
"""Far below each wait that a stop is to cut short, far above what a busy machine takes."""


def flow(peer: Peer, number: int) -> None:
    welcome(peer)
    peer.send(frame(b"trade %d" % number))
    peer.hold()


def ends_at_once(peer: Peer, number: int) -> None:
    peer.sock.close()


# --- No connection.


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("HTTP/1.1 403 Forbidden", "http 403"),
        ("HTTP/1.1 418 Teapot\r\nRetry-After: later", "http 418"),
        ("HTTP/1.1 500 Oops", "http 500"),
        ("HTTP/1.1 503", "http 503"),
        ("HTTP/1.1 302 Found\r\nLocation: ws://localhost:1/", "handshake"),
        ("HTTP/1.1 200 OK", "http 200"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket", "handshake"),
        ("\x01\x02 garbage", "handshake"),
    ],
)
def test_an_answer_that_is_no_handshake_is_told_and_tried_again(
    tmp_path: Path, events: Events, head: str, reason: str
) -> None:
    def handshake(sock: socket.socket, request: str, number: int) -> bool:
        return (accept if number else answer(head, "said why"))(sock, request, number)

    desk = Desk()
    with Server(flow, handshake=handshake) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.payloads == [b"trade 1"])
    assert desk.reconnects == [reason]
    told = events.named("not connected")
    assert [e["reason"] for e in told] == [reason]
    assert reason[:4] != "http" or "said why" in str(told[0]["detail"])


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    times: list[float] = []

    def handshake(sock: socket.socket, request: str, number: int) -> bool:
        times.append(time.monotonic())
        head = "HTTP/1.1 429 Slow down\r\nRetry-After: 1"
        return (accept if number else answer(head))(sock, request, number)

    desk = Desk()
    with Server(flow, handshake=handshake) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.payloads == [b"trade 1"])
    assert desk.reconnects == ["http 429"]
    assert State.WAITING in desk.states
    assert times[1] - times[0] > 0.95


def test_a_closed_port_is_tried_until_somebody_listens(tmp_path: Path, events: Events) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    desk, dice = Desk(), Dice(0.01)
    url = f"ws://127.0.0.1:{port}"
    with running(tmp_path, url, desk, dice=dice):
        desk.wait(lambda: len(desk.reconnects) >= 3)
    assert set(desk.reconnects) == {"unreachable"}
    assert "refused" in str(events.named("not connected")[0]["detail"])


def test_a_name_that_cannot_be_looked_up_is_told_and_tried_again(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_dns(*_: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_dns)
    desk = Desk()
    with running(tmp_path, "ws://stream.example", desk, dice=Dice(0.01)):
        desk.wait(lambda: len(desk.reconnects) >= 3)
    assert set(desk.reconnects) == {"unreachable"}
    assert "name can't be looked up" in str(events.named("not connected")[0]["detail"])


def test_a_handshake_that_trickles_in_is_given_up_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte alone comes in time: the limit holds for all of them together."""
    monkeypatch.setattr(handshake, "CONNECT_LIMIT_S", 0.4)
    gone = threading.Event()

    def trickle(sock: socket.socket, request: str, number: int) -> bool:
        if number:
            return accept(sock, request, number)
        try:
            while True:
                sock.sendall(b"H")
                time.sleep(0.02)
        except OSError:
            gone.set()
        return False

    desk = Desk()
    with Server(flow, handshake=trickle) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: desk.payloads == [b"trade 1"])
        assert gone.wait(10), "the abandoned attempt kept its socket"
    assert desk.reconnects == ["unreachable"]


# --- TLS.


def test_a_certificate_of_an_unknown_authority_is_refused_and_says_what_to_do(
    tmp_path: Path, events: Events
) -> None:
    tls = Authority(tmp_path).server("localhost")
    desk = Desk()
    with Server(flow, tls=tls) as server, running(tmp_path, server.url, desk, dice=Dice(0.01)):
        desk.wait(lambda: len(desk.reconnects) >= 2)
    assert set(desk.reconnects) == {"tls"}
    assert desk.delivered == []
    assert "SSL_CERT_FILE" in str(events.named("not connected")[0]["detail"])


def test_a_certificate_for_another_host_is_refused(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    desk = Desk()
    tls = authority.server("other.example")
    with Server(flow, tls=tls) as server, running(tmp_path, server.url, desk, dice=Dice(0.01)):
        desk.wait(lambda: len(desk.reconnects) >= 1)
    assert desk.reconnects[0] == "tls"
    assert "localhost" in str(events.named("not connected")[0]["detail"])


def test_an_authority_added_by_ssl_cert_file_is_trusted_and_tls_delivers_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    small, large = trades(0, 500), [b"trade " + b"x" * 900_000]
    many = [m + b"x" * 500 for m in trades(500, 3000)]

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        for message in small:
            # A record of TLS each, as exchanges send them.
            peer.send(frame(message))
        peer.send(wire(large) + wire(many) + frame(b"?", 9))
        assert peer.until(PONG).payload == b"?"
        peer.send(frame(b"trade last"))
        peer.hold()

    desk = Desk()
    tls = authority.server("localhost")
    with Server(script, tls=tls) as server, running(tmp_path, server.url, desk):
        desk.wait(lambda: b"trade last" in desk.payloads)
    assert desk.payloads == [*small, *large, *many, b"trade last"]
    assert desk.reconnects == []


# --- The backoff and the limit.


def test_only_data_resets_the_backoff(tmp_path: Path) -> None:
    def script(peer: Peer, number: int) -> None:
        if number in (4, 5):
            welcome(peer)
            peer.send(frame(b"trade %d" % number))
            desk.wait(lambda: b"trade %d" % number in desk.payloads)
        elif number == 2:
            # A whole, acknowledged subscription is not data.
            welcome(peer)
            desk.wait(lambda: "B" in desk.symbols)
        peer.sock.close()

    desk, dice = Desk(), Dice()
    with Server(script) as server, running(tmp_path, server.url, desk, dice=dice):
        desk.wait(lambda: len(desk.reconnects) >= 8)
    assert dice.bounds[:7] == [0.5, 1.0, 2.0, 4.0, 0.5, 0.5, 1.0]


def test_the_wait_is_what_the_jitter_drew(tmp_path: Path) -> None:
    times: list[float] = []

    def script(peer: Peer, number: int) -> None:
        times.append(time.monotonic())
        peer.sock.close()

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk, dice=Dice(0.5)):
        desk.wait(lambda: len(times) == 3)
    assert times[1] - times[0] > 0.24
    assert times[2] - times[1] > 0.49


def test_a_storm_of_short_lived_connections_is_held_by_the_exchanges_limit(
    tmp_path: Path, events: Events
) -> None:
    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 1"))
        desk.wait(lambda: len(desk.delivered) > number)
        peer.sock.close()

    desk = Desk()
    attempts = replace(Toy.limits, connections=10, connections_window_s=600.0)
    with Server(script) as server, running(tmp_path, server.url, desk, attempts=attempts) as run:
        desk.wait(lambda: desk.states[-1:] == [State.WAITING] and len(desk.reconnects) == 4)
        assert run.stop() < PROMPT_S
    assert server.accepted == 4
    assert len(events.named("waiting for the exchange's limit of connection attempts")) == 1


# --- The stop.


def test_a_stop_while_connecting_is_prompt(tmp_path: Path) -> None:
    asked = threading.Event()

    def handshake(sock: socket.socket, request: str, number: int) -> bool:
        asked.set()
        sock.recv(1)  # never answers; ends when the client has gone
        return False

    desk = Desk()
    with Server(flow, handshake=handshake) as server, running(tmp_path, server.url, desk) as run:
        assert asked.wait(10)
        assert run.stop() < PROMPT_S
    assert desk.reconnects == []


def test_a_stop_during_a_name_lookup_is_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, release = threading.Event(), threading.Event()

    def slow_dns(*_: object) -> None:
        asked.set()
        release.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", slow_dns)
    try:
        with running(tmp_path, "ws://stream.example", Desk()) as run:
            assert asked.wait(10)
            assert run.stop() < PROMPT_S
    finally:
        release.set()


def test_a_stop_during_the_backoff_is_prompt(tmp_path: Path) -> None:
    desk = Desk()
    # The seventh wait is the full 30 s; the first is already long enough to be caught in.
    dice = Dice(60.0)
    with Server(ends_at_once) as server, running(tmp_path, server.url, desk, dice=dice) as run:
        desk.wait(lambda: desk.states[-1:] == [State.WAITING])
        assert run.stop() < PROMPT_S
    assert server.accepted == 1


def test_a_stop_before_the_start_is_not_forgotten(tmp_path: Path) -> None:
    desk = Desk()
    with Server(flow) as server:
        one = make(tmp_path, server.url, desk)
        one.stop()
        one.run()
    assert desk.delivered == []
    assert server.accepted == 0


def test_a_stop_closes_in_order_and_takes_what_was_on_its_way(
    tmp_path: Path, events: Events
) -> None:
    codes: list[int] = []

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 1"))
        close = peer.until(CLOSE)
        codes.append(int.from_bytes(close.payload[:2], "big"))
        peer.send(wire(trades(2, 50)) + frame(close.payload, CLOSE))

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: len(desk.delivered) == 1)
        assert run.stop() < PROMPT_S
    assert codes == [1000]
    assert desk.payloads == trades(1, 51)
    assert desk.reconnects == []
    assert [e["reason"] for e in events.named("disconnected")] == ["stopped"]


def test_a_stop_does_not_wait_long_for_a_server_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FAREWELL_LIMIT_S", 0.2)
    over = threading.Event()

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        peer.send(frame(b"trade 1"))
        over.wait(10)

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: len(desk.delivered) == 1)
        assert 0.15 < run.stop() < PROMPT_S
        over.set()


def test_a_stop_does_not_wait_long_for_a_server_that_never_stops_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FAREWELL_LIMIT_S", 0.2)

    def script(peer: Peer, number: int) -> None:
        welcome(peer)
        while True:
            peer.send(wire(trades(0, 100)))

    desk = Desk()
    with Server(script) as server, running(tmp_path, server.url, desk) as run:
        desk.wait(lambda: len(desk.delivered) > 1000)
        assert 0.15 < run.stop() < PROMPT_S


# --- Sending to somebody who does not read.


def jammed() -> tuple[Wire, socket.socket, int]:
    """A connection that takes no byte more, its peer, and how many it took."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours = socket.create_connection(listener.getsockname())
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        theirs, _ = listener.accept()
    ours.setblocking(False)
    sent = 0
    full_since = time.monotonic()
    while time.monotonic() - full_since < 0.1:
        with contextlib.suppress(BlockingIOError):
            sent += ours.send(b"x" * 65_536)
            full_since = time.monotonic()
    return Wire(ours, memoryview(bytearray(100))), theirs, sent


def test_a_send_gives_up_at_its_limit() -> None:
    one, theirs, _ = jammed()
    with theirs, contextlib.closing(one):
        started = time.monotonic()
        with pytest.raises(Ended) as ended:
            one.send(PONG, b"", 0.2, None)
        assert ended.value.reason == "unsent"
        assert 0.15 < time.monotonic() - started < PROMPT_S


def test_a_stop_ends_a_jammed_send() -> None:
    one, theirs, _ = jammed()
    wake = Wake()
    wake.open()
    timer = threading.Timer(0.1, wake.set)
    timer.start()
    with theirs, contextlib.closing(one), pytest.raises(Ended) as ended:
        one.send(PONG, b"", 30.0, wake)
    timer.join()
    wake.close()
    assert ended.value.reason == "stopped"


def test_a_jammed_send_goes_through_whole_once_the_peer_reads() -> None:
    one, theirs, sent = jammed()
    theirs.settimeout(10)
    message = (b"m" * 1_000_000, 10.0, None)
    with theirs, contextlib.closing(one):
        sender = threading.Thread(target=one.send, args=(TEXT, *message), daemon=True)
        sender.start()
        got = bytearray()
        while len(got) < sent + 14 + 1_000_000:
            got += theirs.recv(1 << 20)
        sender.join(10)
    frame_ = got[sent:]
    assert frame_[:10] == b"\x81\xff" + (1_000_000).to_bytes(8, "big")
    assert bytes(b ^ frame_[10 + i % 4] for i, b in enumerate(frame_[14:])) == message[0]


# --- Below the connection.


def test_bytes_that_only_openssl_holds_are_read_without_waiting(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    # As websocket-client does it; create_default_context is stricter from Python 3.13 on.
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority.file)
    sent = bytes(i % 251 for i in range(10_000))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with authority.server("localhost").wrap_socket(
                listener.accept()[0], server_side=True
            ) as theirs:
                theirs.sendall(sent)
                theirs.recv(1)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        ours = client.wrap_socket(
            socket.create_connection(listener.getsockname()), server_hostname="localhost"
        )
        # One record of TLS is a hundred times this buffer.
        one = Wire(ours, memoryview(bytearray(100)))
        with contextlib.closing(one):
            got = bytearray()
            while len(got) < len(sent):
                assert one.wait(5.0, None), f"waits with {len(got)} of {len(sent)} bytes read"
                got += one.read()
        server.join(10)
    assert got == sent


def test_a_connection_that_comes_about_too_late_is_closed() -> None:
    release = threading.Event()
    late, peer = socket.socketpair()

    def connect() -> socket.socket:
        release.wait(10)
        return late

    wake = Wake()
    wake.open()
    with peer, pytest.raises(TimeoutError):
        Opening(connect, lambda: None).result(0.05, wake)
    release.set()
    deadline = time.monotonic() + 10
    while late.fileno() != -1 and time.monotonic() < deadline:
        time.sleep(0.005)
    wake.close()
    assert late.fileno() == -1


# --- By a proxy.


def test_a_proxy_that_the_environment_names_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    def relay(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def proxy() -> None:
        client, _ = listener.accept()
        asked.append(client.recv(65536).splitlines()[0])
        with client, socket.create_connection(("127.0.0.1", port)) as target:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=relay, args=(target, client), daemon=True)
            back.start()
            relay(client, target)
            back.join()

    desk = Desk()
    with socket.create_server(("127.0.0.1", 0)) as listener, Server(flow) as server:
        port = int(server.url.rpartition(":")[2])
        threading.Thread(target=proxy, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        # websocket-client asks no proxy for 127.0.0.1; only the proxy knows where this one is.
        with running(tmp_path, f"ws://127.0.0.2:{port}", desk):
            desk.wait(lambda: desk.payloads == [b"trade 0"])
    assert asked == [f"CONNECT 127.0.0.2:{port} HTTP/1.1".encode()]
