"""The state of an instance at one moment: sampled by the supervisor, shown by everyone."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feedmono import workers
from feedmono.config import Config, ExchangeConfig
from feedmono.counters import (
    NO_OFFSET,
    RECONNECT_REASONS,
    SINK_ERROR_KINDS,
    Counters,
    Field,
    Histogram,
    quantile,
)
from feedmono.ring import Ring
from feedmono.supervision import statelock
from feedmono.supervision.processes import Usage

FILE = "status.json"
"""Name of the published snapshot in ``state_dir``."""

SAMPLE_S = 1.0
"""How often one is taken."""
# A status that is older is no status.
_SILENT_S = 10.0
# Rates and latencies are those of the last samples: long enough to be read, short enough to live.
SAMPLES = 10


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
    """``cpu``, ``memory``, ``total_cpu``, ``total_memory``, ``ring``, ``disk``, ``files``,
    ``clock``, ``hung``."""
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


@dataclass(frozen=True, slots=True)
class Workers:
    """What the supervisor knows of an exchange's processes."""

    pids: Mapping[str, int | None]
    """By role."""
    restarting: str = ""
    """Which worker is down, and for how long yet; empty if none is."""
    restarts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By role and reason."""
    budget_exceeded: Mapping[str, int] = field(default_factory=dict)
    ending: bool = False
    """The exchange is not to be served any more."""


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    trades: int
    cpu_s: Mapping[str, float]
    """By role."""
    receive: tuple[int, ...]
    delivery: tuple[int, ...]


class Role:
    """What all processes of a role have used, one after the other."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._before_s = 0.0
        self.usage: Usage | None = None
        """Of the process that runs."""

    @property
    def cpu_s(self) -> float:
        return self._before_s + (self.usage.cpu_s if self.usage else 0.0)

    def look(self, pid: int | None, usage: Usage | None) -> None:
        """Takes a look at the process that runs now."""
        if usage is None and pid == self._pid:
            # It is ending; what it was seen to use counts until it has a successor.
            return
        if pid != self._pid:
            self._before_s, self.usage = self.cpu_s, None
            self._pid = pid
        self.usage = usage


