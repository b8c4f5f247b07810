"""The state of an instance at one moment: published by the supervisor, shown by everyone."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from feedmono.supervision import statelock

FILE = "status.json"
"""Name of the published snapshot in ``state_dir``."""

SAMPLE_S = 1.0
"""How often one is taken."""
# A status that is older is no status.
_SILENT_S = 10.0


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that the workers of an exchange have a budget of. Samples, alarms, metrics and
    ``feedmono status`` go by `RESOURCES`; what else is done when too much of one is used is a rule
    of `feedmono.supervision.budget`."""

    name: str
    """Of its alarm."""
    title: str
    setting: str
    """How much of it may be used: the field of `feedmono.config.Budget`,"""
    budget: str
    """and of `ExchangeStatus`."""
    used: str
    """How much is: the field of `WorkerStatus`, `ExchangeStatus`, `Tree`."""
    metric: str
    """The gauge of the budget, without ``feedmono_``,"""
    text: str
    """and what it tells."""
    unit: int
    """How many make one in the texts: of `budget`, of `used`, and of both in an alarm."""
    target_format: str
    actual_format: str
    alarm_format: str

    @property
    def total(self) -> str:
        """Of the alarm of all processes."""
        return f"total_{self.name}"


CPU = Resource(
    name="cpu",
    title="CPU",
    setting="cpu",
    budget="cpu_budget_cores",
    used="cpu_cores",
    metric="budget_cpu_cores",
    text="CPU that reader and serializer may use together.",
    unit=1,
    target_format="{:.2f}",
    actual_format="{:.3f}",
    alarm_format="{:.2f} of {:g} cores",
)
MEMORY = Resource(
    name="memory",
    title="memory",
    setting="memory_bytes",
    budget="memory_budget_bytes",
    used="memory_bytes",
    metric="budget_memory_bytes",
    text="Private memory that reader and serializer may use together.",
    unit=1 << 20,
    target_format="{:,.0f} MiB",
    actual_format="{:,.0f} MiB",
    alarm_format="{:,.0f} MiB of {:,.0f} MiB",
)
RESOURCES: Final = (CPU, MEMORY)


class Balance(NamedTuple):
    """A budget, and what is used of it."""

    resource: Resource
    actual: float
    target: float

    @property
    def target_text(self) -> str:
        return self.resource.target_format.format(self.target / self.resource.unit)

    @property
    def actual_text(self) -> str:
        return self.resource.actual_format.format(self.actual / self.resource.unit)

    @property
    def alarm_text(self) -> str:
        unit = self.resource.unit
        return self.resource.alarm_format.format(self.actual / unit, self.target / unit)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A process of an exchange, and those that it replaced."""

    role: str
    """``reader`` or ``serializer``."""
    pid: int | None
    """None while it is down."""
    cpu_cores: float
    cpu_s: float
    """What all processes of this role have used since the start."""
    memory_bytes: int
    """Private."""
    open_files: int
    restarts: Mapping[str, int] = field(default_factory=dict)
    """How often it was started again, by reason: ``crashed``, ``hung``, ``memory``, ``ring``,
    ``reload``."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that an operator should know, for as long as it lasts."""

    kind: str
    """A resource's name or `Resource.total`, or ``ring``, ``disk``, ``files``, ``clock``,
    ``hung``."""
    exchange: str
    """Empty if it concerns all."""
    text: str
    since_s: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system below a folder that feedmono writes to."""

    name: str
    """The folder's configuration key: ``state_dir``, ``files.dir``, ``ring_dir``."""
    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Tree:
    """All processes together: the supervisor, the workers, the status process."""

    cpu_cores: float = 0.0
    cpu_s: float = 0.0
    """Since the start, ended processes included."""
    memory_bytes: int = 0
    """Private."""
    open_files: int = 0
    """Of the process that has the most."""
    open_files_limit: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class ExchangeStatus:
    """One exchange. Times in seconds, sizes in bytes; None where there is nothing to tell yet."""

    name: str
    state: str
    """``starting``, ``connecting``, ``flowing``, ``partial`` (not all connections or symbols),
    ``waiting`` (for the sink, or for metadata), ``restarting``, ``ending`` (disabled),
    ``stopped``."""
    detail: str
    """Why, when the state is not ``flowing``."""
    trades_per_s: float
    trades: int
    delivered: int
    last_trade_age_s: float | None
    receive_p50_s: float | None
    delivery_p50_s: float | None
    delivery_p99_s: float | None
    ring_used_bytes: int
    ring_capacity_bytes: int
    cpu_cores: float
    cpu_budget_cores: float
    memory_bytes: int
    """Private memory of both workers; the ring's pages are not in it."""
    memory_budget_bytes: int
    reconnects: int
    restarts: int
    duplicates: int
    dead_letters: int
    symbols: int
    subscribed: int
    counts: Mapping[str, int] = field(default_factory=dict)
    """Every counter of the workers, by `feedmono.counters.Field` in lower case."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Symbol → why the exchange does not serve it."""
    reader_pid: int | None = None
    serializer_pid: int | None = None
    receive_p99_s: float | None = None
    workers: tuple[WorkerStatus, ...] = ()
    reconnect_reasons: Mapping[str, int] = field(default_factory=dict)
    sink_errors: Mapping[str, int] = field(default_factory=dict)
    """By kind."""
    budget_exceeded: Mapping[str, int] = field(default_factory=dict)
    """How often a budget was exceeded, by resource and action: ``cpu warn``, ``cpu throttle``,
    ``memory restart``."""
    throttle: float = 1.0
    """The share of its time that the serializer may work; 1: all of it, or more than one core."""
    clock_offset_s: float | None = None
    """The shortest time from the exchange's stamp to the socket, lately: how far this clock is
    ahead of the exchange's, and the way in it; negative: it is behind."""

    @property
    def balances(self) -> tuple[Balance, ...]:
        """Of each resource, for both workers together."""
        return tuple(Balance(r, getattr(self, r.used), getattr(self, r.budget)) for r in RESOURCES)


