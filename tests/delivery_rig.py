"""What the tests of the serializer's loop share: its parts around a ring, with a sink by hand."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from feedmono import log, messages, ring
from feedmono.config import BackfillConfig, Budget, ExchangeConfig
from feedmono.counters import Counters
from feedmono.delivery import ledger_file, loop
from feedmono.delivery.backfill import Backfill
from feedmono.delivery.coverage import News
from feedmono.delivery.holes import State
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.loop import Delivery, Parts
from feedmono.delivery.normalizer import Normalizer
from feedmono.delivery.seen import Seen
from feedmono.exchanges import load
from feedmono.exchanges.base import PageRequest
from feedmono.network.metadata import CanonicalSymbols
from feedmono.ring_layout import EVENT, FRAME
from feedmono.sinks.base import Coverage, Entry, Sink, SinkStats

BUDGET = Budget(1, "warn", 1, 30)
NAMES = {"BTCUSDT": "BTC/USDT"}
T0_US = 1_723_161_255_342_000
DAY_US = 86_400_000_000
SYMBOL = "BTCUSDT"


def frame(
    trade_id: int, time_us: int = T0_US, symbol: str = SYMBOL, price: str = "1.50", **more: object
) -> bytes:
    event = {
        "e": "trade", "E": 1, "s": symbol, "t": trade_id, "p": price, "q": "2.0",
        "T": time_us, "m": True, "M": True, **more,
    }  # fmt: skip
    return json.dumps({"stream": "x@trade", "data": event}, separators=(",", ":")).encode()


def row(trade_id: int, price: str = "1.50", time_us: int = T0_US) -> dict[str, object]:
    """The same by REST."""
    return {"id": trade_id, "price": price, "qty": "2.0", "time": time_us, "isBuyerMaker": True}


class ManualSink(Sink):
    """Acknowledges when the test says so: no real sink can be held at a point like that."""

    def __init__(self) -> None:
        self.stats = SinkStats()
        self.refused: list[tuple[int, int]] = []
        self.stored: deque[tuple[int, int]] = deque()
        self.coverages: list[Coverage] = []
        self.settled = 0
        self.taken: list[Entry] = []
        self.room = 1_000_000
        self.end: int | None = None
        self.flushes = 0

    def open(self) -> bool:
        return True

    def write(self, entries: Sequence[Entry]) -> int:
        taken = entries[: max(0, self.room - len(self.taken))]
        self.taken += taken
        return len(taken)

    def poll(self, timeout_s: float) -> int | None:
        return self.end

    def flush(self) -> None:
        self.flushes += 1

    def cover(self, coverages: Sequence[Coverage]) -> None:
        self.coverages += coverages

    def mark(self) -> Mapping[str, int]:
        return {"taken": len(self.taken)}

    def settle(self) -> None:
        self.settled += 1

    def close(self) -> None:
        pass

    def wait_s(self) -> float:
        return 0.0

    @property
    def trouble(self) -> str:
        return ""

    def acknowledge(self, count: int) -> None:
        """Everything up to the entry number *count* is safe."""
        self.end = self.taken[count - 1].end


class Rig:
    """A ring with a writer, a serializer of an exchange's frames, and a sink by hand."""

    def __init__(
        self,
        folder: Path,
        window: int = 100,
        exchange: str = "binance",
        names: Mapping[str, str] = NAMES,
    ) -> None:
        self.exchange = load(exchange)
        self.path = folder / "x.ring"
        ring.create(self.path, 1 << 20)
        self.writer = ring.RingWriter(self.path)
        self.sink = ManualSink()
        self.counters = Counters.create(folder / "counters")
        self.config = ExchangeConfig(
            exchange,
            True,
            tuple(names),
            "",
            "",
            names,
            BUDGET,
        )
        self.metadata = folder / "symbols.json"
        self.canonical = CanonicalSymbols(self.config, self.metadata)
        self.ledger_path = folder / "x.ledger"
        self.ledger: Ledger | None = None
        self.asked: list[PageRequest] = []
        self.now_s = 1000.0
        self.window = window
        self.restart()

    def restart(self) -> None:
        """A new serializer on the ring and the ledger as they are."""
        self.reader = ring.RingReader(self.path)
        if self.ledger is not None:
            self.ledger.close()
        self.ledger = Ledger(self.ledger_path, log.get())
        self.seen = Seen(self.ledger.copy(), 1000, self.ledger.sequence)
        self.backfill = Backfill(
            self.seen,
            self.exchange,
            BackfillConfig(86400, 1000, 60),
            (),
            self._ask,
            lambda: self.now_s,
        )
        self.normalizer = Normalizer(
            self.exchange, self.canonical, self.seen, self.backfill, self.counters, log.get()
        )
        self.parts = Parts(
            self.normalizer, self.seen, self.backfill, self.sink, self.ledger, News(10)
        )
        self.loop = Delivery(self.reader, self.parts, self.counters, self.window)

    def _ask(self, wish: PageRequest) -> bool:
        self.asked.append(wish)
        return True

    def step(self) -> None:
        """One round, with what is acknowledged in the ledger."""
        self.loop.step(hurry=True)

    def append(self, *frames: bytes, kind: int = FRAME, flags: int = 0) -> None:
        assert self.writer.append(frames, kind, 0, 10**18, flags) == len(frames)

    @property
    def ids(self) -> list[str]:
        """The ids of the trades that were handed over, out of their raw frames."""
        return [str(json.loads(e.frame.payload)["data"]["t"]) for e in self.sink.taken if e.trades]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.writer.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the loop takes for the time, in seconds."""
    now_s = [1000.0]
    clocks = SimpleNamespace(monotonic=lambda: now_s[0], time_ns=time.time_ns)
    monkeypatch.setattr(loop, "time", clocks)
    return now_s


def tell(rig: Rig, kind: str, **fields: object) -> None:
    rig.append(messages.event(kind, **fields), kind=EVENT)


def asked(rig: Rig, seconds: float = 10.0) -> list[PageRequest]:
    """What is asked for after so long."""
    rig.asked.clear()
    rig.step()
    rig.now_s += seconds
    rig.step()
    return rig.asked


def store(rig: Rig) -> None:
    """All that was handed over is stored, and in the ledger."""
    rig.step()
    rig.sink.acknowledge(len(rig.sink.taken))
    rig.step()
    rig.step()
    assert rig.loop.idle


def delivered_holes(rig: Rig) -> list[tuple[int, int, str, State]]:
    """What the ledger has."""
    content = ledger_file.read(rig.ledger_path)
    assert content is not None
    holes = content.symbols[SYMBOL].holes
    return [(hole.first_id, hole.last_id, hole.cause, hole.state) for hole in holes]


def seen_causes(rig: Rig) -> list[str]:
    return [hole.cause for hole in rig.seen.symbols[SYMBOL].holes]
