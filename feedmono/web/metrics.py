"""What ``/metrics`` tells: a look at the instance as Prometheus's metric families.

The only file that knows prometheus_client. docs/METRICS.md lists every metric.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from feedmono.counters import (
    BOUNDS_S,
    NO_OFFSET,
    RECONNECT_REASONS,
    SINK_ERROR_KINDS,
    Field,
    Histogram,
)
from feedmono.supervision.snapshot import RESOURCES, ExchangeStatus, Snapshot
from feedmono.web.health import Health, SymbolHealth
from feedmono.web.observer import ExchangeView, SymbolView, View

if TYPE_CHECKING:
    from prometheus_client.core import Metric

STATES = (
    "starting", "connecting", "flowing", "partial", "waiting", "restarting", "ending",
    "stopped",
)  # fmt: skip
"""Of an exchange, as `ExchangeStatus.state` has them."""
RESTART_REASONS = ("crashed", "hung", "memory", "ring", "reload")
BUDGET_ACTS = ("cpu warn", "cpu throttle", "memory restart")
EXCHANGE_ALARMS = (*(r.name for r in RESOURCES), "ring", "clock", "hung")
COMMON_ALARMS = (*(r.total for r in RESOURCES), "disk", "files")
_ROLES = ("reader", "serializer")

_BOUNDS = [*(f"{bound}" for bound in BOUNDS_S), "+Inf"]


class Page(NamedTuple):
    """An answer to a scrape."""

    content_type: str
    body: bytes


class Exporter:
    """Puts looks at an instance into the format that a scraper asks for."""

    def __init__(self) -> None:
        self._build: Mapping[str, str] | None = None

    def page(self, view: View, health: Health, accept: str) -> Page:
        """All metrics; *accept* is the request's header of that name."""
        from prometheus_client import CollectorRegistry  # noqa: PLC0415  0.1 s
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

        if self._build is None:
            self._build = _build()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Look(view, health, self._build))
        encode, content_type = choose_encoder(accept)
        return Page(content_type, encode(registry))


def _build() -> Mapping[str, str]:
    """What runs."""
    from importlib import metadata  # noqa: PLC0415  2 MB, which only a scrape has to pay for

    try:
        version = metadata.version("feedmono")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {"version": version, "python": platform.python_version()}


class _Look:
    """One look, as prometheus_client's collector."""

    def __init__(self, view: View, health: Health, build: Mapping[str, str]) -> None:
        self._view = view
        self._health = health
        self._build = build

    def collect(self) -> Iterator[Metric]:
        view, health = self._view, self._health
        yield from _process(view, health, self._build)
        if view.snapshot is not None:
            yield from _instance(view.snapshot)
            yield from _budgets(view.snapshot.exchanges)
            yield from _workers(view.snapshot.exchanges)
        yield from _exchanges(view, health)
        yield from _counted(view.exchanges)
        yield from _latencies(view.exchanges)
        yield from _symbols(view, health)


# --- the families, without their prefix


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[_Row]) -> Metric:
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415

    family = CounterMetricFamily(f"feedmono_{name}", text, labels=labels)
    for row in rows:
        family.add_metric(row.labels, row.value)
    return family


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[_Row]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

    family = GaugeMetricFamily(f"feedmono_{name}", text, labels=labels)
    for row in rows:
        family.add_metric(row.labels, row.value)
    return family


class _Row(NamedTuple):
    """A sample."""

    value: float
    labels: tuple[str, ...] = ()


def _process(view: View, health: Health, build: Mapping[str, str]) -> Iterator[Metric]:
    """What there is even while the instance does not tell how it does."""
    from prometheus_client.core import InfoMetricFamily  # noqa: PLC0415

    yield InfoMetricFamily("feedmono_build", "1; what runs stands in the labels.", dict(build))
    yield _gauge(
        "alive",
        "1 while the supervisor renews its status, as /healthz.",
        [],
        [_Row(health.dead is None)],
    )
    yield _gauge("ready", "1 while all is well, as /readyz.", [], [_Row(not health.reasons)])
    yield _gauge(
        "status_age_seconds",
        "How long ago the supervisor renewed its status.",
        [],
        [_Row(view.snapshot_age_s)],
    )


