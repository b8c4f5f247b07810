"""The pace of REST requests: weights in a window, holds over restarts, clocks that are set."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from toy import Events, Toy, events

from feedmono import log
from feedmono.exchanges import load, names
from feedmono.exchanges.base import Limits
from feedmono.network.limiter import MAX_HOLD_S
from feedmono.network.pace import RestPace

__all__ = ["events"]

NOW_S = 5000.0
WALL = 1_800_000_000.0
WINDOW_S = 60.0


class Clock:
    """A time that passes only when a test says so."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "toy.rest"


def limits(weight: int, window_s: float = WINDOW_S) -> Limits:
    return replace(Toy.limits, rest_weight=weight, rest_window_s=window_s)


class Timed:
    """A pace with its clocks; another one on the same *file* is a restart."""

    def __init__(self, file: Path, of: Limits | None = None, wall: float = WALL) -> None:
        self.clock = Clock(NOW_S)
        self.wall = Clock(wall)
        of = limits(100) if of is None else of
        self.pace = RestPace(file, of, log.get(), clock=self.clock, wall=self.wall)

    def pass_s(self, seconds: float) -> None:
        self.clock.now += seconds
        self.wall.now += seconds

    def granted(self, weights: Callable[[], int], count: int) -> list[tuple[float, int]]:
        """When so many requests of somebody who is always eager go, and their weights."""
        made: list[tuple[float, int]] = []
        for _ in range(count):
            weight = weights()
            while wait_s := self.pace.reserve(weight):
                assert 0.0 < wait_s < float("inf")
                self.pass_s(wait_s)
            made.append((self.clock.now, weight))
        return made


@pytest.mark.parametrize("seed", range(20))
def test_no_window_holds_more_than_four_fifths_of_the_weight(file: Path, seed: int) -> None:
    rng = random.Random(seed)
    one = Timed(file)
    made = one.granted(lambda: rng.choice([1, 5, 20, 25, 80]), 300)
    for first, _ in made:
        inside = [weight for at, weight in made if first <= at < first + WINDOW_S - 1e-6]
        assert sum(inside) <= 80


def test_what_is_allowed_goes_at_once(file: Path) -> None:
    one = Timed(file)
    assert [one.pace.reserve(20) for _ in range(4)] == [0.0] * 4
    assert one.pace.reserve(1) == WINDOW_S
    one.pass_s(WINDOW_S - 1)
    assert one.pace.reserve(1) == 1.0
    one.pass_s(1.0)
    assert one.pace.reserve(80) == 0.0


def test_a_wait_leads_to_the_room_that_is_wanted_and_not_to_the_first_that_comes(
    file: Path,
) -> None:
    one = Timed(file)
    for _ in range(4):
        assert one.pace.reserve(20) == 0.0
        one.pass_s(10.0)
    assert one.pace.reserve(20) == 20.0
    assert one.pace.reserve(40) == 30.0


def test_a_request_heavier_than_the_share_goes_alone_and_counts_for_longer(file: Path) -> None:
    one = Timed(file, limits(1, 1.0))
    made = one.granted(lambda: 1, 5)
    assert [at - NOW_S for at, _ in made] == [0.0, 1.25, 2.5, 3.75, 5.0]


@pytest.mark.parametrize("name", names())
def test_every_exchange_can_be_asked_for_metadata_and_pages(file: Path, name: str) -> None:
    of = load(name).limits
    one = Timed(file, of)
    made = one.granted(iter([of.metadata_weight, *[of.page_weight] * 9]).__next__, 10)
    assert made[-1][0] - NOW_S < 15.0


def test_threads_together_get_no_more_than_one(file: Path) -> None:
    one = Timed(file, limits(1000))
    granted: list[float] = []

    def ask() -> None:
        granted.extend(one.pace.reserve(1) for _ in range(500))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert granted.count(0.0) == 800


def test_what_others_use_behind_the_address_is_left_to_them(file: Path, events: Events) -> None:
    one = Timed(file)
    assert one.pace.reserve(20) == 0.0
    one.pace.told(80)
    assert one.pace.reserve(20) == 0.0
    one.pace.told(81)
    one.pace.told(90)
    assert one.pace.reserve(20) == WINDOW_S
    one.pass_s(WINDOW_S)
    assert one.pace.reserve(20) == 0.0
    assert len(events.named("the address's REST weight is nearly used up: waiting")) == 1


