"""The usual way of a trade through the serializer, which nearly all of them take.

A ring record whose trades are of the stream, and each the next one of its symbol, becomes an entry
for the sink; once the sink has stored that, it goes into the ledger. What is not exactly so is left
to the caller, with nothing changed: no rule for repeats, holes or errors stands here.

There are two ways to do it. `FastPath` takes records that were read, one by one. `BatchPath`, where
the native extension is (``native/fast_path.c``), takes them out of the ring itself, many at a time
and without an object a trade: what it gives is a `Batch`. Both leave the same behind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

from feedmono import native
from feedmono.avro import TradeEncoder
from feedmono.counters import BOUNDS_US, Counters, Histogram
from feedmono.delivery.backfill import Settle
from feedmono.delivery.ids import Ids
from feedmono.exchanges.base import Decoded, Exchange, Undecodable
from feedmono.ring_layout import FRAME, Record
from feedmono.sinks.base import Entry, EntryBatch, Frame
from feedmono.trade import STREAM, EncodedTrade, Trade

_Decode = Callable[[bytes], Decoded]
_Encode = Callable[[Sequence[Trade], Mapping[str, str], int, int, int, int], list[EncodedTrade]]

_UNUSUAL = (Undecodable, ValueError, KeyError)
_new = tuple.__new__


class Taken(NamedTuple):
    """What became of a ring record."""

    entry: Entry
    """For the sink."""
    trades: Sequence[Trade] = ()
    """Those of `entry`, in its order; behind them those that could not be normalized."""
    cause: str = ""
    """Of the holes that they opened."""
    settle: Sequence[Settle] = ()
    """What else the ledger is to be told once the entry is acknowledged."""

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.entry.end


class Batch(EntryBatch):
    """Usual records, taken together: the sequence of their entries. Never empty."""

    sequence: int
    """Of the last one."""
    first_received_ns: int
    """Of the first one."""
    last_received_ns: int
    """Of the last one."""
    trades: int
    """How many trades they have."""
    least_latency_us: int
    """The shortest time from the exchange's stamp to the socket."""

    @abstractmethod
    def items(self) -> list[Taken]:
        """What became of each, oldest first."""

    @abstractmethod
    def split(self, count: int, /) -> Batch:
        """Keeps the first ones; the others, as a batch of their own. Neither may be empty."""

    @abstractmethod
    def until(self, end: int, /) -> int:
        """How many of them end at that position or before."""

    @abstractmethod
    def deliver(
        self, symbols: dict[str, Ids], changed: set[str], now_ns: int, /
    ) -> tuple[int, int]:
        """Enters their trades into what is delivered, as far as each is the next one of its
        symbol: how many records and how many trades that are. *changed* gets their symbols, and
        the delivery latency is counted."""


if native.trades is not None:
    Batch.register(native.trades.Batch)


class BatchPath(Protocol):
    """From the ring to batches."""

    def take(
        self,
        data: object,
        capacity_bytes: int,
        position: int,
        committed: int,
        limit: int,
        last_sequence: int,
        max_records: int,
        base: int,
        names: Mapping[str, str],
        symbols: dict[str, Ids],
        now_ms: int,
        /,
    ) -> tuple[int, int, Batch | None]:
        """Takes the usual records from *position* on: where the first other one is, the sequence
        of the last, and the batch; None if the first one is unusual already. The first seven are
        those of `feedmono.native.Frames.read`.

        :param base: what the entries' ends count from.
        :param symbols: what was seen; the trades are entered, and their latency is counted.
        """


def batch_path(exchange: Exchange, encoder: TradeEncoder, counters: Counters) -> BatchPath | None:
    """What takes that exchange's usual records in C; None where there is no native extension, or
    the exchange has no shape for it."""
    if native.trades is None or exchange.native_reader is None:
        return None
    fields = Trade._fields
    made = native.trades.FastPath(
        reader=exchange.native_reader,
        encoder=encoder.native,
        frame=Frame,
        entry=Entry,
        encoded=EncodedTrade,
        taken=Taken,
        stream=STREAM,
        symbol=fields.index("symbol"),
        trade_id=fields.index("trade_id"),
        time=fields.index("time_us"),
        bounds_us=BOUNDS_US,
        receive=counters.words(Histogram.RECEIVE),
        delivery=counters.words(Histogram.DELIVERY),
    )
    return cast("BatchPath", made)


class FastPath:
    """Takes records that were read, one by one."""

    def __init__(self, decode: _Decode, encode: _Encode) -> None:
        """:param decode: an exchange's.
        :param encode: `TradeEncoder.encode`."""
        self._decode = decode
        self._encode = encode

    def take(
        self,
        records: list[Record],
        at: int,
        base: int,
        names: Mapping[str, str],
        symbols: dict[str, Ids],
        now_ms: int,
        taken: list[Taken],
        latencies_us: list[int],
        /,
    ) -> tuple[int, Decoded | None]:
        """Takes the usual records from *at* on, those with one trade: where the first other one is
        (behind them all if there is none), and what its frame holds, if that could be read.

        :param base: what the entries' ends count from.
        :param symbols: what was seen; the trades are entered.
        :param taken: gets what became of each.
        :param latencies_us: gets the time from the exchange's stamp to the socket of each.
        """
        decode, encode = self._decode, self._encode
        for place in range(at, len(records)):
            behind, sequence, received_ns, connection, kind, flags, payload = records[place]
            if kind != FRAME or flags:
                return place, None
            try:
                decoded = decode(payload)
            except _UNUSUAL:
                return place, None
            trades, origin, problems = decoded
            if len(trades) != 1 or problems or origin != STREAM:
                return place, decoded
            trade = trades[0]
            symbol = trade[0]
            ids = symbols.get(symbol)
            if ids is None or not ids.is_next(trade):
                return place, decoded
            try:
                encoded = encode(trades, names, STREAM, received_ns, sequence, now_ms)
            except _UNUSUAL:
                return place, decoded
            ids.follow(trade, sequence)
            latencies_us.append(received_ns // 1000 - trade[5])
            frame = _new(Frame, (payload, connection, sequence, received_ns, STREAM))
            entry = _new(Entry, (base + behind, frame, symbol, encoded, None))
            taken.append(_new(Taken, (entry, trades, "", ())))
        return len(records), None

    def deliver(
        self,
        outstanding: deque[Taken | Batch],
        end: int,
        symbols: dict[str, Ids],
        changed: set[str],
        now_ns: int,
        latencies_us: list[int],
        /,
    ) -> tuple[int, int, int]:
        """Takes what is stored up to *end* out of *outstanding* and enters its trades, oldest
        first and up to the first that is unusual, or a batch: how many, their last end and their
        highest sequence (-1 if there are none).

        :param symbols: what is delivered; the trades are entered.
        :param changed: gets their symbols.
        :param latencies_us: gets the time from the socket to *now_ns* of each.
        """
        done, done_end, highest = 0, -1, -1
        while outstanding:
            item = outstanding[0]
            if not isinstance(item, Taken):
                break
            entry, trades, _, settle = item
            behind, frame, _, encoded, _ = entry
            if behind > end or len(trades) != 1 or len(encoded) != 1 or settle:
                break
            trade = trades[0]
            ids = symbols.get(trade[0])
            if ids is None or not ids.is_next(trade):
                break
            _, _, sequence, received_ns, _ = frame
            ids.follow(trade, sequence)
            changed.add(trade[0])
            latencies_us.append((now_ns - received_ns) // 1000)
            outstanding.popleft()
            done += 1
            done_end = behind
            if sequence > highest:  # noqa: PLR1730  max() would cost more
                highest = sequence
        return done, done_end, highest
