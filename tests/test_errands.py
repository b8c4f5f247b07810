"""Pages of past trades: fetched within the pace, in turn, whatever the server does."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim import Sim, wait_until
from toy import Events, Reply, RestServer, Toy, events

from feedmono import log, messages, workers
from feedmono.exchanges import load
from feedmono.exchanges.base import Exchange, PageRequest
from feedmono.network.errands import MAX_QUEUED, Errands, Wishes
from feedmono.network.pace import RestPace
from feedmono.trade import BACKFILL

__all__ = ["events"]

LIMIT_S = 30.0
PROMPT_S = 5.0
CANT = "pages of past trades can't be fetched"
AGAIN = "pages of past trades are fetched again"


class Patient(RestPace):
    """Notes the holds, and holds nothing if *eager*; lets nobody go while the gate is shut."""

    def __init__(self, path: Path, exchange: Exchange, eager: bool) -> None:
        super().__init__(path, exchange.limits, log.get())
        self.eager = eager
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0
        self.holds: list[tuple[float, bool]] = []
        self.used: list[int] = []

    def reserve(self, weight: int) -> float:
        self.asked += 1
        if not self.gate.is_set():
            return 0.005
        return 0.0 if self.eager else super().reserve(weight)

    def hold(self, seconds: float, *, remember: bool = True) -> None:
        self.holds.append((seconds, remember))
        if not self.eager:
            super().hold(seconds, remember=remember)

    def told(self, used: int) -> None:
        self.used.append(used)
        super().told(used)


class Running:
    """Errands in their thread, what they deliver and tell, and the socket that asks them."""

    def __init__(
        self,
        tmp_path: Path,
        exchange: Exchange,
        rest_url: str,
        *,
        rest: dict[str, str],
        eager: bool = True,
        max_page_bytes: int = 1 << 20,
        stopped: bool = False,
    ) -> None:
        self._changed = threading.Condition()
        self.payloads: list[bytes] = []
        self.told: list[dict[str, Any]] = []
        self.counted = 0
        self.failed = 0
        self.refusals = 0
        self.room = True
        self.error: BaseException | None = None
        self.names = tmp_path / "toy.symbols.json"
        self.publish(rest)
        self.pace = Patient(tmp_path / "toy.rest", exchange, eager)
        self._ask, self._asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._asked.setblocking(False)
        self._ask.settimeout(LIMIT_S)
        self.errands = Errands(
            exchange,
            rest_url,
            self.names,
            self.pace,
            self._asked.fileno(),
            log.get(),
            deliver_page=self._deliver,
            tell=self._tell,
            count_page=self._count,
            count_failed=self._count_failed,
            max_page_bytes=max_page_bytes,
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        if stopped:
            self.errands.stop()
        self.thread.start()

    def publish(self, rest: dict[str, str]) -> None:
        workers.publish(self.names, {"rest": rest})

    def _run(self) -> None:
        try:
            self.errands.run()
        except BaseException as error:  # for the test to look at
            self.error = error

    def _deliver(self, payload: bytes) -> bool:
        with self._changed:
            if self.room:
                self.payloads.append(payload)
            else:
                self.refusals += 1
            self._changed.notify_all()
            return self.room

    def _tell(self, payload: bytes) -> None:
        with self._changed:
            self.told.append(dict(messages.read_event(payload)))
            self._changed.notify_all()

    def _count(self) -> None:
        with self._changed:
            self.counted += 1
            self._changed.notify_all()

    def _count_failed(self) -> None:
        self.failed += 1

    def ask(
        self, symbol: str, first_id: int, rows: int = 100, since_us: int = 0, tail: bool = False
    ) -> None:
        self.send(messages.request(PageRequest(symbol, first_id, since_us, rows, tail)))

    def send(self, datagram: bytes) -> None:
        self._ask.send(datagram)

    def has_taken_all(self) -> None:
        """Waits, while something waits, until all that was sent is in the queue."""
        asked = self.pace.asked
        wait_until(lambda: self.pace.asked, lambda now: now >= asked + 2)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, LIMIT_S), (
                f"never came; error {self.error!r}, {len(self.payloads)} pages, {self.told[-3:]}"
            )

    def pages(self, count: int) -> Sequence[tuple[PageRequest, bytes]]:
        """Waits for so many, and gives all."""
        self.wait(lambda: self.counted >= count)
        read = [messages.read_page(payload) for payload in self.payloads]
        return [page for page in read if page is not None]

    def failures(self, count: int) -> list[dict[str, Any]]:
        self.wait(lambda: len(self.told) >= count)
        assert all(told["event"] == messages.PAGE_FAILED for told in self.told)
        return self.told

    def stop(self) -> float:
        """How many seconds that took."""
        begun_s = time.monotonic()
        self.errands.stop()
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        assert self.error is None
        self._ask.close()
        self._asked.close()
        return time.monotonic() - begun_s


@contextmanager
def running(tmp_path: Path, exchange: Exchange, rest_url: str, **options: Any) -> Iterator[Running]:
    options.setdefault("rest", {symbol: symbol for symbol in "ABC"})
    run = Running(tmp_path, exchange, rest_url, **options)
    try:
        yield run
    finally:
        run.stop()


class Script:
    """Answers in this order, the last one for ever."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)

    def __call__(self, path: str) -> Reply:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


