"""What the tests of batches share: frames of Kraken's, and one who takes batches of them out of a
ring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from delivery_rig import T0_US, Rig

from feedmono.avro import TradeEncoder
from feedmono.delivery.fast_path import Batch, batch_path
from feedmono.delivery.ids import Ids
from feedmono.exchanges import load
from feedmono.ring_layout import FRAME
from feedmono.sinks.base import Entry
from feedmono.trade import Trade

RECEIVED_NS = T0_US * 1000 + 7_000_500
NOW_NS = RECEIVED_NS + 12_345_678
NAMES = {"BTC/USD": "BTC/USD", "ETH/USD": "ETH/USD", "X/Y": "X/Y"}


class Row(NamedTuple):
    """One trade of a Kraken frame."""

    trade_id: int
    symbol: str = "BTC/USD"
    price: str = "61837.5"
    time: str = "2024-08-08T23:54:15.342000Z"
    side: str = "sell"


def frame(*rows: Row, kind: str = "update", more: str = "", padding: str = "") -> bytes:
    """A frame of Kraken's; *more* is text between its outer keys, the *padding* is that of a key
    behind them that nobody knows."""
    trades = ",".join(
        f'{{"symbol":"{row.symbol}","side":"{row.side}","price":{row.price},"qty":0.00010000,'
        f'"ord_type":"market","trade_id":{row.trade_id},"timestamp":"{row.time}"}}'
        for row in rows
    )
    padded = f',"padding":"{padding}"' if padding else ""
    return f'{{"channel":"trade",{more}"type":"{kind}","data":[{trades}]{padded}}}'.encode()


def next_to(*frames: bytes) -> dict[str, Ids]:
    """What was seen before these frames."""
    known: dict[str, Ids] = {}
    decode = load("kraken").decode
    for payload in frames:
        for trade in decode(payload).trades:
            known.setdefault(trade.symbol, Ids(trade._replace(trade_id=trade.trade_id - 1)))
    return known


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, exchange="kraken", names=NAMES)
    yield made
    made.writer.close()


class Taker:
    """Takes batches out of a rig's ring."""

    def __init__(self, rig: Rig, known: dict[str, Ids]) -> None:
        path = batch_path(load("kraken"), TradeEncoder("kraken"), rig.counters)
        assert path is not None
        self.path, self.reader, self.known = path, rig.reader, known

    def take(self, room: int = 1000, max_bytes: int = 1 << 20) -> Batch | None:
        now_ms = NOW_NS // 1_000_000
        return self.reader.take(self.path.take, room, max_bytes, 0, NAMES, self.known, now_ms)

    def taken(self) -> Batch:
        batch = self.take()
        assert batch is not None
        return batch


def append(rig: Rig, *frames: bytes, kind: int = FRAME, flags: int = 0) -> None:
    assert rig.writer.append(frames, kind, 3, RECEIVED_NS, flags) == len(frames)


def ids_of(batch: Sequence[Entry]) -> list[int]:
    """The trade ids of all frames."""
    decode = load("kraken").decode
    return [t.trade_id for entry in batch for t in decode(entry.frame.payload).trades]


def rows(payload: bytes) -> list[Trade]:
    """The trades of a frame."""
    return list(load("kraken").decode(payload).trades)


ONE_BY_ONE = [frame(Row(11)), frame(Row(7, "ETH/USD")), frame(Row(12, price="0.5"))]
