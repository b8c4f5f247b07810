"""What the tests of verify share: a sink and a ledger, filled frame by frame as a test wants it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from instance import only

from feedmono import config, log, workers
from feedmono.avro import generate_encoder, load_schema
from feedmono.config import Config
from feedmono.delivery.ledger import Ledger
from feedmono.sinks.base import DeadLetter, Entry, Frame
from feedmono.sinks.files import FilesSink
from feedmono.trade import BACKFILL, ORIGINS, SIDES, STREAM, EncodedTrade, Trade, multiply
from feedmono.verify import verify
from feedmono.verify.findings import Result, SymbolCount

EXCHANGE = "binance"
BTC, ETH = "BTCUSDT", "ETHUSDT"
FIRST_SEQUENCE = 1_795_392_281_000_000
TIME_US = 1_795_392_281_000_000
MAX_TRADES = 10**9
ENCODE = generate_encoder(load_schema("trade"))


def configured(folder: Path, **variables: str) -> Config:
    environ = {
        "FEEDMONO_STATE_DIR": str(folder / "state"),
        "FEEDMONO_FILES_DIR": str(folder / "data"),
        **only("binance"),
        **variables,
    }
    return config.load(None, environ, cwd=folder).config


def trade(trade_id: int, symbol: str = BTC, time_us: int = 0) -> Trade:
    time_us = time_us or TIME_US + trade_id * 1000
    return Trade(symbol, trade_id, f"{trade_id % 97 + 1}.50", "0.02", trade_id % 2, time_us, True)


def record(made: Trade, sequence: int, origin: int, **changes: object) -> dict[str, object]:
    return {
        "schema_version": "1.1.0",
        "exchange": EXCHANGE,
        "symbol": made.symbol,
        "canonical_symbol": "BASE/USDT",
        "trade_id": str(made.trade_id),
        "price": made.price,
        "quantity": made.quantity,
        "quote_volume": multiply(made.price, made.quantity),
        "side": SIDES[made.side],
        "timestamp": made.time_us // 1000 + 7,
        "exchange_timestamp": made.time_us // 1000,
        "metadata": None,
        "exchange_timestamp_us": made.time_us,
        "received_timestamp_us": made.time_us + 500,
        "origin": ORIGINS[origin],
        "frame_sequence": sequence,
        **changes,
    }


def payload(trades: Sequence[Trade], origin: int) -> bytes:
    if origin == BACKFILL:
        page = [
            {
                "id": t.trade_id,
                "price": t.price,
                "qty": t.quantity,
                "quoteQty": multiply(t.price, t.quantity),
                "time": t.time_us,
                "isBuyerMaker": bool(t.side),
                "isBestMatch": True,
            }
            for t in trades
        ]
        return json.dumps(page).encode()
    (t,) = trades
    event = {
        "e": "trade",
        "E": t.time_us + 1,
        "s": t.symbol,
        "t": t.trade_id,
        "p": t.price,
        "q": t.quantity,
        "T": t.time_us,
        "m": bool(t.side),
        "M": True,
    }
    stream = f"{t.symbol.lower()}@trade"
    return json.dumps({"stream": stream, "data": event}, separators=(",", ":")).encode()


class World:
    """A real sink and a real ledger, filled frame by frame as the serializer does it, unless the
    test wants something else."""

    def __init__(self, folder: Path) -> None:
        self.config = configured(folder)
        self.folder = self.config.files.dir / EXCHANGE
        self.ledger = Ledger(workers.Shared.of(self.config, EXCHANGE).ledger, log.get())
        self.sequence = FIRST_SEQUENCE - 1
        self.write: Callable[[Entry], None] = self._write
        self._open()

    def _open(self) -> None:
        self.sink = FilesSink(self.config.files, EXCHANGE, mark=self.ledger.mark)
        assert self.sink.open(), self.sink.trouble

    def frame(
        self,
        *trades: Trade,
        origin: int = STREAM,
        to_sink: bool = True,
        to_ledger: bool = True,
        raw: bool = True,
        dead: DeadLetter | None = None,
        body: bytes | None = None,
        sequence: int | None = None,
        **changes: object,
    ) -> None:
        """One ring record; *changes* to the fields of its trades."""
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        if to_sink:
            content = payload(trades, origin) if body is None else body
            frame = Frame(content, 1, sequence, sequence * 1000, origin)
            encoded = [
                EncodedTrade(t.symbol, ENCODE(record(t, sequence, origin, **changes)))
                for t in trades
            ]
            symbol = trades[0].symbol if trades and raw else None
            self.write(Entry(sequence, frame, symbol, encoded, dead))
        if to_ledger:
            self.ledger.deliver(trades, origin, "down", TIME_US, MAX_TRADES, sequence)

    def _write(self, entry: Entry) -> None:
        assert self.sink.write([entry]) == 1

    def frames(self, trade_ids: Sequence[int], symbol: str = BTC, **how: Any) -> None:
        for trade_id in trade_ids:
            self.frame(trade(trade_id, symbol), **how)

    def store(self) -> None:
        """The sink stores what it has, without the ledger's knowledge."""
        self.sink.flush()
        self.sink.poll(0)

    def commit(self) -> None:
        self.store()
        self.ledger.commit(0, self.sequence, self.sequence, self.sink.mark())
        self.sink.settle()

    def roll(self) -> None:
        """Everything so far into finished files."""
        self.commit()
        self.sink.close()
        self._open()

    def end(self) -> None:
        self.roll()
        self.sink.close()
        self.ledger.close()

    def verify(self, *, symbol: str | None = None, retained: bool = False) -> Result:
        return verify.prepare(self.config, EXCHANGE, symbol, retained).run()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def counts(result: Result) -> dict[tuple[str, str], int]:
    return {(found.kind, found.symbol): found.count for found in result.found}


def named(result: Result, kind: str) -> list[tuple[int | None, int | None]]:
    (found,) = [found for found in result.found if found.kind == kind]
    return [(n.first_id, n.last_id) for n in found.named]


def only_symbol(result: Result) -> SymbolCount:
    (count,) = result.symbols
    return count