def ids_of(exchange: Exchange, page: tuple[PageRequest, bytes]) -> list[int]:
    decoded = exchange.decode_page(page[0].symbol, page[1])
    assert (decoded.origin, decoded.problems) == (BACKFILL, ())
    return [trade.trade_id for trade in decoded.trades]


# --- Against the simulators


def made(sim: Sim, symbol: str, count: int) -> int:
    """Waits until so many trades were made; the first id."""
    state = sim.wait(lambda s: s["symbols"][symbol]["made"] >= count)
    first_id: int = state["symbols"][symbol]["first_id"]
    return first_id


def test_a_page_begins_at_the_id_asked_for_and_has_microseconds(tmp_path: Path) -> None:
    exchange = load("binance")
    with (
        Sim("binance", "--symbols", "BTCUSDT,币安人生USDT=币安人生/USDT", "--rate", "5000") as sim,
        running(
            tmp_path,
            exchange,
            sim.rest_url,
            rest={"BTCUSDT": "BTCUSDT", "币安人生USDT": "币安人生USDT"},
            eager=False,
        ) as run,
    ):
        first_id = made(sim, "BTCUSDT", 2000)
        run.ask("BTCUSDT", first_id + 7, 5000)
        run.ask("币安人生USDT", made(sim, "币安人生USDT", 100) + 1, 50)
        one, other = run.pages(2)
        assert one[0] == PageRequest("BTCUSDT", first_id + 7, 0, 1000, False)
        assert ids_of(exchange, one) == list(range(first_id + 7, first_id + 1007))
        assert len(ids_of(exchange, other)) == 50
        trades = exchange.decode_page("BTCUSDT", one[1]).trades
        assert [(t.price, t.quantity, t.side) for t in trades[::100]] == [
            tuple(sim.figures("BTCUSDT", t.trade_id)) for t in trades[::100]
        ]
        assert any(trade.time_us % 1000 for trade in trades)
        assert run.pace.used == [25, 50]
        assert run.failed == 0