def _instance(state: Snapshot) -> Iterator[Metric]:
    """What concerns all processes together."""
    tree, exchanges = state.tree, [e.name for e in state.exchanges]
    yield _gauge(
        "start_time_seconds", "When it started, Unix time.", [], [_Row(state.started_at_s)]
    )
    yield _counter(
        "cpu_seconds", "CPU time of all processes, ended ones included.", [], [_Row(tree.cpu_s)]
    )
    yield _gauge("memory_bytes", "Private memory of all processes.", [], [_Row(tree.memory_bytes)])
    yield _gauge("processes", "Processes that run.", [], [_Row(tree.processes)])
    yield _gauge(
        "open_files", "Open files of the process that has the most.", [], [_Row(tree.open_files)]
    )
    yield _gauge(
        "open_files_limit",
        "How many open files that process may have.",
        [],
        [_Row(tree.open_files_limit)],
    )
    for name, text, value in (
        ("disk_free_bytes", "Free space of the file system below a folder.", "free_bytes"),
        ("disk_size_bytes", "Size of the file system below a folder.", "total_bytes"),
    ):
        rows = [_Row(getattr(disk, value), (disk.name,)) for disk in state.disks]
        yield _gauge(name, text, ["folder"], rows)
    active = {(alarm.kind, alarm.exchange) for alarm in state.alarms}
    known = {(kind, name) for kind in EXCHANGE_ALARMS for name in exchanges}
    known |= {(kind, "") for kind in COMMON_ALARMS}
    yield _gauge(
        "alarm_active",
        "1 while the supervisor raises an alarm of that kind.",
        ["kind", "exchange"],
        [_Row(alarm in active, alarm) for alarm in sorted(known | active)],
    )


def _budgets(exchanges: Sequence[ExchangeStatus]) -> Iterator[Metric]:
    for name, text, value in _OF_STATUS:
        yield _gauge(name, text, ["exchange"], [_Row(value(e), (e.name,)) for e in exchanges])
    rows = [
        _Row(e.budget_exceeded.get(act, 0), (e.name, *act.partition(" ")[::2]))
        for e in exchanges
        for act in dict.fromkeys([*BUDGET_ACTS, *e.budget_exceeded])
    ]
    labels = ["exchange", "resource", "action"]
    yield _counter("budget_exceeded", "How often a budget was exceeded.", labels, rows)


_OF_STATUS: tuple[tuple[str, str, Callable[[ExchangeStatus], float]], ...] = (
    ("ring_used_bytes", "What waits in the ring.", lambda e: e.ring_used_bytes),
    ("ring_capacity_bytes", "What the ring holds at most.", lambda e: e.ring_capacity_bytes),
    *((r.metric, r.text, attrgetter(r.budget)) for r in RESOURCES),
    (
        "throttle_ratio",
        "Share of its time that the serializer may work; 1: all of it.",
        lambda e: e.throttle,
    ),
    ("symbols", "Symbols that are configured.", lambda e: e.symbols),
)


def _workers(exchanges: Sequence[ExchangeStatus]) -> Iterator[Metric]:
    labels = ["exchange", "worker"]
    own = [(e.name, worker) for e in exchanges for worker in e.workers]
    yield _gauge(
        "worker_up",
        "1 while the process runs.",
        labels,
        [_Row(worker.pid is not None, (name, worker.role)) for name, worker in own],
    )
    yield _counter(
        "worker_restarts",
        "How often it was started again.",
        [*labels, "reason"],
        [
            _Row(worker.restarts.get(reason, 0), (name, worker.role, reason))
            for name, worker in own
            for reason in dict.fromkeys([*RESTART_REASONS, *worker.restarts])
        ],
    )
    yield _counter(
        "worker_cpu_seconds",
        "CPU time, that of the processes before it included.",
        labels,
        [_Row(worker.cpu_s, (name, worker.role)) for name, worker in own],
    )
    yield _gauge(
        "worker_memory_bytes",
        "Private memory; the ring's pages are not in it.",
        labels,
        [_Row(worker.memory_bytes, (name, worker.role)) for name, worker in own],
    )
    yield _gauge(
        "worker_open_files",
        "Open files.",
        labels,
        [_Row(worker.open_files, (name, worker.role)) for name, worker in own],
    )


def _exchanges(view: View, health: Health) -> Iterator[Metric]:
    """What is judged or reckoned, per exchange."""
    exchanges = view.exchanges
    yield _gauge(
        "exchange_ready",
        "1 while the exchange is connected, fresh and acknowledged, as /readyz.",
        ["exchange"],
        [_Row(health.ready(name), (name,)) for name in exchanges],
    )
    yield _gauge(
        "exchange_state",
        "1 for the state that the exchange is in, 0 for the others.",
        ["exchange", "state"],
        [
            _Row(e.status.state == state, (name, state))
            for name, e in exchanges.items()
            if e.status is not None
            for state in dict.fromkeys([*STATES, e.status.state])
        ],
    )
    yield _gauge(
        "connection_state",
        "0: no connection brings trades, 1: some do, 2: all do.",
        ["exchange"],
        [_Row(_connection_state(e), (name,)) for name, e in exchanges.items()],
    )
    yield _gauge(
        "last_trade_age_seconds",
        "Since the newest trade came off its socket; none before the first.",
        ["exchange"],
        [
            _Row(_age_s(view, e.count(Field.LAST_TRADE_NS) * 1e-9), (name,))
            for name, e in exchanges.items()
            if e.count(Field.LAST_TRADE_NS)
        ],
    )
    yield _gauge(
        "clock_offset_seconds",
        "Shortest time from the exchange's stamp to the socket in the last minute.",
        ["exchange"],
        [
            _Row(offset_s, (name,))
            for name, e in exchanges.items()
            if (offset_s := _clock_offset_s(e)) is not None
        ],
    )
    yield _gauge(
        "ledger_readable",
        "1 while the ledger could be read the last time.",
        ["exchange"],
        [_Row(not e.ledger_trouble, (name,)) for name, e in exchanges.items()],
    )


