"""The status process: what it serves, what it refuses, and that no client holds it up."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from instance import Instance
from sim import Sim, wait_until
from status_rig import Served, ask, both

from feedmono import log
from feedmono.counters import Counters, Field
from feedmono.web.httpd import Limits, Request, Response, Server
from feedmono.workers import Shared


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served")) as process:
        process.publish(both())
        yield process


def test_only_reading_is_possible(served: Served) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for path in ("/metrics", "/", "/api/state", "/readyz"):
            answer = served.ask(path, method)
            assert answer.status == 405, (method, path)
            assert answer.headers["allow"] == "GET, HEAD"


def test_head_tells_what_get_would_without_the_body(served: Served) -> None:
    for path in ("/", "/api/state"):
        got, told = served.ask(path), served.ask(path, "HEAD")
        assert (got.status, told.status, told.body) == (200, 200, b"")
        assert told.headers["content-type"] == got.headers["content-type"]
        assert int(told.headers["content-length"]) > 0


def test_every_answer_forbids_what_the_page_does_not_need(served: Served) -> None:
    for path in ("/", "/metrics", "/healthz", "/api/history", "/none"):
        headers = served.ask(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_the_page_and_all_that_it_names_are_served(served: Served) -> None:
    page = served.ask("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assets = [
        p.split('"')[0] for part in ("src=", "href=") for p in page.text.split(f'{part}"')[1:]
    ]
    for path in (p for p in assets if not p.startswith(("data:", "#"))):
        assert served.ask("/" + path.lstrip("/")).status == 200, path
    assert [e["name"] for e in json.loads(served.ask("/api/state").body)["snapshot"]["exchanges"]]
    history = json.loads(served.ask("/api/history?minutes=5").body)
    assert history["until_s"] - history["from_s"] == pytest.approx(300)


@pytest.mark.parametrize("minutes", ["0", "-1", "x", "1.5", "٣", ""])
def test_a_senseless_length_of_history_is_refused(served: Served, minutes: str) -> None:
    expected = 200 if not minutes else 400  # without a value: an hour
    assert served.ask(f"/api/history?minutes={quote(minutes)}").status == expected


def test_what_is_not_there_is_not_found(served: Served) -> None:
    for path in ("/nothing", "/../etc/passwd", "/%2e%2e/state", "//", "/metrics/"):
        assert served.ask(path).status == 404, path


def test_a_body_is_compressed_for_those_who_take_that(served: Served) -> None:
    plain = served.ask("/metrics")
    assert "content-encoding" not in plain.headers
    packed = served.ask("/metrics", Accept_Encoding="br, gzip;q=0.8")
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 3
    assert gzip.decompress(packed.body).startswith(b"# HELP feedmono_")
    assert "content-encoding" not in served.ask("/metrics", Accept_Encoding="gzip;q=0").headers


def test_a_connection_serves_one_request_after_another(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
        for _ in range(3):
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(sock).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # HTTP/1.1 wants a Host
        (b"GET /" + b"x" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 5000, b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 70_000, b"413"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),  # TLS
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_ends(
    served: Served, request_bytes: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
        sock.sendall(request_bytes)
        assert read_answer(sock).split(b" ")[1] == status
        # What it did not read may come back as a reset.
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert served.ask("/healthz").status == 200


def read_answer(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")]
    while len(body) < int(lengths[0].split(b":")[1]):
        body += sock.recv(65536)
    return data


def test_clients_that_send_nothing_hold_nobody_up(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for n in range(300):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: "[: n % 30])
        assert served.ask("/metrics").status == 200
        assert psutil.Process(served.pid).num_fds() < 100


def test_clients_that_never_read_hold_nobody_up(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", served.port))
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        assert served.ask("/metrics").status == 200


def test_it_beats_whether_or_not_it_is_asked(served: Served) -> None:
    before = served.beats
    wait_until(lambda: served.beats, lambda beats: beats >= before + 2, limit_s=6.0)
    before, start_s = served.beats, time.monotonic()
    while served.beats < before + 2:
        assert served.ask("/metrics").status == 200
        assert time.monotonic() - start_s < 6.0


def test_it_writes_nothing(tmp_path: Path) -> None:
    with Served(tmp_path) as process:
        process.publish(both())
        for path in ("/metrics", "/readyz", "/", "/api/state", "/api/history"):
            assert process.ask(path).status == 200, path
        files = {p for p in tmp_path.rglob("*") if p.is_file()}
        assert {p.name.split("-")[-1] for p in files} == {
            "log",
            "status.json",
            "binance.counters",
            "kraken.counters",
        }
        for opened in psutil.Process(process.pid).open_files():
            assert opened.mode == "r" or opened.path.endswith("/log"), opened
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        pages = [line for line in maps if line.endswith(".counters")]
        assert len(pages) == 2
        assert all(line.split()[1] == "r--s" for line in pages)


def test_it_ends_at_once_on_sigterm(tmp_path: Path) -> None:
    with Served(tmp_path) as process:
        process.publish(both())
        assert process.ask("/healthz").status == 200
        assert process.end() == -signal.SIGTERM


def test_a_supervisor_that_does_not_renew_its_status_is_not_alive(tmp_path: Path) -> None:
    with Served(tmp_path) as process:
        assert process.ask("/healthz").status == 503
        assert "can't be read" in process.ask("/healthz").text
        process.publish(both())
        assert process.ask("/healthz").text == "alive\n"
        told = wait_until(
            lambda: process.ask("/healthz", Accept="application/json"),
            lambda answer: answer.status == 503,
            limit_s=15.0,
        )
        reason = json.loads(told.body)["reasons"][0]
        assert "hangs" in reason["text"]
        assert reason["for_s"] >= 10.0
        assert process.ask("/readyz").status == 503
        process.publish(both())
        assert process.ask("/healthz").status == 200
        assert process.ask("/readyz").status == 200


def test_a_damaged_status_is_told_and_stops_nothing_else(tmp_path: Path) -> None:
    with Served(tmp_path) as process:
        process.publish(both())
        assert process.ask("/healthz").status == 200
        (process.config.state_dir / "status.json").write_text('{"pid": 1')
        assert process.ask("/healthz").status == 503
        assert "feedmono_alive 0.0\n" in process.ask("/metrics").text
        process.publish(both())
        assert process.ask("/healthz").status == 200


def test_a_replaced_page_of_counters_is_opened_anew(tmp_path: Path) -> None:
    with Served(tmp_path) as process:
        process.publish(both())
        process.counters["binance"][Field.FRAMES] = 7
        assert 'feedmono_frames_total{exchange="binance"} 7.0\n' in process.ask("/metrics").text
        path = Shared.of(process.config, "binance").counters
        Counters.create(path)[Field.FRAMES] = 3
        assert 'feedmono_frames_total{exchange="binance"} 3.0\n' in process.ask("/metrics").text
        path.unlink()
        assert 'feedmono_frames_total{exchange="binance"} 3.0\n' in process.ask("/metrics").text


def test_a_running_instance_serves_itself_and_replaces_a_status_process_that_died(
    tmp_path: Path,
) -> None:
    with Sim("binance", "--rate", "50") as sim, Instance(tmp_path, sim) as feedmono:
        feedmono.wait_trades("binance", 20)
        state = json.loads((feedmono.state / "status.json").read_text())
        port = int(state["http"].rpartition(":")[2])
        assert wait_until(lambda: ask(port, "/readyz"), lambda a: a.status == 200).text == "ready\n"
        victim = feedmono.worker("status")
        os.kill(victim, signal.SIGKILL)
        assert ask(port, "/healthz").status == 200, "whoever asks waits for the successor"
        assert feedmono.worker("status") != victim


# --- the server's limits, with a clock that the test turns


class Turned:
    """A server in this process whose clock stands still."""

    def __init__(self, limits: Limits) -> None:
        self.now_s = 0.0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = Server(self.listener, self.respond, log.get(), limits, lambda: self.now_s)
        self.port = self.listener.getsockname()[1]

    def respond(self, request: Request) -> Response:
        if request.path == "/fail":
            raise RuntimeError("on purpose")
        return Response(200, "text/plain", b"x" * 10_000_000 if request.path == "/large" else b"x")

    def connect(self, request: bytes = b"") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.sendall(request)
        for _ in range(3):
            self.server.turn(0.01)
        return sock

    def ended(self, sock: socket.socket) -> bool:
        """Whether the server has closed the connection; nothing else is left to read."""
        sock.setblocking(False)
        try:
            while data := sock.recv(1 << 20):
                assert data
            return True
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def turned() -> Iterator[Turned]:
    log.configure("info", "json")
    server = Turned(Limits(connections=3, request_s=10.0, idle_s=120.0))
    yield server
    server.server.close()
    server.listener.close()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_request_has_so_long_however_often_a_byte_comes(turned: Turned) -> None:
    with turned.connect(b"GET / HT") as sock:
        for byte in b"TP/1.1":
            turned.now_s += 1.9
            with contextlib.suppress(OSError):
                sock.sendall(bytes([byte]))
            turned.server.turn(0.01)
        assert turned.ended(sock)


def test_an_answer_that_is_not_read_is_given_up(turned: Turned) -> None:
    with turned.connect(GET.replace(b"/ ", b"/large ")) as sock:
        turned.now_s = 9.0
        turned.server.turn(0.01)
        turned.now_s = 10.0
        turned.server.turn(0.01)
        assert turned.ended(sock)


def test_between_requests_a_connection_may_rest_longer(turned: Turned) -> None:
    with turned.connect(GET) as sock:
        turned.now_s = 119.0
        turned.server.turn(0.01)
        assert not turned.ended(sock)
        sock.sendall(GET)
        turned.server.turn(1.0)
        turned.now_s = 119.0 + 120.0
        turned.server.turn(0.01)
        assert turned.ended(sock)


def test_who_has_waited_longest_gives_way_when_all_places_are_taken(turned: Turned) -> None:
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(4):
            socks.append(stack.enter_context(turned.connect()))
            turned.now_s += 1.0
        assert [turned.ended(sock) for sock in socks] == [True, False, False, False]


def test_a_large_answer_is_sent_as_fast_as_it_is_read(turned: Turned) -> None:
    with turned.connect(GET.replace(b"/ ", b"/large ")) as sock:
        sock.setblocking(False)
        size = 0
        while size < 10_000_000:
            turned.server.turn(0.01)
            with contextlib.suppress(BlockingIOError):
                size += len(sock.recv(1 << 20))
        assert not turned.ended(sock)


def test_an_answer_that_fails_is_told_and_the_next_one_works(
    turned: Turned, capfd: pytest.CaptureFixture[str]
) -> None:
    with turned.connect(GET.replace(b"/ ", b"/fail ")) as sock:
        turned.server.turn(0.01)
        assert read_answer(sock).startswith(b"HTTP/1.1 500 ")
        sock.sendall(GET)
        turned.server.turn(1.0)
        assert read_answer(sock).startswith(b"HTTP/1.1 200 ")
    assert "on purpose" in capfd.readouterr().err


def test_requests_that_do_not_wait_for_answers_get_one(turned: Turned) -> None:
    with turned.connect(GET * 1000) as sock:
        assert read_answer(sock).startswith(b"HTTP/1.1 200 ")
        assert turned.ended(sock)
