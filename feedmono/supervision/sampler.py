"""What an instance's counters, rings and processes say at one moment: the supervisor's samples."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
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
from feedmono.supervision.processes import Usage, open_files_limit
from feedmono.supervision.snapshot import RESOURCES, ExchangeStatus, Tree, WorkerStatus

# Rates and latencies are those of the last samples: long enough to be read, short enough to live.
_SAMPLES = 10


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
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES + 1)
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
        counters = self._counters
        now, before = self._look(known, usages)
        span_s = now.at_s - before.at_s if before is not now else math.inf
        receive = _difference(now.receive, before.receive)
        delivery = _difference(now.delivery, before.delivery)
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
            last_trade_age_s=self._last_trade_age_s(),
            receive_p50_s=quantile(receive, 0.5),
            receive_p99_s=quantile(receive, 0.99),
            delivery_p50_s=quantile(delivery, 0.5),
            delivery_p99_s=quantile(delivery, 0.99),
            ring_used_bytes=self._ring.used_bytes,
            ring_capacity_bytes=self._ring.capacity_bytes,
            **self._balances(statuses),
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
            clock_offset_s=self._clock_offset_s(known),
        )

    def _balances(self, statuses: Sequence[WorkerStatus]) -> dict[str, Any]:
        """What is used of each resource, and what may be."""
        used = {r.used: sum(getattr(worker, r.used) for worker in statuses) for r in RESOURCES}
        return used | {r.budget: getattr(self.exchange.budget, r.setting) for r in RESOURCES}

    def _look(self, known: Workers, usages: Mapping[int, Usage]) -> tuple[_Sample, _Sample]:
        """What is counted and used by now, and what was when the time that is shown began."""
        for role, pid in known.pids.items():
            usage = usages.get(pid) if pid is not None else None
            self._roles.setdefault(role, Role()).look(pid, usage)
        now = _Sample(
            at_s=time.monotonic(),
            trades=self._counters[Field.TRADES],
            cpu_s={name: role.cpu_s for name, role in self._roles.items()},
            receive=self._counters.buckets(Histogram.RECEIVE),
            delivery=self._counters.buckets(Histogram.DELIVERY),
        )
        before = self._samples[0] if self._samples else now
        self._samples.append(now)
        return now, before

    def _last_trade_age_s(self) -> float | None:
        last_ns = self._counters[Field.LAST_TRADE_NS]
        return max(0.0, time.time() - last_ns / 1e9) if last_ns else None

    def _clock_offset_s(self, known: Workers) -> float | None:
        offset_ns = self._counters.signed(Field.CLOCK_OFFSET_NS)
        if offset_ns == NO_OFFSET or not known.pids.get("serializer"):
            return None
        return offset_ns / 1e9

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


class TreeSampler:
    """Samples all processes of an instance together."""

    def __init__(self) -> None:
        self._roles = {"supervisor": Role(), "status": Role()}
        self._gone_s = 0.0
        """CPU time of the exchanges that are not served any more."""
        self._cpu: deque[tuple[float, float]] = deque(maxlen=_SAMPLES + 1)

    def forget(self, exchange: ExchangeStatus) -> None:
        """It is not served any more; what it has used stays counted."""
        self._gone_s += sum(worker.cpu_s for worker in exchange.workers)

    def sample(
        self,
        status_pid: int | None,
        exchanges: Sequence[ExchangeStatus],
        usages: Mapping[int, Usage],
    ) -> Tree:
        """What they use now.

        :param usages: by pid, of all of them.
        """
        now_s = time.monotonic()
        for name, pid in (("supervisor", os.getpid()), ("status", status_pid)):
            self._roles[name].look(pid, usages.get(pid) if pid is not None else None)
        cpu_s = self._gone_s + sum(role.cpu_s for role in self._roles.values())
        cpu_s += sum(worker.cpu_s for exchange in exchanges for worker in exchange.workers)
        before_s, cpu_before_s = self._cpu[0] if self._cpu else (-math.inf, 0.0)
        self._cpu.append((now_s, cpu_s))
        return Tree(
            cpu_cores=max(0.0, cpu_s - cpu_before_s) / (now_s - before_s),
            cpu_s=cpu_s,
            memory_bytes=sum(usage.memory_bytes for usage in usages.values()),
            open_files=max((usage.open_files for usage in usages.values()), default=0),
            open_files_limit=open_files_limit(),
            processes=len(usages),
        )


def _difference(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    """What was counted between two samples; all there is if nothing was."""
    difference = tuple(a - b for a, b in zip(now, before, strict=True))
    return difference if any(difference) else now
