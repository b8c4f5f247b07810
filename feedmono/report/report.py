"""``feedmono report``: what an instance did over a time, as the tables that users publish.

The figures come from a running instance that is watched, or from the samples that were kept; what
is said of the payload comes from records that are read back from the sink and judged one by one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feedmono import events
from feedmono.config import Config
from feedmono.events import Event
from feedmono.report import check as report_check
from feedmono.report.check import Checked
from feedmono.supervision import samples
from feedmono.supervision.samples import Row, in_steps, merge
from feedmono.supervision.samples_row import Deltas
from feedmono.supervision.snapshot import Alarm, ExchangeStatus, Snapshot

KEPT_S = 3600.0
"""How far back a report from kept samples looks."""

OK, NOTE, AT_TIMES, OVER, FAILED, UNCHECKED = (
    "ok",
    "note",
    "at times",
    "over",
    "failed",
    "unchecked",
)
"""What a line's status may be. ``note``: it happened, and costs no trade by itself. ``at times``:
over the budget for ten seconds or more, and not over it in the mean."""

# The supervisor judges CPU by the mean of so long.
_JUDGED_S = 10
_POLL_S = 0.1
_MAX_ACTS = 100
_MAX_EVENTS = 5000
# What is done about a budget is told below the level of a warning.
_ACTS = frozenset({"throttled", "throttle lifted", "alarm is over", "reloaded"})
_NOT_FIELDS = frozenset({"pid", "path"})


@dataclass(frozen=True, slots=True)
class Line:
    """*Metric | Actual | Status*."""

    metric: str
    actual: str
    status: str


@dataclass(frozen=True, slots=True)
class Target:
    """*Metric | Target | Actual | Status*."""

    metric: str
    target: str
    actual: str
    status: str


@dataclass(frozen=True, slots=True)
class Act:
    """Something that was done or went wrong within the time."""

    at_s: float
    """Unix time."""
    level: str
    exchange: str
    text: str


@dataclass(frozen=True, slots=True)
class Validation:
    """The first table of an exchange, and its figures."""

    exchange: str
    lines: tuple[Line, ...]
    total: Row
    """All of the time as one row."""
    checked: Checked


@dataclass(frozen=True, slots=True)
class Report:
    since_s: float
    """Unix time; so is `until_s`."""
    until_s: float
    sampled_s: float
    """How much of that time there are samples of."""
    source: str
    """``watched``: a running instance was; ``kept``: from the samples in ``state_dir``."""
    state_dir: str
    sink: str
    validations: tuple[Validation, ...]
    resources: tuple[Target, ...]
    acts: tuple[Act, ...]
    acts_left_out: int
    """Older ones that are not among `acts`."""
    notes: tuple[str, ...]
    """What limits the report."""
    rows: tuple[Row, ...]
    """The samples, for plots; those of all processes together have no exchange."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen of a time."""

    rows: tuple[Row, ...]
    source: str
    state: Snapshot | None
    """The last; None: nothing runs."""
    before: Snapshot | None = None
    """The first, of the same supervisor as the last; None: not known."""
    alarms: tuple[Alarm, ...] = ()
    notes: tuple[str, ...] = ()


class NoReportError(Exception):
    """There is nothing to report on; its text says why."""


def watch(
    look: Callable[[], Snapshot | None], for_s: float, advance: Callable[[float], None]
) -> Watched:
    """Watches a running instance for so long; a KeyboardInterrupt ends it early.

    :param look: gives its newest snapshot; None: it does not run; ValueError: it does not tell.
    :param advance: told how many more seconds are over.
    :raises NoReportError: there was no second of it.
    """
    begun = told = time.monotonic()
    deltas, rows, notes = Deltas(), list[Row](), list[str]()
    before = last = None
    alarms: dict[tuple[str, str, float], Alarm] = {}
    try:
        while (now := time.monotonic()) < begun + for_s:
            advance(now - told)
            told = now
            state = _look(look, notes)
            if state is not None and (last is None or state.taken_at_s != last.taken_at_s):
                # The first one is what the others are compared with.
                rows += deltas.take(state) if last is not None else deltas.take(state)[:0]
                if before is None or before.pid != state.pid:
                    before = state
                last = state
                alarms |= {(a.kind, a.exchange, a.since_s): a for a in state.alarms}
            time.sleep(_POLL_S)
        advance(begun + for_s - told)
    except KeyboardInterrupt:
        notes.append(f"stopped after {time.monotonic() - begun:.0f} of {for_s:.0f} s")
    if not rows:
        raise NoReportError("the instance told nothing in that time")
    return Watched(tuple(rows), "watched", last, before, tuple(alarms.values()), tuple(notes))


def _look(look: Callable[[], Snapshot | None], notes: list[str]) -> Snapshot | None:
    try:
        state, trouble = look(), "the instance did not run all the time"
    except ValueError as error:
        state, trouble = None, str(error)
    if state is None and trouble not in notes:
        notes.append(trouble)
    return state


