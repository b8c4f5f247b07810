"""Pages of past trades: fetched in turn, within the size and the room that there is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from errands_rig import Running, Script, running
from hypothesis import given
from hypothesis import strategies as st
from toy import Events, Reply, RestServer, Toy, events

from feedmono import messages
from feedmono.exchanges.base import PageRequest
from feedmono.network.errands import MAX_QUEUED, Wishes

__all__ = ["events"]

PROMPT_S = 5.0


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
