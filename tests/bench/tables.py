"""What was found, as tables: for a terminal, as Markdown to be pasted, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

from rich.console import Console
from rich.table import Table as RichTable

from bench import usage
from bench.count import SOCKET_TO_BROKER, SOCKET_TO_NORMALIZED, STAMP_TO_SOCKET
from bench.latency import Percentiles
from bench.model import (
    SATURATION,
    SOCKET_TO_ACKNOWLEDGED,
    Burst,
    Count,
    Figures,
    Results,
    Run,
    Slope,
    Soak,
)
from bench.usage import Memory

HOPS = (STAMP_TO_SOCKET, SOCKET_TO_NORMALIZED, SOCKET_TO_BROKER, SOCKET_TO_ACKNOWLEDGED)
_MIB = 2**20
# A thread below this is summed up with its like.
_LEAST_US = 0.05
_WIDEST = 400
_COSTS = "CPU µs of all processes and threads; in brackets the cheapest run and the dearest."


@dataclass(frozen=True, slots=True)
class Table:
    """Texts in rows. Columns of figures are aligned to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables(results: Results) -> list[Table]:
    """All that there is to show."""
    found = []
    if results.figures:
        found += [costs(results.figures), *threads(results.figures), latencies(results.figures)]
        found += [memory(results.figures)]
    if results.latency:
        found += [
            costs(results.latency, "CPU at linger 0"),
            latencies(results.latency, "Latency at linger 0"),
        ]
    if results.lingers:
        found.append(lingers(results.lingers))
    if results.both:
        found.append(memory(results.both, "Memory with both exchanges"))
    if results.symbols:
        number = results.symbols[0].case.symbols
        found += [
            costs(results.symbols, f"CPU with {number:,} symbols"),
            memory(results.symbols, f"Memory with {number:,} symbols"),
        ]
    if results.soak:
        found.append(soaked(results.soak))
    if results.burst:
        found.append(burst(results.burst))
    return [table for table in found if table.rows]


# Each table


def costs(figures: Sequence[Figures], title: str = "CPU") -> Table:
    """µs per trade of each handler side by side, and how many times feedmono's the others' are."""
    names = _handlers(figures)
    rows, notes = [], []
    for group in _cases(figures):
        own = group.get(names[0])
        row = [_load(next(iter(group.values())))]
        for name in names:
            each = group.get(name)
            row += [_cost(each), f"{each.per_s:,.0f}" if each else "–"]
            notes += _notes(each) if each else []
        for name in names[1:]:
            other = group.get(name)
            ratio = other.us_per_trade / own.us_per_trade if other and own else None
            row.append(f"{ratio:.2f} ×" if ratio else "–")
        rows.append(row)
    columns = ["load"]
    for name in names:
        columns += [f"{name}: µs per trade", "trades/s"]
    columns += [f"{name} / {names[0]}" for name in names[1:]]
    return Table(title, columns, rows, [_COSTS, *notes])


def threads(figures: Sequence[Figures]) -> list[Table]:
    """For each handler and sink, µs per trade by process and thread."""
    found = []
    for sink in dict.fromkeys(each.case.sink for each in figures):
        for name in _handlers(figures):
            loads = [f for f in figures if f.handler == name and f.case.sink == sink]
            if loads:
                found.append(_threads(f"CPU of {name} by thread, sink {sink}", loads))
    return found


def _threads(title: str, loads: Sequence[Figures]) -> Table:
    each = [load.thread_us() for load in loads]
    known = sorted({thread for found in each for thread in found})
    shown = [t for t in known if any(found.get(t, 0.0) >= _LEAST_US for found in each)]
    rows = [
        [f"{role} {thread}", *(f"{found.get((role, thread), 0.0):,.1f}" for found in each)]
        for role, thread in shown
    ]
    roles = [load.role_us() for load in loads]
    rows += [
        [f"{role}, all", *(f"{found.get(role, 0.0):,.1f}" for found in roles)]
        for role in sorted({role for found in roles for role in found})
    ]
    rows.append(["all", *(f"{load.us_per_trade:,.1f}" for load in loads)])
    return Table(title, ["µs per trade", *(load.case.load for load in loads)], rows)


def latencies(figures: Sequence[Figures], title: str = "Latency") -> Table:
    """Percentiles of each hop; what comes of a backlog (saturation, a handler that fell behind) is
    left out."""
    rows = []
    for group in _cases(figures):
        for hop in HOPS:
            for name, each in group.items():
                if each.case.rate == SATURATION or each.behind_per_s or hop not in each.latencies:
                    continue
                found = each.latencies[hop].percentiles()
                rows.append([_load(each), hop, name, *_milliseconds(found)])
    notes = [
        "Milliseconds. Normalized and broker are clocks of whole milliseconds: ±0.5.",
        "The last hop is each handler's own count; feedmono's has 30 buckets, interpolated.",
    ]
    columns = ("load", "hop", "handler", "p50", "p90", "p99", "p99.9", "max")
    return Table(title, columns, rows, notes)


