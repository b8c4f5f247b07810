"""What is measured, and what was found: the values that the benchmark's parts hand each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.latency import Latencies
from bench.usage import Cpu, Memory

SATURATION = math.inf
"""As a rate: as fast as the trades are taken."""
PERIOD_MS = 10
"""How often the simulator makes trades if nothing else is wanted."""
PARTITIONS = 40
"""Of a topic, as feedmono's default is."""

SOCKET_TO_ACKNOWLEDGED = "socket to acknowledged"
"""By the handlers' own counts; the other hops are named in `bench.count`."""


KEEPS_UP_S = 0.5
"""What is under way for so long is a backlog: a pause of the broker is shorter."""


@dataclass(frozen=True, slots=True)
class Case:
    """One load."""

    sink: str
    """``kafka`` or ``files``."""
    rate: float
    """Trades a second of each exchange, or `SATURATION`."""
    seconds: float
    linger_ms: float | None = None
    """None: the default."""
    period_ms: int = PERIOD_MS
    """How often the simulator makes the trades that are due."""
    partitions: int = PARTITIONS
    """Of each topic of trades."""
    symbols: int = 0
    """0: the exchange's default ones."""
    exchanges: tuple[str, ...] = ("binance",)

    @property
    def load(self) -> str:
        """The rate in words."""
        if self.rate == SATURATION:
            return f"saturation{self._circumstances}"
        return f"{self.rate:,.0f}/s{self._circumstances}"

    @property
    def _circumstances(self) -> str:
        period = "" if self.period_ms == PERIOD_MS else f", every {self.period_ms} ms"
        return period + (
            "" if self.partitions == PARTITIONS else f", partitions: {self.partitions}"
        )


@dataclass(frozen=True, slots=True)
class Count:
    """What the independent count found."""

    trades: int = 0
    missing: int = 0
    doubled: int = 0
    raw_missing: int = 0
    foreign: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.trades + other.trades,
            self.missing + other.missing,
            self.doubled + other.doubled,
            self.raw_missing + other.raw_missing,
            self.foreign + other.foreign,
        )

    @property
    def complete(self) -> bool:
        """Whether each trade is there once, with its frame."""
        return not (self.missing or self.doubled or self.raw_missing or self.foreign)


@dataclass(frozen=True, slots=True)
class Run:
    """One handler under one load, once."""

    handler: str
    case: Case
    trades: int
    """Delivered in the measured part."""
    span_s: float
    """How long that took."""
    cpu: Cpu
    memory: Mapping[str, Memory]
    """By role, at the end of the measured part."""
    latencies: Mapping[str, Latencies]
    """By hop."""
    behind: int
    """How many more trades were sent and not delivered at its end than at its beginning."""
    waiting: int
    """How many there were at its end."""
    count: Count

    @property
    def us_per_trade(self) -> float:
        return self.cpu.total_ns / 1000 / max(1, self.trades)

    @property
    def per_s(self) -> float:
        """Trades delivered a second."""
        return self.trades / self.span_s


@dataclass(frozen=True, slots=True)
class Figures:
    """One handler under one load: all its runs together."""

    handler: str
    case: Case
    runs: Sequence[Run]
    latencies: Mapping[str, Latencies]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Figures:
        merged: dict[str, Latencies] = {}
        for run in runs:
            for hop, latencies in run.latencies.items():
                merged.setdefault(hop, Latencies()).merge(latencies)
        return cls(runs[0].handler, runs[0].case, runs, merged)

    @property
    def trades(self) -> int:
        return sum(run.trades for run in self.runs)

    @property
    def us_per_trade(self) -> float:
        return sum(run.cpu.total_ns for run in self.runs) / 1000 / max(1, self.trades)

    @property
    def least_and_most_us(self) -> tuple[float, float]:
        """The cost of the cheapest run and of the dearest."""
        costs = [run.us_per_trade for run in self.runs]
        return min(costs), max(costs)

    @property
    def per_s(self) -> float:
        return self.trades / sum(run.span_s for run in self.runs)

    @property
    def behind_per_s(self) -> float:
        """How many trades a second it fell behind; 0 if it kept up."""
        waiting = sum(run.waiting for run in self.runs) / len(self.runs)
        if self.case.rate == SATURATION or waiting <= KEEPS_UP_S * self.case.rate:
            return 0.0
        behind = sum(run.behind for run in self.runs) / sum(run.span_s for run in self.runs)
        return max(0.0, behind)

    @property
    def count(self) -> Count:
        return sum((run.count for run in self.runs), Count())

    def thread_us(self) -> dict[tuple[str, str], float]:
        """CPU µs per trade by role and thread."""
        found: dict[tuple[str, str], float] = {}
        for run in self.runs:
            for name, cpu_ns in run.cpu.by_thread.items():
                found[name] = found.get(name, 0.0) + cpu_ns / 1000 / max(1, self.trades)
        return found

    def role_us(self) -> dict[str, float]:
        """CPU µs per trade by role."""
        found: dict[str, float] = {}
        for run in self.runs:
            for role, cpu_ns in run.cpu.by_role.items():
                found[role] = found.get(role, 0.0) + cpu_ns / 1000 / max(1, self.trades)
        return found


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line through what was seen over time."""

    per_hour: float
    error_per_hour: float
    """Standard error of the slope."""

    @property
    def is_noise(self) -> bool:
        """Whether no growth can be told from the noise."""
        return self.per_hour <= 2 * self.error_per_hour


@dataclass(frozen=True, slots=True)
class Soak:
    """A long run with cuts."""

    seconds: float
    rate: float
    cuts: int
    points: Sequence[tuple[float, Memory]]
    """Seconds since the start, and the whole tree's memory."""
    pss: Slope
    """In MiB."""
    private: Slope
    private_by_role: Mapping[str, Slope]
    """Which of the processes grows."""
    count: Count
    made: int
    backfilled: int


@dataclass(frozen=True, slots=True)
class Burst:
    """Ten times the rate for some seconds."""

    rate: float
    factor: float
    seconds: float
    most_waiting: int
    """Trades sent and not delivered, at the worst moment."""
    drained_s: float | None
    """From the burst's end until no more was under way than before; None: not within the limit."""
    normal_s: float | None
    """From the burst's end until the latency was back to what it was before."""
    before_p99_ms: float
    worst_p99_ms: float
    count: Count


@dataclass(frozen=True, slots=True)
class Results:
    """All that one invocation found."""

    machine: str
    broker: str
    figures: Sequence[Figures] = ()
    lingers: Sequence[Figures] = ()
    latency: Sequence[Figures] = ()
    both: Sequence[Figures] = ()
    """Of both exchanges at once."""
    symbols: Sequence[Figures] = ()
    soak: Soak | None = None
    burst: Burst | None = None
    notes: Sequence[str] = field(default=())
