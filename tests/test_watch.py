"""When a connection is dead or useless: the limits, without a clock."""

from __future__ import annotations

import math

from feedmono.network.watch import STALE_CAP_S, Watch


def opened(now: float = 0.0) -> Watch:
    watch = Watch(silence_limit_s=30.0, stale_limit_s=120.0)
    watch.open(now)
    return watch


def test_a_connection_that_says_nothing_after_opening_is_silent_at_the_limit() -> None:
    watch = opened(5.0)
    assert not watch.is_silent(34.9)
    assert watch.is_silent(35.0)


def test_one_ping_is_due_after_a_third_of_the_silence() -> None:
    watch = opened()
    assert not watch.ping_due(9.9)
    assert [watch.ping_due(10.0), watch.ping_due(20.0)] == [True, False]
    watch.heard(21.0)
    assert [watch.ping_due(30.9), watch.ping_due(31.0)] == [False, True]


def test_the_next_look_is_at_the_earliest_limit() -> None:
    watch = opened()
    assert watch.next_s() == 10.0
    watch.ping_due(10.0)
    assert watch.next_s() == 30.0
    watch.heard(115.0)
    assert watch.next_s() == 120.0


def test_bytes_without_trades_do_not_keep_a_connection_from_going_stale() -> None:
    watch = opened()
    for second in range(120):
        watch.heard(float(second))
        assert not watch.is_stale(float(second))
    assert watch.is_stale(120.0)


def test_the_stale_limit_doubles_up_to_its_cap_while_no_connection_brings_data() -> None:
    watch = opened()
    limits = []
    for _ in range(8):
        limits.append(watch.gone_stale())
        watch.open(0.0)
    assert limits == [120, 240, 480, 960, 1920, STALE_CAP_S, STALE_CAP_S, STALE_CAP_S]
    watch.data(1.0)
    assert watch.gone_stale() == 120
    watch.open(0.0)
    assert watch.gone_stale() == 120, "the one before had data"
    watch.open(0.0)
    assert watch.gone_stale() == 240


def test_a_stale_limit_above_the_cap_is_kept() -> None:
    watch = Watch(30.0, 2 * STALE_CAP_S)
    watch.open(0.0)
    assert [watch.gone_stale(), watch.gone_stale()] == [2 * STALE_CAP_S] * 2


def test_nothing_is_stale_while_there_is_no_trading_and_the_limit_starts_with_it() -> None:
    watch = opened()
    watch.set_trading(False, 100.0)
    assert not watch.is_stale(10_000.0)
    watch.set_trading(True, 10_000.0)
    assert not watch.is_stale(10_119.0)
    assert watch.is_stale(10_120.0)
    watch.set_trading(True, 10_119.0)
    assert watch.is_stale(10_120.0), "telling it again changes nothing"


def test_a_new_connection_trades_until_told_otherwise() -> None:
    watch = opened()
    watch.set_trading(False, 1.0)
    watch.expect(False, 0.0)
    watch.open(0.0)
    assert watch.is_stale(120.0)


def test_a_connection_that_expects_no_trades_is_never_stale_but_may_be_silent() -> None:
    watch = opened()
    watch.expect(False, 0.0)
    assert not watch.is_stale(1e9)
    assert watch.is_silent(30.0)
    assert watch.next_s() < math.inf


def test_time_in_which_nobody_read_is_forgiven() -> None:
    watch = opened()
    watch.ping_due(10.0)
    watch.forgive(1000.0)
    assert not watch.is_silent(1029.0)
    assert not watch.is_stale(1119.0)
    assert watch.ping_due(1010.0)
