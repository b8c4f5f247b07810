"""Workers that hang, leak, spin or crash: each is found, acted upon as configured and told of; no
trade is lost or doubled by it, and the other exchange is left alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from delivery import assert_nothing_lost
from instance import Instance
from sim import Sim, wait_until

from feedmono.heartbeat import LOOKS

SOON = {"BACKFILL_CONFIRM_AFTER": "200 ms", "COVERAGE_INTERVAL": "200 ms"}
RATE = 200
LONG_S = 90.0
ROLES = ["reader", "serializer"]


class Sick(Instance):
    """An instance whose workers can be made ill, see `sick`."""

    program = (str(Path(__file__).parent / "sick.py"),)

    def __init__(self, folder: Path, *sims: Sim, **variables: object) -> None:
        super().__init__(folder, *sims, **{**SOON, **variables})
        self.environ = {**self.environ, "SICK_FILE": str(folder / "sick")}

    def __enter__(self) -> Sick:
        self.start()
        return self

    def infect(self, pid: int, how: str) -> None:
        """That process is ill from its next round on, and no other is; 0: each is."""
        fresh = self.folder / "sick.new"
        fresh.write_text(json.dumps({"pid": pid, "how": how}))
        fresh.rename(self.folder / "sick")

    def heal(self) -> None:
        (self.folder / "sick").unlink()

    def pid_of(self, exchange: str, role: str) -> int:
        return int(self.of(exchange)[f"{role}_pid"])

    def restarts(self, exchange: str, role: str) -> Mapping[str, int]:
        """By reason."""
        found: Mapping[str, int] = _worker(self.of(exchange), role)["restarts"]
        return found

    def alarms(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = json.loads((self.state / "status.json").read_text())[
            "alarms"
        ]
        return found


def _worker(status: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    (found,) = (worker for worker in status["workers"] if worker["role"] == role)
    assert isinstance(found, Mapping)
    return found


def _restarted(exchange: str, role: str, reason: str, state: Sequence[Mapping[str, Any]]) -> bool:
    (status,) = (e for e in state if e["name"] == exchange)
    return bool(_worker(status, role)["restarts"].get(reason))


def _is_unharmed(feedmono: Sick, exchange: str) -> None:
    """Nobody noticed anything there."""
    status = feedmono.of(exchange)
    assert (status["restarts"], status["reconnects"]) == (0, 0)
    assert status["counts"]["holes"] == 0


def pair() -> tuple[Sim, Sim]:
    return (
        Sim("binance", "--rate", str(RATE), "--hold"),
        Sim("kraken", "--rate", "20", "--hold"),
    )


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("how", ["stopped", "deadlock"])
def test_a_worker_that_hangs_is_replaced_and_nothing_is_lost(
    tmp_path: Path, role: str, how: str
) -> None:
    binance, kraken = pair()
    with binance, kraken, Sick(tmp_path, binance, kraken) as feedmono:
        feedmono.wait_trades("binance", RATE)
        feedmono.wait_trades("kraken", 20)
        victim = feedmono.pid_of("binance", role)
        if how == "stopped":
            os.kill(victim, signal.SIGSTOP)
        else:
            feedmono.infect(victim, "deadlock")
        told = feedmono.wait_event("a worker hangs: killed", exchange="binance", worker=role)
        assert (told["pid"], told["silent_s"]) == (victim, LOOKS)
        feedmono.wait_event("worker ended", pid=victim, reason="hung")
        feedmono.wait_replaced("binance", role, victim)
        assert feedmono.restarts("binance", role) == {"hung": 1}
        _is_unharmed(feedmono, "kraken")
        assert_nothing_lost(feedmono, binance, kraken)


def test_processes_that_were_all_suspended_are_not_taken_for_hung(tmp_path: Path) -> None:
    binance, kraken = pair()
    with binance, kraken, Sick(tmp_path, binance, kraken) as feedmono:
        feedmono.wait_trades("binance", RATE)
        workers = feedmono.workers()
        everyone = [c.pid for c in psutil.Process(feedmono.pid).children()]
        for pid in (*everyone, feedmono.pid):
            os.kill(pid, signal.SIGSTOP)
        # Longer than a worker may be silent, by the exchange's own clock.
        passed = _made(kraken.state()) + 20 * (LOOKS + 4)
        kraken.wait(lambda state: _made(state) >= passed, LONG_S)
        for pid in (feedmono.pid, *everyone):
            os.kill(pid, signal.SIGCONT)
        assert_nothing_lost(feedmono, binance, kraken)
        assert not [e for e in feedmono.events() if e["event"] == "a worker hangs: killed"]
        ended = [e for e in feedmono.events() if e["event"] == "worker ended"]
        assert not [e for e in ended if e["pid"] in workers]


def _made(state: Mapping[str, Any]) -> int:
    return sum(totals["made"] for totals in state["symbols"].values())


@pytest.mark.parametrize("role", ROLES)
def test_a_worker_that_leaks_is_restarted_in_order_once_it_was_borne_long_enough(
    tmp_path: Path, role: str
) -> None:
    binance, kraken = pair()
    limits = {"BINANCE_MEMORY": "200 MiB", "BINANCE_MEMORY_PATIENCE": "2 s"}
    with binance, kraken, Sick(tmp_path, binance, kraken, **limits) as feedmono:
        feedmono.wait_trades("binance", RATE)
        victim = feedmono.pid_of("binance", role)
        feedmono.infect(victim, "leak")
        feedmono.wait(lambda _: any(a["kind"] == "memory" for a in feedmono.alarms()), LONG_S)
        feedmono.wait_event("over its memory budget: restarted", LONG_S, worker=role)
        feedmono.wait(partial(_restarted, "binance", role, "memory"))
        ended = feedmono.wait_event("worker ended", pid=victim)
        assert (ended["how"], ended["reason"]) == ("exit status 0", "memory")
        assert feedmono.of("binance")["budget_exceeded"]["memory restart"] == 1
        feedmono.wait(lambda _: not feedmono.alarms(), LONG_S)
        _is_unharmed(feedmono, "kraken")
        assert_nothing_lost(feedmono, binance, kraken)


@pytest.mark.parametrize("role", ROLES)
def test_a_worker_that_spins_is_told_of_and_goes_on(tmp_path: Path, role: str) -> None:
    binance, kraken = pair()
    with binance, kraken, Sick(tmp_path, binance, kraken, BINANCE_CPU="0.3") as feedmono:
        feedmono.wait_trades("binance", RATE)
        feedmono.infect(feedmono.pid_of("binance", role), "spin")
        alarm = feedmono.wait_event("alarm", LONG_S, kind="cpu", exchange="binance")
        assert "0.3 cores" in alarm["text"]
        feedmono.wait(lambda s: s[0]["budget_exceeded"].get("cpu warn", 0) >= 1)
        worker = _worker(feedmono.of("binance"), role)
        assert worker["cpu_cores"] > 0.3
        feedmono.heal()
        feedmono.wait_event("alarm is over", LONG_S, kind="cpu", exchange="binance")
        _is_unharmed(feedmono, "binance")
        _is_unharmed(feedmono, "kraken")
        assert_nothing_lost(feedmono, binance, kraken)


def test_a_throttled_serializer_keeps_its_budget_and_is_let_go_before_the_ring_fills(
    tmp_path: Path,
) -> None:
    """The work of each round takes longer than the budget allows: the ring absorbs it, until it is
    half full; then the serializer works at full speed."""
    binance, kraken = pair()
    limits = {
        "BINANCE_CPU": "0.2",
        "BINANCE_CPU_ACTION": "throttle",
        "RING_CAPACITY": "4 MiB",
        "LINGER": "0",
    }
    with binance, kraken, Sick(tmp_path, binance, kraken, **limits) as feedmono:
        feedmono.wait_trades("binance", RATE)
        feedmono.infect(feedmono.pid_of("binance", "serializer"), "spin")
        feedmono.wait_event("throttled", LONG_S, exchange="binance")
        feedmono.wait(lambda s: s[0]["throttle"] < 0.2 and s[0]["cpu_cores"] < 0.25, LONG_S)
        before = feedmono.of("binance")
        os.kill(before["serializer_pid"], signal.SIGHUP)
        feedmono.wait(partial(_delivered_more, before["delivered"] + RATE), LONG_S)
        beats = [s["counts"]["serializer_beats"] for s in (before, feedmono.of("binance"))]
        assert beats[1] - beats[0] < 10_000, "its pauses are none any more since the signal"
        binance.fault("rate", 3000)
        feedmono.wait_event("throttle lifted", LONG_S, exchange="binance")
        feedmono.wait(lambda s: s[0]["throttle"] == 1.0)
        feedmono.heal()
        binance.fault("rate", RATE)
        status = feedmono.of("binance")
        assert status["budget_exceeded"]["cpu throttle"] >= 1
        assert status["counts"]["ring_full"] == 0
        _is_unharmed(feedmono, "binance")
        _is_unharmed(feedmono, "kraken")
        assert_nothing_lost(feedmono, binance, kraken)


def _delivered_more(count: int, state: Sequence[Mapping[str, Any]]) -> bool:
    return bool(state[0]["delivered"] >= count)


@pytest.mark.parametrize("role", ROLES)
def test_a_worker_that_crashes_at_start_is_tried_again_until_it_does_not(
    tmp_path: Path, role: str
) -> None:
    binance, kraken = pair()
    with binance, kraken, Sick(tmp_path, binance, kraken) as feedmono:
        feedmono.wait_trades("binance", RATE)
        feedmono.wait_trades("kraken", 20)
        feedmono.infect(0, f"crash {role}")
        os.kill(feedmono.pid_of("binance", role), signal.SIGKILL)
        wait_until(
            lambda: [e["restart_in_s"] for e in feedmono.events() if e["event"] == "worker ended"],
            lambda waits: len(waits) >= 3 and waits[-1] >= 1.0,
        )
        failed = feedmono.wait_event(f"{role} failed", exchange="binance")
        assert "ill from the start" in failed["error"]
        feedmono.heal()
        feedmono.wait(partial(_restarted, "binance", role, "crashed"))
        feedmono.wait(lambda s: bool(s[0][f"{role}_pid"]) and s[0]["state"] == "flowing")
        assert feedmono.restarts("binance", role)["crashed"] >= 3
        _is_unharmed(feedmono, "kraken")
        assert_nothing_lost(feedmono, binance, kraken)
