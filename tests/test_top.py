"""``feedmono top``: what its screen shows in any size, and how it behaves in a real terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from instance import Instance
from nobody import as_nobody
from report_rig import ALARM, BEGIN_S, feedmono, rows, running, snapshot
from rich.console import Console
from sim import Sim, wait_until

from feedmono.commands import top
from feedmono.commands.top_screen import Look, render, sparkline
from feedmono.events import Event
from feedmono.supervision import samples
from feedmono.supervision import snapshot as snapshots
from feedmono.supervision.samples import Row
from feedmono.supervision.samples_row import Deltas
from feedmono.supervision.snapshot import Snapshot

EVENTS = [
    Event(BEGIN_S + n, level, "binance", "reader", f"event {n}", {"connection": n})
    for n, level in enumerate(["info"] * 20 + ["warning"])
]
SIZES = [(80, 24), (120, 40), (80, 12), (60, 24), (200, 60), (80, 1)]


def drawn(look: Look, width: int, height: int, history: Sequence[Row] = ()) -> list[str]:
    """The lines of a screen."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(render(look, history, EVENTS, width, height), end="")
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_screen_fits_any_terminal(width: int, height: int) -> None:
    worker = replace(running().workers[0], restarts={"memory": 12, "hung": 3})
    state = snapshot(running(workers=(worker,), throttle=0.25), running("kraken"), alarms=(ALARM,))
    lines = drawn(Look(state), width, height, [*rows(300), *rows(300, "kraken")])
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("feedmono  up ")


def test_in_24_lines_everything_that_matters_is_shown() -> None:
    state = snapshot(alarms=(ALARM,))
    text = "\n".join(drawn(Look(state), 80, 24, [*rows(300), *rows(300, "kraken")]))
    for part in (
        "binance  flowing", "kraken trades/s", "reader kraken", "4712", "all 6", "211",
        "alarm kraken 600 MiB of 512 MiB (for 10 min)", "event 20: connection 20", "state_dir",
        "http://127.0.0.1:9464", "last 6 minutes", "up 1:00:00", "q ends",
    ):  # fmt: skip
        assert part in text, part


def test_a_higher_terminal_shows_more_history_and_more_events() -> None:
    low, high = ("\n".join(drawn(Look(snapshot()), 120, height, rows(300))) for height in (24, 48))
    assert "binance ring" in high
    assert "binance ring" not in low
    assert high.count("event ") > low.count("event ")


def test_restarts_and_a_throttle_stand_beside_the_worker() -> None:
    reader, serializer = running().workers
    reader = replace(reader, restarts={"memory": 2, "hung": 1})
    state = snapshot(running(workers=(reader, serializer), throttle=0.25))
    lines = drawn(Look(state), 100, 40)
    assert (
        next(line for line in lines if "reader binance" in line)
        .rstrip()
        .endswith("3  hung 1, memory 2")
    )
    assert "throttled to 25%" in next(line for line in lines if "serializer binance" in line)


def test_an_instance_that_is_gone_is_told_and_its_last_state_stays() -> None:
    lines = drawn(Look(snapshot(), "nothing runs on state_dir /x"), 80, 24)
    assert "nothing runs on state_dir /x; waiting for it" in lines[1]
    assert "flowing" in "\n".join(lines)
    never = drawn(Look(None, "nothing runs on state_dir /x"), 80, 24)
    assert "waiting for it" in never[1]
    assert "event 20" in never[-1]


def test_a_script_may_record_the_screen() -> None:
    console = Console(record=True, width=100, height=30, file=io.StringIO())
    console.print(render(Look(snapshot()), rows(300), EVENTS, 100, 30))
    svg = console.export_svg(title="feedmono top")
    assert "trades/s" in svg
    assert "█" in svg


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([None, None], "  "),
        ([0, 0, None], "▁▁ "),
        ([1, None, 8, 4.5], "▂ █▅"),
        ([1e9, 5e8], "█▅"),
    ],
)
def test_a_sparkline_has_a_character_a_value(values: list[float | None], line: str) -> None:
    assert sparkline(values) == line