def kept(state_dir: Path, state: Snapshot | None, now_s: float) -> Watched:
    """What the samples in *state_dir* have of the last hour; if nothing runs: of the last hour
    that there are samples of.

    :param state: of the running instance; None: nothing runs.
    :raises NoReportError: there are none.
    """
    until_s = now_s if state is not None else min(now_s, samples.newest_s(state_dir) or now_s)
    rows = samples.read(state_dir, until_s - KEPT_S, until_s)
    if not rows:
        raise NoReportError(
            f"there are no samples in {state_dir / samples.FILE} yet: they come ten seconds "
            "after the start"
        )
    notes = () if state is not None else ("nothing runs now: this is of the past",)
    return Watched(tuple(rows), "kept", state, notes=notes, alarms=state.alarms if state else ())


def make(
    config: Config, watched: Watched, advance: Callable[[int], None] = lambda _: None
) -> Report:
    """The report on what was watched, or kept. Reads records back from the configured sink.

    :param advance: told how many more records were read.
    """
    rows = watched.rows
    since_s = min(row.at_s - row.span_s for row in rows)
    until_s = max(row.at_s for row in rows)
    totals = {name: _total(rows, name) for name in _names(rows)}
    resources = _resources(config, watched, rows)
    judged = {each.metric: each.status for each in resources}
    validations = []
    for name in [name for name in totals if name]:
        checked = report_check.check(config, name, since_s, until_s, advance)
        lines = _lines(totals[name], rows, checked, _Reasons.of(watched, name), judged)
        validations.append(Validation(name, tuple(lines), totals[name], checked))
    acts = [*_alarms(watched.alarms, since_s), *_acts(config.state_dir, since_s, until_s)]
    acts.sort(key=lambda act: act.at_s)
    return Report(
        since_s,
        until_s,
        sum(row.span_s for row in rows if row.exchange == ""),
        watched.source,
        str(config.state_dir),
        watched.state.sink if watched.state is not None else config.sink,
        tuple(validations),
        tuple(resources),
        tuple(acts[-_MAX_ACTS:]),
        max(0, len(acts) - _MAX_ACTS),
        watched.notes,
        rows,
    )


def _names(rows: Sequence[Row]) -> list[str]:
    return sorted({row.exchange for row in rows})


def _total(rows: Sequence[Row], exchange: str) -> Row:
    return merge([row for row in rows if row.exchange == exchange], max(row.at_s for row in rows))


# --- Metric | Actual | Status


@dataclass(frozen=True, slots=True)
class _Reasons:
    """Why what was counted happened; empty where it is not known."""

    reconnects: Mapping[str, int]
    restarts: Mapping[str, int]
    sink_errors: Mapping[str, int]
    budgets: Mapping[str, int]

    @classmethod
    def of(cls, watched: Watched, exchange: str) -> _Reasons:
        """Of an exchange, within the time; known only of one that was watched."""
        now, before = _status(watched.state, exchange), _status(watched.before, exchange)
        if now is None or before is None:
            return cls({}, {}, {}, {})
        return cls(
            _more(now.reconnect_reasons, before.reconnect_reasons),
            _more(_restarts(now), _restarts(before)),
            _more(now.sink_errors, before.sink_errors),
            _more(now.budget_exceeded, before.budget_exceeded),
        )


def _status(state: Snapshot | None, exchange: str) -> ExchangeStatus | None:
    if state is None:
        return None
    return next((e for e in state.exchanges if e.name == exchange), None)


def _restarts(status: ExchangeStatus) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    for worker in status.workers:
        counts.update(worker.restarts)
    return counts


def _more(now: Mapping[str, int], before: Mapping[str, int]) -> Mapping[str, int]:
    grown = {name: count - before.get(name, 0) for name, count in now.items()}
    return {name: count for name, count in grown.items() if count > 0}


def _lines(
    total: Row,
    rows: Sequence[Row],
    checked: Checked,
    reasons: _Reasons,
    judged: Mapping[str, str],
) -> list[Line]:
    """:param judged: the status of each line of the second table."""
    cpu, ram = (judged.get(f"{total.exchange} {what}", OK) for what in ("CPU", "RAM"))
    own = [row for row in rows if row.exchange == total.exchange]
    fastest = max(row.trades / row.span_s for row in in_steps(own, 1))
    rates = f"{total.trades / total.span_s:,.1f} trades/s, at most {fastest:,.0f}"
    exceeded = _counted("budget exceeded", sum(reasons.budgets.values()), reasons.budgets)
    return [
        Line("messages", f"{total.frames:,}", OK if total.frames else NOTE),
        Line("trades", f"{total.trades:,}", OK if total.trades else NOTE),
        Line("delivered", f"{total.delivered:,}", OK if total.delivered else NOTE),
        Line("throughput", rates, OK if total.trades else NOTE),
        Line("received after", _latency(total.receive_p50_s, total.receive_p99_s), OK),
        Line("delivered after", _latency(total.delivery_p50_s, total.delivery_p99_s), OK),
        Line("CPU", f"{total.cpu_cores:.3f} cores, at most {_highest(own):.3f}", cpu),
        Line("RAM", f"at most {_mib(total.memory_bytes)}", ram),
        Line("ring", f"at most {_mib(total.ring_used_bytes)} waiting", OK),
        *([exceeded] if reasons.budgets else []),
        Line("connected", f"{total.connected:.1%} of the time", _note(total.connected < 1)),
        _counted("reconnections", total.reconnects, reasons.reconnects),
        _counted("restarts of workers", total.restarts, reasons.restarts),
        _counted("sink errors", total.sink_errors, reasons.sink_errors),
        _missing(total, own),
        Line("duplicates dropped", f"{total.duplicates:,}", OK),
        Line("dead letters", f"{total.dead_letters:,}", FAILED if total.dead_letters else OK),
        payload(checked),
    ]