@dataclass(frozen=True, slots=True)
class Snapshot:
    pid: int
    started_at_s: float
    """Unix time."""
    taken_at_s: float
    """Unix time."""
    sink: str
    exchanges: tuple[ExchangeStatus, ...]
    tree: Tree = Tree()
    disks: tuple[Disk, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    http: str = ""
    """Where metrics, health and the page are served, such as ``http://127.0.0.1:9464``; empty
    while they are not."""

    @property
    def balances(self) -> tuple[Balance, ...]:
        """All processes against the sum of the budgets; empty without an exchange."""
        if not self.exchanges:
            return ()
        # With the supervisor and whoever else belongs to the instance, if that is known.
        users = (self.tree,) if self.tree.processes else self.exchanges
        return tuple(
            Balance(
                r,
                sum(getattr(user, r.used) for user in users),
                sum(getattr(exchange, r.budget) for exchange in self.exchanges),
            )
            for r in RESOURCES
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Snapshot:
        """:raises ValueError: this is no snapshot of this version."""
        try:
            content = json.loads(text)
            content["exchanges"] = tuple(_exchange(e) for e in content["exchanges"])
            content["tree"] = Tree(**content["tree"])
            content["disks"] = tuple(Disk(**disk) for disk in content["disks"])
            content["alarms"] = tuple(Alarm(**alarm) for alarm in content["alarms"])
            return cls(**content)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a snapshot: {error}") from error


def _exchange(content: dict[str, Any]) -> ExchangeStatus:
    workers = tuple(WorkerStatus(**worker) for worker in content.pop("workers"))
    return ExchangeStatus(**content, workers=workers)


def publish(snapshot: Snapshot, state_dir: Path) -> None:
    """Leaves it where other terminals find it."""
    state_dir.mkdir(parents=True, exist_ok=True)
    fresh = state_dir / (FILE + ".new")
    fresh.write_text(snapshot.to_json(), "utf-8")
    fresh.rename(state_dir / FILE)


def state_of(state_dir: Path) -> Snapshot | None:
    """The last sample of the instance that runs on *state_dir*; None if none runs there.

    :raises ValueError: it has not told for a while, or another version of feedmono runs there.
    """
    pid = statelock.holder(state_dir)
    if pid is None:
        return None
    first = _told_by(pid, state_dir)
    age_s = time.time() - first.taken_at_s
    if abs(age_s) <= _SILENT_S:
        return first
    # It hangs, or the clock was set since: then it tells anew before long.
    until_s = time.monotonic() + 3 * SAMPLE_S
    while time.monotonic() < until_s:
        time.sleep(SAMPLE_S / 20)
        state = _told_by(pid, state_dir)
        if state.taken_at_s != first.taken_at_s:
            return state
    age_s = max(age_s, 3 * SAMPLE_S)
    raise ValueError(f"process {pid} has not told how it does for {age_s:.0f} s: does it hang?")


def _told_by(pid: int, state_dir: Path) -> Snapshot:
    try:
        return Snapshot.from_json((state_dir / FILE).read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"process {pid} is starting or ending") from None
