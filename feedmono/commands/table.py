"""The state of an instance as a table in a terminal. The only file that knows rich's live view."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from feedmono.supervision.display import Display
from feedmono.supervision.snapshot import ExchangeStatus, Snapshot

_STYLES = {"flowing": "green", "restarting": "red", "waiting": "red"}
_LINE_BYTES = 65536


def render(state: Snapshot) -> Group:
    """One row an exchange, fit for 80 columns; what is not as it should be stands below."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("exchange", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("trades/s", "total", "last", "p50/p99 ms", "ring", "CPU", "MiB", "reconn"):
        table.add_column(name, justify="right", no_wrap=True)
    for e in state.exchanges:
        runs = e.state != "stopped"
        table.add_row(
            e.name,
            Text(e.state, style=_STYLES.get(e.state, "yellow")),
            f"{e.trades_per_s:,.{0 if e.trades_per_s >= 1000 else 1}f}",
            _count(e.trades),
            _age(e.last_trade_age_s),
            f"{_ms(e.delivery_p50_s)}/{_ms(e.delivery_p99_s)}",
            f"{e.ring_used_bytes / e.ring_capacity_bytes:.0%}",
            _judged(f"{e.cpu_cores:.2f}", e.cpu_cores > e.cpu_budget_cores) if runs else "-",
            _judged(f"{e.memory_bytes >> 20}", e.memory_bytes > e.memory_budget_bytes)
            if runs
            else "-",
            str(e.reconnects),
        )
    details = [_detail(e) for e in state.exchanges]
    return Group(table, *(d for d in details if d.plain))


def budgets(state: Snapshot) -> Table:
    """Target, actual and status of each resource, per exchange and in total."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("budget")
    table.add_column("target", justify="right")
    table.add_column("actual", justify="right")
    table.add_column("status")
    rows = [(e.name, balance) for e in state.exchanges for balance in e.balances]
    for name, balance in [*rows, *(("total", balance) for balance in state.balances)]:
        table.add_row(
            f"{name} {balance.resource.title}",
            balance.target_text,
            balance.actual_text,
            _status(balance.actual, balance.target),
        )
    return table


def total(state: Snapshot) -> Text:
    """What all processes use together, and where they are looked at."""
    tree = state.tree
    parts = [
        f"{tree.processes} processes: {tree.cpu_cores:.3f} cores, {tree.memory_bytes >> 20} MiB"
    ]
    if tree.open_files_limit:
        parts.append(f"{tree.open_files} of {tree.open_files_limit} files open at most")
    if state.http:
        parts.append(state.http)
    return Text("  ".join(parts))


def alarms(state: Snapshot) -> Group:
    """A line for each alarm that lasts; nothing if there is none."""
    return Group(
        *(
            Text(
                " ".join(filter(None, ("alarm", alarm.exchange, alarm.text)))
                + f" (for {_age(max(0.0, state.taken_at_s - alarm.since_s))})",
                style="red",
            )
            for alarm in state.alarms
        )
    )


def disks(state: Snapshot) -> Group:
    """A line for each file system that is written to."""
    full = [alarm.text for alarm in state.alarms if alarm.kind == "disk"]
    return Group(
        *(
            Text(
                f"{disk.name} {disk.path}: {_bytes(disk.free_bytes)} of "
                f"{_bytes(disk.total_bytes)} free",
                style="red" if any(f" {disk.path}:" in text for text in full) else "",
            )
            for disk in state.disks
        )
    )


def _bytes(size: int) -> str:
    for unit, bytes_ in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if size >= bytes_:
            return f"{size / bytes_:,.1f} {unit}"
    return f"{size:,} B"


def _status(actual: float, target: float) -> Text:
    return Text("ok", style="green") if actual <= target else Text("over", style="red")


def _detail(e: ExchangeStatus) -> Text:
    parts = [e.detail] if e.detail else []
    parts += [f"{symbol} refused: {reason}" for symbol, reason in sorted(e.refused.items())]
    if e.counts.get("holes_open"):
        parts.append(f"{e.counts['open_trades']:,} trades missing, being fetched")
    parts += [f"{e.dead_letters:,} dead letters"] if e.dead_letters else []
    parts += [f"{e.restarts} restarts"] if e.restarts else []
    if e.ring_used_bytes > e.ring_capacity_bytes // 2:
        parts.append(f"{e.ring_used_bytes >> 20} MiB wait in the ring")
    return Text(f"{e.name}: {'; '.join(parts)}" if parts else "", style="yellow")


def _judged(text: str, over: bool) -> Text:
    return Text(text, style="red" if over else "")


def _count(number: int) -> str:
    return f"{number:,}" if number < 10_000_000 else f"{number / 1e6:,.1f} M"


def _ms(duration_s: float | None) -> str:
    if duration_s is None:
        return "-"
    return f"{duration_s * 1000:.{0 if duration_s >= 0.01 else 1}f}"


def _age(age_s: float | None) -> str:
    if age_s is None:
        return "-"
    if age_s < 60:
        return f"{age_s:.1f} s"
    return f"{age_s / 60:.0f} min" if age_s < 7200 else f"{age_s / 3600:.0f} h"


class LiveTable(Display):
    """The table redrawn in place, and the log lines of all processes above it.

    It has no thread: it draws when the supervisor has a new sample. The log goes through a pipe
    that never blocks a worker; a line that does not fit any more is dropped.
    """

    def __init__(self) -> None:
        self._read_fd, self.log_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.fds = (self._read_fd,)
        self._console = Console(file=sys.stdout)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=False)
        self._rest = b""
        self._live.start()

    def readable(self, fd: int) -> None:
        try:
            data = self._rest + os.read(fd, _LINE_BYTES)
        except BlockingIOError:
            return
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            text = Text.from_ansi(line.decode("utf-8", "replace"))
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._live.console.print(text, highlight=False, soft_wrap=True)

    def show(self, state: Snapshot) -> None:
        up_s = int(time.time() - state.started_at_s)
        title = Text(
            f"feedmono  up {up_s // 3600}:{up_s // 60 % 60:02}:{up_s % 60:02}  sink {state.sink}  "
            "Ctrl-C stops",
            style="dim",
        )
        with contextlib.suppress(OSError):
            self._live.update(Group(Text(""), title, render(state)), refresh=True)

    def close(self) -> None:
        self.readable(self._read_fd)
        with contextlib.suppress(OSError):
            self._live.stop()
