"""Steps of the local clock (NTP, suspend) break no timer, no order, no file roll."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from delivery import feedmono as command
from delivery import ids_of, independent, parts, wait_complete
from instance import Instance, read_avro
from sim import Sim, wait_until

from feedmono import log, ring, ring_layout
from feedmono.delivery.holes import State
from feedmono.exchanges.base import Limits
from feedmono.network import limiter
from feedmono.ring import RingReader, RingWriter, SalvagedReader
from feedmono.ring.records import Records
from feedmono.sinks.segment import list_files
from feedmono.supervision import snapshot, statelock
from feedmono.supervision.snapshot import Snapshot

HOUR_S = 3600
DAY_S = 24 * HOUR_S
RATE = 500
USUAL_S = 10.0
"""Within which all goes on as before, on a machine that is busy otherwise: no step is so small."""
SOON = {"BACKFILL_CONFIRM_AFTER": "200 ms", "COVERAGE_INTERVAL": "200 ms"}


class Shifted(Instance):
    """An instance whose wall clock the test sets, see ``clockshift/sitecustomize.py``."""

    def __init__(self, folder: Path, *sims: Sim, **variables: object) -> None:
        super().__init__(folder, *sims, **variables)
        self._clock = folder / "clock"
        self._clock.write_bytes(bytes(8))
        self.environ = {
            **self.environ,
            "PYTHONPATH": str(Path(__file__).parent / "clockshift"),
            "CLOCKSHIFT_FILE": str(self._clock),
        }

    def __enter__(self) -> Shifted:
        self.start()
        return self

    def set_clock(self, ahead_s: int) -> None:
        """Steps the clock of all its processes: so far ahead of the true one it is from now on."""
        with self._clock.open("r+b") as file:
            file.write((ahead_s * 10**9).to_bytes(8, "little", signed=True))


def wait_clock(instance: Instance, ahead_s: int) -> None:
    """Waits for a state that was published after the step."""

    def ahead() -> float:
        content = (instance.state / snapshot.FILE).read_text()
        return Snapshot.from_json(content).taken_at_s - time.time()

    wait_until(ahead, lambda now_s: abs(now_s - ahead_s) < 60, USUAL_S)


def last_ids(sim: Sim) -> dict[str, int]:
    """The last trade of each symbol that was made."""
    return {symbol: totals["last_id"] for symbol, totals in sim.state()["symbols"].items()}


def made(state: Mapping[str, Any]) -> int:
    return sum(totals["made"] for totals in state["symbols"].values())


def wait_delivered(instance: Instance, sim: Sim, upto: dict[str, int]) -> None:
    """Waits until these are delivered, and all before them."""

    def behind() -> list[str]:
        known = ids_of(instance, sim.exchange)
        return [
            symbol
            for symbol, last_id in upto.items()
            if symbol not in known
            or known[symbol].last_id < last_id
            or any(hole.first_id <= last_id for hole in known[symbol].open_holes())
        ]

    wait_until(behind, lambda found: not found, USUAL_S)


def segments(instance: Instance, exchange: str = "binance") -> list[int]:
    """The numbers of the finished trade files."""
    files = list_files(instance.data / exchange, "trades")
    return [file.number for file in files if file.finished]


def assert_nothing_lost(instance: Instance, sim: Sim) -> None:
    """All that was made is stored once, in order; nothing was given up."""
    for ids in ids_of(instance, sim.exchange).values():
        assert [h for h in ids.holes if h.state is not State.OPEN] == []
        assert ids.epoch == 0
    outcome = independent(read_avro(instance.data / sim.exchange, "trades"), sim)
    assert (outcome.missing, outcome.doubled) == ([], 0)
    assert outcome.trades == made(sim.state())
    assert not parts(instance.data)
    assert_ordered(instance, sim.exchange)
    status, output = command(instance, "verify")
    assert status == 0, output


def assert_ordered(instance: Instance, exchange: str) -> None:
    """The numbers in the files' names order the frames, and the live trades of each symbol but for
    those that came late: while one connection replaces another, either may be the faster."""
    numbers = segments(instance, exchange)
    assert len(set(numbers)) == len(numbers), "a segment's number came again"
    sequences = [trade["frame_sequence"] for trade in read_avro(instance.data / exchange, "trades")]
    assert sequences == sorted(sequences)
    live: dict[str, list[int]] = defaultdict(list)
    for trade in read_avro(instance.data / exchange, "trades"):
        if trade["origin"] == "STREAM":
            live[trade["symbol"]].append(int(trade["trade_id"]))
    for symbol, known in ids_of(instance, exchange).items():
        assert sum(one > next_one for one, next_one in pairwise(live[symbol])) <= known.late


def test_steps_by_hours_and_days_change_nothing(tmp_path: Path) -> None:
    steps = (HOUR_S, -HOUR_S, DAY_S, -DAY_S, 0)
    with (
        Sim("binance", "--rate", str(RATE), "--hold", "--faults", "cut=1s") as sim,
        Shifted(
            tmp_path,
            sim,
            CONNECTIONS_MAX_AGE="500 ms",
            FILES_ROLL_INTERVAL="500 ms",
            **SOON,
        ) as feedmono,
    ):
        feedmono.wait_trades("binance", RATE)
        workers = {p.pid for p in psutil.Process(feedmono.pid).children()}
        for ahead_s in steps:
            before = feedmono.of("binance")["counts"]
            files, cuts = len(segments(feedmono)), sim.state()["faults"].get("cut", 0)
            feedmono.set_clock(ahead_s)
            wait_delivered(feedmono, sim, last_ids(sim))
            sim.wait(partial(_cut, cuts + 1))
            feedmono.wait(partial(_moved, before), USUAL_S)
            wait_until(partial(segments, feedmono), partial(_more, files + 2), USUAL_S)
            # Once more, behind the cut.
            wait_delivered(feedmono, sim, last_ids(sim))
            wait_clock(feedmono, ahead_s)
        feedmono.set_clock(DAY_S)
        assert command(feedmono, "status")[0] == 0, "no step makes it look as if it hung"
        sim.fault("cut", False)
        sim.fault("pause")
        wait_complete(feedmono, sim, USUAL_S)
        status = feedmono.of("binance")
        assert {p.pid for p in psutil.Process(feedmono.pid).children()} == workers
        assert (status["restarts"], status["dead_letters"]) == (0, 0)
        assert status["counts"]["beyond"] == status["counts"]["absent"] == 0
        assert feedmono.stop() == 0
        named: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in feedmono.events():
            named[event["event"]].append(event)
        # A connection was made for each one that was cut or is to be replaced, and for none else.
        ended = sim.state()["faults"]["cut"] + len(named["to be replaced"])
        assert len(named["connected"]) + len(named["not connected"]) <= 1 + ended
        waits = [event["seconds"] for event in named["waiting before reconnect"]]
        assert 0.0 < max(waits) <= 4.0, "half a second at first, doubled while no data comes"
        assert not named["waiting for the exchange's limit of connection attempts"]
        assert_nothing_lost(feedmono, sim)
        starts = [file.start for file in list_files(feedmono.data / "binance", "trades")]
        assert starts != sorted(starts), "the clock was stepped, and the names tell"
        received = [r["received_ns"] / 1e9 for r in read_avro(feedmono.data / "binance", "raw")]
        assert max(received) - min(received) > 2 * DAY_S


def _cut(times: int, state: Mapping[str, Any]) -> bool:
    return bool(state["faults"].get("cut", 0) >= times)


def _more(count: int, found: Sequence[int]) -> bool:
    return len(found) >= count


def _moved(before: Mapping[str, int], status: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a connection was replaced since, another was made again, and trades came."""
    now = status[0]["counts"]
    moving = "rotations", "reconnects", "trades"
    return all(now[name] > before[name] for name in moving)


