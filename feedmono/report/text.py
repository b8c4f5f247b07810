"""A report as text: tables for the terminal, Markdown, JSON."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone

from feedmono.commands.columns import Column, columns_fit
from feedmono.report.report import Act, Report
from feedmono.supervision.samples import in_steps

POINTS = 300
"""Plots and JSON have about so many points in time."""

# Three such columns and a terminal of 80 agree.
_CELL_CHARS = 46
_VALIDATION = ("Metric", "Actual", "Status")
_RESOURCES = ("Metric", "Target", "Actual", "Status")
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


def table(report: Report) -> str:
    """For a terminal. No color, so that it may be kept."""
    parts = ["\n".join(heading(report))]
    for validation in report.validations:
        rows = [(line.metric, line.actual, line.status) for line in validation.lines]
        parts.append(f"{validation.exchange}\n{_columns(_VALIDATION, rows)}")
    rows4 = [(each.metric, each.target, each.actual, each.status) for each in report.resources]
    parts.append(f"resources\n{_columns(_RESOURCES, rows4)}")
    parts.append("\n".join(["events", *(happened(act) for act in report.acts), *_rest(report)]))
    if failures := [line for _, line in failed(report)]:
        parts.append("\n".join(["records that are not valid", *failures]))
    return "\n\n".join(parts)


def markdown(report: Report) -> str:
    """To be pasted where Markdown is read."""
    parts = ["# feedmono report", "  \n".join(map(_escaped, heading(report)))]
    for validation in report.validations:
        rows = [(line.metric, line.actual, line.status) for line in validation.lines]
        parts.append(f"## {_escaped(validation.exchange)}")
        parts.append(_piped(_VALIDATION, rows))
    parts.append("## Resources")
    rows4 = [(each.metric, each.target, each.actual, each.status) for each in report.resources]
    parts.append(_piped(_RESOURCES, rows4))
    parts.append("## Events")
    lines = [*(happened(act) for act in report.acts), *_rest(report)]
    parts.append("\n".join(f"- {_escaped(line)}" for line in lines))
    if failures := [line for _, line in failed(report)]:
        parts.append("## Records that are not valid")
        parts.append("\n".join(f"- {_escaped(line)}" for line in failures))
    return "\n\n".join(parts)


def to_json(report: Report) -> str:
    """Every figure, the two tables, and the samples merged to about `POINTS` points in time."""
    content = asdict(report)
    content["rows"] = [asdict(row) for row in in_steps(report.rows, step_s(report))]
    content["samples"] = content.pop("rows")
    return json.dumps(content, ensure_ascii=False, indent=2)


def heading(report: Report) -> list[str]:
    """What the report is of, in a few lines."""
    first, last = moment(report.since_s), moment(report.until_s)
    how = "a running instance, watched" if report.source == "watched" else "the samples kept"
    lines = [
        f"{first} to {last} UTC, {lasting(report.until_s - report.since_s)}",
        f"from {how}; state_dir {report.state_dir}, sink {report.sink}",
    ]
    missing_s = report.until_s - report.since_s - report.sampled_s
    if missing_s > max(5.0, 0.02 * report.sampled_s):
        lines.append(f"no samples of {lasting(missing_s)} of it: it did not run, or stood still")
    lines += [
        f"{each.exchange} validated against {', '.join(each.checked.schemas)}"
        for each in report.validations
        if each.checked.schemas
    ]
    return [*lines, *report.notes]


def failed(report: Report) -> list[tuple[str, str]]:
    """Exchange, and which of its records is not valid, of the first few."""
    return [
        (validation.exchange, failure)
        for validation in report.validations
        for failure in validation.checked.failures
    ]


def happened(act: Act) -> str:
    """An event as a line."""
    return " ".join(filter(None, (moment(act.at_s), act.level, act.exchange, act.text)))


def moment(at_s: float) -> str:
    """A Unix time in UTC."""
    return f"{datetime.fromtimestamp(at_s, tz=timezone.utc):%Y-%m-%d %H:%M:%S}"


def lasting(duration_s: float) -> str:
    """A duration, as people say it."""
    total_s = round(duration_s)
    if total_s < 60:
        return f"{total_s} s"
    if total_s < 3600:
        return f"{total_s // 60} min" + (f" {total_s % 60} s" if total_s % 60 else "")
    return f"{total_s // 3600} h" + (f" {total_s // 60 % 60} min" if total_s // 60 % 60 else "")


def step_s(report: Report) -> int:
    """How long an interval is, so that about `POINTS` cover the report's time."""
    wanted_s = (report.until_s - report.since_s) / POINTS
    return next((step for step in _STEPS_S if step >= wanted_s), _STEPS_S[-1])


def _rest(report: Report) -> list[str]:
    if report.acts_left_out:
        return [f"and {report.acts_left_out:,} before these"]
    return [] if report.acts else ["none: no alarm, no warning, no error"]


def _columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [line for row in rows for line in _wrapped(row)]
    cells = list(zip(*lines, strict=True)) or [()] * len(titles)
    return columns_fit(
        [Column(title, cell, left=True) for title, cell in zip(titles, cells, strict=True)]
    )


def _wrapped(row: Sequence[str]) -> list[tuple[str, ...]]:
    """One row as the lines that its long cells take."""
    cells = [textwrap.wrap(cell, _CELL_CHARS) or [""] for cell in row]
    return list(itertools.zip_longest(*cells, fillvalue=""))


def _piped(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(_escaped(cell) if i != 1 else cell for cell in line) + " |"
        for i, line in enumerate(lines)
    )


def _escaped(text: str) -> str:
    """What Markdown would take for its own is shown as it is."""
    return "".join(f"\\{char}" if char in "|*_`<>\\[]" else char for char in text)
