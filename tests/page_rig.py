"""What the tests of the page share: a state folder with made data, and its real server."""

from __future__ import annotations

import math
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

from feedmono import config as configuration
from feedmono import log
from feedmono.delivery.ledger import Ledger
from feedmono.status import Site
from feedmono.supervision import snapshot
from feedmono.supervision.samples import Store
from feedmono.supervision.snapshot import Disk, ExchangeStatus, Snapshot, Tree, WorkerStatus
from feedmono.trade import BUY, STREAM, Trade
from feedmono.web.health import Health
from feedmono.web.httpd import Server
from feedmono.web.observer import View

# The page mistrusts a state that is older than some seconds. That of a test is taken a minute
# ahead, so that a slow machine does not age it.
_AHEAD_S = 60.0


def exchange(name: str = "binance", **fields: object) -> ExchangeStatus:
    """One that is well, but for *fields*."""
    usual: dict[str, object] = {
        "name": name, "state": "flowing", "detail": "", "trades_per_s": 54.62, "trades": 1_234_567,
        "delivered": 1_234_560, "last_trade_age_s": 0.3, "receive_p50_s": 0.0234,
        "receive_p99_s": 0.081, "delivery_p50_s": 0.0061, "delivery_p99_s": 1.52,
        "ring_used_bytes": 6_710_886, "ring_capacity_bytes": 64 << 20, "cpu_cores": 0.043,
        "cpu_budget_cores": 0.5, "memory_bytes": 78 << 20, "memory_budget_bytes": 512 << 20,
        "reconnects": 12, "restarts": 3, "duplicates": 13, "dead_letters": 0, "symbols": 5,
        "subscribed": 5, "counts": {"holes_open": 0, "open_trades": 0, "beyond": 0, "late": 4242},
        "workers": (
            WorkerStatus("reader", 4711, 0.021, 312.2, 36 << 20, 21),
            WorkerStatus("serializer", 4712, 0.022, 391.2, 42 << 20, 24, {"crashed": 3}),
        ),
        "reconnect_reasons": {"lost": 11, "silent": 1},
    }  # fmt: skip
    return ExchangeStatus(**{**usual, **fields})  # type: ignore[arg-type]


def state(*exchanges: ExchangeStatus, **fields: object) -> Snapshot:
    """One of an instance that has run for 26 hours."""
    now_s = time.time() + _AHEAD_S
    usual = Snapshot(
        4700,
        time.time() - 26 * 3600 - 60,
        now_s,
        "files",
        exchanges or (exchange(), exchange("kraken", trades_per_s=0.6)),
        Tree(0.06, 812.0, 171 << 20, 41, 1024, 6),
        (Disk("files.dir", "/srv/data", 310 << 30, 1000 << 30),),
    )
    return replace(usual, **fields)  # type: ignore[arg-type]


class Unjudged(Site):
    """Serves a made state, on which the rules of ``/readyz`` would find much to say: its time, for
    one, and that nobody has counted anything."""

    def _look(self) -> tuple[View, Health]:
        view, health = super()._look()
        return view, replace(health, dead=None, reasons=())


class Made:
    """A state folder with made data, and the server of its page on a free port."""

    def __init__(self, folder: Path) -> None:
        environ = {"FEEDMONO_STATE_DIR": str(folder / "state")}
        self.config = configuration.load(None, environ, cwd=folder).config
        self.config.state_dir.mkdir(parents=True)
        self._port = 0
        self._thread: threading.Thread | None = None
        self._ends = threading.Event()
        self.publish(state())
        self.serve()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def serve(self) -> None:
        """Starts the server; again on the same port."""
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        self._ends.clear()
        self._thread = threading.Thread(target=self._run, args=[listener])
        self._thread.start()

    def _run(self, listener: socket.socket) -> None:
        server = Server(listener, Unjudged(self.config).respond, log.get())
        while not self._ends.is_set():
            server.turn(0.05)
        server.close()
        listener.close()

    def stop(self) -> None:
        """Ends the server, and all connections to it."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def publish(self, what: Snapshot) -> None:
        snapshot.publish(what, self.config.state_dir)

    def sample(self, since_s: float, until_s: float, every_s: float = 10.0) -> None:
        """Keeps samples as of a run from and to so many seconds ago: both exchanges trade, and the
        first reconnects once in its middle."""
        now_s = time.time()
        moment = 0.0
        store = Store(self.config.state_dir, 1e9, log.get(), monotonic=lambda: moment)
        steps = int((since_s - until_s) / every_s)
        for step in range(steps + 1):
            moment = step * every_s
            at_s = now_s - since_s + moment
            wave = 1.0 + math.sin(step / 20)
            one = exchange(
                trades=int(step * every_s * 50),
                reconnects=int(step > steps / 2),
                restarts=0,
                delivery_p50_s=0.01 * wave + 0.005,
                cpu_cores=0.1,
            )
            quiet = int(step * every_s * 0.6)
            two = exchange("kraken", trades=quiet, reconnects=0, restarts=0)
            store.add(state(one, two, started_at_s=now_s - since_s, taken_at_s=at_s))
        store.close()

    def deliver(self, name: str, symbols: list[str], gap_in: str) -> None:
        """A ledger with three trades of each symbol, and five that are missing in one of them."""
        path = self.config.state_dir / f"{name}.ledger"
        ledger = Ledger(path, log.get())
        ledger.begin({})
        now_us = time.time_ns() // 1000
        for symbol in symbols:
            ids = [101, 102, 108 if symbol == gap_in else 103]
            trades = [Trade(symbol, i, f"{i}.5", "1.0", BUY, now_us + i) for i in ids]
            ledger.deliver(trades, STREAM, "gap", now_us, 10**6, 1)
        ledger.commit(0, 10, 1, {})
        ledger.close()