@pytest.mark.parametrize(
    ("kill", "steps"),
    [
        # To where a machine without a clock of its own begins, as well.
        (False, (-DAY_S, int(DAY_S - time.time()))),
        (True, (-DAY_S,)),
    ],
    ids=["stop", "kill"],
)
def test_a_restart_with_a_clock_set_back_goes_on_behind_the_old_sequences(
    tmp_path: Path, kill: bool, steps: Sequence[int]
) -> None:
    with (
        Sim("binance", "--rate", str(RATE), "--hold") as sim,
        Shifted(tmp_path, sim, FILES_ROLL_INTERVAL="500 ms", **SOON) as feedmono,
    ):
        feedmono.wait_trades("binance", RATE)
        for ahead_s in steps:
            wait_delivered(feedmono, sim, last_ids(sim))
            feedmono.kill() if kill else feedmono.stop()
            old = {
                symbol: (ids.last_id, ids.sequence)
                for symbol, ids in ids_of(feedmono, "binance").items()
            }
            feedmono.set_clock(ahead_s)
            feedmono.start()
            wait_delivered(feedmono, sim, last_ids(sim))
            known = ids_of(feedmono, "binance")
            highest = max(sequence for _, sequence in old.values())
            for symbol, (last_id, _) in old.items():
                assert known[symbol].last_id > last_id
                assert known[symbol].sequence > highest
        sim.fault("pause")
        wait_complete(feedmono, sim, USUAL_S)
        assert feedmono.stop() == 0
        assert_nothing_lost(feedmono, sim)
        frames = read_avro(feedmono.data / "binance", "raw")
        received = [frame["received_ns"] / 1e9 for frame in frames]
        assert received[-1] - received[0] == pytest.approx(steps[-1], abs=60)


