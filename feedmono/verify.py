"""``feedmono verify``: reads a sink back and holds every record against the ledger.

The order is what makes a running instance no special case: the ledger, then the frames, then the
trades, and the ledger again whenever a trade is newer than what it told. So each trade is judged
by a ledger that knows its frame, or is counted as in flight, and every frame that is looked for was
stored before the first look. A place in memory is one bit, for each id and each frame.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import NamedTuple

from feedmono import exchanges, statelock
from feedmono.config import Config
from feedmono.exchanges.base import Exchange, Undecodable
from feedmono.ids import EPOCH_US, FAR, NEAR, Epoch, Hole, Ids
from feedmono.ledger import LedgerError
from feedmono.ledger_table import Column, Look, columns_fit, counted, look, no_ledger, span
from feedmono.sinks.base import Source, StoredRecord
from feedmono.tail import open_source
from feedmono.trade import (
    BACKFILL,
    MAX_TRADE_ID,
    ORIGINS,
    SIDES,
    is_symbol,
    multiply,
)

MISSING = "missing"
DOUBLED = "doubled"
UNKNOWN = "unknown"
BEYOND = "beyond"
INVALID = "invalid"
RAW_MISSING = "raw missing"
RAW_DOUBLED = "raw doubled"
RAW_INVALID = "raw invalid"

KINDS = {
    MISSING: "delivered, says the ledger, but not in the sink",
    DOUBLED: "in the sink more than once; the extra copies are counted",
    UNKNOWN: "in the sink, but not delivered, says the ledger",
    BEYOND: "newer than the ledger: a crash came between the sink and the ledger, and the next "
    "start delivers these frames again",
    INVALID: "can't be decoded, or makes no sense",
    RAW_MISSING: "trades whose frame is not in the sink",
    RAW_DOUBLED: "frames that are in the sink more than once",
    RAW_INVALID: "frames that can't be decoded",
}
"""What may be found, and what it means."""

MAX_NAMED = 20
"""How many of a kind are named of each symbol."""

_READ = ("raw", "trades", "dead")
# The ledger is read again at most so often, and in at most a tenth of the time.
_REFRESH_S = 0.1
_REFRESH_SHARE = 10
_TELL_EVERY = 1000
_COLUMNS = {
    "missing": (MISSING,),
    "doubled": (DOUBLED,),
    "unknown": (UNKNOWN, BEYOND),
    "invalid": (INVALID,),
    "raw": (RAW_MISSING, RAW_DOUBLED, RAW_INVALID),
}
_CHUNK_BITS = 10
_CHUNK_MASK = (1 << _CHUNK_BITS - 3) - 1
_BEGINNING = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MAX_DIGITS = len(str(MAX_TRADE_ID))
_NOTES = (
    ("in_flight", "trade", "in flight: newer than the ledger, not judged"),
    ("removed", "id", "removed with the sink's beginning"),
    ("raw_removed", "trade", "whose frame was removed with the sink's beginning"),
    ("folded", "id", "not there: the ledger has folded as many missing ones"),
    ("forgotten", "trade", "from epochs that the ledger has forgotten, not judged"),
)
_SHOWN = 60
_MAX_REASON_CHARS = 500
_TIMES = ("timestamp", "exchange_timestamp", "exchange_timestamp_us", "received_timestamp_us")


class VerifyError(Exception):
    """There is nothing to verify, or it can't be read; its text says what."""


