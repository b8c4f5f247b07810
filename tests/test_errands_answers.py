"""Pages of past trades, whatever a server answers, and while it is gone: who waits how long."""

from __future__ import annotations

from pathlib import Path

import pytest
from errands_rig import AGAIN, CANT, Script, running
from toy import Events, Reply, RestServer, Toy, events

__all__ = ["events"]


def test_a_server_that_is_gone_and_comes_back_is_found_again(
    tmp_path: Path, events: Events
) -> None:
    with RestServer(Script(Reply())) as server:
        port = int(server.url.rpartition(":")[2])
    with running(tmp_path, Toy(), server.url) as run:
        for number in range(8):
            run.ask("A", number)
        run.failures(8)
        assert run.pace.holds == [
            (seconds, False) for seconds in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0)
        ]
        with RestServer(Script(Reply()), port=port):
            run.ask("A", 8)
            run.pages(1)
    assert len(events.named(CANT)) == len(events.named(AGAIN)) == 1


def test_too_many_requests_without_a_time_are_backed_off_from_with_doubling_waits(
    tmp_path: Path, events: Events
) -> None:
    limited = [Reply(429), Reply(200, b"no more"), Reply(418), *[Reply(429)] * 4]
    script = Script(*limited, Reply(), Reply(429), Reply())
    with RestServer(script) as server, running(tmp_path, Toy(), server.url) as run:
        for number in range(10):
            run.ask("A", number)
        run.pages(2)
        run.failures(8)
    waits = [10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 10.0]
    assert run.pace.holds == [(seconds, True) for seconds in waits]
    assert run.failed == 8
    assert len(events.named(CANT)) == len(events.named(AGAIN)) == 2


def test_the_time_that_the_server_names_is_kept_to(tmp_path: Path) -> None:
    named = [Reply(status, headers={"Retry-After": "7"}) for status in (429, 418, 503)]
    odd = [Reply(503, headers={"Retry-After": text}) for text in ("-1", "soon", "nan", "0")]
    script = Script(*named, Reply(), *odd, Reply(429, headers={"Retry-After": "1e999"}), Reply())
    with RestServer(script) as server, running(tmp_path, Toy(), server.url) as run:
        for number in range(10):
            run.ask("A", number)
        run.pages(2)
    assert run.pace.holds == [
        *[(7.0, True)] * 3,
        *[(seconds, False) for seconds in (1.0, 2.0, 4.0, 8.0)],
        (3 * 86_400.0, True),
    ]


def test_trouble_of_another_kind_is_logged_and_waited_for_anew(
    tmp_path: Path, events: Events
) -> None:
    script = Script(Reply(500), Reply(502), Reply(429), Reply(500), Reply())
    with RestServer(script) as server, running(tmp_path, Toy(), server.url) as run:
        for number in range(5):
            run.ask("A", number)
        run.pages(1)
    assert [hold for hold, _ in run.pace.holds] == [1.0, 2.0, 10.0, 1.0]
    assert [said["retry_in_s"] for said in events.named(CANT)] == [1.0, 10.0, 1.0]
    assert len(events.named(AGAIN)) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(400), "HTTP 400"),
        (Reply(404), "HTTP 404"),
        (Reply(302, headers={"Location": "https://127.0.0.1:1/"}), "HTTP 302"),
        (Reply(302, headers={"Location": "/A/1/100"}), "HTTP 302"),
        (Reply(204, b""), "HTTP 204"),
        (Reply(200, b"no such pair"), "no such pair"),
    ],
)
def test_a_refused_request_costs_only_itself(
    tmp_path: Path, events: Events, reply: Reply, reason: str
) -> None:
    def answer(path: str) -> Reply:
        return reply if path.startswith("/A") else Reply()

    with RestServer(answer) as server, running(tmp_path, Toy(), server.url) as run:
        for number in range(3):
            run.ask("A", number)
            run.ask("B", number)
        run.pages(3)
        assert all(reason in told["reason"] for told in run.failures(3))
        assert [told["passing"] for told in run.told] == [False] * 3
    assert run.pace.holds == []
    assert events.named(CANT) == []
    assert len(events.named("no page of past trades")) == 1


def test_a_page_of_another_market_is_a_failure_of_that_request_alone(
    tmp_path: Path, events: Events
) -> None:
    class Naming(Toy):
        def is_page_of(self, body: bytes, rest_name: str) -> bool:
            return body.startswith(rest_name.encode())

    script = Script(Reply(body=b"ab page"), Reply(body=b"c page"))
    with (
        RestServer(script) as server,
        running(tmp_path, Naming(), server.url, rest={"A": "ab", "C": "c"}) as run,
    ):
        run.ask("A", 1)
        run.pages(1)
        run.ask("A", 2)
        told = run.failures(1)[0]
        assert "not a page of ab" in told["reason"]
        assert (told["symbol"], told["first_id"], told["passing"]) == ("A", 2, False)
        run.ask("C", 3)
        assert run.pages(2)[1][1] == b"c page"
    assert run.pace.holds == []
    assert len(events.named("no page of past trades")) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "100"},
        {"Content-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked", "Content-Length": "1"},
        {"X-Long": "a" * 200_000},
    ],
)
def test_broken_http_is_a_failure_like_others(tmp_path: Path, headers: dict[str, str]) -> None:
    closing = {"Connection": "close", **headers}
    script = Script(Reply(200, b"a page", closing), Reply())
    with RestServer(script) as server, running(tmp_path, Toy(), server.url) as run:
        run.ask("A", 1)
        run.failures(1)
        run.ask("A", 1)
        assert run.pages(1)[0][1] == b"a page"


def test_every_request_has_the_exchanges_headers_over_one_connection(tmp_path: Path) -> None:
    with RestServer(Script(Reply())) as server, running(tmp_path, Toy(), server.url) as run:
        for number in range(20):
            run.ask("A", number)
        run.pages(20)
        assert server.connections == 1
        assert {headers["x-toy"] for headers in server.headers} == {"yes"}
        assert server.paths == [f"/A/{number}/100" for number in range(20)]


def test_the_exchanges_own_count_of_the_weight_holds_the_pace(tmp_path: Path) -> None:
    script = Script(Reply(headers={"X-Toy-Used": "700"}), Reply(headers={"X-Toy-Used": "900"}))
    with RestServer(script) as server, running(tmp_path, Toy(), server.url, eager=False) as run:
        run.ask("A", 1)
        run.ask("A", 2)
        run.pages(2)
        assert run.pace.used == [700, 900]
        assert run.pace.reserve(1) > 0.0
