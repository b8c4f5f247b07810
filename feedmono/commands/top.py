"""``feedmono top``: an instance live in a terminal, with the history of the last minutes.

It reads the files in ``state_dir`` and nothing else, so it runs in any terminal and for any user
who may read them. It has no thread: a turn waits for a key, or for the next second.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live

from feedmono import events
from feedmono.commands.top_screen import MOST_HISTORY_S, Look, render
from feedmono.supervision import samples, statelock
from feedmono.supervision.samples import Row
from feedmono.supervision.samples_row import Deltas
from feedmono.supervision.snapshot import FILE, Snapshot

_TURN_S = 1.0
# A status that is older is no status.
_SILENT_S = 10.0
_REREAD_S = 30.0
_MOST_EVENTS = 100


class Watcher:
    """Looks at the instance on a ``state_dir``, once a second; goes on when it comes back."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._last: Snapshot | None = None
        self._deltas = Deltas()
        self._rows: list[Row] = []
        self._read_at_s = 0.0

    def look(self) -> Look:
        """The state now, or the last one and why there is none now."""
        state, trouble = _state_now(self._state_dir)
        if state is not None:
            if self._last is None or state.pid != self._last.pid:
                self._deltas = Deltas()
                self._deltas.take(state)
            elif state.taken_at_s != self._last.taken_at_s:
                self._rows += self._deltas.take(state)
            self._last = state
        return Look(self._last, trouble)

    def history(self) -> list[Row]:
        """The rows of the last minutes: those that are kept, and what was seen since."""
        now_s = time.time()
        if time.monotonic() >= self._read_at_s:
            self._read_at_s = time.monotonic() + _REREAD_S
            kept = samples.read(self._state_dir, now_s - MOST_HISTORY_S, now_s)
            newest_s = max((row.at_s for row in kept), default=0.0)
            self._rows = kept + [row for row in self._rows if row.at_s > newest_s + 0.5]
        self._rows = [row for row in self._rows if now_s - MOST_HISTORY_S < row.at_s <= now_s + 1]
        return self._rows


def _state_now(state_dir: Path) -> tuple[Snapshot | None, str]:
    """What the running instance told last; None and why, if there is nothing of now."""
    try:
        pid = statelock.holder(state_dir)
        if pid is None:
            return None, f"nothing runs on state_dir {state_dir}"
        state = Snapshot.from_json((state_dir / FILE).read_text("utf-8"))
    except FileNotFoundError:
        return None, "it is starting or ending"
    except (OSError, ValueError) as error:
        return None, str(error)
    age_s = time.time() - state.taken_at_s
    if age_s > _SILENT_S:
        return state, f"process {pid} has not told how it does for {age_s:.0f} s: does it hang?"
    return state, ""


# --- the terminal


def run(state_dir: Path) -> int:
    """Shows it until ``q`` or Ctrl-C; where standard output is no terminal, once. The exit
    status."""
    watcher = Watcher(state_dir)
    if not sys.stdout.isatty():
        return _once(watcher, state_dir)
    with _orderly_end(), _keys() as wait, contextlib.suppress(KeyboardInterrupt):
        console = Console()
        with Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as live:
            while True:
                size = console.size
                recent = _happened(state_dir, _MOST_EVENTS)
                look = watcher.look()
                live.update(
                    render(look, watcher.history(), recent, size.width, size.height), refresh=True
                )
                if wait(_TURN_S) in ("q", "Q", "\x04"):
                    break
    return 0


def _happened(state_dir: Path, count: int) -> list[events.Event]:
    """The recent events, but for each minute's summaries, whose figures are shown anyway."""
    told = events.recent(state_dir, 2 * count)
    return [event for event in told if event.event != "summary"][-count:]


def _once(watcher: Watcher, state_dir: Path) -> int:
    console = Console()
    look = watcher.look()
    if look.state is None:
        print(f"feedmono: {look.trouble}", file=sys.stderr)
        return 1
    recent = _happened(state_dir, 10)
    console.print(render(look, watcher.history(), recent, console.width, 1000))
    return 0


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does: the terminal is left as it was."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Single keys from standard input, not shown; what it yields waits for one, for so long at
    most, and gives it. Where standard input is no terminal it just waits."""
    if not sys.stdin.isatty():

        def sleep(limit_s: float) -> str:
            time.sleep(limit_s)
            return ""

        yield sleep
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def wait(limit_s: float) -> str:
        if not select.select([fd], [], [], limit_s)[0]:
            return ""
        # An empty answer: the terminal is gone.
        return os.read(fd, 1).decode("utf-8", "replace") or "q"

    tty.setcbreak(fd)
    try:
        yield wait
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
