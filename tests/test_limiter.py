"""Connection attempts: the exchange's limit over threads and restarts, and the backoff."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from feedmono import log
from feedmono.exchanges.base import Limits
from feedmono.network.limiter import MAX_HOLD_S, AttemptLimiter, Backoff

NOW = 1_800_000_000.0
WINDOW_S = 100.0


def limits(connections: int) -> Limits:
    return Limits(1, connections, WINDOW_S, 86400, 60, 60, 1, 1, 1000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "toy.attempts"


def limiter(file: Path, connections: int = 10) -> AttemptLimiter:
    return AttemptLimiter(file, limits(connections), log.get())


def attempts_over(of: AttemptLimiter, seconds: float) -> list[float]:
    """When attempts are made by somebody who is always eager, from `NOW` on."""
    made: list[float] = []
    now = NOW
    while now < NOW + seconds:
        wait_s = of.reserve(now)
        if wait_s == 0.0:
            made.append(now)
        else:
            assert wait_s <= WINDOW_S
            now += max(wait_s, 1e-6)
    return made


def test_no_window_holds_more_than_four_fifths_of_the_documented_attempts(file: Path) -> None:
    made = attempts_over(limiter(file, 100), 10 * WINDOW_S)
    for first in made:
        assert sum(first <= t < first + WINDOW_S - 0.001 for t in made) <= 80


def test_half_goes_at_once_and_the_rest_is_spaced_so_that_there_is_never_a_dead_window(
    file: Path,
) -> None:
    made = attempts_over(limiter(file, 100), 5 * WINDOW_S)
    assert made[39] == NOW
    gaps = [b - a for a, b in itertools.pairwise(made)]
    assert max(gaps) == pytest.approx(2 * WINDOW_S / 80, abs=0.001)


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_the_smallest_limits_still_allow_an_attempt(file: Path, connections: int) -> None:
    made = attempts_over(limiter(file, connections), 3 * WINDOW_S)
    assert made[0] == NOW
    for first in made:
        assert sum(first <= t < first + WINDOW_S - 0.001 for t in made) <= connections


def test_an_attempt_that_must_wait_is_not_counted(file: Path) -> None:
    one = limiter(file, 1)
    assert one.reserve(NOW) == 0.0
    waits = [one.reserve(NOW + 10) for _ in range(5)]
    assert waits == [WINDOW_S - 10] * 5
    assert one.reserve(NOW + WINDOW_S) == 0.0


def test_threads_share_the_allowance(file: Path) -> None:
    shared = limiter(file, 100)
    gone: list[float] = []

    def ask() -> None:
        gone.extend(wait for _ in range(20) if (wait := shared.reserve(NOW)) == 0.0)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gone) == 40


def test_a_killed_process_leaves_its_attempts_on_record(file: Path) -> None:
    code = f"""
import time
from pathlib import Path
from feedmono import log
from feedmono.exchanges.base import Limits
from feedmono.network.limiter import AttemptLimiter
log.configure('error', 'text')
limits = Limits(1, 10, {WINDOW_S}, 86400, 60, 60, 1, 1, 1000)
one = AttemptLimiter(Path({str(file)!r}), limits, log.get())
print([one.reserve(time.time()) for _ in range(3)], flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"[0.0, 0.0, 0.0]\n"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    successor = limiter(file)
    assert successor.reserve(time.time()) == 0.0
    # Four of the eight allowed are gone: from here on they are spaced.
    assert successor.reserve(time.time()) > 0.0


def test_attempts_of_the_future_count_as_made_now(file: Path) -> None:
    """The clock was set back: the wait is one window at most, not the size of the step."""
    before = limiter(file, 1)
    assert before.reserve(NOW + 1_000_000) == 0.0
    after = limiter(file, 1)
    assert after.reserve(NOW) == WINDOW_S
    assert after.reserve(NOW + WINDOW_S) == 0.0


def test_a_hold_keeps_every_attempt_back_over_a_restart_too(file: Path) -> None:
    one = limiter(file)
    one.hold(NOW, 60.0)
    assert one.reserve(NOW) == 60.0
    one.hold(NOW + 1, 5.0)
    assert limiter(file).reserve(NOW + 20) == 40.0
    assert limiter(file).reserve(NOW + 60) == 0.0


def test_a_hold_has_an_end_whatever_the_exchange_or_the_clock_says(file: Path) -> None:
    one = limiter(file)
    one.hold(NOW, 1e9)
    assert one.reserve(NOW) == MAX_HOLD_S
    assert one.reserve(NOW - 1_000_000) == MAX_HOLD_S


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 40,
        b"[]",
        b'{"made": [1], "held_at": 0}',
        b'{"made": ["x"], "held_at": 0, "hold_s": 0}',
        b'{"made": [NaN], "held_at": 0, "hold_s": 0}',
        b'{"made": [1e400], "held_at": 0, "hold_s": 0}',
        b'{"made": [' + b"9" * 400 + b'], "held_at": 0, "hold_s": 0}',
        b'{"made": 5, "held_at": 0, "hold_s": 0}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_counts_as_empty_and_is_said(
    file: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(content)
    log.configure("info", "text")
    one = limiter(file)
    assert one.reserve(NOW) == 0.0
    err = capfd.readouterr().err
    assert "can't be read" in err
    assert len(json.loads(file.read_text())["made"]) == 1


def test_a_record_that_cannot_be_written_stops_nothing_and_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", "text")
    one = limiter(tmp_path / "missing" / "toy.attempts", 100)
    assert [one.reserve(NOW) for _ in range(5)] == [0.0] * 5
    assert capfd.readouterr().err.count("can't be recorded") == 1


def test_the_record_never_grows(file: Path) -> None:
    one = limiter(file)
    for i in range(1000):
        one.reserve(NOW + i * WINDOW_S / 2)
    assert file.stat().st_size < 500
    assert os.listdir(file.parent) == [file.name]


# --- The backoff.


class Highest(random.Random):
    """Draws the upper bound each time."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_backoff_doubles_from_half_a_second_to_its_cap() -> None:
    backoff = Backoff(30.0, Highest())
    assert [backoff.next_s() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_the_jitter_is_full() -> None:
    backoff = Backoff(30.0, random.Random(1))
    for _ in range(10):
        backoff.next_s()
    waits = [backoff.next_s() for _ in range(1000)]
    assert min(waits) < 1.0
    assert max(waits) > 29.0
    assert 14.0 < sum(waits) / len(waits) < 16.0


def test_a_reset_starts_the_backoff_again() -> None:
    backoff = Backoff(30.0, Highest())
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert [backoff.next_s() for _ in range(2)] == [0.5, 1]


def test_a_thousand_failures_do_not_overflow_the_backoff() -> None:
    backoff = Backoff(30.0, Highest())
    assert [backoff.next_s() for _ in range(2000)][-1] == 30.0
