"""Requests to an exchange's REST server: whole answers or errors, within limits."""

from __future__ import annotations

import contextlib
import gzip
import math
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from sim import Sim, wait_until
from toy import Reply, RestServer

from feedmono.network import rest
from feedmono.network.rest import RestClient, RestError


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def client(url: str) -> RestClient:
    return RestClient(url, {"X-Asked": "yes"})


def test_a_refusal_names_status_and_address_and_how_long_to_wait() -> None:
    with Sim("binance") as sim:
        one = client(sim.rest_url)
        sim.fault("rest-418", 1.0)
        with pytest.raises(RestError, match="HTTP 418") as caught:
            one.get("/api/v3/exchangeInfo")
        assert caught.value.status == 418
        assert caught.value.retry_after_s > 0
        assert sim.rest_url in str(caught.value)
    with pytest.raises(RestError, match=sim.rest_url) as caught:
        one.get("/api/v3/exchangeInfo")
    assert caught.value.status is None
    one.close()


CHUNKED = {"Transfer-Encoding": "chunked"}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n"


@contextlib.contextmanager
def dripping(*answers: bytes) -> Iterator[int]:
    """The port of a server that takes one connection, gives these answers at once, and then a byte
    now and then for as long as anybody listens."""

    def serve() -> None:
        sock, _ = server.accept()
        with sock, contextlib.suppress(OSError):
            for answer in answers:
                assert sock.recv(65536)
                sock.sendall(answer)
            while True:
                sock.sendall(b"x")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive(), "the connection is still there"


def _requests() -> list[threading.Thread]:
    """Those under way."""
    return [thread for thread in threading.enumerate() if thread.name == "rest-request"]


@pytest.mark.parametrize(
    ("scheme", "answers"),
    [
        ("http", [HEAD]),
        ("http", [HEAD.replace(b"7", b"99999") + b"\r\n"]),
        ("http", [HEAD + b"\r\na whole", HEAD]),
        ("http", [HEAD.replace(b"7", b"99999") + b"Connection: close\r\n\r\n"]),
        ("http", [b"HTTP/1.0 200 OK\r\n\r\n"]),
        # A record of TLS, of which only the beginning comes.
        ("https", [b"\x16\x03\x03\x40\x00"]),
    ],
    ids=["headers", "body", "second answer", "last answer", "without a length", "TLS"],
)
def test_an_answer_that_only_drips_is_given_up_when_the_limit_is_over(
    scheme: str, answers: list[bytes]
) -> None:
    with dripping(*answers) as port:
        one = RestClient(f"{scheme}://127.0.0.1:{port}", {}, limit_s=1.0)
        if len(answers) == 2:
            assert one.get("/").body == b"a whole"
        begun_s = time.monotonic()
        with pytest.raises(RestError, match="no whole answer in 1 s") as caught:
            one.get("/")
        assert time.monotonic() - begun_s >= 1.0
        assert caught.value.status is None
        wait_until(_requests, lambda left: not left)
    with RestServer(lambda _: Reply()) as server:
        one = RestClient(server.url, {}, limit_s=20.0)
        assert one.get("/").body == b"a page"
        one.close()


def test_a_proxy_that_only_drips_is_given_up_when_the_limit_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dripping(b"HTTP/1.1 200 Connection established\r\nX-Slow: ") as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        one = RestClient("https://exchange.example", {}, limit_s=1.0)
        with pytest.raises(RestError, match="no whole answer in 1 s"):
            one.get("/")
        wait_until(_requests, lambda left: not left)


def test_a_name_lookup_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    look_up = socket.getaddrinfo

    def slow(*args: Any, **options: Any) -> Any:
        go_on.wait(60)
        return look_up(*args, **options)

    with RestServer(lambda _: Reply()) as server:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        one = RestClient(server.url, {}, limit_s=0.3)
        with pytest.raises(RestError, match="no whole answer"):
            one.get("/late")
        go_on.set()
        wait_until(_requests, lambda left: not left)
        assert not server.paths, "nobody wants it any more"
        two = RestClient(server.url, {})
        assert two.get("/next").body == b"a page"
        two.close()


def test_a_connection_is_kept_and_made_anew_after_a_close() -> None:
    with RestServer(lambda _: Reply(headers={"X-Some": "Thing"})) as server:
        one = client(server.url)
        answers = [one.get("/a?b=%E5%B8%81"), one.get("/c")]
        assert server.connections == 1
        one.close()
        answers.append(one.get("/d"))
        one.close()
        one.close()
        assert server.connections == 2
        assert server.paths == ["/a?b=%E5%B8%81", "/c", "/d"]
        assert {answer.body for answer in answers} == {b"a page"}
        assert {answer.headers["x-some"] for answer in answers} == {"Thing"}
        assert {headers["x-asked"] for headers in server.headers} == {"yes"}
        assert {headers["user-agent"] for headers in server.headers} == {"feedmono"}


def test_an_answer_above_its_limit_is_not_taken() -> None:
    with RestServer(lambda _: Reply(body=b"x" * 1000)) as server:
        one = client(server.url)
        assert len(one.get("/", 1000).body) == 1000
        with pytest.raises(rest.TooLarge, match="999 B") as caught:
            one.get("/", 999)
        assert caught.value.status is None
        assert len(one.get("/").body) == 1000


