"""How long acknowledgements take, by looking a few times a second."""

from __future__ import annotations

from feedmono.sinks.kafka_ack import LOOK_NS, WATCH_NS, AckWatch
from feedmono.sinks.kafka_message import CallbackPending

MS = 1_000_000
BEGIN = 10**18
USUAL_S = 0.05


def handed(at_ns: int) -> CallbackPending:
    pending = CallbackPending([])
    pending.handed_ns = at_ns
    return pending


def looks(watch: AckWatch, pending: CallbackPending, until_ms: int) -> list[float]:
    """When a hand-over is looked at that is not acknowledged before, in ms after it."""
    now_ns, found = pending.handed_ns, list[float]()
    while True:
        now_ns += round(watch.look_s(pending, now_ns, USUAL_S) * 1e9)
        if now_ns > pending.handed_ns + until_ms * MS:
            return found
        found.append((now_ns - pending.handed_ns) / MS)
        watch.looked(now_ns)


def test_what_is_watched_is_looked_at_each_millisecond_and_then_each_quarter_of_its_wait() -> None:
    assert looks(AckWatch(), handed(BEGIN), 9) == [1, 2, 3, 4, 5, 6.25, 7.8125]


def test_looks_begin_at_half_of_what_the_last_one_took() -> None:
    watch, first = AckWatch(), handed(BEGIN)
    watch.look_s(first, BEGIN, USUAL_S)
    watch.stored_ns(first, BEGIN + 16 * MS)
    second = handed(BEGIN + 16 * MS + WATCH_NS)
    assert looks(watch, second, 16) == [8, 10, 12.5, 15.625]


def test_looks_for_another_reason_do_not_put_off_the_next() -> None:
    watch, first, begin = AckWatch(), handed(BEGIN), BEGIN + 16 * MS + WATCH_NS
    watch.look_s(first, BEGIN, USUAL_S)
    watch.stored_ns(first, BEGIN + 16 * MS)
    second = handed(begin)
    watch.look_s(second, begin, USUAL_S)
    watch.looked(begin + 3 * MS)
    assert watch.look_s(second, begin + 3 * MS, USUAL_S) == 0.005


def test_an_outage_of_any_length_is_looked_through() -> None:
    watch, pending = AckWatch(), handed(BEGIN)
    found = looks(watch, pending, 3600_000)
    assert found[-1] > 3600_000 - 2 * USUAL_S * 1000
    assert len(found) == len(set(found)) < 3600 / USUAL_S + 50


def test_a_clock_set_back_makes_the_looks_usual_ones() -> None:
    watch, pending = AckWatch(), handed(BEGIN)
    watch.look_s(pending, BEGIN, USUAL_S)
    for look in range(5):
        now_ns = BEGIN - 3600_000 * MS + look
        assert watch.look_s(pending, now_ns, USUAL_S) == USUAL_S
        watch.looked(now_ns)
    assert watch.stored_ns(pending, now_ns) == now_ns


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
    assert watch.look_s(handed(BEGIN + WATCH_NS), BEGIN + WATCH_NS, USUAL_S) == LOOK_NS / 1e9
    watch, first = AckWatch(), handed(BEGIN)
    watch.look_s(first, BEGIN, USUAL_S)
    watch.stored_ns(first, BEGIN)
    before = BEGIN - 3600 * 1000 * MS
    assert watch.look_s(handed(before), before, USUAL_S) == LOOK_NS / 1e9
