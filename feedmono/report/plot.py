"""Line charts as inline SVG: no script, no outside resource, colors from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape

_WIDTH, _HEIGHT = 720, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 24
_TICKS = 4
_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 86400)
# So many intervals without a point are a gap in the line.
_GAP = 1.5


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    """Unix time and value, in order of time."""


def chart(
    title: str,
    series: Sequence[Series],
    since_s: float,
    until_s: float,
    step_s: float,
    shown: Callable[[float], str],
) -> str:
    """A figure with its legend.

    :param step_s: the distance of points; where it is larger, the line is broken.
    :param shown: a value as text.
    """
    top = nice(max((value for each in series for _, value in each.points), default=0.0))
    area = _Area(since_s, max(until_s, since_s + 1), top)
    parts = [*_value_lines(area, shown), *_time_lines(area)]
    for number, each in enumerate(series):
        parts += [
            f'<polyline class="s{number}" points="{line}"/>'
            for line in area.lines(each.points, step_s)
        ]
    keys = "".join(
        f'<span><i class="k{number}"></i>{escape(each.name)}{_last(each, shown)}</span>'
        for number, each in enumerate(series)
    )
    label = escape(f"{title} over time", quote=True)
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{keys}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg></figure>"
    )


def nice(value: float) -> float:
    """The next round number that is not below *value*; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        (factor * power for factor in (1, 2, 4, 5, 8, 10) if factor * power >= value * 0.9999),
        10 * power,
    )


@dataclass(frozen=True, slots=True)
class _Area:
    since_s: float
    until_s: float
    top: float

    def x(self, at_s: float) -> float:
        share = (at_s - self.since_s) / (self.until_s - self.since_s)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(share, 0.0), 1.0)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / self.top

    def lines(self, points: Sequence[tuple[float, float]], step_s: float) -> list[str]:
        """The points of each unbroken line; a single one is a short line."""
        lines: list[list[str]] = []
        before = -math.inf
        for at_s, value in points:
            if at_s - before > _GAP * step_s:
                lines.append([f"{self.x(at_s) - 1:.1f},{self.y(value):.1f}"])
            lines[-1].append(f"{self.x(at_s):.1f},{self.y(value):.1f}")
            before = at_s
        return [" ".join(line) for line in lines]


def _value_lines(area: _Area, shown: Callable[[float], str]) -> list[str]:
    parts = []
    for tick in range(_TICKS + 1):
        value = area.top * tick / _TICKS
        y = area.y(value)
        parts.append(f'<line class="g" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:g}" y2="{y:g}"/>')
        text = escape(shown(value))
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{text}</text>')
    return parts


def _time_lines(area: _Area) -> list[str]:
    span_s = area.until_s - area.since_s
    step_s = next((s for s in _TIME_STEPS_S if span_s / s <= 7), 86400 * math.ceil(span_s / 604800))
    form = "%H:%M:%S" if step_s < 60 else "%H:%M" if span_s < 86400 else "%d %b"
    parts = []
    at_s = math.ceil(area.since_s / step_s) * step_s
    while at_s <= area.until_s:
        x = area.x(at_s)
        text = f"{datetime.fromtimestamp(at_s, tz=timezone.utc):{form}}"
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{text}</text>'
            if _LEFT < x < _WIDTH - 20
            else ""
        )
        at_s += step_s
    return parts


def _last(series: Series, shown: Callable[[float], str]) -> str:
    return f" {escape(shown(series.points[-1][1]))}" if series.points else " –"
