"""A whole feedmono as a subprocess, for tests: `Instance`; and readers of what it stored."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import fastavro
import psutil
from sim import Sim, wait_until

from feedmono import exchanges

STOP_LIMIT_S = 30.0


def only(*enabled: str) -> dict[str, str]:
    """The variables that enable these exchanges, and no others."""
    return {
        f"FEEDMONO_{name.upper()}_ENABLED": str(name in enabled).lower()
        for name in exchanges.names()
    }


class Instance:
    """``feedmono run`` in *folder*, its exchanges being the given simulators.

    Every variable that names a place points into the folder; the rings lie there as well, so that
    nothing is left behind in ``/dev/shm``. Whatever still runs is killed when the block is left.
    """

    program: Sequence[str] = ("-m", "feedmono")
    """What Python is to run."""

    def __init__(self, folder: Path, *sims: Sim, **variables: object) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FEEDMONO_")}
        environ |= {
            "FEEDMONO_STATE_DIR": str(folder / "state"),
            "FEEDMONO_RING_DIR": str(folder / "rings"),
            "FEEDMONO_FILES_DIR": str(folder / "data"),
            "FEEDMONO_FILES_SYNC_INTERVAL": "50 ms",
            "FEEDMONO_RING_CAPACITY": "16 MiB",
            "FEEDMONO_LOG_FORMAT": "json",
            "FEEDMONO_HTTP_PORT": "0",
        }
        environ |= only(*(sim.exchange for sim in sims))
        for sim in sims:
            environ[f"FEEDMONO_{sim.exchange.upper()}_WS_URL"] = sim.ws_url
            environ[f"FEEDMONO_{sim.exchange.upper()}_REST_URL"] = sim.rest_url
        for name, value in variables.items():
            environ[f"FEEDMONO_{name}"] = str(value)
        self.environ: Mapping[str, str] = environ
        self.state = Path(environ["FEEDMONO_STATE_DIR"])
        self.data = Path(environ["FEEDMONO_FILES_DIR"])
        self._process: subprocess.Popen[bytes] | None = None
        self._children: set[psutil.Process] = set()

    def __enter__(self) -> Instance:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        if kind is not None and (self.folder / "log").exists():
            print((self.folder / "log").read_text()[-8000:])

    def start(self, *arguments: str) -> Instance:
        """Starts it (again); it is up when every exchange has a reader and a serializer."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.program, "run", *arguments],
                env=dict(self.environ),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait(lambda state: all(e["reader_pid"] and e["serializer_pid"] for e in state))
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def status(self) -> list[dict[str, Any]]:
        """The exchanges' states as the running instance published them last; [] before."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended with status {self._process.returncode}: {self.tail()}")
        try:
            content = json.loads((self.state / "status.json").read_text())
        except FileNotFoundError:
            return []
        if content["pid"] != self._process.pid:
            return []
        for exchange in content["exchanges"]:
            for role in ("reader_pid", "serializer_pid"):
                # A worker that was killed may be gone by now.
                with contextlib.suppress(psutil.NoSuchProcess):
                    if exchange[role]:
                        self._children.add(psutil.Process(exchange[role]))
        exchanges: list[dict[str, Any]] = content["exchanges"]
        return exchanges

    def worker(self, title: str) -> int:
        """The pid of a worker by its title, such as ``reader kraken``: from the process table, for
        when the published state can't be."""

        def running() -> list[int]:
            children = psutil.Process(self.pid).children()
            with contextlib.suppress(psutil.NoSuchProcess):
                return [c.pid for c in children if c.cmdline()[:1] == [f"feedmono: {title}"]]
            return []

        found: list[int] = wait_until(running, bool)
        return found[0]

    def workers(self) -> list[int]:
        """The pids of all readers and serializers that run."""
        children = psutil.Process(self.pid).children()
        return [child.pid for child in children if child.name() != "feedmono: status"]

    def of(self, exchange: str) -> dict[str, Any]:
        """One exchange's published state."""
        return next(e for e in self.wait(bool) if e["name"] == exchange)

    def wait(
        self, condition: Callable[[list[dict[str, Any]]], bool], limit_s: float = 30.0
    ) -> list[dict[str, Any]]:
        """Waits until the published state fulfils *condition*."""
        state: list[dict[str, Any]] = wait_until(
            self.status, lambda s: bool(s) and condition(s), limit_s
        )
        return state

    def wait_trades(self, exchange: str, at_least: int, limit_s: float = 60.0) -> None:
        """Waits until so many trades of the exchange are acknowledged by the sink."""
        self.wait(
            lambda s: any(e["name"] == exchange and e["delivered"] >= at_least for e in s), limit_s
        )

    def wait_replaced(self, exchange: str, role: str, pid: int) -> None:
        """Waits until the worker that was *pid* has a successor."""
        self.wait(
            lambda s: any(e["name"] == exchange and e[f"{role}_pid"] not in (None, pid) for e in s)
        )

    def kill_worker(self, exchange: str, role: str) -> None:
        """kill -9 of a worker, once it runs; returns when it has a successor."""
        self.wait(lambda s: any(e["name"] == exchange and e[f"{role}_pid"] for e in s))
        victim = self.of(exchange)[f"{role}_pid"]
        os.kill(victim, signal.SIGKILL)
        self.wait_replaced(exchange, role, victim)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_LIMIT_S)

    def wait_end(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Its exit status, once it ends by itself."""
        assert self._process is not None
        return self._process.wait(limit_s)

    def kill(self) -> None:
        """kill -9 of the supervisor; returns when it and its workers are gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        psutil.wait_procs(list(self._children), timeout=5)
        for child in self._children:
            if child.is_running():
                child.kill()
        self._children.clear()

    def events(self) -> list[dict[str, Any]]:
        """Its log so far, an event a line."""
        lines = (self.folder / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_event(self, event: str, limit_s: float = 30.0, **fields: object) -> dict[str, Any]:
        """Waits until the log has such an event with these fields; gives the first one."""

        def matching() -> list[dict[str, Any]]:
            return [
                e
                for e in self.events()
                if e["event"] == event and all(e.get(k) == v for k, v in fields.items())
            ]

        found: list[dict[str, Any]] = wait_until(matching, bool, limit_s)
        return found[0]

    def tail(self) -> str:
        return (self.folder / "log").read_text()[-3000:]


def read_avro(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Every record of the finished files of that kind, by fastavro's own reader."""
    for path in sorted(folder.glob(f"{kind}-*.avro"), key=lambda p: int(p.stem.split("-")[-1])):
        with path.open("rb") as file:
            for record in fastavro.reader(file):
                assert isinstance(record, dict)
                yield record


def by_symbol(trades: Iterator[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for trade in trades:
        found[trade["symbol"]].append(trade)
    return found


def assert_complete(
    trades: Mapping[str, Sequence[Mapping[str, Any]]],
    sim: Sim,
    doubled: int = 0,
) -> None:
    """Every trade that the simulator sent to feedmono is there, exactly once (or at most *doubled*
    are there twice), with its exact figures.

    Holds where no connection was lost: what was sent, and only that, must be there, without a
    hole, from the simulator's first trade on if it held back until feedmono had subscribed.
    """
    repeats = 0
    symbols = sim.state()["symbols"]
    assert set(trades) == {s for s, totals in symbols.items() if totals["sent"]}
    for symbol, records in trades.items():
        totals = symbols[symbol]
        count = Counter(int(r["trade_id"]) for r in records)
        repeats += sum(count.values()) - len(count)
        first = totals["first_id"] if "--hold" in sim.args else min(count)
        assert sorted(count) == list(range(first, first + totals["sent"])), symbol
        for record in records:
            expected = sim.figures(symbol, int(record["trade_id"]))
            got = (record["price"], record["quantity"], record["side"])
            side = ("BUY", "SELL")[expected.side]
            assert got == (expected.price, expected.quantity, side), record
    assert repeats <= doubled
