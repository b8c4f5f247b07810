"""What is done about too much CPU or memory: the rules, and the throttle that keeps them."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedmono import config, ring, workers
from feedmono.config import Budget
from feedmono.counters import Counters, Field
from feedmono.delivery.lowest import Lowest
from feedmono.delivery.throttle import PAUSE_CAP_S, Throttle
from feedmono.heartbeat import LOOKS, Heart
from feedmono.supervision.budget import LIFT_SHARE, Judge, Use
from feedmono.supervision.sampler import Sampler, Workers

MIB = 1 << 20
WARN = Budget(0.5, "warn", 100 * MIB, 30.0)
THROTTLE = Budget(0.5, "throttle", 100 * MIB, 30.0)


def uses(reader: float = 0.1, serializer: float = 0.1, *, memory: int = 40 * MIB) -> list[Use]:
    return [Use("reader", reader, 10 * MIB), Use("serializer", serializer, memory)]


def test_within_the_budget_nothing_is_done() -> None:
    judge = Judge()
    for second in range(100):
        assert judge.look(second, WARN, uses(), 0.0) == ("", math.inf)
    assert not judge.acts.total()


def test_memory_over_budget_is_borne_for_the_patience_and_then_the_larger_worker_goes() -> None:
    judge = Judge()
    verdicts = [judge.look(s, WARN, uses(memory=95 * MIB), 0.0).restart for s in range(31)]
    assert verdicts == [""] * 30 + ["serializer"]
    assert judge.acts == {"memory restart": 1}


def test_a_moment_within_the_budget_begins_the_patience_anew() -> None:
    judge = Judge()
    for second in range(100):
        memory = 40 if second % 20 == 0 else 95
        assert judge.look(second, WARN, uses(memory=memory * MIB), 0.0).restart == ""


def test_restarts_that_do_not_help_come_at_doubled_intervals_up_to_an_hour() -> None:
    judge = Judge()
    large = uses(memory=95 * MIB)
    restarts = [s for s in range(40_000) if judge.look(s, WARN, large, 0.0).restart]
    gaps = [b - a for a, b in pairwise(restarts)]
    assert restarts[0] == 30
    assert gaps[:4] == [61, 121, 241, 481]
    assert gaps[-1] == 3601


def test_after_a_time_within_the_budget_the_next_restart_comes_after_the_plain_patience() -> None:
    judge = Judge()
    large = uses(memory=95 * MIB)
    first = next(s for s in range(1000) if judge.look(s, WARN, large, 0.0).restart)
    for second in range(first + 1, first + 100):
        judge.look(second, WARN, uses(), 0.0)
    again = next(s for s in range(first + 100, 2000) if judge.look(s, WARN, large, 0.0).restart)
    assert again == first + 130


def test_cpu_over_budget_is_counted_once_for_as_long_as_it_lasts() -> None:
    judge = Judge()
    for cores in (0.7, 0.8, 0.1, 0.9):
        assert judge.look(0, WARN, uses(serializer=cores), 0.0).serializer_cores == math.inf
    assert judge.acts == {"cpu warn": 2}


def test_a_throttled_serializer_gets_what_the_reader_leaves() -> None:
    judge = Judge()
    assert judge.look(0, THROTTLE, uses(0.2, 0.7), 0.0).serializer_cores == pytest.approx(0.3)
    assert judge.look(1, THROTTLE, uses(0.6, 0.3), 0.0).serializer_cores == 0.02
    assert judge.acts == {"cpu throttle": 1}


def test_the_throttle_ends_when_the_work_has_become_less() -> None:
    judge = Judge()
    judge.look(0, THROTTLE, uses(0.2, 0.7), 0.0)
    assert judge.look(1, THROTTLE, uses(0.2, 0.29), 0.0).serializer_cores < math.inf
    assert judge.look(2, THROTTLE, uses(0.1, 0.1), 0.0).serializer_cores == math.inf


def test_the_throttle_is_lifted_before_the_ring_fills_and_until_it_is_drained() -> None:
    judge = Judge()
    busy = uses(0.2, 0.7)
    shares = [0.0, 0.2, 0.49, 0.5, 0.4, 0.1, 0.06, 0.04, 0.2]
    throttled = [judge.look(0, THROTTLE, busy, s).serializer_cores < math.inf for s in shares]
    assert throttled == [True, True, True, False, False, False, False, True, True]
    assert judge.acts == {"cpu throttle": 2}


def test_a_backlog_of_another_cause_drains_without_a_throttle() -> None:
    judge = Judge()
    busy = uses(0.2, 0.9)
    for share in (0.3, 0.2, 0.05):
        assert judge.look(0, THROTTLE, busy, share).serializer_cores == math.inf
    assert judge.look(0, THROTTLE, busy, 0.01).serializer_cores < math.inf


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0, 1)), max_size=60))
def test_no_throttle_ever_holds_with_a_ring_half_full(looks: list[tuple[float, float]]) -> None:
    judge = Judge()
    for second, (cores, share) in enumerate(looks):
        verdict = judge.look(second, THROTTLE, uses(0.1, cores), share)
        if share >= LIFT_SHARE:
            assert verdict.serializer_cores == math.inf


# --- The serializer's side.


class Clocks:
    """A process that works as much as it may."""

    def __init__(self, folder: Path) -> None:
        self.counters = Counters.create(folder / "counters")
        self.now_s = self.cpu_s = 0.0
        self.throttle = Throttle(self.counters, lambda: self.now_s, lambda: self.cpu_s)

    def work(self, cpu_s: float) -> float:
        """Works so long, then pauses as it is told; how long."""
        self.now_s += cpu_s
        self.cpu_s += cpu_s
        pause_s = self.throttle.pause_s()
        self.now_s += pause_s
        return pause_s


@pytest.mark.parametrize("parts", [50, 300, 900])
def test_a_throttled_process_uses_what_it_may(tmp_path: Path, parts: int) -> None:
    clocks = Clocks(tmp_path)
    clocks.counters[Field.THROTTLE] = parts
    for _ in range(2000):
        assert clocks.work(0.01) <= PAUSE_CAP_S
    assert clocks.cpu_s / clocks.now_s == pytest.approx(parts / 1000, rel=0.02)


def test_without_a_throttle_there_is_no_pause_and_a_quiet_hour_saves_nothing_up(
    tmp_path: Path,
) -> None:
    clocks = Clocks(tmp_path)
    assert clocks.work(1.0) == 0.0
    clocks.counters[Field.THROTTLE] = 500
    clocks.work(0.01)
    clocks.now_s += 3600
    clocks.work(0.01)
    worked_s, since_s = clocks.cpu_s, clocks.now_s
    for _ in range(500):
        clocks.work(0.01)
    assert (clocks.cpu_s - worked_s) / (clocks.now_s - since_s) == pytest.approx(0.5, rel=0.05)


def test_what_is_owed_is_kept_when_the_share_changes(tmp_path: Path) -> None:
    clocks, dice = Clocks(tmp_path), random.Random(1)
    clocks.counters[Field.THROTTLE] = 40
    while clocks.now_s < 300:
        # A step costs more than a second's share, and the share is another one at each look.
        pause_s = clocks.work(0.1)
        while pause_s > 1e-6:
            clocks.counters[Field.THROTTLE] = dice.choice((39, 40, 41))
            pause_s = clocks.work(0.0)
    assert clocks.cpu_s / clocks.now_s == pytest.approx(0.040, rel=0.03)


def test_a_throttle_that_ends_leaves_nothing_owed(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path)
    clocks.counters[Field.THROTTLE] = 10
    clocks.work(0.0)
    assert clocks.work(5.0) == PAUSE_CAP_S
    clocks.counters[Field.THROTTLE] = 0
    assert clocks.work(5.0) == 0.0
    clocks.counters[Field.THROTTLE] = 10
    assert clocks.work(0.0) == 0.0


@pytest.mark.parametrize(
    ("cores", "parts", "shown"),
    [(0.25, 250, 0.25), (1.5, 1500, 1.0), (0.0, 1, 0.001), (math.inf, 0, 1.0)],
)
def test_the_serializer_is_told_its_cores_and_others_the_share_of_its_time(
    tmp_path: Path, cores: float, parts: int, shown: float
) -> None:
    folders = {"state_dir": str(tmp_path), "ring_dir": str(tmp_path)}
    loaded = config.load(None, {}, folders, tmp_path).config
    shared = workers.Shared.of(loaded, "binance")
    ring.create(shared.ring, 1 << 20)
    counters = Counters.create(shared.counters)
    sampler = Sampler(loaded, loaded.exchanges["binance"])
    assert sampler.throttle(cores) == (parts > 0)
    assert counters[Field.THROTTLE] == parts
    assert sampler.sample(Workers({}), {}).throttle == shown


# --- Beats.


def test_a_process_hangs_when_its_beats_have_stood_still_for_so_many_looks() -> None:
    heart = Heart(5)
    assert [heart.look(5) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]


def test_one_beat_between_the_looks_is_enough() -> None:
    heart = Heart(0)
    assert not any(heart.look(look // (LOOKS - 1)) for look in range(100))


def test_an_allowance_is_waited_for_and_ends_with_the_next_beat() -> None:
    heart = Heart(0)
    assert not any(heart.look(1, 60.0) for _ in range(60))
    assert heart.look(1, 60.0)
    assert not heart.look(2)
    assert [heart.look(2) for _ in range(LOOKS)][-1]


def test_a_process_that_is_spared_has_as_long_again_and_its_silence_counts_on() -> None:
    heart = Heart(0)
    assert [heart.look(0) for _ in range(LOOKS)][-1]
    heart.spare()
    assert [heart.look(0) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]
    assert heart.looks == 2 * LOOKS
    assert heart.is_spared
    assert not heart.look(1)
    assert (heart.looks, heart.is_spared) == (0, False)
    assert [heart.look(1) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]


# --- The lowest figure lately.


@given(st.lists(st.tuples(st.floats(0.1, 40), st.floats(-5, 5)), min_size=1, max_size=80))
def test_the_lowest_figure_is_that_of_the_last_span_or_of_little_more(
    looks: list[tuple[float, float]],
) -> None:
    lowest, now_s = Lowest(30.0), 0.0
    past: list[tuple[float, float]] = []
    for pause_s, figure in looks:
        now_s += pause_s
        past.append((now_s, figure))
        told = lowest.look(now_s, figure)
        assert told <= min(f for at, f in past if at > now_s - 30.0)
        assert told in [f for at, f in past if at >= now_s - 90.0]


def test_a_quiet_time_leaves_no_lowest_figure() -> None:
    lowest = Lowest(30.0)
    lowest.look(0.0, 1.0)
    assert lowest.look(90.0, math.inf) == math.inf
