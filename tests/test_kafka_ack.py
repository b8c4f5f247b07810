"""How long acknowledgements take, by looking a few times a second."""

from __future__ import annotations

from feedmono.sinks.kafka_ack import LOOK_S, WATCH_NS, AckWatch
from feedmono.sinks.kafka_message import Pending

MS = 1_000_000
BEGIN = 10**18
USUAL_S = 0.05


def handed(at_ns: int) -> Pending:
    pending = Pending([])
    pending.handed_ns = at_ns
    return pending


def test_the_first_hand_over_is_watched_closely_and_less_so_the_longer_it_takes() -> None:
    watch, pending = AckWatch(), handed(BEGIN)
    waits = []
    for look in range(8):
        waits.append(watch.look_s(pending, BEGIN + look, USUAL_S))
        watch.looked(BEGIN + look)
    assert waits[:4] == [LOOK_S, 2 * LOOK_S, 4 * LOOK_S, 8 * LOOK_S]
    assert waits[-1] == USUAL_S


def test_an_outage_of_any_length_is_looked_through() -> None:
    watch, pending = AckWatch(), handed(BEGIN)
    assert watch.look_s(pending, BEGIN, USUAL_S) == LOOK_S
    for look in range(100_000):
        watch.looked(BEGIN + look)
        assert 0.0 < watch.look_s(pending, BEGIN + look, USUAL_S) <= USUAL_S


def test_what_is_watched_was_stored_when_it_was_seen() -> None:
    watch, pending = AckWatch(), handed(BEGIN)
    watch.look_s(pending, BEGIN, USUAL_S)
    assert watch.stored_ns(pending, BEGIN + 3 * MS) == BEGIN + 3 * MS


def test_what_is_not_watched_took_as_long_as_what_was() -> None:
    watch, first = AckWatch(), handed(BEGIN)
    watch.look_s(first, BEGIN, USUAL_S)
    watch.stored_ns(first, BEGIN + 3 * MS)
    watch.looked(BEGIN + 3 * MS)
    second = handed(BEGIN + 10 * MS)
    assert watch.look_s(second, BEGIN + 10 * MS, USUAL_S) == USUAL_S
    assert watch.stored_ns(second, BEGIN + 60 * MS) == BEGIN + 13 * MS


def test_it_was_stored_no_earlier_than_a_look_that_did_not_see_it_and_no_later_than_now() -> None:
    watch, first = AckWatch(), handed(BEGIN)
    watch.look_s(first, BEGIN, USUAL_S)
    watch.stored_ns(first, BEGIN + 20 * MS)
    second, third = handed(BEGIN + 30 * MS), handed(BEGIN + 85 * MS)
    watch.looked(BEGIN + 80 * MS)
    assert watch.stored_ns(second, BEGIN + 90 * MS) == BEGIN + 80 * MS
    assert watch.stored_ns(third, BEGIN + 90 * MS) == BEGIN + 90 * MS


def test_another_one_is_watched_some_time_later_and_after_the_clock_was_set_back() -> None:
    watch, first = AckWatch(), handed(BEGIN)
    watch.look_s(first, BEGIN, USUAL_S)
    watch.stored_ns(first, BEGIN)
    assert watch.look_s(handed(BEGIN), BEGIN + WATCH_NS - 1, USUAL_S) == USUAL_S
    assert watch.look_s(handed(BEGIN), BEGIN + WATCH_NS, USUAL_S) == LOOK_S
    watch, first = AckWatch(), handed(BEGIN)
    watch.look_s(first, BEGIN, USUAL_S)
    watch.stored_ns(first, BEGIN)
    assert watch.look_s(handed(BEGIN), BEGIN - 3600 * 1000 * MS, USUAL_S) == LOOK_S
