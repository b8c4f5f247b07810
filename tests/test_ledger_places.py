"""The ledger's marks: one for each place of the sink, those used last kept; and its rare ends."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from ledger_rig import (
    NOW_US,
    RING,
    START_US,
    Heard,
    commit,
    content,
    deliver,
    ledger_path,
    opened,
    trade,
)

from feedmono import log
from feedmono.delivery import ledger as ledger_module
from feedmono.delivery import ledger_file
from feedmono.delivery.holes import State
from feedmono.delivery.ledger import MAX_PLACES, Ledger
from feedmono.delivery.ledger_file import UNKNOWN_PLACE, LedgerError
from feedmono.trade import STREAM

__all__ = ["ledger_path"]


def at(ledger: Ledger, place: str, number: int) -> None:
    """A commit there."""
    ledger.commit(RING, number, number, {"n": number}, place)


def test_each_place_has_the_mark_that_was_committed_there_last(path: Path) -> None:
    ledger = opened(path)
    for number, place in enumerate(["a", "a", "b", "c", "b"]):
        at(ledger, place, number)
    for again in (ledger, opened(path)):
        assert [again.mark_of(place) for place in "abcd"] == [{"n": 1}, {"n": 4}, {"n": 3}, None]
        assert again.marks_besides("b") == [{"n": 1}, {"n": 3}]
        assert again.marks_besides("a") == [{"n": 3}, {"n": 4}], "the one used last at the end"
        assert again.marks_besides("d") == [{"n": 1}, {"n": 3}, {"n": 4}]
        assert again.mark == {"n": 4}
    found = content(path)
    assert (found.place, found.elsewhere) == ("b", {"a": {"n": 1}, "c": {"n": 3}})


def test_before_the_first_commit_no_place_has_a_mark(path: Path) -> None:
    ledger = opened(path)
    assert (ledger.mark_of(""), ledger.mark_of("a"), ledger.marks_besides("a")) == (None, None, [])
    ledger.begin({"n": 7}, "a")
    assert (ledger.mark_of("a"), ledger.marks_besides("b")) == ({"n": 7}, [{"n": 7}])
    assert content(path).elsewhere == {}


def test_a_place_begins_once(path: Path) -> None:
    ledger = opened(path)
    ledger.begin({"n": 1}, "a")
    at(ledger, "a", 2)
    ledger.begin({"n": 3}, "a")
    assert (ledger.mark_of("a"), ledger.sequence) == ({"n": 2}, 2)
    ledger.begin({"n": 4}, "b")
    assert (ledger.mark_of("a"), ledger.mark_of("b")) == ({"n": 2}, {"n": 4})
    ledger.begin({"n": 5}, "a")
    assert (ledger.mark_of("a"), content(path).place) == ({"n": 2}, "b")
    found = content(path)
    assert (found.sequence, found.rings) == (2, {RING: 2}), "of no ring, and lowers nothing"


def test_the_places_used_last_are_remembered(path: Path) -> None:
    ledger = opened(path)
    for number in range(MAX_PLACES + 2):
        at(ledger, f"place {number}", number)
    marks = [ledger.mark_of(f"place {number}") for number in range(MAX_PLACES + 2)]
    assert marks == [None, None, *({"n": number} for number in range(2, MAX_PLACES + 2))]
    at(ledger, "place 2", 99)
    at(ledger, "new", 100)
    assert ledger.mark_of("place 2") == {"n": 99}, "used again, it is not the oldest"
    assert ledger.mark_of("place 3") is None
    assert len(content(path).elsewhere) == MAX_PLACES - 1


def test_a_mark_that_was_committed_without_a_place_is_not_kept_as_one(path: Path) -> None:
    ledger = opened(path)
    ledger.commit(RING, 1, 1, {"n": 1})
    at(ledger, "a", 2)
    assert content(path).elsewhere == {}
    assert UNKNOWN_PLACE not in content(path).elsewhere


def test_what_was_asked_for_in_vain_is_remembered(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5, 9)
    ledger.tried("BTC/USD", 6, 8, 3)
    ledger.tried("ETH/USD", 6, 8, 3)
    commit(ledger, 0)
    assert not ledger.dirty
    ledger.tried("BTC/USD", 6, 8, 4)
    assert ledger.dirty
    assert commit(ledger, 1) == {"BTC/USD"}
    (hole,) = opened(path).symbols["BTC/USD"].holes
    assert (hole.first_id, hole.last_id, hole.tries) == (6, 8, 4)


def test_of_a_symbol_that_is_not_known_nothing_is_told(path: Path) -> None:
    ledger = opened(path)
    ledger.miss("ETH/USD", 1, "dead", NOW_US)
    ledger.prove("ETH/USD", 1, 2, NOW_US, 0)
    ledger.give_up("ETH/USD", 1, 2)
    assert (ledger.dirty, commit(ledger, 0), ledger.symbols) == (False, set(), {})


def test_what_is_missed_proved_or_given_up_is_written_without_a_trade(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5, 9, 12)
    commit(ledger, 0)
    ledger.miss("BTC/USD", 5, "dead", NOW_US, START_US + 5)
    assert commit(ledger, 1) == {"BTC/USD"}
    ledger.give_up("BTC/USD", 6, 8)
    assert commit(ledger, 2) == {"BTC/USD"}
    ledger.prove("BTC/USD", 10, 11, NOW_US, 0)
    ledger.prove("BTC/USD", 10, 11, NOW_US, 0)
    assert commit(ledger, 3) == {"BTC/USD"}
    holes = opened(path).symbols["BTC/USD"].holes
    assert [(hole.first_id, hole.last_id, hole.state) for hole in holes] == [
        (5, 5, State.OPEN),
        (6, 8, State.BEYOND),
        (10, 11, State.ABSENT),
    ]


def test_a_next_trade_with_an_older_time_leaves_the_newest_time_as_it_is(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    for number, start_us in ((6, START_US - 10), (7, START_US + 10)):
        later = trade(number, start_us=start_us)
        ledger.deliver([later], STREAM, "gap", NOW_US, 10**6, number)
        assert ledger.symbols["BTC/USD"].last == later
        newest_us = ledger.symbols["BTC/USD"].newest_us
        assert newest_us == (START_US + 5 if number == 6 else later.time_us)
    commit(ledger, 0)
    assert content(path).symbols["BTC/USD"].newest_us == START_US + 17


def test_a_ring_may_begin_at_any_sequence(path: Path) -> None:
    ledger = opened(path)
    ledger.commit(0, 5, 1, {})
    assert (ledger.position(0), content(path).rings) == (5, {0: 5})


def test_a_ledger_that_was_closed_lets_its_files_go(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    commit(ledger, 0)
    assert path.with_name(f"{path.name}-wal").exists()
    ledger.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert content(path).symbols["BTC/USD"].last_id == 5


def test_what_comes_in_the_place_of_a_damaged_ledger_is_told(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"damaged")

    class Meddling(Heard):
        def error(self, event: str, **fields: object) -> None:
            super().error(event, **fields)
            path.write_bytes(b"damaged as well")

    heard = Meddling()
    with pytest.raises(LedgerError, match=r"testex.ledger can't be made: "):
        Ledger(path, log.Log(heard))
    assert [event for event, _ in heard.errors] == ["set a ledger aside that can't be read"]
    assert path.with_name(f"{path.name}.damaged-1").read_bytes() == b"damaged"


def test_the_history_is_trimmed_at_the_first_commit_and_then_once_in_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_TRIM_EVERY", 3)
    monkeypatch.setattr(ledger_file, "MAX_FILLS", 2)
    ledger = opened(path)
    counted: list[int] = []
    for number in range(8):
        first = 10 * number
        deliver(ledger, first, first + 2, first + 1)
        commit(ledger, number)
        with contextlib.closing(ledger_file.look(path)) as connection:
            counted += connection.execute("SELECT count(*) FROM fills").fetchone()
    # At the first one, then at each third one.
    assert counted == [1, 2, 3, 2, 3, 4, 2, 3]