def test_pages_by_time_stay_within_one_request_a_second(tmp_path: Path) -> None:
    exchange = load("kraken")
    rest = {"BTC/USD": "XXBTZUSD", "DOGE/USD": "XDGUSD"}
    with (
        Sim("kraken", "--symbols", "BTC/USD,DOGE/USD", "--rate", "2000") as sim,
        running(tmp_path, exchange, sim.rest_url, rest=rest, eager=False) as run,
    ):
        first_id = made(sim, "BTC/USD", 1000)
        made(sim, "DOGE/USD", 1000)
        for number in range(2):
            for symbol in rest:
                run.ask(symbol, first_id + number, 300)
        pages = run.pages(4)
        assert [wish.symbol for wish, _ in pages] == [*rest, *rest]
        assert ids_of(exchange, pages[0]) == list(range(first_id, first_id + 300))
        trades = exchange.decode_page("BTC/USD", pages[0][1]).trades
        # Fewer than a thousand share a time.
        run.ask("BTC/USD", first_id + 150, 1000, trades[150].time_us)
        assert first_id + 150 in ids_of(exchange, run.pages(5)[4])
        assert run.told == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("rest-429", "HTTP 429"),
        ("rest-418", "HTTP 418"),
        ("rest-5xx", "HTTP 50"),
        ("rest-none", "GET http"),
    ],
)
@pytest.mark.parametrize(("name", "symbol"), [("binance", "BTCUSDT"), ("kraken", "BTC/USD")])
def test_a_server_in_trouble_is_told_left_alone_and_asked_again(
    tmp_path: Path, events: Events, name: str, symbol: str, fault: str, reason: str
) -> None:
    rest = {symbol: "BTCUSDT" if name == "binance" else "XXBTZUSD"}
    with (
        Sim(name, "--symbols", symbol, "--no-limits") as sim,
        running(tmp_path, load(name), sim.rest_url, rest=rest, eager=False) as run,
    ):
        first_id = made(sim, symbol, 10)
        sim.fault(fault, 1.0)
        asked = 0
        # Half of the times, rest-none gives an empty page instead of closing the connection.
        while not run.told:
            run.ask(symbol, first_id + asked)
            asked += 1
            run.wait(lambda asked=asked: run.counted + len(run.told) == asked)  # type: ignore[misc]
        sim.fault(fault, 0.0)
        told = run.failures(1)[0]
        assert (told["symbol"], told["first_id"]) == (symbol, first_id + asked - 1)
        assert reason in told["reason"]
        assert told["passing"] is True
        run.ask(symbol, first_id)
        run.pages(asked)
        assert ids_of(load(name), run.pages(asked)[-1])
        assert "retry-after ignored" not in sim.state()["faults"]
        assert [hold for hold, _ in run.pace.holds] == [
            {"rest-429": 1.0, "rest-418": 3.0}.get(fault, 1.0)
        ]
    assert len(events.named(CANT)) == len(events.named(AGAIN)) == 1


def test_slow_answers_and_wrong_ones_are_handed_on_as_they_are(tmp_path: Path) -> None:
    exchange = load("binance")
    rest = {"BTCUSDT": "BTCUSDT", "ETHUSDT": "ETHUSDT"}
    with (
        Sim("binance", "--no-limits", "--symbols", "BTCUSDT,ETHUSDT") as sim,
        running(tmp_path, exchange, sim.rest_url, rest=rest) as run,
    ):
        first_id = made(sim, "BTCUSDT", 10)
        sim.fault("rest-slow", "100ms")
        sim.fault("rest-wrong", 1.0)
        for number in range(5):
            run.ask("BTCUSDT", first_id + number)
        pages = run.pages(5)
        assert all(ids_of(exchange, page) for page in pages)
        assert run.told == []


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


# --- What a server may answer


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
        {"X-Odd": "a\rb\x01"},
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


# --- Order, size, room


def test_symbols_are_served_in_turn_and_each_request_once(tmp_path: Path) -> None:
    with RestServer(Script(Reply())) as server, running(tmp_path, Toy(), server.url) as run:
        run.pace.gate.clear()
        for number in range(5):
            run.ask("A", number)
        for number in range(3):
            run.ask("B", number)
            run.ask("A", number, rows=50)
        run.ask("C", 0)
        run.send(b"not a request")
        run.ask("C", 1)
        run.has_taken_all()
        run.pace.gate.set()
        pages = run.pages(10)
        assert [(wish.symbol, wish.first_id) for wish, _ in pages] == [
            *[("A", 0), ("B", 0), ("C", 0)],
            *[("A", 1), ("B", 1), ("C", 1)],
            *[("A", 2), ("B", 2)],
            *[("A", 3), ("A", 4)],
        ]
        assert [wish.rows for wish, _ in pages if wish.symbol == "A"] == [50, 50, 50, 100, 100]


@pytest.mark.parametrize(
    ("by_id", "tail", "first_ids"),
    [(True, False, [1, 51, 76]), (True, True, [1, 1, 1]), (False, False, [1, 1, 1])],
)
def test_a_page_that_does_not_fit_is_asked_for_with_half_the_rows(
    tmp_path: Path, by_id: bool, tail: bool, first_ids: list[int]
) -> None:
    class ByTime(Toy):
        pages_by_id = False

    def answer(path: str) -> Reply:
        return Reply(body=b"x" * 100 * int(path.rpartition("/")[2]))

    with (
        RestServer(answer) as server,
        running(tmp_path, Toy() if by_id else ByTime(), server.url, max_page_bytes=3000) as run,
    ):
        run.ask("A", 1, rows=1000, tail=tail)
        ((wish, body),) = run.pages(1)
        asked = zip(first_ids, (100, 50, 25), strict=True)
        assert server.paths == [f"/A/{first_id}/{rows}" for first_id, rows in asked]
        # Whoever wished for it knows it by the first id that it wished for.
        assert wish == PageRequest("A", 1, 0, 25, tail)
        assert len(body) == 2500
        assert run.told == []