def test_a_process_that_was_suspended_goes_on_where_it_was(tmp_path: Path) -> None:
    """All are stopped for longer than every limit of a connection, while trades go on; when they
    wake up, the wall clock has jumped."""
    with (
        Sim("binance", "--rate", str(RATE), "--hold") as sim,
        Shifted(
            tmp_path,
            sim,
            CONNECTIONS_SILENCE_LIMIT="1 s",
            CONNECTIONS_STALE_LIMIT="1 s",
            FILES_ROLL_INTERVAL="500 ms",
            **SOON,
        ) as feedmono,
    ):
        feedmono.wait_trades("binance", RATE)
        workers = feedmono.workers()
        pids = [feedmono.pid, *workers]
        # The supervisor sleeps first, or last; wakes up last, or first. The exchange waits, or not.
        for turn, cut in enumerate((False, True)):
            pids.reverse()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            slept_from = made(sim.state())
            if cut:
                sim.fault("cut")
            sim.wait(partial(_made, slept_from + 2 * RATE))
            feedmono.set_clock((turn + 1) * HOUR_S)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            wait_delivered(feedmono, sim, last_ids(sim))
            wait_clock(feedmono, (turn + 1) * HOUR_S)
            feedmono.wait(partial(_reconnected, int(cut)))
            reconnects = feedmono.of("binance")["reconnects"]
            assert reconnects == int(cut), "what waits in the socket is no silence"
        # Before the pause, which lasts longer than stale_limit and so makes it connect again.
        feedmono.wait(lambda state: state[0]["state"] == "flowing")
        assert feedmono.workers() == workers
        assert feedmono.of("binance")["restarts"] == 0
        sim.fault("pause")
        wait_complete(feedmono, sim, USUAL_S)
        assert feedmono.stop() == 0
        assert not [e for e in feedmono.events() if e["event"] == "worker ended"]
        assert_nothing_lost(feedmono, sim)


def _reconnected(times: int, state: Sequence[Mapping[str, Any]]) -> bool:
    return bool(state[0]["reconnects"] >= times)


def _made(trades: int, state: Mapping[str, Any]) -> bool:
    return made(state) >= trades


# --- The parts that look at a wall clock.


