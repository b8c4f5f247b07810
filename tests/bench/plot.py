"""The figures as a picture: cost against rate, latency, memory over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.model import SATURATION, SOCKET_TO_ACKNOWLEDGED, Figures, Results, Soak

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_IN, _HEIGHT_IN = 8.0, 3.4
_MIB = 2**20


def draw(results: Results, path: Path) -> None:
    """Writes a picture whose kind the file's name says (SVG, PNG, PDF).

    :raises ValueError: there is nothing to draw, or no such kind.
    :raises OSError: it can't be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  half a second, and only for this

    sinks = list(dict.fromkeys(each.case.sink for each in results.figures))
    parts = 2 * len(sinks) + bool(results.soak)
    if not parts:
        raise ValueError("nothing was measured that could be drawn")
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * parts), layout="constrained")
    areas = figure.subplots(parts, 1, squeeze=False)[:, 0]
    for number, sink in enumerate(sinks):
        chosen = [each for each in results.figures if each.case.sink == sink]
        _costs(areas[2 * number], sink, chosen)
        _latencies(areas[2 * number + 1], sink, chosen)
    if results.soak:
        _memory(areas[-1], results.soak)
    figure.savefig(path)


def _costs(area: Axes, sink: str, figures: Sequence[Figures]) -> None:
    """Bars side by side for each load."""
    handlers = list(dict.fromkeys(each.handler for each in figures))
    loads = list(dict.fromkeys(each.case.load for each in figures))
    width = 0.8 / len(handlers)
    for number, handler in enumerate(handlers):
        own = [each for each in figures if each.handler == handler]
        places = [loads.index(each.case.load) + number * width for each in own]
        bars = area.bar(places, [each.us_per_trade for each in own], width, label=handler)
        area.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    area.set_xticks([at + 0.4 - width / 2 for at in range(len(loads))], loads)
    area.set_yscale("log")
    # The bars say their figures themselves.
    area.yaxis.set_major_formatter("{x:,.0f}")
    area.yaxis.set_minor_formatter("")
    area.set_ylabel("CPU µs per trade")
    area.set_title(f"cost, sink {sink}")
    area.legend()


def _latencies(area: Axes, sink: str, figures: Sequence[Figures]) -> None:
    """Median, and a line up to p99, of the way from the socket to the acknowledgement."""
    for handler in dict.fromkeys(each.handler for each in figures):
        rates, medians, rest = [], [], []
        for each in figures:
            found = each.latencies[SOCKET_TO_ACKNOWLEDGED].percentiles()
            fits = each.case.rate != SATURATION and not each.behind_per_s
            if each.handler == handler and found and fits:
                rates.append(each.case.rate)
                medians.append(found.p50_ms)
                rest.append(found.p99_ms - found.p50_ms)
        area.errorbar(
            rates, medians, [[0.0] * len(rest), rest], marker="o", capsize=4, label=handler
        )
    area.set_xscale("log")
    area.set_ylim(bottom=0)
    area.set_xlabel("trades/s")
    area.set_ylabel("ms")
    area.set_title(f"socket to acknowledged, p50 and p99, sink {sink}")
    area.legend()


def _memory(area: Axes, soak: Soak) -> None:
    minutes = [at / 60 for at, _ in soak.points]
    area.plot(minutes, [each.pss_bytes / _MIB for _, each in soak.points], label="PSS")
    area.plot(minutes, [each.private_bytes / _MIB for _, each in soak.points], label="private")
    area.set_ylim(bottom=0)
    area.set_xlabel("minutes")
    area.set_ylabel("MiB")
    area.set_title(f"memory at {soak.rate:,.0f} trades/s, rings apart")
    area.legend()