class Sampler:
    """Samples one exchange: its counters, its ring, its processes."""

    def __init__(self, config: Config, exchange: ExchangeConfig) -> None:
        self.exchange = exchange
        """May be replaced by one that differs in symbols and budget."""
        self._shared = workers.Shared.of(config, exchange.name)
        self._counters: Counters
        self._ring: Ring
        self.reopen()
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES + 1)
        self._roles: dict[str, Role] = {}
        self._notes: dict[Path, tuple[int, Mapping[str, object]]] = {}

    def reopen(self) -> None:
        """Looks at the ring and the counters that are there now.

        :raises OSError, RingError: they can't be opened.
        """
        self._counters = Counters(self._shared.counters)
        self._ring = Ring(self._shared.ring)

    def sample(self, known: Workers, usages: Mapping[int, Usage]) -> ExchangeStatus:
        """The exchange's state now.

        :param usages: by pid, of the workers at least.
        """
        for role, pid in known.pids.items():
            usage = usages.get(pid) if pid is not None else None
            self._roles.setdefault(role, Role()).look(pid, usage)
        counters = self._counters
        now = _Sample(
            time.monotonic(),
            counters[Field.TRADES],
            {name: role.cpu_s for name, role in self._roles.items()},
            counters.buckets(Histogram.RECEIVE),
            counters.buckets(Histogram.DELIVERY),
        )
        before = self._samples[0] if self._samples else now
        self._samples.append(now)
        span_s = now.at_s - before.at_s if before is not now else math.inf
        receive = _difference(now.receive, before.receive)
        delivery = _difference(now.delivery, before.delivery)
        last_ns = counters[Field.LAST_TRADE_NS]
        offset_ns = counters.signed(Field.CLOCK_OFFSET_NS)
        if not known.pids.get("serializer"):
            offset_ns = NO_OFFSET
        state, detail = self._state(known)
        statuses = tuple(
            self._worker(name, role, known, before, span_s) for name, role in self._roles.items()
        )
        return ExchangeStatus(
            name=self.exchange.name,
            state=state,
            detail=detail,
            trades_per_s=(now.trades - before.trades) / span_s,
            trades=now.trades,
            delivered=counters[Field.DELIVERED_TRADES],
            last_trade_age_s=max(0.0, time.time() - last_ns / 1e9) if last_ns else None,
            receive_p50_s=quantile(receive, 0.5),
            receive_p99_s=quantile(receive, 0.99),
            delivery_p50_s=quantile(delivery, 0.5),
            delivery_p99_s=quantile(delivery, 0.99),
            ring_used_bytes=self._ring.used_bytes,
            ring_capacity_bytes=self._ring.capacity_bytes,
            cpu_cores=sum(worker.cpu_cores for worker in statuses),
            cpu_budget_cores=self.exchange.budget.cpu,
            memory_bytes=sum(worker.memory_bytes for worker in statuses),
            memory_budget_bytes=self.exchange.budget.memory_bytes,
            reconnects=counters[Field.RECONNECTS],
            restarts=sum(sum(worker.restarts.values()) for worker in statuses),
            duplicates=counters[Field.DUPLICATES],
            dead_letters=counters[Field.DEAD_LETTERS],
            symbols=len(self.exchange.symbols),
            subscribed=counters[Field.SUBSCRIBED],
            counts={f.name.lower(): counters[f] for f in Field},
            refused=self._refused(),
            reader_pid=known.pids.get("reader"),
            serializer_pid=known.pids.get("serializer"),
            workers=statuses,
            reconnect_reasons={r: counters[f] for r, f in RECONNECT_REASONS.items()},
            sink_errors={kind: counters[f] for kind, f in SINK_ERROR_KINDS.items()},
            budget_exceeded=dict(known.budget_exceeded),
            throttle=min((counters[Field.THROTTLE] or 1000) / 1000, 1.0),
            clock_offset_s=None if offset_ns == NO_OFFSET else offset_ns / 1e9,
        )

    def _worker(
        self, name: str, role: Role, known: Workers, before: _Sample, span_s: float
    ) -> WorkerStatus:
        usage = role.usage
        return WorkerStatus(
            role=name,
            pid=known.pids[name],
            cpu_cores=(role.cpu_s - before.cpu_s.get(name, 0.0)) / span_s,
            cpu_s=role.cpu_s,
            memory_bytes=usage.memory_bytes if usage else 0,
            open_files=usage.open_files if usage else 0,
            restarts=dict(known.restarts.get(name, {})),
        )

    def beats(self, role: str) -> tuple[int, float]:
        """The beats of that worker so far, and how long it may be until the next one."""
        if role == "reader":
            return self._counters[Field.READER_BEATS], 0.0
        counters = self._counters
        return counters[Field.SERIALIZER_BEATS], counters[Field.SERIALIZER_ALLOWANCE_S]

    def begin(self, role: str) -> int:
        """A worker of that role begins; its beats so far. An allowance of its predecessor's is
        not its own."""
        if role == "serializer":
            self._counters[Field.SERIALIZER_ALLOWANCE_S] = 0
            self._counters[Field.SINK_READY] = 0
        return self.beats(role)[0]

    def throttle(self, cores: float) -> bool:
        """What the serializer may use; infinite: all it wants. Whether a throttle begins or
        ends by that."""
        parts = 0 if cores == math.inf else max(1, round(cores * 1000))
        before = self._counters[Field.THROTTLE]
        self._counters[Field.THROTTLE] = parts
        return bool(before) != bool(parts)

    @property
    def sink_ready(self) -> bool:
        """Whether the serializer delivers."""
        return self._counters[Field.SINK_READY] == 1

    @property
    def ring_used_bytes(self) -> int:
        """What waits in the ring now."""
        return self._ring.used_bytes

    def progress(self, role: str) -> int:
        """What moves while a worker of that role does its work: frames taken in by a ``reader``,
        bytes of the ring acknowledged by a ``serializer``."""
        return self._counters[Field.FRAMES] if role == "reader" else self._ring.acknowledged

    def _state(self, known: Workers) -> tuple[str, str]:
        counters = self._counters
        if known.ending:
            return "ending", "disabled: what the ring holds is delivered"
        if known.restarting:
            return "restarting", known.restarting
        if not any(known.pids.values()):
            return "stopped", ""
        trouble = str(self._note(self._shared.serializer_note).get("trouble", ""))
        if trouble:
            return "waiting", trouble
        connections, connected = counters[Field.CONNECTIONS], counters[Field.CONNECTED]
        if not connections or not known.pids.get("reader"):
            return "starting", ""
        if not connected:
            return "connecting", "no connection brings trades yet"
        if connected < connections:
            return "partial", f"{connected} of {connections} connections"
        if counters[Field.REFUSED]:
            return "partial", f"{counters[Field.REFUSED]} symbols refused"
        return "flowing", ""

    def _refused(self) -> Mapping[str, str]:
        refused = self._note(self._shared.reader_note).get("refused", {})
        return refused if isinstance(refused, dict) else {}

    def _note(self, path: Path) -> Mapping[str, object]:
        """What a worker published; read again only when it changed."""
        try:
            changed_ns = path.stat().st_mtime_ns
        except OSError:
            return {}
        if self._notes.get(path, (0, {}))[0] != changed_ns:
            self._notes[path] = (changed_ns, workers.published(path) or {})
        return self._notes[path][1]


def _difference(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    """What was counted between two samples; all there is if nothing was."""
    difference = tuple(a - b for a, b in zip(now, before, strict=True))
    return difference if any(difference) else now
