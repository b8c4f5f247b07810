"""``feedmono verify``: reads a sink back and holds every record against the ledger.

The order is what makes a running instance no special case: the ledger, then the frames, then the
trades, and the ledger again whenever a trade is newer than what it told. So each trade is judged
by a ledger that knows its frame, or is counted as in flight, and every frame that is looked for was
stored before the first look. A place in memory is one bit, for each id and each frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from feedmono import exchanges
from feedmono.commands.ledger_table import Look, look, no_ledger
from feedmono.config import Config
from feedmono.delivery.ledger_file import LedgerError
from feedmono.exchanges.base import Exchange, Undecodable
from feedmono.sinks import kinds
from feedmono.sinks.base import Source, StoredRecord
from feedmono.supervision import statelock
from feedmono.trade import BACKFILL, is_symbol
from feedmono.verify.bitmap import Bitmap
from feedmono.verify.findings import (
    BEYOND,
    INVALID,
    RAW_DOUBLED,
    RAW_INVALID,
    RAW_MISSING,
    Findings,
    Result,
)
from feedmono.verify.symbol import SymbolCheck
from feedmono.verify.trade import id_of, nonsense

_READ = ("raw", "trades", "dead")
# The ledger is read again at most so often, and in at most a tenth of the time.
_REFRESH_S = 0.1
_REFRESH_SHARE = 10
_TELL_EVERY = 1000
_SHOWN = 60


class VerifyError(Exception):
    """There is nothing to verify, or it can't be read; its text says what."""


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
        self._symbols: dict[str, SymbolCheck] = {}
        self._findings = Findings()
        self._raw = Bitmap()
        """The sequences of the frames."""
        self._raw_floor: dict[str | None, int] = {}
        """The first of them, by key."""
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
        was_running = self._running()
        first = self._refresh()
        self._proven = first.content.sequence
        frames, self._raw_complete = self._read("raw", self._take_frame, advance)
        trades, complete = self._read("trades", self._take_trade, advance)
        dead_letters, _ = self._read("dead", self._take_dead, advance)
        wanted = [symbol for symbol in first.content.symbols if self._wants(symbol)]
        if wanted and complete and not frames + trades + dead_letters:
            raise VerifyError(
                f"the sink holds nothing of {self._exchange.name}, but its ledger does: is it the "
                "sink that was written to?"
            )
        for symbol in wanted:
            ids, epochs = first.content.symbols[symbol], first.epochs.get(symbol, ())
            self._symbols[symbol].look_for(ids, epochs, complete)
        running = was_running or self._running()
        counts = [check.result(running) for _, check in sorted(self._symbols.items())]
        found = self._findings.all()
        return Result(self._exchange.name, counts, found, frames, dead_letters)

    def _read(
        self, kind: str, take: Callable[[StoredRecord], None], advance: Callable[[int], None]
    ) -> tuple[int, bool]:
        """Takes all records of a kind; how many there are, and whether the first ones are."""
        complete = self._complete(kind)
        number = 0
        for number, stored in enumerate(self._source.read(kind), 1):
            take(stored)
            if not number % _TELL_EVERY:
                advance(_TELL_EVERY)
        advance(number % _TELL_EVERY)
        return number, complete and self._complete(kind)

    def _complete(self, kind: str) -> bool:
        return not self._retained and self._source.complete_from_start(kind)

    def _wants(self, symbol: str | None) -> bool:
        """Whether what has this symbol, or one that is not known, is asked for."""
        return self._only is None or symbol in (None, "", self._only)

    def _symbol(self, symbol: str) -> SymbolCheck:
        if (known := self._symbols.get(symbol)) is None:
            known = self._symbols[symbol] = SymbolCheck(symbol, self._findings)
        return known

    # --- the ledger

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
                self._symbol(symbol).learn(ids, now.epochs.get(symbol, ()))
        cost_s = time.monotonic() - begun_s
        self._refresh_at_s = begun_s + max(_REFRESH_S, _REFRESH_SHARE * cost_s)
        return now

    def _catch_up(self, sequence: int) -> bool:
        """Whether the ledger knows that frame by now."""
        if time.monotonic() >= self._refresh_at_s:
            self._refresh()
        return sequence <= self._sequence

    # --- the records

    def _take_frame(self, stored: StoredRecord) -> None:
        record, symbol = stored.record, _known_key(stored)
        if record is None:
            self._undecodable(RAW_INVALID, stored)
            return
        sequence, payload = record["sequence"], record["payload"]
        assert isinstance(sequence, int)
        assert isinstance(payload, bytes)
        if sequence < 0:
            if self._wants(stored.key):
                reason = f"its sequence is {sequence}"
                self._findings.record(RAW_INVALID, symbol, None, stored, reason)
            return
        self._raw_floor.setdefault(stored.key, sequence)
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
                self._findings.record(RAW_INVALID, symbol, sequence, stored, reason)
            if not new:
                self._findings.record(RAW_DOUBLED, symbol, sequence, stored)

    def _take_trade(self, stored: StoredRecord) -> None:
        record = stored.record
        if record is None:
            self._undecodable(INVALID, stored)
            return
        symbol = record.get("symbol")
        if not isinstance(symbol, str) or (symbol not in self._symbols and not is_symbol(symbol)):
            reason = f"its symbol is {str(symbol)[:_SHOWN]!r}"
            self._findings.record(INVALID, "", None, stored, reason)
            return
        if not self._wants(symbol):
            return
        check = self._symbol(symbol)
        check.count.trades += 1
        text, sequence = record.get("trade_id"), record.get("frame_sequence")
        if (trade_id := id_of(text)) is None or not isinstance(sequence, int):
            reason = f"its trade_id is {text!r}, its frame_sequence {sequence!r}"
            self._findings.record(INVALID, symbol, None, stored, reason)
            return
        reason = nonsense(record, self._exchange.name)
        if self._keyed and stored.key != symbol:
            reason = reason or f"its key is {stored.key!r}"
        if reason:
            self._findings.record(INVALID, symbol, trade_id, stored, reason)
        if sequence > self._sequence and not self._catch_up(sequence):
            self._findings.record(BEYOND, symbol, trade_id, stored)
            return
        check.take(trade_id, stored)
        if 0 <= sequence <= self._proven and sequence not in self._raw:
            floor = self._raw_floor.get(stored.key)
            if not self._raw_complete and (floor is None or sequence < floor):
                check.count.raw_removed += 1
            else:
                reason = f"no frame {sequence}"
                self._findings.record(RAW_MISSING, symbol, trade_id, stored, reason)

    def _take_dead(self, stored: StoredRecord) -> None:
        if stored.record is None:
            self._undecodable(INVALID, stored)

    def _undecodable(self, kind: str, stored: StoredRecord) -> None:
        if self._wants(stored.key):
            self._findings.record(kind, _known_key(stored), None, stored, stored.error)


def _known_key(stored: StoredRecord) -> str:
    """The key, if it can be a symbol; else nothing."""
    return stored.key if stored.key is not None and is_symbol(stored.key) else ""


def prepare(config: Config, exchange: str, symbol: str | None, retained: bool) -> Verifier:
    """What verifies the configured sink of one exchange.

    :raises VerifyError: there is no ledger or no sink.
    :raises LedgerError: the ledger can't be read.
    """
    if look(config, exchange, fills=0) is None:
        raise VerifyError(no_ledger(config, exchange))
    sink = kinds.configured(config)
    if reason := sink.lacks(config, exchange):
        raise VerifyError(reason)
    return Verifier(
        exchanges.load(exchange),
        sink.source(config, exchange),
        lambda: look(config, exchange, fills=0),
        symbol=symbol,
        keyed=sink.keyed,
        retained=retained,
        running=lambda: statelock.holder(config.state_dir) is not None,
    )


def troubles(config: Config) -> tuple[type[Exception], ...]:
    """What is raised when the ledger or the configured sink can't be read."""
    return VerifyError, LedgerError, OSError, *kinds.configured(config).troubles()