def _connection_state(view: ExchangeView) -> int:
    wanted, flowing = view.count(Field.CONNECTIONS), view.count(Field.CONNECTED)
    running = view.status is not None and view.status.reader_pid is not None
    return 0 if not flowing or not running else 1 if flowing < wanted else 2


def _clock_offset_s(view: ExchangeView) -> float | None:
    if view.counters is None:
        return view.status.clock_offset_s if view.status else None
    offset_ns = view.counters.signed(Field.CLOCK_OFFSET_NS)
    # Of a page that is new, no look at the clocks has been counted yet.
    return offset_ns * 1e-9 if offset_ns not in (0, NO_OFFSET) else None


def _counted(exchanges: Mapping[str, ExchangeView]) -> Iterator[Metric]:
    for field in Field:
        if (metric := field.metric) is not None:
            rows = [_Row(e.count(field), (exchange,)) for exchange, e in exchanges.items()]
            family = _counter if metric.type == "counter" else _gauge
            yield family(metric.name, metric.text, ["exchange"], rows)
    for name, text, label, kinds in (
        ("reconnects", "Connections lost or replaced, by reason.", "reason", RECONNECT_REASONS),
        ("sink_errors", "Errors of the sink, by kind.", "kind", SINK_ERROR_KINDS),
    ):
        rows = [
            _Row(e.count(field), (exchange, kind))
            for exchange, e in exchanges.items()
            for kind, field in kinds.items()
        ]
        yield _counter(name, text, ["exchange", label], rows)
    beats = {"reader": Field.READER_BEATS, "serializer": Field.SERIALIZER_BEATS}
    rows = [
        _Row(e.count(beats[role]), (exchange, role))
        for exchange, e in exchanges.items()
        for role in _ROLES
    ]
    text = "Moves as long as the process comes round."
    yield _counter("worker_heartbeats", text, ["exchange", "worker"], rows)


def _latencies(exchanges: Mapping[str, ExchangeView]) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415

    for histogram in Histogram:
        metric = histogram.metric
        name = f"feedmono_{metric.name}"
        family = HistogramMetricFamily(name, metric.text, labels=["exchange"])
        for exchange, view in exchanges.items():
            if view.counters is None:
                continue
            total, buckets = 0, []
            for bound, count in zip(_BOUNDS, view.counters.buckets(histogram), strict=True):
                total += count
                buckets.append((bound, float(total)))
            family.add_metric([exchange], buckets, view.counters.sum_s(histogram))
        yield family


def _symbols(view: View, health: Health) -> Iterator[Metric]:
    """What the ledger tells of each symbol. The names are others than those of the exchanges'
    totals: what has the same name adds up."""
    nothing = SymbolHealth(0.0, None, None)
    rows = [
        ((exchange, name), symbol, health.symbols[exchange].get(name, nothing))
        for exchange, e in view.exchanges.items()
        for name, symbol in e.symbols.items()
    ]
    labels = ["exchange", "symbol"]
    yield _counter(
        "symbol_trades",
        "Trades delivered of the present epoch of the symbol's ids, earlier runs included.",
        labels,
        [_Row(symbol.trades, key) for key, symbol, _ in rows],
    )
    for name, text, value in _OF_SYMBOL:
        yield _gauge(name, text, labels, [_Row(value(view, s), key) for key, s, _ in rows])
    yield _gauge(
        "symbol_stale",
        "1 while nothing came for much longer than usual.",
        labels,
        [_Row(judged.stale, key) for key, _, judged in rows],
    )
    yield _gauge(
        "symbol_usual_gap_seconds",
        "Usual time between two trades, as far as it is known.",
        labels,
        [_Row(j.usual_gap_s, key) for key, _, j in rows if j.usual_gap_s is not None],
    )


def _gap_age_s(view: View, symbol: SymbolView) -> float:
    oldest_us = symbol.oldest_hole_us
    return 0.0 if oldest_us is None else _age_s(view, oldest_us * 1e-6)


_OF_SYMBOL: tuple[tuple[str, str, Callable[[View, SymbolView], float]], ...] = (
    (
        "symbol_last_trade_age_seconds",
        "Since the exchange's time of the newest trade delivered.",
        lambda view, symbol: _age_s(view, symbol.newest_us * 1e-6),
    ),
    ("symbol_gaps_open", "Gaps that are open now.", lambda _, symbol: symbol.holes_open),
    (
        "symbol_gap_trades_open",
        "Trade ids in the gaps that are open now.",
        lambda _, symbol: symbol.open_trades,
    ),
    (
        "symbol_gap_age_seconds",
        "Since the oldest of the open gaps was found; 0 without one.",
        _gap_age_s,
    ),
)


def _age_s(view: View, at_s: float) -> float:
    return max(0.0, view.at_s - at_s)