def payload(checked: Checked) -> Line:
    """How correct the records are that were read back."""
    metric = "payload correctness"
    if checked.trouble:
        return Line(metric, f"not to be had: {checked.trouble}", UNCHECKED)
    if not checked.read:
        return Line(metric, "no record of this time to read back", UNCHECKED)
    which = "" if checked.complete else "newest "
    text = f"{checked.valid:,} of {checked.read:,} {which}records valid"
    if checked.matched:
        text += f", {checked.matched:,} held against their frames"
    return Line(metric, text, OK if checked.valid == checked.read else FAILED)


def _missing(total: Row, own: Sequence[Row]) -> Line:
    """Of the trades that did not come on the stream."""
    now = max(own, key=lambda row: row.at_s)
    text = f"{now.open_trades:,} in {now.holes_open:,} gaps; {total.backfilled:,} fetched by REST"
    return Line("missing at the end", text, _note(bool(now.open_trades)))


def _counted(metric: str, count: int, reasons: Mapping[str, int]) -> Line:
    why = ", ".join(f"{name} {number:,}" for name, number in sorted(reasons.items()))
    return Line(metric, f"{count:,}" + (f" ({why})" if count and why else ""), _note(count > 0))


def _note(happened: bool) -> str:
    return NOTE if happened else OK


def _latency(p50_s: float | None, p99_s: float | None) -> str:
    if p50_s is None:
        return "no trade"
    high = "-" if p99_s is None else f"{p99_s * 1000:,.1f} ms"
    return f"median {p50_s * 1000:,.1f} ms, p99 at most {high}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"


# --- Metric | Target | Actual | Status


def _resources(config: Config, watched: Watched, rows: Sequence[Row]) -> list[Target]:
    """CPU and RAM of each exchange that has a budget, and of all processes together."""
    cores: dict[str, float] = {}
    memory: dict[str, int] = {}
    for name in filter(None, _names(rows)):
        status = _status(watched.state, name)
        if status is not None:
            cores[name], memory[name] = status.cpu_budget_cores, status.memory_budget_bytes
        elif name in config.exchanges:
            budget = config.exchanges[name].budget
            cores[name], memory[name] = budget.cpu, budget.memory_bytes
    targets = []
    for name, shown in [*((name, name) for name in cores), ("", "total")]:
        own = [row for row in rows if row.exchange == name]
        if not own or not cores:
            continue
        total = _total(rows, name)
        limit = cores[name] if name else sum(cores.values())
        room = memory[name] if name else sum(memory.values())
        highest = _highest(own)
        judged = OVER if total.cpu_cores > limit else AT_TIMES if highest > limit else OK
        actual = f"{total.cpu_cores:.3f} cores, at most {highest:.3f}"
        targets.append(Target(f"{shown} CPU", f"{limit:.2f} cores", actual, judged))
        judged = OVER if total.memory_bytes > room else OK
        actual = f"at most {_mib(total.memory_bytes)}"
        targets.append(Target(f"{shown} RAM", f"{room / 2**20:,.0f} MiB", actual, judged))
    return targets


def _highest(rows: Sequence[Row]) -> float:
    """The most cores over as long as the supervisor judges by."""
    whole = [row for row in in_steps(rows, _JUDGED_S) if row.span_s >= _JUDGED_S / 2]
    return max(row.cpu_cores for row in [*whole, merge(rows, rows[-1].at_s)])


# --- what happened


def _alarms(alarms: Sequence[Alarm], since_s: float) -> list[Act]:
    """Those that began before: the events of the time do not tell of them."""
    return [
        Act(alarm.since_s, "warning", alarm.exchange, f"alarm, since before: {alarm.text}")
        for alarm in alarms
        if alarm.since_s < since_s
    ]


def _acts(state_dir: Path, since_s: float, until_s: float) -> list[Act]:
    return [
        Act(event.at_s, event.level, event.exchange, describe(event))
        for event in events.recent(state_dir, _MAX_EVENTS)
        if since_s <= event.at_s <= until_s
        and (event.level in ("warning", "error") or event.event in _ACTS)
    ]


def describe(event: Event) -> str:
    """An event and what is known of it, as one line."""
    known = [f"{k} {v}" for k, v in event.fields.items() if k not in _NOT_FIELDS and v != ""]
    where = f"{event.worker} " if event.worker else ""
    line = where + event.event + (f": {', '.join(known)}" if known else "")
    return " ".join(line.split())
