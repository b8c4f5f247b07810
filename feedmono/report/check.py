"""Payload correctness for a report: records read back from the sink and judged one by one.

A record is valid if it can be decoded, conforms to the schema that consumers rely on, makes sense
by itself, and, as far as its frame is at hand, says what the exchange's own bytes say.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from feedmono import exchanges
from feedmono.config import Config
from feedmono.exchanges.base import Exchange, Undecodable
from feedmono.sinks import kinds
from feedmono.sinks.base import StoredRecord
from feedmono.sinks.newest import Newest, departure
from feedmono.trade import BACKFILL, SIDES, Trade
from feedmono.verify.trade import id_of, nonsense

LIMIT = 20_000
"""So many records of an exchange are read at most: a few seconds."""
LIMIT_S = 60.0
"""It stops reading after so long."""

MAX_NAMED = 5
_TELL_EVERY = 200


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of it."""

    read: int
    """Records of the time that were read."""
    valid: int
    matched: int
    """How many of them were held against their frame."""
    complete: bool
    """Whether all records of the time were read, and not just the newest."""
    schemas: tuple[str, ...]
    """What they were validated against."""
    failures: tuple[str, ...] = ()
    """Where and why, of the first few that are not valid."""
    trouble: str = ""
    """Why nothing could be judged; empty if it could."""


def check(
    config: Config,
    exchange: str,
    since_s: float,
    until_s: float,
    advance: Callable[[int], None] = lambda _: None,
    limit: int = LIMIT,
) -> Checked:
    """Reads back what the configured sink stored of *exchange* in that time (Unix time). Never
    raises: what the sink could not do is its `Checked.trouble`.

    :param advance: told how many more records were read, now and then.
    """
    checker = _Checker(exchange, time.monotonic() + LIMIT_S, advance)
    try:
        newest = kinds.configured(config).newest(config, exchange)
        checker.read_trades(newest, since_s, until_s, limit)
        checker.hold_against_frames(newest, limit)
    except Exception as error:
        # Of a broker or a registry that does not answer, of files that may not be read.
        reason = str(error) or type(error).__name__
        return Checked(checker.read, 0, 0, complete=False, schemas=(), trouble=reason)
    return checker.result()


@dataclass(slots=True)
class _Checker:
    name: str
    deadline_s: float
    advance: Callable[[int], None]
    read: int = 0
    matched: int = 0
    complete: bool = True
    schemas: tuple[str, ...] = ()
    bad: dict[str, str] = field(default_factory=dict)
    """Place → reason."""
    sound: dict[int, list[StoredRecord]] = field(default_factory=lambda: defaultdict(list))
    """By the sequence of their frame, those with which nothing is wrong so far."""

    def read_trades(self, newest: Newest, since_s: float, until_s: float, limit: int) -> None:
        schemas = newest.schemas()
        self.schemas = tuple(schemas)
        taken = 0
        for stored in newest.read("trades", since_s, until_s, limit):
            taken += 1
            if stored.record is not None and not _is_within(stored.record, since_s, until_s):
                continue
            self.read += 1
            if reason := stored.error or self._flaw(stored, schemas):
                self.bad[stored.place] = reason
            else:
                self.sound[_number(stored.record, "frame_sequence")].append(stored)
            if not self.read % _TELL_EVERY:
                self.advance(_TELL_EVERY)
            if self._is_late():
                return
        # At the limit there may be older ones.
        self.complete = taken < limit

    def _flaw(self, stored: StoredRecord, schemas: Mapping[str, object]) -> str:
        record = stored.record
        if record is None:
            return "it can't be decoded"
        for schema in schemas.values():
            if reason := departure(record, schema):
                return reason
        if id_of(record["trade_id"]) is None:
            return f"its trade_id is {record['trade_id']!r}"
        if stored.key is not None and stored.key != record["symbol"]:
            return f"its key is {stored.key!r}"
        return nonsense(record, self.name)

    def hold_against_frames(self, newest: Newest, limit: int) -> None:
        """Compares each trade with the exchange's own bytes, where they are found."""
        if not self.sound:
            return
        received_s = [
            _number(stored.record, "received_timestamp_us") / 1e6
            for group in self.sound.values()
            for stored in group
        ]
        exchange = exchanges.load(self.name)
        # Times are cut to the microsecond in one of the two.
        since_s, until_s = min(received_s) - 0.001, max(received_s) + 0.001
        for frame in newest.read("raw", since_s, until_s, limit):
            if frame.record is not None:
                self._compare(exchange, frame.record, _number(frame.record, "sequence"))
            if self._is_late():
                return

    def _compare(self, exchange: Exchange, frame: Mapping[str, object], sequence: int) -> None:
        # A frame that is stored twice, after a crash, is the same both times.
        stored = self.sound.pop(sequence, None)
        if stored is None:
            return
        payload = frame["payload"]
        assert isinstance(payload, bytes)
        try:
            if frame["origin"] == BACKFILL:
                asked = str((stored[0].record or {})["symbol"])
                trades = exchange.decode_page(asked, payload).trades
            else:
                trades = exchange.decode(payload).trades
        except Undecodable as error:
            self.bad |= {each.place: f"its frame {sequence}: {error}" for each in stored}
            return
        told = {(trade.symbol, trade.trade_id): trade for trade in trades}
        for each in stored:
            self.matched += 1
            if reason := _difference(each.record or {}, told):
                self.bad[each.place] = f"{reason} in its frame {sequence}"

    def _is_late(self) -> bool:
        if time.monotonic() < self.deadline_s:
            return False
        self.complete = False
        return True

    def result(self) -> Checked:
        named = [f"{place}: {reason}" for place, reason in self.bad.items()][:MAX_NAMED]
        return Checked(
            self.read,
            self.read - len(self.bad),
            self.matched,
            self.complete,
            self.schemas,
            tuple(named),
        )


def _difference(record: Mapping[str, object], told: Mapping[tuple[str, int], Trade]) -> str:
    """In what a trade differs from what the exchange told; empty: in nothing."""
    trade = told.get((str(record["symbol"]), int(str(record["trade_id"]))))
    if trade is None:
        return "is not"
    for name, value in (
        ("price", trade.price),
        ("quantity", trade.quantity),
        ("side", SIDES[trade.side]),
        ("exchange_timestamp_us", trade.time_us),
    ):
        if record[name] != value:
            return f"its {name} is {record[name]!r}, but {value!r}"
    return ""


def _is_within(record: Mapping[str, object], since_s: float, until_s: float) -> bool:
    moment = record.get("timestamp")
    return not isinstance(moment, int) or since_s <= moment / 1000 <= until_s


def _number(record: Mapping[str, object] | None, name: str) -> int:
    value = (record or {})[name]
    assert isinstance(value, int)
    return value
