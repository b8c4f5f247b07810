"""What ``feedmono top`` shows: an instance and the history of its last minutes, in any size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from feedmono.commands import table
from feedmono.events import Event
from feedmono.report.report import describe
from feedmono.supervision.samples import Row, in_steps
from feedmono.supervision.snapshot import ExchangeStatus, Snapshot, WorkerStatus

HISTORY_S = 300.0
"""The history reaches back so far at least."""

_STEPS_S = (1, 2, 5, 10, 15, 30)
MOST_HISTORY_S = 900.0
"""And so far at most."""

_BARS = "▁▂▃▄▅▆▇█"
_LABEL_CHARS = 19
_VALUE_CHARS = 10
_CLOCK_CHARS = 8
_LEVELS = {"warning": "yellow", "error": "red"}


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to show at a moment."""

    state: Snapshot | None
    """The last that was told; None: nothing was yet."""
    trouble: str = ""
    """Why it is not of now; empty if it is."""


def render(
    look: Look, rows: Sequence[Row], recent: Sequence[Event], width: int, height: int
) -> Screen:
    """One screen of exactly that size or less, for a rich console of any kind; a script may
    record it (``Console(record=True)``, ``export_svg``).

    :param rows: the history: see `Watcher.history`.
    :param recent: see `feedmono.events.recent`.
    """
    return Screen(look, rows, recent, width, height)


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of the screen."""

    content: RenderableType
    least: int
    """So many lines of it are shown, while there is any room."""
    rank: int
    """The lower, the earlier it gets more lines than these."""
    keep_end: bool = False
    """Whether its last lines are shown, not its first, where it is cut."""


@dataclass(frozen=True, slots=True)
class Screen:
    """Fits the sections into the height: each gets its least, then the important ones more."""

    look: Look
    rows: Sequence[Row]
    recent: Sequence[Event]
    width: int
    height: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sections = list(self._sections(live=options.is_terminal))
        fixed = options.update(width=self.width, height=None)
        blocks = [console.render_lines(s.content, fixed, pad=False) for s in sections]
        room = self.height
        shares = [0] * len(sections)
        for wanted in (lambda s, b: min(s.least, len(b)), lambda _, b: len(b)):
            for i in sorted(range(len(sections)), key=lambda i: sections[i].rank):
                more = min(wanted(sections[i], blocks[i]) - shares[i], room)
                shares[i] += max(0, more)
                room -= max(0, more)
        first = True
        for section, block, share in zip(sections, blocks, shares, strict=True):
            for line in block[len(block) - share :] if section.keep_end else block[:share]:
                if not first:
                    yield Segment.line()
                first = False
                yield from line

    def _sections(self, *, live: bool) -> Iterator[_Section]:
        state = self.look.state
        yield _Section(self._title(live=live), 2 if self.look.trouble else 1, 0)
        if state is None:
            yield _Section(self._events(), 3, 6, keep_end=True)
            return
        count = len(state.exchanges)
        yield _Section(table.render(state), 1 + count, 1)
        if state.alarms:
            yield _Section(table.alarms(state), 1, 2)
        yield _Section(self._history(state, _BRIEF, titled=True), 1 + count, 3)
        yield _Section(self._history(state, _MORE, titled=False), 0, 6)
        yield _Section(workers(state), 2 + 2 * count, 4)
        yield _Section(table.disks(state), 1, 5)
        yield _Section(self._events(), 4, 7, keep_end=True)

    def _title(self, *, live: bool) -> Text:
        state, text = self.look.state, Text("feedmono", style="bold")
        if state is not None:
            up_s = max(0, int(state.taken_at_s - state.started_at_s))
            text.append(
                f"  up {up_s // 3600}:{up_s // 60 % 60:02}:{up_s % 60:02}  sink {state.sink}"
                f"  {state.http}  {_clock(time.time())}" + ("  q ends" if live else ""),
                style="dim",
            )
        if self.look.trouble:
            as_of = f"as of {_clock(state.taken_at_s)}: " if state is not None else ""
            text.append(f"\n{as_of}{self.look.trouble}; waiting for it", style="bold red")
        return text

    def _history(self, state: Snapshot, figures: Sequence[_Figure], *, titled: bool) -> Table:
        """A line a figure and exchange."""
        room = self.width - _LABEL_CHARS - 2 * (_VALUE_CHARS + 1)
        step_s = next((s for s in _STEPS_S if s * room >= HISTORY_S), _STEPS_S[-1])
        # Whole intervals: one that has just begun looks like a fall.
        now_s = max((row.at_s for row in self.rows), default=time.time()) // step_s * step_s
        merged = in_steps((row for row in self.rows if row.at_s <= now_s), step_s)
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=_LABEL_CHARS, no_wrap=True)
        grid.add_column(width=room, no_wrap=True)
        grid.add_column(justify="right", width=_VALUE_CHARS, no_wrap=True)
        grid.add_column(justify="right", width=_VALUE_CHARS, no_wrap=True)
        span = Text(f"last {room * step_s / 60:.0f} minutes", style="dim")
        if titled:
            grid.add_row(Text("history", style="bold"), span, Text("now"), Text("highest"))
        end = round(now_s / step_s)
        for figure in figures:
            for e in state.exchanges:
                own = [row for row in merged if row.exchange == e.name]
                values = {round(row.at_s / step_s): figure.of(row) for row in own}
                line = [values.get(number) for number in range(end - room + 1, end + 1)]
                known = [value for value in line if value is not None]
                grid.add_row(
                    f"{e.name} {figure.name}",
                    Text(sparkline(line), style=figure.style),
                    figure.shown(line[-1]),
                    figure.shown(max(known, default=None)),
                )
        return grid

    def _events(self) -> Table:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(no_wrap=True, min_width=_CLOCK_CHARS)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        for event in self.recent[-self.height :]:
            text = " ".join(filter(None, (event.exchange, describe(event))))
            grid.add_row(
                Text(_clock(event.at_s), style="dim"),
                Text(text, style=_LEVELS.get(event.level, "")),
            )
        return grid


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    of: Callable[[Row], float | None]
    shown: Callable[[float | None], str]
    style: str


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:,.0f} ms"


def _cores(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.0f} MiB"


_BRIEF = (
    _Figure("trades/s", lambda row: row.trades / row.span_s, _rate, "green"),
    _Figure("p99", lambda row: row.delivery_p99_s, _ms, "cyan"),
)
_MORE = (
    _Figure("CPU", lambda row: row.cpu_cores, _cores, "yellow"),
    _Figure("memory", lambda row: row.memory_bytes, _mib, "magenta"),
    _Figure("ring", lambda row: row.ring_used_bytes, _mib, "blue"),
)


def sparkline(values: Sequence[float | None]) -> str:
    """One character a value, the highest a full bar; a space for None, as for what has no bar."""
    top = max((value for value in values if value is not None), default=0.0)
    if top <= 0:
        return "".join(" " if value is None else _BARS[0] for value in values)
    last = len(_BARS) - 1
    return "".join(
        " " if value is None else _BARS[min(last, int(value / top * last + 0.5))]
        for value in values
    )


def workers(state: Snapshot) -> Table:
    """Every process of the exchanges, and all processes together."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    grid.add_column("process", no_wrap=True)
    for name in ("pid", "CPU", "MiB", "files", "restarts"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True, overflow="ellipsis")
    for e in state.exchanges:
        for worker in e.workers:
            grid.add_row(
                f"{worker.role} {e.name}",
                str(worker.pid or "-"),
                f"{worker.cpu_cores:.3f}",
                f"{worker.memory_bytes / 2**20:.0f}",
                str(worker.open_files),
                str(sum(worker.restarts.values())),
                _remark(e, worker),
            )
    tree = state.tree
    grid.add_row(
        f"all {tree.processes}",
        str(state.pid),
        f"{tree.cpu_cores:.3f}",
        f"{tree.memory_bytes / 2**20:.0f}",
        f"{tree.open_files}",
        "",
        f"of {tree.open_files_limit} files at most" if tree.open_files_limit else "",
        style="bold",
    )
    return grid


def _remark(e: ExchangeStatus, worker: WorkerStatus) -> str:
    """Why it was restarted, and whether it is slowed."""
    parts = [f"{reason} {count}" for reason, count in sorted(worker.restarts.items())]
    if worker.role == "serializer" and e.throttle < 1:
        parts.append(f"throttled to {e.throttle:.0%}")
    return ", ".join(parts)


def _clock(at_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_s))