def memory(figures: Sequence[Figures], title: str = "Memory") -> Table:
    """MiB of all processes together, and of each."""
    rows = []
    for each in figures:
        largest = max(each.runs, key=lambda run: usage.total(run.memory).pss_bytes)
        whole = usage.total(largest.memory)
        roles = ", ".join(
            f"{role} {m.pss_bytes / _MIB:.1f}" for role, m in sorted(largest.memory.items())
        )
        rows.append([_load(each), each.handler, *_mebibytes(whole), roles])
    columns = ("load", "handler", "PSS", "private", "rings", "PSS by process")
    return Table(title, columns, rows, ["MiB at the end of the measured part, rings apart."])


def lingers(figures: Sequence[Figures]) -> Table:
    """Cost and latency for each linger."""
    rows = []
    for each in figures:
        found = each.latencies[SOCKET_TO_ACKNOWLEDGED].percentiles()
        at_broker = each.latencies.get(SOCKET_TO_BROKER)
        rows.append(
            [
                f"{each.case.linger_ms:g} ms",
                each.case.load,
                each.handler,
                _cost(each),
                *_milliseconds(at_broker.percentiles() if at_broker else None)[:3:2],
                *_milliseconds(found)[:3:2],
            ]
        )
    columns = ("linger", "load", "handler", "µs per trade")
    hops = ("broker p50", "p99", "acknowledged p50", "p99")
    notes = [note for each in figures for note in _notes(each)]
    return Table("Linger", columns + hops, rows, ["Latencies in ms from the socket.", *notes])


def soaked(soak: Soak) -> Table:
    """Memory over time, and what was lost."""
    first, last = soak.points[0][1], soak.points[-1][1]
    rows = [
        ["memory (PSS) at the beginning, at the end", _from_to(first.pss_bytes, last.pss_bytes)],
        ["growth of PSS", _slope(soak.pss)],
        ["private memory at the beginning, at the end", _private(first, last)],
        ["growth of private memory", _slope(soak.private)],
        *([f"of it: {role}", _slope(each)] for role, each in soak.private_by_role.items()),
        ["cuts of connections", f"{soak.cuts:,}"],
        ["trades made, fetched later", f"{soak.made:,}, {soak.backfilled:,}"],
        ["counted", _counted(soak.count)],
    ]
    title = f"Soak: {soak.seconds / 60:,.1f} minutes at {soak.rate:,.0f}/s"
    notes = [
        "By least squares without the first fifth, with the slope's standard error, for which",
        "neighbouring samples count as far as they differ. Within noise: not above two of them.",
    ]
    return Table(title, ("", "found"), rows, notes)


def burst(found: Burst) -> Table:
    """What a burst did."""
    rows = [
        ["most trades under way", f"{found.most_waiting:,}"],
        ["drained after", _seconds(found.drained_s)],
        ["latency as before after", _seconds(found.normal_s)],
        ["p99 to the acknowledgement before", f"{found.before_p99_ms:,.1f} ms"],
        ["the worst p99 of 0.2 s", f"{found.worst_p99_ms:,.1f} ms"],
        ["counted", _counted(found.count)],
    ]
    times = f"{found.factor:g} × {found.rate:,.0f}/s for {found.seconds:g} s"
    return Table(f"Burst: {times}", ("", "found"), rows)


# Their parts


def _handlers(figures: Iterable[Figures]) -> list[str]:
    return list(dict.fromkeys(each.handler for each in figures))


def _cases(figures: Iterable[Figures]) -> list[dict[str, Figures]]:
    """The handlers of each case, in order."""
    groups: dict[object, dict[str, Figures]] = {}
    for each in figures:
        groups.setdefault(each.case, {})[each.handler] = each
    return list(groups.values())


def _load(figures: Figures) -> str:
    return f"{figures.case.sink} {figures.case.load}"


def _cost(figures: Figures | None) -> str:
    if figures is None:
        return "–"
    text = f"{figures.us_per_trade:,.1f}"
    if len(figures.runs) > 1:
        least, most = figures.least_and_most_us
        text += f" ({least:,.1f}–{most:,.1f})"
    return text


def _notes(figures: Figures) -> list[str]:
    """What a figure rests on, and what is not as it should be."""
    where = f"{figures.handler}, {_load(figures)}"
    found = []
    if figures.case.rate == SATURATION:
        span_s = sum(run.span_s for run in figures.runs)
        found.append(f"{where}: {figures.trades:,} trades in {span_s:,.1f} s")
    if behind := figures.behind_per_s:
        found.append(
            f"{where}: fell behind by {behind:,.0f} trades/s, {behind / figures.case.rate:.0%}"
        )
    if not figures.count.complete:
        why = "; it was stopped with a backlog" if figures.behind_per_s else ""
        found.append(f"{where}: {_counted(figures.count)}{why}")
    return found