def test_a_redirect_is_followed_but_not_to_another_scheme_nor_for_ever() -> None:
    with RestServer(lambda path: replies[path]) as server:
        replies = {
            "/a": Reply(301, headers={"Location": "/b"}),
            "/b": Reply(302, headers={"Location": f"{server.url}/c"}),
            "/c": Reply(),
            "/https": Reply(301, headers={"Location": "https://127.0.0.1:1/"}),
            "/file": Reply(301, headers={"Location": "file:///etc/passwd"}),
            "/odd": Reply(301, headers={"Location": "http://[:bad"}),
            "/loop": Reply(307, headers={"Location": "/loop"}),
            "/nowhere": Reply(302),
            "/quoted": Reply(308, headers={"Location": "/a%20b c?\xc3\xbc=[1]"}),
            "/a%20b%20c?%C3%BC=[1]": Reply(headers={"Location": "http://[:bad"}),
        }
        one = client(server.url)
        assert one.get("/a").body == b"a page"
        assert one.get("/quoted").body == b"a page"
        refused = {"/https": 301, "/file": 301, "/odd": None, "/loop": 307, "/nowhere": 302}
        for path, status in refused.items():
            with pytest.raises(RestError) as caught:
                one.get(path)
            assert caught.value.status == status
        assert server.paths.count("/loop") == 6
        assert server.paths.count("/nowhere") == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("nan", 0.0),
        ("inf", 259_200.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("", 0.0),
    ],
)
def test_the_wait_that_the_server_names_is_a_number_within_bounds(
    text: str, seconds: float
) -> None:
    with (
        RestServer(lambda _: Reply(429, headers={"Retry-After": text})) as server,
        pytest.raises(RestError) as caught,
    ):
        client(server.url).get("/")
    assert caught.value.retry_after_s == seconds
    assert math.isfinite(caught.value.retry_after_s)


@pytest.mark.parametrize("url", ["", "nothing", "http://", "http://[::1", "ftp://a", "http://a:b"])
def test_an_address_that_is_none_is_told_as_any_other_failure(url: str) -> None:
    with pytest.raises(RestError, match="GET "):
        client(url).get("/x")


# --- What comes packed, in pieces, or not whole.


def test_a_packed_answer_is_unpacked_within_its_limit() -> None:
    page = b"[" + b"1," * 100_000 + b"1]"
    reply = Reply(body=gzip.compress(page), headers={"Content-Encoding": "gzip"})
    with RestServer(lambda _: reply) as server:
        one = client(server.url)
        assert one.get("/").body == page
        assert server.headers[0]["accept-encoding"] == "gzip"
        with pytest.raises(rest.TooLarge):
            one.get("/", len(page) - 1)
        assert one.get("/", len(page)).body == page
        one.close()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(headers={"Content-Length": "100"}), "received 6 bytes, expected 100"),
        (Reply(headers={"Content-Encoding": "br"}), "unknown way: 'br'"),
        (Reply(headers={"Content-Encoding": "gzip"}), "incorrect header check"),
        (Reply(body=gzip.compress(b"x")[:-1], headers={"Content-Encoding": "gzip"}), "ends within"),
        (Reply(body=b"", headers={"Content-Encoding": "gzip"}), "ends within"),
        (Reply(body=gzip.compress(b"x") + b"y", headers={"Content-Encoding": "gzip"}), "goes on"),
        (Reply(body=2 * gzip.compress(b"x"), headers={"Content-Encoding": "gzip"}), "goes on"),
        *(
            (Reply(body=size + b"\r\nab\r\n0\r\n\r\n", headers=CHUNKED), "illegal chunk header")
            for size in (b"zz", b"-1", b"+2", b"0_2", b"")
        ),
        (Reply(body=b"4\r\nab", headers=CHUNKED), "incomplete chunked read"),
    ],
)
def test_an_answer_that_is_not_whole_is_none(reply: Reply, reason: str) -> None:
    reply = reply._replace(headers={**reply.headers, "Connection": "close"})
    with RestServer(lambda path: reply if path == "/" else Reply()) as server:
        one = client(server.url)
        with pytest.raises(RestError, match=reason) as caught:
            one.get("/")
        assert caught.value.status is None
        assert one.get("/next").body == b"a page"
        one.close()


def test_an_answer_in_pieces_is_put_together() -> None:
    pieces = b"2\r\na \r\n4;x=y\r\npage\r\n0\r\n\r\n"
    reply = Reply(body=pieces, headers=CHUNKED)
    with RestServer(lambda _: reply) as server:
        one = client(server.url)
        assert [one.get("/").body, one.get("/").body] == [b"a page", b"a page"]
        assert server.connections == 1
        one.close()


