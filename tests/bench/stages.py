"""The stages of a trade's way, each alone, over made Binance frames: what `bench.callgrind` counts.

``python stages.py native|plain`` does each stage once to warm up and once to be counted, and calls
`mark` before and after: valgrind is told to set its counts apart there.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feedmono.delivery.ids import Ids
    from feedmono.ring import RingReader
    from feedmono.sinks.base import Sink

NATIVE, PLAIN = "native", "plain"
FRAMES = 2000
WHOLE = "ring to acknowledgement, null sink"
TAKE = "take: ring read, decode, is it the next?, encode"
STAGES = ("cut", "ring append", "ring read", "decode", "encode", TAKE, WHOLE)

_SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT")
_CHUNK_BYTES = 64 << 10
_BATCH = 100
_NOW_NS = 1_732_320_000_123_456_789
_FRAME_LIMIT_BYTES = 4 << 20
_RING_BYTES = 8 << 20


def mark() -> None:
    """A place where the counts are set apart: the C library's function of this name is what
    valgrind looks for, and nothing else in these stages calls it."""
    os.getppid()


def frames(first_id: int) -> list[bytes]:
    """One trade each, the symbols in turn."""
    found = []
    for number in range(FRAMES):
        symbol = _SYMBOLS[number % len(_SYMBOLS)]
        trade_id = first_id + number // len(_SYMBOLS)
        time_us = _NOW_NS // 1000 + number
        found.append(
            f'{{"stream":"{symbol.lower()}@trade","data":{{"e":"trade","E":{time_us},'
            f'"s":"{symbol}","t":{trade_id},"p":"{60_000 + number % 997}.{number % 90 + 10}000000",'
            f'"q":"0.{number % 8999 + 1000}0000","T":{time_us},"m":true,"M":true}}}}'.encode()
        )
    return found


class Bench:
    """What the stages work on. Each stage takes what the one before it made."""

    def __init__(self, folder: Path) -> None:
        # After the twin was chosen.
        from feedmono import ring  # noqa: PLC0415
        from feedmono.avro import TradeEncoder  # noqa: PLC0415
        from feedmono.counters import Counters  # noqa: PLC0415
        from feedmono.delivery.fast_path import FastPath, batch_path  # noqa: PLC0415
        from feedmono.delivery.ids import Ids  # noqa: PLC0415
        from feedmono.exchanges import load  # noqa: PLC0415
        from feedmono.network.framing import FrameCutter  # noqa: PLC0415
        from feedmono.simulator.websocket import TEXT, frame  # noqa: PLC0415

        self._frame = lambda payload: frame(TEXT, payload)
        self._cutter = FrameCutter(_FRAME_LIMIT_BYTES)
        self._path = folder / "x.ring"
        ring.create(self._path, _RING_BYTES)
        self._writer = ring.RingWriter(self._path)
        self._reader = ring.RingReader(self._path)
        self._exchange = load("binance")
        self._encoder = TradeEncoder("binance")
        self._canonical = {symbol: f"{symbol[:-4]}/USDT" for symbol in _SYMBOLS}
        self._fast_path = FastPath(self._exchange.decode, self._encoder.encode)
        counters = Counters.create(folder / "stages.counters")
        self._batch_path = batch_path(self._exchange, self._encoder, counters)
        self._ids_of = Ids
        self._whole = whole(folder, self._reader, self._canonical)

    def run(self, first_id: int) -> Iterator[None]:
        """All stages in the order of `STAGES`; stops before each, and after the last."""
        data = b"".join(map(self._frame, frames(first_id)))
        chunks = [data[at : at + _CHUNK_BYTES] for at in range(0, len(data), _CHUNK_BYTES)]
        yield
        payloads = [message for chunk in chunks for message in self._cutter.feed(chunk).messages]
        yield
        self._append(payloads)
        yield
        records = []
        while batch := self._reader.read(1000, 1 << 20):
            records += batch
        yield
        decode = self._exchange.decode
        decoded = [decode(record.payload) for record in records]
        yield
        encode, names = self._encoder.encode, self._canonical
        now_ms = _NOW_NS // 1_000_000
        encoded = [
            encode(d.trades, names, 0, _NOW_NS, record.sequence, now_ms)
            for d, record in zip(decoded, records, strict=True)
        ]
        firsts = [d.trades[0] for d in decoded[: len(_SYMBOLS)]]
        ids = {
            first.symbol: self._ids_of(first._replace(trade_id=first.trade_id - 1))
            for first in firsts
        }
        from feedmono.ring import RingReader  # noqa: PLC0415

        again = RingReader(self._path)
        yield
        taken = self._take(again, names, ids, now_ms)
        yield
        assert len(payloads) == len(records) == sum(map(len, encoded)) == taken == FRAMES
        self._reader.acknowledge(self._reader.position)

    def _take(
        self, reader: RingReader, names: dict[str, str], ids: dict[str, Ids], now_ms: int
    ) -> int:
        """How many records it took."""
        taken = 0
        if self._batch_path is not None:
            take = self._batch_path.take
            while batch := reader.take(take, _BATCH, 1 << 20, 0, names, ids, now_ms):
                taken += len(batch)
            return taken
        while records := reader.read(_BATCH, 1 << 20):
            taken += self._fast_path.take(records, 0, 0, names, ids, now_ms, [], [])[0]
        return taken

    def run_whole(self, first_id: int) -> Iterator[None]:
        """The last stage, on other trades than those before."""
        self._append(frames(first_id))
        yield
        self._whole()
        yield
        self._reader.acknowledge(self._reader.position)

    def _append(self, payloads: Sequence[bytes]) -> None:
        from feedmono.ring_layout import FRAME  # noqa: PLC0415

        append = self._writer.append
        for at in range(0, len(payloads), _BATCH):
            append(payloads[at : at + _BATCH], FRAME, 0, _NOW_NS + at)


def whole(folder: Path, reader: object, canonical: Mapping[str, str]) -> Callable[[], None]:
    """A serializer with a sink that acknowledges all at once and stores nothing; what is given
    takes `FRAMES` frames out of the ring."""
    from feedmono import log  # noqa: PLC0415
    from feedmono.config import BackfillConfig, Budget, ExchangeConfig  # noqa: PLC0415
    from feedmono.counters import Counters, Field  # noqa: PLC0415
    from feedmono.delivery import loop  # noqa: PLC0415
    from feedmono.delivery.backfill import Backfill  # noqa: PLC0415
    from feedmono.delivery.coverage import News  # noqa: PLC0415
    from feedmono.delivery.ledger import Ledger  # noqa: PLC0415
    from feedmono.delivery.normalizer import Normalizer  # noqa: PLC0415
    from feedmono.delivery.seen import Seen  # noqa: PLC0415
    from feedmono.exchanges import load  # noqa: PLC0415
    from feedmono.network.metadata import CanonicalSymbols  # noqa: PLC0415
    from feedmono.ring import RingReader  # noqa: PLC0415

    assert isinstance(reader, RingReader)
    budget = Budget(1, "warn", 1, 30)
    config = ExchangeConfig("binance", True, _SYMBOLS, "", "", dict(canonical), budget)
    counters = Counters.create(folder / "counters")
    names = CanonicalSymbols(config, folder / "symbols.json")
    ledger = Ledger(folder / "x.ledger", log.get())
    seen = Seen(ledger.copy(), 1000, ledger.sequence)
    exchange, never = load("binance"), BackfillConfig(86400, 1000, 60)
    backfill = Backfill(seen, exchange, never, (), lambda _: True, lambda: 0.0)
    normalizer = Normalizer(exchange, names, seen, backfill, counters, log.get())
    parts = loop.Parts(normalizer, seen, backfill, _null_sink(), ledger, News(1e9))
    # A commit by the clock would come more often under valgrind than elsewhere.
    loop.COMMIT_S = loop._COMMIT_SOON_S = math.inf
    delivery = loop.Delivery(reader, parts, counters, window=1_000_000)

    def take() -> None:
        wanted = counters[Field.DELIVERED_TRADES] + FRAMES
        while counters[Field.DELIVERED_TRADES] < wanted:
            delivery.step()

    return take


def _null_sink() -> Sink:
    from feedmono.sinks.base import Coverage, Entry, Sink, SinkStats  # noqa: PLC0415

    class NullSink(Sink):
        """Takes everything, keeps nothing."""

        def __init__(self) -> None:
            self.stats = SinkStats()
            self.refused: list[tuple[int, int]] = []
            self.stored: deque[tuple[int, int]] = deque()
            self._end: int | None = None

        def open(self) -> bool:
            return True

        def write(self, entries: Sequence[Entry]) -> int:
            self._end = entries[-1].end
            return len(entries)

        def poll(self, timeout_s: float) -> int | None:
            return self._end

        def flush(self) -> None:
            pass

        def cover(self, coverages: Sequence[Coverage]) -> None:
            pass

        def mark(self) -> Mapping[str, int]:
            return {}

        def settle(self) -> None:
            pass

        def close(self) -> None:
            pass

        def wait_s(self) -> float:
            return 0.0

        @property
        def trouble(self) -> str:
            return ""

    return NullSink()


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in (NATIVE, PLAIN):
        print(f"usage: stages.py {NATIVE}|{PLAIN}", file=sys.stderr)
        return 2
    if sys.argv[1] == PLAIN:
        # As if it had never been built.
        sys.modules["feedmono.native._native"] = None  # type: ignore[assignment]
    gc.disable()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        for counts, first_id in ((False, 1_000_001), (True, 1_000_001 + FRAMES // len(_SYMBOLS))):
            for steps in (bench.run(first_id), bench.run_whole(first_id)):
                for _ in steps:
                    if counts:
                        mark()
    return 0


if __name__ == "__main__":
    sys.exit(main())