def _counted(count: Count) -> str:
    if count.complete:
        return f"{count.trades:,} trades and their frames, none missing, none doubled"
    return (
        f"{count.trades:,} trades, {count.missing:,} missing, {count.doubled:,} doubled, "
        f"{count.raw_missing:,} without their frame, {count.foreign:,} never made"
    )


def _milliseconds(found: Percentiles | None) -> list[str]:
    if found is None:
        return ["–"] * 5
    values = (found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms)
    return [f"{value:,.{1 if value < 100 else 0}f}" for value in values]


def _mebibytes(memory: Memory) -> list[str]:
    values = (memory.pss_bytes, memory.private_bytes, memory.ring_bytes)
    return [f"{value / _MIB:,.1f}" for value in values]


def _from_to(first_bytes: int, last_bytes: int) -> str:
    return f"{first_bytes / _MIB:,.1f}, {last_bytes / _MIB:,.1f} MiB"


def _private(first: Memory, last: Memory) -> str:
    return _from_to(first.private_bytes, last.private_bytes)


def _slope(slope: Slope) -> str:
    judged = "within noise" if slope.is_noise else "it grows"
    return f"{slope.per_hour:+,.2f} ± {slope.error_per_hour:,.2f} MiB/h: {judged}"


def _seconds(duration_s: float | None) -> str:
    return "not within the limit" if duration_s is None else f"{duration_s:,.1f} s"


# As text


def terminal(results: Results) -> str:
    """For a terminal."""
    parts = [columns(table) for table in tables(results)]
    return "\n\n".join([_head(results), *parts])


def columns(table: Table) -> str:
    """A table for a terminal, as wide as it is; its notes stand below."""
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, side in zip(table.columns, _sides(table), strict=True):
        drawn.add_column(name, justify=side, no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    output = StringIO()
    Console(file=output, width=_WIDEST, highlight=False).print(drawn)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    return "\n".join([table.title, *lines, *table.notes])


def markdown(results: Results) -> str:
    """To be pasted into docs/PERFORMANCE.md."""
    parts = [_head(results)]
    for table in tables(results):
        rules = ["---" if side == "left" else "---:" for side in _sides(table)]
        rows = [table.columns, rules, *table.rows]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        parts += [f"### {table.title}", "\n".join(lines), "  \n".join(table.notes)]
    return "\n\n".join(part for part in parts if part)


def _sides(table: Table) -> list[Literal["left", "right"]]:
    """Where each column's cells are aligned: words to the left."""
    columns = zip(*table.rows, strict=True)
    return ["left" if any(cell[:1].isalpha() for cell in column) else "right" for column in columns]


def _head(results: Results) -> str:
    return f"{'; '.join((results.machine, results.broker, *results.notes))}."


def to_json(results: Results) -> str:
    """Every figure of every run."""
    content: dict[str, Any] = {"machine": results.machine, "broker": results.broker}
    for name in ("figures", "latency", "lingers", "both", "symbols"):
        content[name] = [_figures(each) for each in getattr(results, name)]
    content["soak"] = _soak(results.soak) if results.soak else None
    content["burst"] = _plain(results.burst) if results.burst else None
    content["notes"] = list(results.notes)
    return json.dumps(content, ensure_ascii=False, indent=2)


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "handler": figures.handler,
        **_case(figures),
        "us_per_trade": figures.us_per_trade,
        "trades_per_s": figures.per_s,
        "behind_per_s": figures.behind_per_s,
        "cpu_us_by_process": figures.role_us(),
        "cpu_us_by_thread": {f"{r}/{t}": us for (r, t), us in figures.thread_us().items()},
        "latency_ms": {
            hop: _plain(found.percentiles()) for hop, found in figures.latencies.items()
        },
        "count": _plain(figures.count),
        "runs": [_run(run) for run in figures.runs],
    }


def _case(figures: Figures) -> dict[str, Any]:
    content: dict[str, Any] = _plain(figures.case)
    content["rate"] = "max" if figures.case.rate == SATURATION else figures.case.rate
    return content


def _run(run: Run) -> dict[str, Any]:
    return {
        "trades": run.trades,
        "span_s": run.span_s,
        "us_per_trade": run.us_per_trade,
        "memory": {role: _plain(each) for role, each in run.memory.items()},
        "behind": run.behind,
        "waiting": run.waiting,
    }


def _soak(soak: Soak) -> dict[str, Any]:
    content: dict[str, Any] = _plain(soak)
    content["points"] = [{"at_s": at, **_plain(each)} for at, each in soak.points]
    return content


def _plain(value: Any) -> Any:
    """A dataclass as JSON has it."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON knows no such number
    return value