def test_a_page_that_does_not_fit_with_two_rows_is_given_up(tmp_path: Path, events: Events) -> None:
    with (
        RestServer(Script(Reply(body=b"x" * 3000))) as server,
        running(tmp_path, Toy(), server.url, max_page_bytes=3000) as run,
    ):
        run.ask("A", 1)
        told = run.failures(1)[0]
        assert "2 rows" in told["reason"]
        assert (told["first_id"], told["passing"]) == (1, False)
        assert [path.rpartition("/")[2] for path in server.paths] == [
            str(rows) for rows in (100, 50, 25, 12, 6, 3, 2)
        ]
        assert run.pace.holds == []
        assert run.payloads == []


@pytest.mark.parametrize(("spare_bytes", "requests"), [(0, 1), (-1, 2)])
def test_a_page_fits_to_the_byte_with_what_was_asked(
    tmp_path: Path, spare_bytes: int, requests: int
) -> None:
    asked = PageRequest("币", 2**62, 2**62, 100, False)
    max_page_bytes = len(messages.page(asked, b"a page")) + spare_bytes

    def answer(path: str) -> Reply:
        return Reply(body=b"a page" if path.endswith("/100") else b"half")

    with (
        RestServer(answer) as server,
        running(
            tmp_path, Toy(), server.url, rest={"币": "x"}, max_page_bytes=max_page_bytes
        ) as run,
    ):
        run.send(messages.request(asked))
        run.pages(1)
        assert len(server.paths) == requests
        assert len(run.payloads[0]) <= max_page_bytes


def test_a_page_waits_for_room_in_the_ring(tmp_path: Path) -> None:
    with RestServer(Script(Reply())) as server, running(tmp_path, Toy(), server.url) as run:
        run.room = False
        run.ask("A", 1)
        run.wait(lambda: run.refusals >= 3)
        assert run.counted == 0
        run.ask("A", 2)
        run.room = True
        assert [wish.first_id for wish, _ in run.pages(2)] == [1, 2]
        assert run.payloads[0].endswith(b"\na page")


# --- Symbols without a name


def test_a_symbol_without_a_rest_name_fails_until_the_metadata_lists_it(
    tmp_path: Path, events: Events
) -> None:
    with (
        RestServer(Script(Reply())) as server,
        running(tmp_path, Toy(), server.url, rest={"A": "a"}) as run,
    ):
        run.ask("NEW", 1)
        run.ask("NEW", 2)
        assert "does not list the symbol" in run.failures(2)[1]["reason"]
        assert run.told[1]["passing"] is False
        run.publish({"A": "b", "NEW": "n-e-w"})
        run.ask("NEW", 3)
        run.pages(1)
        # One that has another name by now is asked for by that.
        run.ask("A", 4)
        run.pages(2)
        assert server.paths == ["/n-e-w/3/100", "/b/4/100"]
    assert len(events.named("no page of past trades")) == 1


def test_without_published_metadata_no_request_is_made(tmp_path: Path) -> None:
    with (
        RestServer(Script(Reply())) as server,
        running(tmp_path, Toy(), server.url, rest={}) as run,
    ):
        os.unlink(run.names)
        run.ask("A", 1)
        run.failures(1)
        run.names.write_text("[")
        run.ask("A", 2)
        run.failures(2)
        assert server.paths == []


# --- The end


def test_idle_errands_end_at_once_and_sleep_until_then(tmp_path: Path) -> None:
    with running(tmp_path, Toy(), "http://127.0.0.1:1") as run:
        run.ask("UNKNOWN", 1)
        run.failures(1)
        assert run.pace.asked == 0
        assert run.stop() < PROMPT_S