class Numbers:
    """A set of whole numbers ≥ 0 that come in any order: a bit for each, in chunks. Made for dense
    ones, as ids and sequences are; a number far from all others costs some 300 bytes."""

    __slots__ = ("_chunks", "_order")

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}
        self._order: list[int] = []

    def __contains__(self, number: int) -> bool:
        chunk = self._chunks.get(number >> _CHUNK_BITS)
        return chunk is not None and bool(chunk[number >> 3 & _CHUNK_MASK] >> (number & 7) & 1)

    def add(self, number: int) -> bool:
        """Whether it is new."""
        chunk = self._chunks.get(number >> _CHUNK_BITS)
        if chunk is None:
            chunk = self._chunks[number >> _CHUNK_BITS] = bytearray(_CHUNK_MASK + 1)
        at, bit = number >> 3 & _CHUNK_MASK, 1 << (number & 7)
        if chunk[at] & bit:
            return False
        chunk[at] |= bit
        return True

    def ends(self) -> tuple[int, int] | None:
        """The lowest and the highest; None if there is none."""
        if not self._chunks:
            return None
        order = self._places()
        (low, _), *_ = _runs(self._bits(order[0]))
        return (
            (order[0] << _CHUNK_BITS) + low,
            (order[-1] << _CHUNK_BITS) + self._bits(order[-1]).bit_length() - 1,
        )

    def absent(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """What is not there of a range, both its ends included: as such ranges, rising."""
        order = self._places()
        at = max(0, bisect_right(order, first >> _CHUNK_BITS) - 1)
        while at < len(order) and order[at] << _CHUNK_BITS <= last:
            base = order[at] << _CHUNK_BITS
            for low, high in _runs(self._bits(order[at])):
                if base + low > last:
                    break
                if first < base + low:
                    yield first, base + low - 1
                first = max(first, base + high + 1)
            at += 1
        if first <= last:
            yield first, last

    def _places(self) -> list[int]:
        if len(self._order) != len(self._chunks):
            self._order = sorted(self._chunks)
        return self._order

    def _bits(self, place: int) -> int:
        return int.from_bytes(self._chunks[place], "little")


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """The runs of ones in a number: places of the lowest and the highest bit of each, rising."""
    at = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        bits >>= ones
        yield at + zeros, at + zeros + ones - 1
        at += zeros + ones


class Named(NamedTuple):
    """A finding: a record, or ids that are not there."""

    first_id: int | None
    """An id, or in the raw kinds a sequence; None where there is none."""
    last_id: int | None
    place: str
    """Where in the sink; empty for what is not there."""
    reason: str


@dataclass(slots=True)
class Found:
    """All findings of one kind of one symbol."""

    kind: str
    symbol: str
    """Empty: it is not known."""
    count: int = 0
    named: list[Named] = field(default_factory=list)
    """The first `MAX_NAMED`."""

    def add(self, count: int, named: Named) -> None:
        self.count += count
        if len(self.named) < MAX_NAMED:
            self.named.append(named)


@dataclass(slots=True)
class SymbolCount:
    """What was read of a symbol."""

    symbol: str
    trades: int = 0
    """All records."""
    first_id: int | None = None
    """The lowest of the current epoch."""
    last_id: int | None = None
    in_flight: int = 0
    """Records of a running instance that are newer than the ledger: not judged."""
    removed: int = 0
    """Ids that are not there because the sink's beginning was removed."""
    raw_removed: int = 0
    """Trades whose frame is not there for that reason."""
    folded: int = 0
    """Ids that are not there and may have been in holes that the ledger has folded."""
    forgotten: int = 0
    """Records of epochs that the ledger has forgotten: not judged."""


@dataclass(slots=True)
class Result:
    """What was read and found of one exchange."""

    exchange: str
    symbols: list[SymbolCount]
    found: list[Found]
    """In the order of `KINDS`, then of the symbols."""
    frames: int
    """Raw records."""
    dead_letters: int

    @property
    def trades(self) -> int:
        return sum(count.trades for count in self.symbols)


class _Symbol:
    """What the ledger tells of a symbol, and what the sink has of it."""

    __slots__ = ("_bounds", "_ended", "_first_epoch", "_ids", "_known", "count", "floor", "have")

    def __init__(self, symbol: str) -> None:
        self.count = SymbolCount(symbol)
        self.have: dict[int, Numbers] = {}
        """The ids by epoch."""
        self.floor: tuple[int, int] | None = None
        """Epoch and id of the first record that was not backfilled."""
        self._ids: Ids | None = None

    @property
    def known(self) -> bool:
        """Whether the ledger knows the symbol."""
        return self._ids is not None

    @property
    def current(self) -> Numbers:
        """The ids of the current epoch."""
        return self.have.get(0 if self._ids is None else self._ids.epoch, Numbers())

    def learn(self, ids: Ids, ended: Sequence[Epoch]) -> None:
        """Takes what the ledger tells now."""
        self._ids = ids
        self._ended = ended
        self._first_epoch = ended[0].epoch if ended else ids.epoch
        # All trades of the epoch before are older than that.
        begins_us = [*(epoch.epoch_us for epoch in ended), ids.epoch_us]
        self._bounds = [begin_us - EPOCH_US + 1 for begin_us in begins_us]
        self._known = range(0)

    def floor_of(self, epoch: int, first_id: int, last_id: int, complete: bool) -> int:
        """The id of an epoch from which on the sink should have everything."""
        if complete:
            return first_id
        if self.floor is None or self.floor[0] > epoch:
            return last_id + 1
        return first_id if self.floor[0] < epoch else max(first_id, self.floor[1])

    def epoch_at(self, moment: object) -> int | None:
        """The epoch that a trade of that time belongs to; None: the ledger has forgotten it."""
        bounds = self._bounds
        if len(bounds) == 1 and not self._first_epoch:
            return 0
        time_us = _micros(moment) if isinstance(moment, datetime | int) else 0
        at = bisect_right(bounds, time_us) - 1
        if at < 0:
            return None if self._first_epoch else 0
        return self._first_epoch + at

    def doubt(self, epoch: int, trade_id: int) -> str:
        """Why the ledger does not have that id as delivered; empty if it has."""
        ids = self._ids
        if ids is None:
            return "the ledger does not know the symbol"
        if epoch != ids.epoch:
            ended = self._ended[epoch - self._first_epoch]
            # Ids far from the others are not remembered of an ended epoch.
            if ended.first_id - NEAR <= trade_id <= ended.last_id + FAR:
                return _outside(trade_id, ended.first_id, ended.last_id)
            return ""
        # Nearly every id lies in the same stretch between two holes as the one before it.
        if trade_id in self._known or trade_id in ids.islands:
            return ""
        if outside := _outside(trade_id, ids.first_id, ids.last_id):
            return outside
        at = bisect_right(ids.holes, trade_id, key=_first_id)
        low = ids.first_id
        if at:
            hole = ids.holes[at - 1]
            if trade_id <= hole.last_id:
                return f"in a hole that is {hole.state.name}"
            low = hole.last_id + 1
        high = ids.holes[at].first_id if at < len(ids.holes) else ids.last_id + 1
        self._known = range(low, high)
        return ""


def _first_id(hole: Hole) -> int:
    return hole.first_id


def _outside(trade_id: int, first_id: int, last_id: int) -> str:
    if trade_id < first_id:
        return f"below the ledger's first id {first_id:,}"
    return f"above the ledger's last id {last_id:,}" if trade_id > last_id else ""


class Verifier:
    """Holds the sink of one exchange against its ledger. Used once."""

    def __init__(
        self,
        exchange: Exchange,
        source: Source,
        look_now: Callable[[], Look | None],
        *,
        symbol: str | None = None,
        keyed: bool = False,
        retained: bool = False,
        running: Callable[[], bool] = lambda: False,
    ) -> None:
        """:param look_now: reads the ledger.
        :param symbol: only this one's.
        :param keyed: whether a trade's key must be its symbol.
        :param retained: whether the sink's beginning may have been removed, whatever it says.
        :param running: whether an instance is at work.
        """
        self._exchange = exchange
        self._source = source
        self._look_now = look_now
        self._only = symbol
        self._keyed = keyed
        self._retained = retained
        self._running = running
        self._advance: Callable[[int], None] = lambda _: None
        self._symbols: dict[str, _Symbol] = {}
        self._found: dict[tuple[str, str], Found] = {}
        self._records = 0
        self._frames = 0
        self._raw = Numbers()
        self._raw_floor: dict[str | None, int] = {}
        self._raw_complete = True
        # What the ledger told before anything was read, and how far it is by now.
        self._proven = -1
        self._sequence = -1
        self._refresh_at_s = 0.0

    def total(self) -> int | None:
        """About how many records there are to read; None: that is not to be had."""
        totals = [self._source.total(kind) for kind in _READ]
        return None if None in totals else sum(total or 0 for total in totals)

    def run(self, advance: Callable[[int], None] = lambda _: None) -> Result:
        """Reads all of the sink.

        :param advance: told how many more records were read, now and then.
        :raises VerifyError: there is no ledger, or nothing in the sink.
        :raises LedgerError: it can't be read.
        :raises Exception: what the source could not do.
        """
        self._advance = advance
        was_running = self._running()
        first = self._refresh()
        self._proven = first.content.sequence
        self._raw_complete = self._complete("raw")
        for stored in self._read("raw"):
            self._take_frame(stored)
        self._raw_complete &= self._complete("raw")
        complete = self._complete("trades")
        for stored in self._read("trades"):
            self._take_trade(stored)
        complete &= self._complete("trades")
        dead_letters = 0
        for stored in self._read("dead"):
            dead_letters += 1
            if stored.record is None and self._wants(stored.key):
                self._find(INVALID, _known_key(stored), None, stored, stored.error)
        for symbol, ids in first.content.symbols.items():
            if self._wants(symbol):
                if not self._records and complete:
                    raise VerifyError(
                        f"the sink holds nothing of {self._exchange.name}, but its ledger does: is "
                        "it the sink that was written to?"
                    )
                self._look_for(symbol, ids, first.epochs.get(symbol, ()), complete)
        return self._result(was_running or self._running(), dead_letters)

    def _wants(self, symbol: str | None) -> bool:
        """Whether what has this symbol, or one that is not known, is asked for."""
        return self._only is None or symbol in (None, "", self._only)

    def _complete(self, kind: str) -> bool:
        return not self._retained and self._source.complete_from_start(kind)

    def _read(self, kind: str) -> Iterator[StoredRecord]:
        number = 0
        for number, stored in enumerate(self._source.read(kind), 1):
            self._records += 1
            yield stored
            if not number % _TELL_EVERY:
                self._advance(_TELL_EVERY)
        self._advance(number % _TELL_EVERY)

    def _refresh(self) -> Look:
        """Takes what the ledger tells now.

        :raises VerifyError: there is none.
        """
        begun_s = time.monotonic()
        if (now := self._look_now()) is None:
            raise VerifyError(f"{self._exchange.name} has no ledger")
        self._sequence = now.content.sequence
        for symbol, ids in now.content.symbols.items():
            if self._wants(symbol):
                self._symbol(symbol).learn(ids, _ended(ids, now.epochs.get(symbol, ())))
        cost_s = time.monotonic() - begun_s
        self._refresh_at_s = begun_s + max(_REFRESH_S, _REFRESH_SHARE * cost_s)
        return now

    def _symbol(self, symbol: str) -> _Symbol:
        if (known := self._symbols.get(symbol)) is None:
            known = self._symbols[symbol] = _Symbol(symbol)
        return known

    def _find(
        self, kind: str, symbol: str, number: int | None, stored: StoredRecord, reason: str = ""
    ) -> None:
        self._findings(kind, symbol).add(
            1, Named(number, number, stored.place, reason[:_MAX_REASON_CHARS])
        )

    def _findings(self, kind: str, symbol: str) -> Found:
        if (found := self._found.get((kind, symbol))) is None:
            found = self._found[kind, symbol] = Found(kind, symbol)
        return found

    # --- frames

    def _take_frame(self, stored: StoredRecord) -> None:
        record, key, symbol = stored.record, stored.key, _known_key(stored)
        self._frames += 1
        if record is None:
            if self._wants(key):
                self._find(RAW_INVALID, symbol, None, stored, stored.error)
            return
        sequence, payload = record["sequence"], record["payload"]
        assert isinstance(sequence, int)
        assert isinstance(payload, bytes)
        if sequence < 0:
            if self._wants(key):
                self._find(RAW_INVALID, symbol, None, stored, f"its sequence is {sequence}")
            return
        self._raw_floor.setdefault(key, sequence)
        new = self._raw.add(sequence)
        reason = ""
        try:
            if record["origin"] == BACKFILL:
                # Which symbol a page was asked for need not stand in it, and does not matter here.
                self._exchange.decode_page(symbol or self._exchange.name, payload)
            else:
                trades = self._exchange.decode(payload).trades
                symbol = symbol or (trades[0].symbol if trades else "")
        except Undecodable as error:
            reason = str(error)
        if self._wants(symbol):
            if reason:
                self._find(RAW_INVALID, symbol, sequence, stored, reason)
            if not new:
                self._find(RAW_DOUBLED, symbol, sequence, stored)

    # --- trades

    def _take_trade(self, stored: StoredRecord) -> None:
        record = stored.record
        if record is None:
            if self._wants(stored.key):
                self._find(INVALID, _known_key(stored), None, stored, stored.error)
            return
        symbol = record.get("symbol")
        if not isinstance(symbol, str) or (symbol not in self._symbols and not is_symbol(symbol)):
            self._find(INVALID, "", None, stored, f"its symbol is {str(symbol)[:_SHOWN]!r}")
            return
        if not self._wants(symbol):
            return
        mine = self._symbol(symbol)
        mine.count.trades += 1
        text, sequence = record.get("trade_id"), record.get("frame_sequence")
        if (trade_id := _trade_id(text)) is None or not isinstance(sequence, int):
            reason = f"its trade_id is {text!r}, its frame_sequence {sequence!r}"
            self._find(INVALID, symbol, None, stored, reason)
            return
        try:
            nonsense = self._nonsense(record, symbol, stored.key)
        except (KeyError, TypeError, ValueError) as error:
            nonsense = f"{type(error).__name__}: {error}"
        if not nonsense and sequence < 0:
            nonsense = f"its frame_sequence is {sequence}"
        if nonsense:
            self._find(INVALID, symbol, trade_id, stored, nonsense)
        if sequence > self._sequence and not self._catch_up(sequence):
            self._find(BEYOND, symbol, trade_id, stored)
            return
        self._judge(mine, trade_id, record, stored)
        if 0 <= sequence <= self._proven and sequence not in self._raw:
            floor = self._raw_floor.get(stored.key)
            if not self._raw_complete and (floor is None or sequence < floor):
                mine.count.raw_removed += 1
            else:
                self._find(RAW_MISSING, symbol, trade_id, stored, f"no frame {sequence}")

    def _catch_up(self, sequence: int) -> bool:
        """Whether the ledger knows that frame by now."""
        if time.monotonic() >= self._refresh_at_s:
            self._refresh()
        return sequence <= self._sequence

    def _judge(
        self, mine: _Symbol, trade_id: int, record: Mapping[str, object], stored: StoredRecord
    ) -> None:
        """Holds a trade against what the ledger tells of its symbol."""
        epoch = mine.epoch_at(record.get("exchange_timestamp_us")) if mine.known else 0
        if epoch is None:
            mine.count.forgotten += 1
            return
        if (have := mine.have.get(epoch)) is None:
            have = mine.have[epoch] = Numbers()
        if not have.add(trade_id):
            self._find(DOUBLED, mine.count.symbol, trade_id, stored)
        elif doubt := mine.doubt(epoch, trade_id):
            self._find(UNKNOWN, mine.count.symbol, trade_id, stored, doubt)
        if mine.floor is None and record.get("origin") != ORIGINS[BACKFILL]:
            mine.floor = epoch, trade_id

    def _nonsense(self, record: Mapping[str, object], symbol: str, key: str | None) -> str:
        """What is wrong with a trade; empty if nothing is.

        :raises KeyError: a field is not there.
        :raises TypeError: a field is of another type.
        :raises ValueError: a decimal is none.
        """
        if (exchange := record["exchange"]) != self._exchange.name:
            return f"its exchange is {exchange!r}"
        if self._keyed and key != symbol:
            return f"its key is {key!r}"
        price, quantity, volume = record["price"], record["quantity"], record["quote_volume"]
        if multiply(str(price), str(quantity)) != volume:
            return f"its quote_volume is {volume!r}, not {price!r} x {quantity!r}"
        if (origin := record["origin"]) not in ORIGINS:
            return f"its origin is {origin!r}"
        if (side := record["side"]) not in SIDES:
            return f"its side is {side!r}"
        for name in _TIMES:
            moment = record[name]
            if (moment <= _BEGINNING) if isinstance(moment, datetime) else _micros(moment) <= 0:
                return f"its {name} is {moment}"
        return ""

    # --- what is not there

    def _look_for(self, symbol: str, ids: Ids, epochs: Sequence[Epoch], complete: bool) -> None:
        """Finds what is delivered and not in the sink.

        :param ids: what was delivered before anything was read.
        """
        mine = self._symbol(symbol)
        for ended in _ended(ids, epochs):
            self._look_for_ended(mine, ended, complete)
        have = mine.have.get(ids.epoch, Numbers())
        floor = mine.floor_of(ids.epoch, ids.first_id, ids.last_id, complete)
        absent = _without(have.absent(ids.first_id, floor - 1), ids)
        mine.count.removed += sum(last - first + 1 for first, last in absent)
        tolerated = ids.folded
        for begin, last in _without(have.absent(floor, ids.last_id), ids):
            first = begin
            if tolerated and first < ids.folded_until:
                let = min(tolerated, min(last + 1, ids.folded_until) - first)
                tolerated -= let
                mine.count.folded += let
                first += let
            if first <= last:
                self._miss(symbol, first, last)
        for island in ids.islands:
            if island not in have:
                if complete:
                    self._miss(symbol, island, island)
                else:
                    mine.count.removed += 1

    def _look_for_ended(self, mine: _Symbol, ended: Epoch, complete: bool) -> None:
        """The same for an epoch of which only the number of missing ids is remembered."""
        have = mine.have.get(ended.epoch, Numbers())
        floor = mine.floor_of(ended.epoch, ended.first_id, ended.last_id, complete)
        absent = have.absent(ended.first_id, floor - 1)
        mine.count.removed += sum(last - first + 1 for first, last in absent)
        ranges = list(have.absent(floor, ended.last_id))
        missing = sum(last - first + 1 for first, last in ranges) - ended.missing
        if missing > 0:
            reason = f"of epoch {ended.epoch}; {ended.missing:,} of its ids were not delivered"
            for first, last in ranges[:MAX_NAMED]:
                found = self._findings(MISSING, mine.count.symbol)
                found.add(missing, Named(first, last, "", reason))
                missing = 0

    def _miss(self, symbol: str, first: int, last: int) -> None:
        self._findings(MISSING, symbol).add(last - first + 1, Named(first, last, "", ""))

    def _result(self, running: bool, dead_letters: int) -> Result:
        for symbol, mine in self._symbols.items():
            if running and (newer := self._found.pop((BEYOND, symbol), None)) is not None:
                mine.count.in_flight = newer.count
            if (ends := mine.current.ends()) is not None:
                mine.count.first_id, mine.count.last_id = ends
        order = list(KINDS)
        return Result(
            self._exchange.name,
            [mine.count for _, mine in sorted(self._symbols.items())],
            sorted(self._found.values(), key=lambda f: (order.index(f.kind), f.symbol)),
            self._frames,
            dead_letters,
        )


def _ended(ids: Ids, epochs: Sequence[Epoch]) -> list[Epoch]:
    """Those that had ended when *ids* was read, a moment before."""
    return [epoch for epoch in epochs if epoch.epoch < ids.epoch]


def _without(ranges: Iterator[tuple[int, int]], ids: Ids) -> Iterator[tuple[int, int]]:
    """Ranges of ids, less those that are in holes."""
    for begin, last in ranges:
        first = begin
        for hole in ids.holes_within(first, last):
            if first < hole.first_id:
                yield first, hole.first_id - 1
            first = hole.last_id + 1
        if first <= last:
            yield first, last


def _known_key(stored: StoredRecord) -> str:
    """The key, if it can be a symbol; else nothing."""
    return stored.key if stored.key is not None and is_symbol(stored.key) else ""


def _trade_id(text: object) -> int | None:
    """None: it is no id."""
    if not isinstance(text, str) or len(text) > _MAX_DIGITS or not text.isdecimal():
        return None
    trade_id = int(text)
    return trade_id if str(trade_id) == text and trade_id <= MAX_TRADE_ID else None


def _micros(moment: object) -> int:
    """Unix time in microseconds, of what an Avro time is read as.

    :raises TypeError: it is no time.
    """
    if isinstance(moment, datetime):
        since = moment - _BEGINNING
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if not isinstance(moment, int):
        raise TypeError(f"{moment!r} is no time")
    return moment


def prepare(config: Config, exchange: str, symbol: str | None, retained: bool) -> Verifier:
    """What verifies the configured sink of one exchange.

    :raises VerifyError: there is no ledger or no sink.
    :raises LedgerError: the ledger can't be read.
    """
    if look(config, exchange, fills=0) is None:
        raise VerifyError(no_ledger(config, exchange))
    if config.sink == "files" and not (config.files.dir / exchange).is_dir():
        raise VerifyError(f"there is no folder {config.files.dir / exchange}: see files.dir")
    return Verifier(
        exchanges.load(exchange),
        open_source(config, exchange),
        lambda: look(config, exchange, fills=0),
        symbol=symbol,
        keyed=config.sink == "kafka",
        retained=retained,
        running=lambda: statelock.holder(config.state_dir) is not None,
    )


def troubles(config: Config) -> tuple[type[Exception], ...]:
    """What is raised when the ledger or the configured sink can't be read. The sinks' own are
    imported only where used."""
    common = (VerifyError, LedgerError, OSError)
    if config.sink == "kafka":
        from feedmono.sinks.kafka_client import BrokerTrouble  # noqa: PLC0415
        from feedmono.sinks.registry import RegistryTrouble  # noqa: PLC0415

        return *common, BrokerTrouble, RegistryTrouble
    return common


# --- how it is told


def summary(results: Sequence[Result]) -> str:
    """All in one line."""
    counts = dict.fromkeys(KINDS, 0)
    for result in results:
        for found in result.found:
            counts[found.kind] += found.count
    symbols = [count for result in results for count in result.symbols]
    judged = sum(count.trades - count.in_flight - count.forgotten for count in symbols)
    read = f"{counted(judged, 'trade')} of {counted(len(symbols), 'symbol')}"
    if any(counts.values()):
        return f"found in {read}: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n)
    return f"verified: {read}, nothing missing, doubled, unknown or invalid, every frame there"


def to_json(results: Sequence[Result]) -> str:
    """All of it as one object."""
    content = {
        "ok": not any(result.found for result in results),
        "summary": summary(results),
        "exchanges": [
            {
                "name": result.exchange,
                "trades": result.trades,
                "frames": result.frames,
                "dead_letters": result.dead_letters,
                "symbols": [asdict(count) for count in result.symbols],
                "found": [
                    {
                        "kind": found.kind,
                        "symbol": found.symbol or None,
                        "count": found.count,
                        "named": [named._asdict() for named in found.named],
                    }
                    for found in result.found
                ],
            }
            for result in results
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=2)


def render(results: Sequence[Result], width: int | None = None) -> str:
    """A row per symbol, below it what was found, and all in one line at last."""
    rows = [(result, count) for result in results for count in result.symbols]
    parts = []
    if rows:
        columns = [
            Column("exchange", [result.exchange for result, _ in rows], left=True),
            Column("symbol", [count.symbol for _, count in rows], left=True),
            Column("from id", [_id(count.first_id) for _, count in rows], rank=1),
            Column("to id", [_id(count.last_id) for _, count in rows], rank=2),
            Column("trades", [f"{count.trades:,}" for _, count in rows]),
        ]
        for title, kinds in _COLUMNS.items():
            cells = [
                f"{sum(f.count for f in r.found if f.symbol == c.symbol and f.kind in kinds):,}"
                for r, c in rows
            ]
            columns.append(Column(title, cells))
        parts.append(columns_fit(columns, width))
    notes = [f"{r.exchange}: {note}" for r in results for note in _notes(r)]
    if notes:
        parts.append("\n".join(notes))
    for kind, meaning in KINDS.items():
        lines = [line for r in results for f in r.found if f.kind == kind for line in _lines(r, f)]
        if lines:
            parts.append("\n".join([f"{kind} ({meaning}):", *lines]))
    return "\n\n".join([*parts, summary(results)])


def _notes(result: Result) -> Iterator[str]:
    """What is worth knowing and no finding."""
    yield counted(result.frames, "frame")
    if result.dead_letters:
        yield counted(result.dead_letters, "dead letter")
    for name, noun, what in _NOTES:
        numbers = [number for c in result.symbols if (number := getattr(c, name))]
        if numbers:
            yield f"{counted(sum(numbers), noun)} of {counted(len(numbers), 'symbol')} {what}"


def _lines(result: Result, found: Found) -> Iterator[str]:
    yield f"  {result.exchange} {found.symbol or '(symbol not known)'}: {found.count:,}"
    for named in found.named:
        ids = (
            ""
            if named.first_id is None or named.last_id is None
            else span(named.first_id, named.last_id)
        )
        yield "    " + ", ".join(part for part in (ids, named.place, named.reason) if part)
    if len(found.named) == MAX_NAMED and found.count > MAX_NAMED:
        yield "    …"


def _id(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