# --- Holds


def test_a_hold_keeps_every_request_back_over_a_restart_too(file: Path) -> None:
    one = Timed(file)
    one.pace.hold(60.0)
    assert one.pace.reserve(1) == 60.0
    one.pass_s(1.0)
    one.pace.hold(5.0)
    assert one.pace.reserve(1) == 59.0
    assert Timed(file, wall=WALL + 20).pace.reserve(1) == 40.0
    assert Timed(file, wall=WALL + 60).pace.reserve(1) == 0.0


def test_a_hold_that_is_not_to_be_remembered_ends_with_the_process(file: Path) -> None:
    one = Timed(file)
    one.pace.hold(60.0, remember=False)
    assert one.pace.reserve(1) == 60.0
    assert Timed(file).pace.reserve(1) == 0.0


@pytest.mark.parametrize("seconds", [1e9, float("inf")])
def test_a_hold_lasts_three_days_at_most(file: Path, seconds: float) -> None:
    one = Timed(file)
    one.pace.hold(seconds)
    assert one.pace.reserve(1) == MAX_HOLD_S
    assert Timed(file).pace.reserve(1) == MAX_HOLD_S


@pytest.mark.parametrize("seconds", [0.0, -5.0, float("nan")])
def test_no_time_is_no_hold(file: Path, seconds: float) -> None:
    one = Timed(file)
    one.pace.hold(seconds)
    assert one.pace.reserve(1) == 0.0
    assert not file.exists()


@pytest.mark.parametrize("step_s", [-1e9, -3600.0, 3600.0, 1e9])
def test_a_wall_clock_that_is_set_changes_no_wait_of_a_running_process(
    file: Path, step_s: float
) -> None:
    one = Timed(file)
    one.pace.hold(60.0)
    one.wall.now += step_s
    one.pass_s(10.0)
    assert one.pace.reserve(1) == 50.0
    one.pass_s(50.0)
    assert one.pace.reserve(80) == 0.0
    one.wall.now -= step_s
    assert one.pace.reserve(80) == WINDOW_S


def test_a_wall_clock_set_back_makes_a_hold_as_long_as_it_was_and_only_once(file: Path) -> None:
    one = Timed(file)
    one.pace.hold(60.0)
    after = Timed(file, wall=WALL - 1_000_000)
    assert after.pace.reserve(1) == 60.0
    assert Timed(file, wall=WALL - 1_000_000 + 50).pace.reserve(1) == 10.0


# --- The file


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 40,
        b"[]",
        b'{"held_at": 0}',
        b'{"held_at": "x", "hold_s": 60}',
        b'{"held_at": NaN, "hold_s": 60}',
        b'{"held_at": 0, "hold_s": 1e400}',
        b'{"held_at": true, "hold_s": 60}',
        b'{"held_at": ' + b"9" * 400 + b', "hold_s": 60}',
        b'{"held_at": ' + b"9" * 5000 + b', "hold_s": 60}',
        b"[" * 60_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_counts_as_no_hold_and_is_said(
    file: Path, content: bytes, events: Events
) -> None:
    file.write_bytes(content)
    one = Timed(file)
    assert one.pace.reserve(1) == 0.0
    (said,) = events.named(
        "the record of how long REST requests are held can't be read: counted as none"
    )
    assert len(str(said["error"])) <= 200
    one.pace.hold(60.0)
    assert Timed(file).pace.reserve(1) == 60.0


def test_a_record_that_cannot_be_written_stops_nothing_and_is_said_once(
    tmp_path: Path, events: Events
) -> None:
    (tmp_path / "taken").write_text("")
    one = Timed(tmp_path / "taken" / "toy.rest")
    for seconds in (10.0, 20.0, 30.0):
        one.pace.hold(seconds)
    assert one.pace.reserve(1) == 30.0
    said = events.named(
        "how long REST requests are held can't be recorded: a restart will not know; "
        "make room, or the folder writable"
    )
    assert len(said) == 1


def test_the_record_is_one_small_file(file: Path) -> None:
    one = Timed(file)
    for seconds in range(1, 100):
        one.pace.hold(seconds)
    assert set(json.loads(file.read_bytes())) == {"held_at", "hold_s"}
    assert [name for name in os.listdir(file.parent) if name != "log.json"] == [file.name]