def test_history_joins_what_was_kept_and_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    # Somebody holds the lock; the snapshots are made.
    lock = (tmp_path / "lock").open("w")
    print(99, file=lock, flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with samples._open(tmp_path / samples.FILE) as connection:
        kept = [replace(r, at_s=now_s - 20 + n) for n, r in enumerate(rows(10)[::2])]
        connection.executemany(samples._PUT, [samples._stored(r, 1) for r in kept])
    connection.close()
    steady = itertools.count(1000.0)
    monkeypatch.setattr(Deltas.__init__, "__defaults__", (lambda: next(steady),))
    watcher = top.Watcher(tmp_path)
    for n in range(4):
        state = replace(
            snapshot(running(trades=100 + n)), started_at_s=0.0, taken_at_s=now_s - 5 + n
        )
        snapshots.publish(state, tmp_path)
        assert watcher.look() == Look(state)
    found = [r for r in watcher.history() if r.exchange == "binance"]
    assert [round(r.at_s - now_s) for r in found] == [*range(-20, -10), -4, -3, -2]
    lock.close()


# --- a terminal


class Terminal:
    """``feedmono top`` in a pseudo terminal of that size."""

    def __init__(self, environ: Mapping[str, str], width: int, height: int) -> None:
        self.output = b""
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = termios.tcgetattr(side)
        self.side = side
        self._process = subprocess.Popen(
            [sys.executable, "-m", "feedmono", "top"],
            env={**environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            stdin=side, stdout=side, stderr=side, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._main)
        os.close(self.side)

    def screen(self) -> list[str]:
        """The lines of the last whole picture."""
        while select.select([self._main], [], [], 0)[0]:
            with contextlib.suppress(OSError):
                self.output += os.read(self._main, 65536)
        pictures = self.output.split(b"\x1b[H")
        picture = pictures[-2] if len(pictures) > 2 else b""
        text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", picture).decode("utf-8", "replace")
        return [line.rstrip() for line in text.replace("\r", "").split("\n")]

    def wait(self, *parts: str) -> list[str]:
        """Waits until the picture has all of these."""
        found: list[str] = wait_until(
            self.screen, lambda lines: all(p in "\n".join(lines) for p in parts), 40
        )
        return found

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._process.send_signal(signal.SIGWINCH)

    def type(self, key: bytes) -> None:
        os.write(self._main, key)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        status = self._process.wait(20)
        self.screen()
        return status


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with (
        Sim("binance", "--rate", "50") as binance,
        Sim("kraken", "--rate", "5") as kraken,
        Instance(tmp_path_factory.mktemp("top"), binance, kraken) as running_,
    ):
        running_.wait_trades("binance", 100)
        yield running_


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_it_is_live_in_a_terminal_and_q_ends_it(
    instance: Instance, width: int, height: int
) -> None:
    pids = [str(instance.of(e)[f"{r}_pid"]) for e in ("binance", "kraken") for r in
            ("reader", "serializer")]  # fmt: skip
    with Terminal(instance.environ, width, height) as terminal:
        lines = terminal.wait("q ends", "binance trades/s", "serializer kraken", "█", *pids)
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        assert any(re.match(r"\d\d:\d\d:\d\d \w+ (reader|serializer) ", line) for line in lines)
        first = lines[0]
        terminal.wait("feedmono")
        wait_until(terminal.screen, lambda now: len(now) > 5 and now[0] != first, 20)
        terminal.type(b"q")
        assert terminal.end() == 0
        assert b"\x1b[?25h" in terminal.output, "the cursor is shown again"
        assert b"\x1b[?1049l" in terminal.output
        assert termios.tcgetattr(terminal.side) == terminal.before


def test_it_follows_the_size_of_the_terminal(instance: Instance) -> None:
    with Terminal(instance.environ, 120, 40) as terminal:
        terminal.wait("binance memory")
        terminal.resize(80, 14)
        found = wait_until(terminal.screen, lambda lines: 5 < len(lines) <= 14, 20)
        assert max(map(len, found)) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(
    instance: Instance, number: int
) -> None:
    with Terminal(instance.environ, 80, 24) as terminal:
        terminal.wait("q ends")
        terminal.signal(number)
        assert terminal.end() == 0
        assert b"\x1b[?1049l" in terminal.output
        assert termios.tcgetattr(terminal.side) == terminal.before


def test_it_says_when_the_instance_ends_and_goes_on_when_it_returns(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "50") as sim,
        Instance(tmp_path, sim) as one,
        Terminal(one.environ, 80, 24) as terminal,
    ):
        terminal.wait("flowing", "q ends")
        assert one.stop() == 0
        terminal.wait("as of", "nothing runs on", "binance")
        one.start()
        lines = terminal.wait("flowing", str(one.of("binance")["reader_pid"]))
        assert "waiting for it" not in "\n".join(lines)


def test_it_waits_for_an_instance_that_is_not_there_yet(tmp_path: Path) -> None:
    environ = {**os.environ, "FEEDMONO_STATE_DIR": str(tmp_path)}
    # Wide enough for the path, however long it is.
    with Terminal(environ, 240, 24) as terminal:
        terminal.wait("nothing runs on", "waiting for it")
        terminal.type(b"q")
        assert terminal.end() == 0


def test_without_a_terminal_it_shows_once(instance: Instance, tmp_path: Path) -> None:
    done = feedmono(instance.environ, tmp_path, "top")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for part in ("binance  flowing", "reader kraken", "kraken p99", "all "):
        assert part in done.stdout
    assert "q ends" not in done.stdout
    nothing = feedmono({"FEEDMONO_STATE_DIR": str(tmp_path)}, tmp_path, "top")
    assert nothing.returncode == 1
    assert "nothing runs on" in nothing.stderr


def test_another_user_sees_it_who_may_read_and_is_told_who_may_not(instance: Instance) -> None:
    for folder in (instance.state, *instance.state.parents):
        with contextlib.suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o055)

    def look() -> Look:
        return top.Watcher(instance.state).look()

    def sees() -> bool:
        state: Snapshot | None = look().state
        return state is not None and not look().trouble and state.pid == instance.pid

    wait_until(sees, bool, 10)
    assert as_nobody(sees)
    assert as_nobody(lambda: bool(top.Watcher(instance.state).history()))
    instance.state.chmod(0o700)
    try:
        assert as_nobody(lambda: os.geteuid() != 0 and "Permission denied" in look().trouble)
    finally:
        instance.state.chmod(0o755)