def test_a_ring_in_the_place_of_a_damaged_one_begins_above_it_after_a_step_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, capacity = tmp_path / "x.ring", 64 * 1024
    assert ring.prepare(path, capacity).reason == ""
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"a"] * 100, ring_layout.FRAME, 0, 1)
    known = reader.read(50, 1 << 20)[-1].sequence
    with path.open("r+b") as file:
        file.write(b"damaged")
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns - DAY_S * 10**9)
    prepared = ring.prepare(path, capacity, known + 1)
    assert prepared.set_aside is not None
    held = SalvagedReader(prepared.set_aside).read(200, 1 << 20)
    assert len(held) == 100
    assert RingWriter(path).next_sequence > held[-1].sequence


@pytest.mark.parametrize("used", [False, True], ids=["empty", "used"])
def test_a_ring_that_lacks_what_the_ledger_knows_is_replaced_after_a_step_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    path, capacity = tmp_path / "x.ring", 64 * 1024
    ring.prepare(path, capacity)
    if used:
        RingWriter(path).append([b"a"] * 10, ring_layout.FRAME, 0, 1)
    least = RingWriter(path).next_sequence + 100
    monkeypatch.setattr(time, "time_ns", lambda: DAY_S * 10**9)
    prepared = ring.prepare(path, capacity, least)
    assert RingWriter(path).next_sequence == least
    assert bool(prepared.set_aside) == used
    assert ring.prepare(path, capacity, least) == ring.Prepared(0, None, "")


def test_a_writer_goes_on_above_what_it_gave_however_far_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.ring"
    ring.create(path, 64 * 1024)
    before = RingWriter(path)
    before.append([b"a"] * 10, ring_layout.FRAME, 0, 1)
    monkeypatch.setattr(time, "time_ns", lambda: DAY_S * 10**9)
    # What was given last can't be read, as where a lap ends, or after a crash of the host.
    monkeypatch.setattr(Records, "sequence_before", lambda *_: None)
    monkeypatch.setattr(Records, "walk", lambda _, begin, limit, *__: (limit, None))
    assert RingWriter(path).next_sequence == before.next_sequence


def test_an_earlier_process_of_this_boot_had_another_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts are as old as they are, whichever way the clock was set between."""
    file = tmp_path / "toy.attempts"
    limits = Limits(1, 1, 100.0, 86400, 60, 60, 1, 1, 1000)
    for step_s in (-DAY_S, HOUR_S):
        file.unlink(missing_ok=True)
        one = limiter.AttemptLimiter(file, limits, log.get())
        assert one.reserve(limiter.steady_time()) == 0.0
        monkeypatch.setattr(limiter, "_BOOTED_S", limiter._BOOTED_S + step_s)
        after = limiter.AttemptLimiter(file, limits, log.get())
        assert after.reserve(limiter.steady_time() + 30.0) == pytest.approx(70.0, abs=1.0)
    # Of another boot nothing is known but what the clocks say.
    monkeypatch.setattr(limiter, "_BOOT", "another")
    monkeypatch.setattr(limiter, "_BOOTED_S", limiter._BOOTED_S + HOUR_S)
    rebooted = limiter.AttemptLimiter(file, limits, log.get())
    assert rebooted.reserve(limiter.steady_time()) == 0.0


@pytest.mark.parametrize("step_s", [-DAY_S, -HOUR_S, HOUR_S, DAY_S])
def test_status_believes_who_tells_again_after_a_step_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    lock_fd = statelock.hold(tmp_path)
    now_s = time.time()
    monkeypatch.setattr(snapshot, "SAMPLE_S", 0.1)
    snapshot.publish(Snapshot(os.getpid(), now_s, now_s - step_s, "files", ()), tmp_path)
    with pytest.raises(ValueError, match="does it hang"):
        snapshot.state_of(tmp_path)
    looks: list[float] = []

    def told(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            snapshot.publish(Snapshot(os.getpid(), now_s, now_s, "files", ()), tmp_path)

    monkeypatch.setattr(time, "sleep", told)
    state = snapshot.state_of(tmp_path)
    assert state is not None
    assert state.taken_at_s == now_s
    assert len(looks) == 2
    os.close(lock_fd)
