"""``feedmono run --demo``: all exchanges from simulators, into Avro files, nothing else needed."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feedmono import events, ring, simulator, workers
from feedmono.config import Config
from feedmono.config.keys import variable
from feedmono.simulator.base import Dialect
from feedmono.sinks.files import count_trades
from feedmono.supervision import reload, samples, statelock

# What the demo has instead of the other defaults, and the variable that beats it.
_DEFAULTS = {
    "state_dir": ("FEEDMONO_STATE_DIR", "var/demo"),
    "files.dir": ("FEEDMONO_FILES_DIR", "data/demo"),
    "sink": ("FEEDMONO_SINK", "files"),
    # Two of them fit into the 64 MB that /dev/shm has in a container.
    "ring_capacity": ("FEEDMONO_RING_CAPACITY", "8 MiB"),
    "connections.frame_limit": ("FEEDMONO_CONNECTIONS_FRAME_LIMIT", "1 MiB"),
}
# In a folder of files that a demo made: what has no such mark is not the demo's to empty.
_MARK = ".feedmono-demo"
# About what Binance's five symbols do on a real day.
_ARGUMENTS = ("--port", "0", "--rate", "55", "--stop-with-parent")
_READY_LIMIT_S = 15.0
_END_LIMIT_S = 5.0


class DemoError(Exception):
    """The demo can't start."""


@dataclass(frozen=True, slots=True)
class Simulators:
    """The simulators' processes and where they listen."""

    processes: tuple[subprocess.Popen[bytes], ...]
    overrides: Mapping[str, str]
    """Configuration keys that point feedmono at them."""

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(_END_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start(names: Sequence[str]) -> Simulators:
    """A simulator for each of these exchanges, on free loopback ports; they end with this process.

    :raises DemoError: one did not start.
    """
    # Before any is started: whoever fails here leaves none behind.
    dialects = {name: _dialect(name) for name in names}
    processes: list[subprocess.Popen[bytes]] = []
    urls: dict[str, str] = {}
    for name in names:
        command = [sys.executable, "-m", "feedmono", "sim", "--exchange", name, *_ARGUMENTS]
        if dialects[name].recorded_symbol is not None:
            command += ["--trades", "recorded"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            # Ctrl-C reaches this process alone, which stops the capture first.
            start_new_session=True,
        )
        processes.append(process)
    simulators = Simulators(tuple(processes), urls)
    try:
        for name, process in zip(names, processes, strict=True):
            ready = _ready(name, process)
            urls[f"exchanges.{name}.ws_url"] = str(ready["ws_url"])
            urls[f"exchanges.{name}.rest_url"] = str(ready["rest_url"])
    except DemoError:
        simulators.stop()
        raise
    return simulators


def _dialect(name: str) -> type[Dialect]:
    try:
        return simulator.load(name)
    except KeyError:
        raise DemoError(
            f"{name} can't be simulated, only {', '.join(simulator.names())}: set "
            f"{variable(name, 'ENABLED')}=false"
        ) from None


def _ready(name: str, process: subprocess.Popen[bytes]) -> Mapping[str, object]:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _READY_LIMIT_S)
    line = process.stdout.readline() if ready else b""
    try:
        urls = json.loads(line)
    except ValueError:
        urls = None
    if not isinstance(urls, dict):
        raise DemoError(f"the simulator of {name} did not start (it printed {line[:200]!r})")
    return urls


def overrides(environ: Mapping[str, str]) -> dict[str, str]:
    """Configuration keys that the demo sets, but for those that a variable sets."""
    return {key: value for key, (name, value) in _DEFAULTS.items() if name not in environ}


def empty(config: Config) -> None:
    """Removes what an earlier demo left: its rings, its state, its files, and nothing else.

    :raises DemoError: a demo runs there, or the files are not a demo's.
    """
    pid = statelock.holder(config.state_dir)
    if pid is not None:
        raise DemoError(f"{config.state_dir} is in use by process {pid}")
    mark = config.files.dir / _MARK
    folders = [config.files.dir / e.name for e in config.enabled_exchanges]
    if config.sink == "files" and not mark.exists() and any(map(_holds_files, folders)):
        raise DemoError(
            f"{config.files.dir} holds trades that are not a demo's, and a demo would remove "
            "them: set another FEEDMONO_FILES_DIR"
        )
    for exchange in config.enabled_exchanges:
        shared = workers.Shared.of(config, exchange.name)
        for path in (shared.ring, *ring.set_aside_of(shared.ring), *shared.state_files):
            path.unlink(missing_ok=True)
        shutil.rmtree(shared.dead_letters, ignore_errors=True)
    for name in (samples.FILE, *events.FILES, reload.FILE):
        (config.state_dir / name).unlink(missing_ok=True)
    if config.sink == "files":
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        config.files.dir.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def summary(config: Config) -> str:
    """Where the files are, how many trades they hold, and how to look at them."""
    if config.sink != "files":
        return f"The demo's trades are in the sink {config.sink}."
    lines = ["", "The demo's trades:"]
    example: Path | None = None
    for exchange in config.enabled_exchanges:
        folder = config.files.dir / exchange.name
        files = sorted(folder.glob("trades-*.avro"))
        count = count_trades(config.files.dir, exchange.name)
        lines.append(f"  {exchange.name:<10} {count:>9,} trades in {_shown(folder)}")
        example = example or (files[0] if files else None)
    data = f"FEEDMONO_FILES_DIR={_shown(config.files.dir)}"
    program = _shown(Path(sys.executable).with_name("feedmono"))
    if example:
        lines += [
            "",
            "Look at them with any Avro tool:",
            f"  {_shown(Path(sys.executable).with_name('fastavro'))} {_shown(example)} | tail -n 3",
            "",
            "Is anything missing, or there twice?",
            f"  FEEDMONO_STATE_DIR={_shown(config.state_dir)} {data} {program} verify",
        ]
    return "\n".join(lines)


def _shown(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
