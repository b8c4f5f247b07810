"""The usual way of a trade through the serializer, which nearly all of them take.

A ring record that holds one trade of the stream, the next one of its symbol, becomes an entry for
the sink; once the sink has stored that, it goes into the ledger. What is not exactly so is left to
the caller, with nothing changed: no rule for repeats, holes or errors stands here.

`fast_path` gives the native twin (``native/fast_path.c``) where it is built: the same results for
the same input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

from feedmono import native
from feedmono.delivery.backfill import Settle
from feedmono.delivery.ids import Ids
from feedmono.exchanges.base import Decoded, Undecodable
from feedmono.ring_layout import FRAME, Record
from feedmono.sinks.base import Entry, Frame
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


class Path(Protocol):
    """Both twins."""

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
        """Takes the usual records from *at* on: where the first other one is (behind them all if
        there is none), and what its frame holds, if that could be read.

        :param base: what the entries' ends count from.
        :param symbols: what was seen; the trades are entered.
        :param taken: gets what became of each.
        :param latencies_us: gets the time from the exchange's stamp to the socket of each.
        """

    def deliver(
        self,
        outstanding: deque[Taken],
        end: int,
        symbols: dict[str, Ids],
        changed: set[str],
        now_ns: int,
        latencies_us: list[int],
        /,
    ) -> tuple[int, int, int]:
        """Takes what is stored up to *end* out of *outstanding* and enters its trades, oldest
        first and up to the first that is unusual: how many, their last end and their highest
        sequence (-1 if there are none).

        :param symbols: what is delivered; the trades are entered.
        :param changed: gets their symbols.
        :param latencies_us: gets the time from the socket to *now_ns* of each.
        """


def fast_path(decode: _Decode, encode: _Encode) -> Path:
    """The faster twin there is, over an exchange's decoder and `TradeEncoder.encode`."""
    if native.trades is None:
        return FastPath(decode, encode)
    fields = Trade._fields
    made = native.trades.FastPath(
        decode=decode,
        encode=encode,
        unusual=_UNUSUAL,
        frame=Frame,
        entry=Entry,
        taken=Taken,
        kind=FRAME,
        stream=STREAM,
        fields=len(fields),
        symbol=fields.index("symbol"),
        trade_id=fields.index("trade_id"),
        time=fields.index("time_us"),
    )
    return cast("Path", made)


class FastPath:
    """The twin in Python."""

    def __init__(self, decode: _Decode, encode: _Encode) -> None:
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
        """See `Path.take`."""
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
        outstanding: deque[Taken],
        end: int,
        symbols: dict[str, Ids],
        changed: set[str],
        now_ns: int,
        latencies_us: list[int],
        /,
    ) -> tuple[int, int, int]:
        """See `Path.deliver`."""
        done, done_end, highest = 0, -1, -1
        while outstanding:
            entry, trades, _, settle = outstanding[0]
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
