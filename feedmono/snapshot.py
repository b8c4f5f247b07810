"""The state of an instance at one moment: sampled by the supervisor, shown by everyone."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from feedmono import workers
from feedmono.config import Config, ExchangeConfig
from feedmono.counters import Counters, Field, Histogram, quantile
from feedmono.ring import Ring

FILE = "status.json"
"""Name of the published snapshot in ``state_dir``."""

# Rates and latencies are those of the last samples: long enough to be read, short enough to live.
_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class ExchangeStatus:
    """One exchange. Times in seconds, sizes in bytes; None where there is nothing to tell yet."""

    name: str
    state: str
    """``starting``, ``connecting``, ``flowing``, ``partial`` (not all connections or symbols),
    ``waiting`` (for the sink, or for metadata), ``restarting``, ``stopped``."""
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    pid: int
    started_at_s: float
    """Unix time."""
    taken_at_s: float
    """Unix time."""
    sink: str
    exchanges: tuple[ExchangeStatus, ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Snapshot:
        """:raises ValueError: this is no snapshot of this version."""
        try:
            content = json.loads(text)
            content["exchanges"] = tuple(ExchangeStatus(**e) for e in content["exchanges"])
            return cls(**content)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a snapshot: {error}") from error


def publish(snapshot: Snapshot, state_dir: Path) -> None:
    """Leaves it where other terminals find it."""
    state_dir.mkdir(parents=True, exist_ok=True)
    fresh = state_dir / (FILE + ".new")
    fresh.write_text(snapshot.to_json(), "utf-8")
    fresh.rename(state_dir / FILE)


@dataclass(frozen=True, slots=True)
class Workers:
    """What the supervisor knows of an exchange's processes."""

    reader_pid: int | None
    serializer_pid: int | None
    restarts: int
    restarting: str
    """Which worker is down, and for how long yet; empty if none is."""


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    trades: int
    cpu_s: Mapping[int, float]
    receive: tuple[int, ...]
    delivery: tuple[int, ...]


class Sampler:
    """Samples one exchange: its counters, its ring, its processes."""

    def __init__(self, config: Config, exchange: ExchangeConfig) -> None:
        self._config = exchange
        self._shared = workers.Shared.of(config, exchange.name)
        self._counters = Counters(self._shared.counters)
        self._ring = Ring(self._shared.ring)
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES + 1)
        self._processes: dict[int, psutil.Process] = {}
        self._notes: dict[Path, tuple[int, Mapping[str, object]]] = {}

    def sample(self, known: Workers) -> ExchangeStatus:
        """The exchange's state now."""
        pids = [p for p in (known.reader_pid, known.serializer_pid) if p]
        cpu_s, memory_bytes = self._resources(pids)
        counters = self._counters
        now = _Sample(
            time.monotonic(),
            counters[Field.TRADES],
            cpu_s,
            counters.buckets(Histogram.RECEIVE),
            counters.buckets(Histogram.DELIVERY),
        )
        before = self._samples[0] if self._samples else now
        self._samples.append(now)
        span_s = max(now.at_s - before.at_s, 1e-9)
        used_s = sum(s - before.cpu_s.get(pid, 0.0) for pid, s in cpu_s.items())
        delivery = _difference(now.delivery, before.delivery)
        last_ns = counters[Field.LAST_TRADE_NS]
        state, detail = self._state(known)
        return ExchangeStatus(
            name=self._config.name,
            state=state,
            detail=detail,
            trades_per_s=(now.trades - before.trades) / span_s if before is not now else 0.0,
            trades=now.trades,
            delivered=counters[Field.DELIVERED_TRADES],
            last_trade_age_s=max(0.0, time.time() - last_ns / 1e9) if last_ns else None,
            receive_p50_s=quantile(_difference(now.receive, before.receive), 0.5),
            delivery_p50_s=quantile(delivery, 0.5),
            delivery_p99_s=quantile(delivery, 0.99),
            ring_used_bytes=self._ring.used_bytes,
            ring_capacity_bytes=self._ring.capacity_bytes,
            cpu_cores=used_s / span_s if before is not now else 0.0,
            cpu_budget_cores=self._config.budget.cpu,
            memory_bytes=memory_bytes,
            memory_budget_bytes=self._config.budget.memory_bytes,
            reconnects=counters[Field.RECONNECTS],
            restarts=known.restarts,
            duplicates=counters[Field.DUPLICATES],
            dead_letters=counters[Field.DEAD_LETTERS],
            symbols=len(self._config.symbols),
            subscribed=counters[Field.SUBSCRIBED],
            counts={f.name.lower(): counters[f] for f in Field},
            refused=self._refused(),
            reader_pid=known.reader_pid,
            serializer_pid=known.serializer_pid,
        )

    def progress(self, role: str) -> int:
        """What moves while a worker of that role does its work: frames taken in by a ``reader``,
        bytes of the ring acknowledged by a ``serializer``."""
        return self._counters[Field.FRAMES] if role == "reader" else self._ring.acknowledged

    def _state(self, known: Workers) -> tuple[str, str]:
        counters = self._counters
        if known.restarting:
            return "restarting", known.restarting
        if not (known.reader_pid or known.serializer_pid):
            return "stopped", ""
        trouble = str(self._note(self._shared.serializer_note).get("trouble", ""))
        if trouble:
            return "waiting", trouble
        connections, connected = counters[Field.CONNECTIONS], counters[Field.CONNECTED]
        if not connections or not known.reader_pid:
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

    def _resources(self, pids: Sequence[int]) -> tuple[dict[int, float], int]:
        """CPU seconds per process so far, and their private memory together."""
        self._processes = {p: self._processes.get(p) or psutil.Process(p) for p in pids if _is(p)}
        cpu_s: dict[int, float] = {}
        memory_bytes = 0
        for pid, process in self._processes.items():
            try:
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_info()
            except psutil.Error:
                continue
            cpu_s[pid] = times.user + times.system
            memory_bytes += memory.rss - memory.shared
        return cpu_s, memory_bytes


def _is(pid: int) -> bool:
    return psutil.pid_exists(pid)


def _difference(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    """What was counted between two samples; all there is if nothing was."""
    difference = tuple(a - b for a, b in zip(now, before, strict=True))
    return difference if any(difference) else now
