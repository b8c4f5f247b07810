"""What a simulated market trades: figures made from a seed, or those of recorded trades.

A made trade's price, quantity and side are a pure function of (seed, symbol, id), so that a
test knows what every trade must be without having been there. Ids are cut into blocks of
256; a block's random bits come from one hash of its name, and its prices go from the block's
anchor to the next one's, so any id is found without its predecessors.
"""

from __future__ import annotations

import csv
import gzip
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b, shake_128
from importlib import resources
from itertools import chain
from typing import NamedTuple, Protocol

from feedmono.trade import BUY, SELL

BLOCK = 256
RECORDING = "binance-btcusdt.csv.gz"

_BITS = struct.Struct(f"<{BLOCK}Q")
_JITTER = (-1, 0, 0, 0, 0, 0, 0, 1)
_SCALES = (1, 1, 1, 10, 10, 100, 100, 1000)
_OCTAVES = 10
_SHORTEST = 0.00002


class Figures(NamedTuple):
    """What a trade is worth."""

    price: str
    """Exact decimal text in the exchange's shape."""
    quantity: str
    """Exact decimal text in the exchange's shape, in units of the base asset."""
    side: int
    """The taker's: `feedmono.trade.BUY` or `SELL`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a market's figures look."""

    price_ticks: int
    """The price around which it wanders, in ticks."""
    tick_decimals: int
    """A tick is 10^-tick_decimals of the quote asset."""
    lot_decimals: int
    """A lot is 10^-lot_decimals of the base asset."""
    lots: int = 997
    """Quantities are multiples up to this, of 1, 10, 100 or 1000 lots."""
    decimals: int = 0
    """Price and quantity are filled up with zeros to so many decimals; 0: left as they are."""


@dataclass(frozen=True, slots=True)
class Market:
    """A symbol that the exchange lists."""

    symbol: str
    base: str
    quote: str
    shape: Shape


class Source(Protocol):
    """Where a market's figures come from."""

    def figures_of(self, ids: range) -> Sequence[Figures]:
        """The figures of these consecutive ids."""
        ...


@dataclass(frozen=True, slots=True)
class MadeSource:
    """Made figures; see the head of this file."""

    seed: int
    market: Market

    def figures_of(self, ids: range) -> Sequence[Figures]:
        first, last = ids.start // BLOCK, max(ids.start, ids.stop - 1) // BLOCK
        symbol, shape = self.market.symbol, self.market.shape
        if first == last:
            offset = first * BLOCK
            made = _block(self.seed, symbol, shape, first)
            return made[ids.start - offset : ids.stop - offset]
        blocks = (_block(self.seed, symbol, shape, n) for n in range(first, last + 1))
        start = ids.start - first * BLOCK
        return tuple(chain.from_iterable(blocks))[start : start + len(ids)]


def block_figures(seed: int, symbol: str, shape: Shape, trade_id: int) -> Figures:
    """The figures of one made trade."""
    return _block(seed, symbol, shape, trade_id // BLOCK)[trade_id % BLOCK]


def _noise(seed: int, symbol: str, octave: int, n: int) -> float:
    digest = blake2b(f"{seed}/{symbol}/{octave}/{n}".encode(), digest_size=4).digest()
    return float(int.from_bytes(digest, "little") / 2**31 - 1.0)


def _anchor(seed: int, symbol: str, shape: Shape, number: int) -> int:
    """The price in ticks at which block *number* begins: noise of several wavelengths, the
    longest ones the strongest, as a random walk has it; within 3 % of the middle."""
    value = 0.0
    for octave in range(_OCTAVES):
        length = 4**octave
        n, rest = divmod(number, length)
        here = _noise(seed, symbol, octave, n)
        there = _noise(seed, symbol, octave, n + 1)
        value += 2.0**octave * (here + (there - here) * rest / length)
    return max(1, int(shape.price_ticks * (1.0 + value * _SHORTEST)))


def _decimal_texts(values: Sequence[int], unit_decimals: int, decimals: int) -> list[str]:
    """Each value × 10^-unit_decimals, with zeros filled up to *decimals* if that is more."""
    fill = "0" * (decimals - unit_decimals)
    if not unit_decimals:
        end = f".{fill}" if fill else ""
        return [f"{value}{end}" for value in values]
    width = unit_decimals + 1
    digits = [str(value).zfill(width) for value in values]
    return [f"{d[:-unit_decimals]}.{d[-unit_decimals:]}{fill}" for d in digits]


@lru_cache(maxsize=512)
def _block(seed: int, symbol: str, shape: Shape, number: int) -> tuple[Figures, ...]:
    name = f"{seed}/{symbol}/{number}".encode()
    bits = _BITS.unpack(shake_128(name).digest(_BITS.size))
    start = _anchor(seed, symbol, shape, number)
    way = _anchor(seed, symbol, shape, number + 1) - start
    ticks = [max(1, start + way * i // BLOCK + _JITTER[r >> 1 & 7]) for i, r in enumerate(bits)]
    # A block has few prices, each many times.
    distinct = list(set(ticks))
    texts = dict(
        zip(
            distinct,
            _decimal_texts(distinct, shape.tick_decimals, shape.decimals),
            strict=True,
        )
    )
    lots = [(1 + (r >> 8) % shape.lots) * _SCALES[r >> 4 & 7] for r in bits]
    quantities = _decimal_texts(lots, shape.lot_decimals, shape.decimals)
    sides = [SELL if r & 1 else BUY for r in bits]
    return tuple(map(Figures._make, zip([texts[t] for t in ticks], quantities, sides, strict=True)))


@dataclass(frozen=True, slots=True)
class RecordedSource:
    """The figures of recorded trades, over and over, the ids going on upwards."""

    first_id: int
    """The id of the first recorded trade, or what stands for it."""
    figures: tuple[Figures, ...]
    offsets_us: tuple[int, ...]
    """When each was traded after the first one."""
    length_us: int
    """After how long the recording begins again."""

    def figures_of(self, ids: range) -> Sequence[Figures]:
        count = len(self.figures)
        return [self.figures[(i - self.first_id) % count] for i in ids]

    def due(self, elapsed_us: int) -> int:
        """How many trades come within that time of the recording, repeated ones included."""
        rounds, rest = divmod(elapsed_us, self.length_us)
        return rounds * len(self.figures) + bisect_right(self.offsets_us, rest)


def load_recording(first_id: int | None) -> RecordedSource:
    """The packaged recording, its ids beginning at *first_id* (None: its own).

    :raises ValueError: the packaged file is damaged.
    """
    packed = resources.files("feedmono.simulator").joinpath(RECORDING).read_bytes()
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    ids = [int(row["id"]) for row in rows]
    if not ids or ids != list(range(ids[0], ids[0] + len(ids))):
        raise ValueError(f"the ids in {RECORDING} are not consecutive: make it anew")
    times_us = [int(row["time_ms"]) * 1000 for row in rows]
    offsets_us = tuple(t - times_us[0] for t in times_us)
    return RecordedSource(
        ids[0] if first_id is None else first_id,
        tuple(
            Figures(row["price"], row["quantity"], SELL if row["is_buyer_maker"] == "true" else BUY)
            for row in rows
        ),
        offsets_us,
        # The pause before it begins again is the mean time between two trades.
        offsets_us[-1] + max(1, offsets_us[-1] // len(rows)),
    )