def test_held_errands_end_at_once(tmp_path: Path) -> None:
    script = Script(Reply(429, headers={"Retry-After": "3600"}))
    with RestServer(script) as server:
        run = Running(tmp_path, Toy(), server.url, rest={"A": "A"}, eager=False)
        run.ask("A", 1)
        run.ask("A", 2)
        run.failures(1)
        assert run.stop() < PROMPT_S
        assert len(server.paths) == 1


def test_errands_that_wait_for_room_end_at_once(tmp_path: Path) -> None:
    with RestServer(Script(Reply())) as server:
        run = Running(tmp_path, Toy(), server.url, rest={"A": "A"})
        run.room = False
        run.ask("A", 1)
        run.wait(lambda: run.refusals >= 1)
        assert run.stop() < PROMPT_S
        assert run.counted == 0


def test_errands_stopped_before_they_run_ask_nobody(tmp_path: Path) -> None:
    with RestServer(Script(Reply())) as server:
        run = Running(tmp_path, Toy(), server.url, rest={"A": "A"}, stopped=True)
        assert run.stop() < PROMPT_S
        assert run.pace.asked == 0


# --- The queue


def wish(symbol: str, first_id: int) -> PageRequest:
    return PageRequest(symbol, first_id, 0, 10, False)


def test_the_queue_is_bounded_and_the_oldest_give_way() -> None:
    wishes = Wishes()
    room = [wishes.put(wish("AB"[number % 2], number)) for number in range(MAX_QUEUED + 5)]
    assert room == [True] * MAX_QUEUED + [False] * 5
    assert len(wishes) == MAX_QUEUED
    assert wishes.put(wish("A", MAX_QUEUED))
    taken = [wishes.take().first_id for _ in range(MAX_QUEUED)]
    assert sorted(taken) == list(range(5, MAX_QUEUED + 5))
    assert len(wishes) == 0


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 5)) | st.none(), max_size=200))
def test_no_request_is_lost_or_doubled_and_no_symbol_waits_for_more_than_one_round(
    steps: list[tuple[str, int] | None],
) -> None:
    wishes = Wishes(limit=8)
    inside: dict[tuple[str, int], None] = {}
    since: dict[str, list[str]] = {}
    for step in steps:
        if step is not None:
            room = wishes.put(wish(*step))
            assert room == (step in inside or len(inside) < 8)
            if not room:
                oldest = next(iter(inside))
                del inside[oldest]
            inside[step] = None
        elif inside:
            taken = wishes.take()
            key = taken.symbol, taken.first_id
            # The oldest of its symbol.
            assert key == next(k for k in inside if k[0] == taken.symbol)
            del inside[key]
            for waiting in {symbol for symbol, _ in inside} - {taken.symbol}:
                since.setdefault(waiting, []).append(taken.symbol)
                assert len(set(since[waiting])) == len(since[waiting])
            since.pop(taken.symbol, None)
        for symbol in set(since) - {symbol for symbol, _ in inside}:
            del since[symbol]
        assert len(wishes) == len(inside)


def test_too_many_requests_in_the_queue_are_told_once(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(Reply())
    with RestServer(script) as server, running(tmp_path, Toy(), server.url) as run:
        monkeypatch.setattr(run.errands, "_wishes", Wishes(limit=3))
        run.pace.gate.clear()
        for number in range(10):
            run.ask("A", number)
        run.has_taken_all()
        run.pace.gate.set()
        assert [w.first_id for w, _ in run.pages(3)] == [7, 8, 9]
    assert len(events.named("too many requests for pages wait: dropping the oldest")) == 1


def test_a_datagram_of_any_bytes_is_survived(tmp_path: Path) -> None:
    good = messages.request(wish("A", 1))
    bad = [
        b"",
        b"\0" * 5000,
        b"[" * 500,
        b'["A", 1, 2, 3]',
        b'["A", true, 2, 3, false]',
        json.dumps(["A" * 3000, 1, 2, 3, False]).encode(),
        json.dumps(["\ud800", 1, 2, 3, False]).encode(),
        json.dumps(["A", -1, -(10**30), -5, True]).encode(),
    ]
    with RestServer(Script(Reply())) as server, running(tmp_path, Toy(), server.url) as run:
        for datagram in bad:
            run.send(datagram)
        run.send(good)
        run.wait(lambda: any(b'"A", 1,' in payload for payload in run.payloads))
