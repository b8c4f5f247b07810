"""Measures one handler under one load: `measure`; and over time: `soak`, `burst`.

The measured part lies between two moments. At each the count of delivered trades has just moved
on, and the CPU clocks of all processes are read at once, so what was used belongs to what was
delivered. At saturation it is the whole run, from the moment before the first trade to the last
acknowledgement: nothing flows until everything is connected.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sim import Sim, wait_until

from bench import count, usage
from bench.latency import Latencies
from bench.model import (
    KEEPS_UP_S,
    SATURATION,
    SOCKET_TO_ACKNOWLEDGED,
    Burst,
    Case,
    Count,
    Run,
    Slope,
    Soak,
)
from bench.rig import Broker, Feedmono, Handler, now_us, place, simulators, started
from bench.usage import Memory, Process

# What each handler was seen to carry, so that a run at saturation lasts about as long as others.
_CARRIES_PER_S = {"baseline": 6_000}
_CARRIES_ELSE_PER_S = 50_000
_WARM_S = 2.0
_LOOK_S = 0.001
# Where both cores are wanted, whoever looks should use little of them.
_LOOK_SATURATED_S = 0.005
_MOVE_LIMIT_S = 10.0
_DRAIN_LIMIT_S = 6.0
_BURST_LIMIT_S = 30.0
_SATURATION_LIMIT_S = 300.0
_SOAK_DRAIN_LIMIT_S = 300.0
# The beginning of a soak fills caches and buffers: that much of it is left out of the slope.
_SETTLING = 0.2
_CUT_EVERY_S = 20.0
_TREND_POINTS = 360
_LOOK_BURST_S = 0.2


@dataclass(frozen=True, slots=True)
class Moment:
    """What had been done by then."""

    at_s: float
    at_us: int
    delivered: int
    sent: int
    used: Mapping[int, Process]


def measure(handler: Handler, case: Case, broker: Broker | None) -> Run:
    """One run. :raises RuntimeError, TimeoutError: it could not be measured."""
    trades = int(_CARRIES_PER_S.get(handler.name, _CARRIES_ELSE_PER_S) * case.seconds)
    target = broker if case.sink == "kafka" else None
    with flowing(handler, case, target, trades) as sims:
        if case.rate == SATURATION:
            before, after, latencies = _saturated(handler, trades * len(sims), sims)
        else:
            before, after, latencies = _steady(handler, case, sims)
        memory = usage.memory(handler.pids())
        _drain(handler, sims)
        handler.stop()
        counted, hops = _count(handler, sims, target, before.at_us, after.at_us)
        if target is not None:
            for exchange in case.exchanges:
                target.drop_topics(handler.topic(exchange))
    cpu = usage.between(before.used, after.used)
    if cpu.ended:
        raise RuntimeError(f"{handler.name}: {', '.join(cpu.ended)} ended meanwhile")
    return Run(
        handler.name,
        case,
        after.delivered - before.delivered,
        after.at_s - before.at_s,
        cpu,
        memory,
        {**hops, SOCKET_TO_ACKNOWLEDGED: latencies},
        after.sent - after.delivered - (before.sent - before.delivered),
        after.sent - after.delivered,
        counted,
    )


@contextlib.contextmanager
def flowing(
    handler: Handler, case: Case, target: Broker | None, trades: int = 0
) -> Iterator[list[Sim]]:
    """The handler and its exchanges, connected; no trade is made yet."""
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(place())
        sims = [stack.enter_context(sim) for sim in simulators(case, trades)]
        stack.enter_context(started(handler, case, where, target, sims))
        yield sims


def set_rate(sims: Sequence[Sim], rate: float) -> None:
    """Trades a second, of each."""
    for sim in sims:
        sim.fault("rate", "max" if rate == SATURATION else rate)


def _totals(sims: Sequence[Sim], name: str) -> int:
    return sum(each[name] for sim in sims for each in sim.state()["symbols"].values())


def _moment(handler: Handler, sims: Sequence[Sim]) -> Moment:
    """As soon as the next trades are delivered."""
    # Looking for the processes takes longer than looking at them.
    pids, before = handler.pids(), handler.delivered()
    _wait(lambda: handler.delivered() > before, _MOVE_LIMIT_S, "no trade is delivered any more")
    return _now(handler, sims, pids)


def _now(handler: Handler, sims: Sequence[Sim], pids: Sequence[int]) -> Moment:
    delivered, used = handler.delivered(), usage.look(pids)
    return Moment(time.monotonic(), now_us(), delivered, _totals(sims, "sent"), used)


def _wait(
    condition: Callable[[], bool], limit_s: float, what: str, look_s: float = _LOOK_S
) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(look_s)


def _steady(handler: Handler, case: Case, sims: Sequence[Sim]) -> tuple[Moment, Moment, Latencies]:
    set_rate(sims, case.rate)
    _wait(lambda: handler.delivered() > 0, _MOVE_LIMIT_S, "no trade is delivered")
    _warm(handler, case, sims)
    before = _moment(handler, sims)
    latencies = handler.acknowledged()
    time.sleep(case.seconds)
    after = _moment(handler, sims)
    found = latencies()
    return before, after, found


def _warm(handler: Handler, case: Case, sims: Sequence[Sim]) -> None:
    """Past the beginning: what has piled up meanwhile (a thousand subscriptions take a moment) is
    worked off first, as long as it gets less."""
    least = math.inf
    while True:
        time.sleep(_WARM_S)
        waiting = _totals(sims, "sent") - handler.delivered()
        if waiting <= KEEPS_UP_S * case.rate or waiting >= least:
            return
        least = waiting


def _saturated(
    handler: Handler, trades: int, sims: Sequence[Sim]
) -> tuple[Moment, Moment, Latencies]:
    """The *trades* that the simulators have are taken as fast as they can be."""
    time.sleep(_WARM_S)
    pids = handler.pids()
    before, latencies = _now(handler, sims, pids), handler.acknowledged()
    set_rate(sims, SATURATION)
    what = f"{handler.name} has not delivered {trades:,} trades at saturation"
    _wait(lambda: handler.delivered() >= trades, _SATURATION_LIMIT_S, what, _LOOK_SATURATED_S)
    return before, _now(handler, sims, pids), latencies()


def _drain(handler: Handler, sims: Sequence[Sim]) -> None:
    """No more trades; what is under way is delivered, unless that takes too long: then the count
    says how much is missing."""
    set_rate(sims, 0)
    made = _totals(sims, "made")
    with contextlib.suppress(TimeoutError):
        _wait(lambda: handler.delivered() >= made, _DRAIN_LIMIT_S, "not drained")


def _count(
    handler: Handler,
    sims: Sequence[Sim],
    target: Broker | None,
    since_us: int = 0,
    until_us: int = 2**62,
) -> tuple[Count, dict[str, Latencies]]:
    """Everything that was made, read back."""
    whole, hops = Count(), dict[str, Latencies]()
    for sim in sims:
        expected = {
            symbol: (each["first_id"], each["last_id"])
            for symbol, each in sim.state()["symbols"].items()
        }
        order = count.Order(
            sim.exchange,
            expected,
            handler.topic(sim.exchange),
            target.bootstrap_servers if target else "",
            str(handler.data(sim.exchange)),
            since_us,
            until_us,
        )
        found = count.count(order)
        whole += Count(found.trades, found.missing, found.doubled, found.raw_missing, found.foreign)
        for hop, encoded in found.hops.items():
            hops.setdefault(hop, Latencies()).merge(Latencies(encoded))
    return whole, hops


# Over time


def soak(handler: Feedmono, case: Case, broker: Broker) -> Soak:
    """A long run in which the connections are cut again and again."""
    looks: list[tuple[float, Mapping[str, Memory]]] = []
    with flowing(handler, case, broker) as sims:
        set_rate(sims, case.rate)
        for sim in sims:
            sim.fault("cut", f"{_CUT_EVERY_S:g}s")
        begun_s = time.monotonic()
        step_s = max(1.0, case.seconds / _TREND_POINTS)
        while (past_s := time.monotonic() - begun_s) < case.seconds:
            looks.append((past_s, usage.memory(handler.pids())))
            time.sleep(max(0.0, step_s * len(looks) - (time.monotonic() - begun_s)))
        set_rate(sims, 0)
        cuts = sum(sim.state()["faults"].get("cut", 0) for sim in sims)
        made = _totals(sims, "made")
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: _settled(handler, made), bool, _SOAK_DRAIN_LIMIT_S)
        backfilled = sum(handler.counts("BACKFILLED"))
        handler.stop()
        counted, _ = _count(handler, sims, broker)
        for exchange in case.exchanges:
            broker.drop_topics(handler.topic(exchange))
    settled = [(at, each) for at, each in looks if at >= _SETTLING * case.seconds]
    whole = [(at, usage.total(each)) for at, each in settled]
    return Soak(
        case.seconds,
        case.rate,
        cuts,
        [(at, usage.total(each)) for at, each in looks],
        slope([(at, each.pss_bytes / 2**20) for at, each in whole]),
        slope([(at, each.private_bytes / 2**20) for at, each in whole]),
        {
            role: slope(
                [(at, each[role].private_bytes / 2**20) for at, each in settled if role in each]
            )
            for role in sorted(looks[-1][1])
        },
        counted,
        made,
        backfilled,
    )


def _settled(handler: Feedmono, made: int) -> bool:
    return handler.delivered() >= made and not sum(handler.counts("HOLES_OPEN"))


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """By least squares, of values at times in seconds, evenly apart.

    Memory moves in steps, so a sample says little that its neighbour does not: the error counts so
    many of them as independent as their correlation leaves (lag 1; Santer et al., "Statistical
    significance of trends", Journal of Geophysical Research 105, 2000).
    """
    if len(points) < 3:
        return Slope(0.0, math.inf)
    times, values = zip(*points, strict=True)
    line = statistics.linear_regression(times, values)
    rests = [v - line.slope * t - line.intercept for t, v in points]
    squares = sum(rest * rest for rest in rests)
    mean = statistics.fmean(times)
    spread = sum((t - mean) ** 2 for t in times)
    alike = sum(a * b for a, b in itertools.pairwise(rests)) / squares if squares else 0.0
    alike = min(max(alike, 0.0), 1.0)
    # Three at least: what grows smoothly, but not in a line, is to be found.
    independent = max(len(points) * (1 - alike) / (1 + alike), 3.0)
    error = math.sqrt(squares / (independent - 2) / spread)
    return Slope(line.slope * 3600, error * 3600)


def burst(handler: Feedmono, case: Case, broker: Broker, factor: float, lasting_s: float) -> Burst:
    """*case.seconds* at its rate, *lasting_s* at *factor* times that, then its rate again until the
    latency is what it was."""
    with flowing(handler, case, broker) as sims:
        set_rate(sims, case.rate)
        _wait(lambda: handler.delivered() > 0, _MOVE_LIMIT_S, "no trade is delivered")
        time.sleep(_WARM_S)
        latencies = handler.acknowledged()
        time.sleep(case.seconds)
        before_ms = _p99_ms(latencies())
        usual = case.rate * max(0.1, 3 * before_ms / 1000)
        set_rate(sims, case.rate * factor)
        begun_s = time.monotonic()
        worst, worst_ms = _watch(handler, sims, lambda: time.monotonic() < begun_s + lasting_s)
        set_rate(sims, case.rate)
        ended_s = time.monotonic()
        drained_s = normal_s = None
        while time.monotonic() < ended_s + _BURST_LIMIT_S and normal_s is None:
            waiting, p99_ms = _watch(handler, sims, lambda: False)
            worst, worst_ms = max(worst, waiting), max(worst_ms, p99_ms)
            past_s = time.monotonic() - ended_s
            if drained_s is None and waiting <= usual:
                drained_s = past_s
            if drained_s is not None and p99_ms <= max(2 * before_ms, before_ms + 5):
                normal_s = past_s
        _drain(handler, sims)
        handler.stop()
        counted, _ = _count(handler, sims, broker)
        for exchange in case.exchanges:
            broker.drop_topics(handler.topic(exchange))
    return Burst(
        case.rate,
        factor,
        lasting_s,
        worst,
        drained_s,
        normal_s,
        before_ms,
        worst_ms,
        counted,
    )


def _watch(handler: Handler, sims: Sequence[Sim], on: Callable[[], bool]) -> tuple[int, float]:
    """Looks as long as it is to go *on*, once at least: the most trades that were waiting, and the
    highest p99 of any look in ms."""
    waiting, worst_ms = 0, 0.0
    while True:
        latencies = handler.acknowledged()
        time.sleep(_LOOK_BURST_S)
        waiting = max(waiting, _totals(sims, "sent") - handler.delivered())
        worst_ms = max(worst_ms, _p99_ms(latencies()))
        if not on():
            return waiting, worst_ms


def _p99_ms(latencies: Latencies) -> float:
    """Infinite while nothing is delivered."""
    percentiles = latencies.percentiles()
    return percentiles.p99_ms if percentiles else math.inf