def test_a_connection_that_the_server_has_ended_meanwhile_is_not_asked() -> None:
    """A server ends what is idle for long, and a request on such a connection would fail."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = threading.Thread(target=_serve_two, args=(listener,))
        served.start()
        one = client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert one.get("/").body == b"1"
        assert one._line is not None
        kept = one._line._connection
        assert kept is not None
        assert kept._sock is not None
        assert select.select([kept._sock], [], [], 10)[0], "the server has ended it"
        assert one.get("/").body == b"2"
        served.join(10)
        one.close()


def _serve_two(listener: socket.socket) -> None:
    """Two connections, one answer each."""
    for number in (b"1", b"2"):
        sock, _ = listener.accept()
        with sock:
            assert sock.recv(65536)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + number)


@contextlib.contextmanager
def saying(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a server that gives these answers in turn, whoever asks over which connection,
    and what it was asked."""
    asked: list[bytes] = []
    left = list(answers)

    def serve() -> None:
        while left:
            sock, _ = listener.accept()
            with sock:
                while request := sock.recv(65536):
                    asked.append(request)
                    sock.sendall(left.pop(0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join(20)
        assert not thread.is_alive(), "not every answer was asked for"


def test_what_follows_an_answer_unasked_is_not_the_next_one() -> None:
    whole = HEAD + b"\r\na whole"
    with saying(whole + whole.replace(b"whole", b"false"), whole) as (port, asked):
        one = client(f"http://127.0.0.1:{port}")
        assert [one.get("/").body, one.get("/").body] == [b"a whole", b"a whole"]
        assert len(asked) == 2
        one.close()


def test_interim_answers_are_waited_out() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    with saying(hints + hints + HEAD + b"\r\na whole") as (port, _):
        one = client(f"http://127.0.0.1:{port}")
        assert one.get("/").body == b"a whole"
        one.close()


# --- TLS and proxies.


def test_tls_is_checked_against_the_authorities_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    tls = authority.server("exchange.example")
    with RestServer(lambda _: Reply(), tls=tls) as server:
        with pytest.raises(RestError, match="certificate verify failed"):
            client(server.url).get("/")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        one = client(server.url)
        assert [one.get("/").body, one.get("/").body] == [b"a page", b"a page"]
        assert server.connections == 2, "the one refused, and one for both"
        one.close()
        with pytest.raises(RestError, match="not valid for 'localhost'"):
            client(server.url.replace("127.0.0.1", "localhost")).get("/")


def test_a_proxy_is_asked_but_for_the_hosts_that_need_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        RestServer(lambda _: Reply(body=b"by proxy")) as proxy,
        RestServer(lambda _: Reply()) as to,
    ):
        port = proxy.url.rpartition(":")[2]
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{port}")
        one = client("http://exchange.example:81")
        assert one.get("/a?b=c").body == b"by proxy"
        assert proxy.paths == ["http://exchange.example:81/a?b=c"]
        assert proxy.headers[0]["host"] == "exchange.example:81"
        assert proxy.headers[0]["proxy-authorization"] == "Basic bWU6cEBzcw=="
        one.close()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        two = client(to.url)
        assert two.get("/").body == b"a page"
        assert "proxy-authorization" not in to.headers[0]
        two.close()


def test_through_a_proxy_tls_is_the_servers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    tls = authority.server("exchange.example")
    with RestServer(lambda _: Reply(), tls=tls) as server, tunnel(server) as (port, asked):
        monkeypatch.setenv("all_proxy", f"127.0.0.1:{port}")
        one = client("https://exchange.example")
        assert [one.get("/").body, one.get("/").body] == [b"a page", b"a page"]
        assert len(asked) == 1
        assert asked[0].startswith(b"CONNECT exchange.example:443 HTTP/1.")
        assert server.headers[0]["host"] == "exchange.example"
        one.close()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://"])
def test_a_proxy_of_another_kind_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(RestError, match="the proxy of the environment must be http://"):
        client("http://exchange.example").get("/")


def test_a_proxy_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with RestServer(lambda _: Reply()) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(RestError, match="the proxy does not connect: HTTP 501"):
            client("https://exchange.example").get("/")


def test_a_literal_address_is_asked_for_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    no = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
    with saying(no, no) as (port, asked):
        monkeypatch.setenv("all_proxy", f"http://127.0.0.1:{port}")
        for url, status in (("https://[::1]", None), ("http://[::1]:81", 502)):
            with pytest.raises(RestError, match="HTTP 502") as caught:
                client(url).get("/")
            assert caught.value.status == status
    assert asked[0].startswith(b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n")
    assert asked[1].startswith(b"GET http://[::1]:81/ HTTP/1.1\r\nHost: [::1]:81\r\n")


@contextlib.contextmanager
def tunnel(server: RestServer) -> Iterator[tuple[int, list[bytes]]]:
    """A proxy that leads everything to *server*: its port, and what it was asked."""
    asked: list[bytes] = []
    to = ("127.0.0.1", int(server.url.rpartition(":")[2]))

    def serve() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(to) as far:
            asked.append(near.recv(65536))
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            other = {near: far, far: near}
            while True:
                for sock in select.select([near, far], [], [])[0]:
                    if not (data := sock.recv(65536)):
                        return
                    other[sock].sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join(20)
        assert not thread.is_alive(), "the connection is still there"
