"""A status process on a ``state_dir`` that the test itself fills: `Served`; and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from instance import only

from feedmono import config
from feedmono.config import Config
from feedmono.counters import Counters
from feedmono.supervision import snapshot
from feedmono.supervision.snapshot import ExchangeStatus, Snapshot
from feedmono.workers import Shared

_CHILD = """
import os, socket, sys
from feedmono import config, log, status, workers
workers.settle("status", os.getppid())
listener = socket.socket(fileno=int(sys.argv[1]))
log.configure("debug", "json")
sys.exit(status.main(config.load(None, os.environ).config, listener, int(sys.argv[2]), log.get()))
"""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request on a connection of its own; ``_`` in a header's name stands for ``-``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read())


def environ_of(folder: Path) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("FEEDMONO_")}
    own |= {
        "FEEDMONO_STATE_DIR": str(folder / "state"),
        "FEEDMONO_RING_DIR": str(folder / "rings"),
        "FEEDMONO_FILES_DIR": str(folder / "data"),
        **only("binance", "kraken"),
    }
    return own


def config_of(folder: Path, **variables: object) -> Config:
    """A configuration whose places all lie in *folder*."""
    named = {f"FEEDMONO_{name}": str(value) for name, value in variables.items()}
    return config.load(None, {**environ_of(folder), **named}, cwd=folder).config


def exchange_status(name: str = "binance", **fields: object) -> ExchangeStatus:
    """One that is well."""
    symbols = {"binance": 5, "kraken": 4}[name]
    usual: dict[str, object] = {
        "name": name, "state": "flowing", "detail": "", "trades_per_s": 10.0, "trades": 100,
        "delivered": 100, "last_trade_age_s": 0.5, "receive_p50_s": 0.02, "delivery_p50_s": 0.006,
        "delivery_p99_s": 0.014, "ring_used_bytes": 0, "ring_capacity_bytes": 1 << 26,
        "cpu_cores": 0.1, "cpu_budget_cores": 0.5, "memory_bytes": 61 << 20,
        "memory_budget_bytes": 512 << 20, "reconnects": 0, "restarts": 0, "duplicates": 0,
        "dead_letters": 0, "symbols": symbols, "subscribed": symbols, "reader_pid": 11,
        "serializer_pid": 12,
    }  # fmt: skip
    return ExchangeStatus(**{**usual, **fields})  # type: ignore[arg-type]


def both(**of_binance: object) -> Snapshot:
    """A snapshot in which kraken is well."""
    statuses = (exchange_status("binance", **of_binance), exchange_status("kraken"))
    return Snapshot(10, 1000.0, 2000.0, "files", statuses)


class Served:
    """A status process, and what it looks at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = config_of(folder)
        self.config.ring_dir.mkdir(parents=True)
        shared = {name: Shared.of(self.config, name) for name in ("binance", "kraken")}
        self.counters = {name: Counters.create(s.counters) for name, s in shared.items()}
        self.port = 0
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._beat_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._beats = 0

    def __enter__(self) -> Served:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = listener.getsockname()[1]
        fds = (listener.fileno(), self._beat_fd)
        with (self.folder / "log").open("wb") as log, listener:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, *map(str, fds)],
                env=environ_of(self.folder),
                cwd=self.folder,
                pass_fds=fds,
                stderr=log,
            )
        self.pid = self._process.pid
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        os.close(self._beat_fd)
        if kind is not None:
            print((self.folder / "log").read_text()[-4000:])

    def publish(self, state: Snapshot) -> None:
        snapshot.publish(state, self.config.state_dir)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return ask(self.port, path, method, **headers)

    @property
    def beats(self) -> int:
        """How often it came round."""
        with contextlib.suppress(BlockingIOError):
            self._beats += os.eventfd_read(self._beat_fd)
        return self._beats

    def end(self) -> int:
        """SIGTERM, and how it ended."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(10)
