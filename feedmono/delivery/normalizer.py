"""One ring record → what is to be stored for it: decoded, held against what was seen, encoded.

Frames, REST pages and the reader's events come here in the order in which things happened. What
can't be decoded, normalized or believed becomes a dead letter; nothing here fails, and nothing
here does I/O.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from feedmono import messages, ring
from feedmono.avro import TradeEncoder
from feedmono.counters import Counters, Field, Histogram
from feedmono.delivery.backfill import DEAD, Backfill, Settle
from feedmono.delivery.fast_path import Batch, FastPath, Taken, batch_path
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.seen import Seen
from feedmono.exchanges.base import Decoded, Exchange, Undecodable
from feedmono.log import Log
from feedmono.network.limiter import steady_time
from feedmono.network.metadata import CanonicalSymbols
from feedmono.ring_layout import BINARY, EVENT, FRAME, PAGE, Record
from feedmono.sinks.base import DeadLetter, Entry, Frame
from feedmono.trade import BACKFILL, SNAPSHOT, STREAM, EncodedTrade, Trade

_REASON_CHARS = 500

DAMAGE = "damage"
"""The cause of a hole over a damaged part of the ring."""


class Normalizer:
    """Ring records → sink entries: decoding, dropping what was seen, encoding. No I/O."""

    def __init__(
        self,
        exchange: Exchange,
        canonical: CanonicalSymbols,
        seen: Seen,
        backfill: Backfill,
        counters: Counters,
        log: Log,
    ) -> None:
        self._exchange = exchange
        self._canonical = canonical
        self._counters = counters
        self.least_latency_s = math.inf
        """From the exchange's stamp to the socket; whoever takes it sets it back."""
        self._log = log
        self._encoder = TradeEncoder(exchange.name)
        self.fast_path = FastPath(exchange.decode, self._encoder.encode)
        """For what this hands on, too."""
        self._batch_path = batch_path(exchange, self._encoder, counters)
        self._seen = seen
        self._backfill = backfill
        self._flaw = ""
        self._gone: set[tuple[int, str]] = set()
        """Connections and symbols whose subscription there has ended: what such a connection
        still brings of the symbol is not wanted."""

    def take_batch(
        self, source: ring.RingReader, room: int, max_bytes: int, base: int, now_ns: int
    ) -> Batch | None:
        """The usual records that are next in the ring, so many at most, with ends that count from
        *base*; None if the next one is for `take_all`."""
        path = self._batch_path
        if path is None or self._gone:
            return None
        names, symbols, now_ms = self._canonical.names, self._seen.symbols, now_ns // 1_000_000
        batch = source.take(path.take, room, max_bytes, base, names, symbols, now_ms)
        if batch is not None:
            self._counters.add(Field.TRADES, batch.trades)
            self._counters[Field.LAST_TRADE_NS] = batch.last_received_ns
            self.least_latency_s = min(self.least_latency_s, batch.least_latency_us / 1e6)
        return batch

    def take_all(self, records: list[Record], base: int, now_ns: int) -> list[Taken]:
        """`take` for each of *records*, whose ends count from *base*."""
        # The hot path; what is counted is counted for all of them at once.
        names, symbols = self._canonical.names, self._seen.symbols
        now_ms = now_ns // 1_000_000
        latencies_us: list[int] = []
        taken: list[Taken] = []
        at = 0
        while at < len(records):
            decoded = None
            if not self._gone:
                at, decoded = self.fast_path.take(
                    records, at, base, names, symbols, now_ms, taken, latencies_us
                )
                if at == len(records):
                    break
            record = records[at]
            at += 1
            if decoded is None:
                taken.append(self.take(record, base + record.end, now_ns))
            else:
                taken.append(self._take(decoded, record, base + record.end, now_ns))
        if latencies_us:
            self._counters.add(Field.TRADES, len(latencies_us))
            last = next(item.entry for item in reversed(taken) if item.entry.trades)
            self._counters[Field.LAST_TRADE_NS] = last.frame.received_ns
            self._counters.observe_all(Histogram.RECEIVE, latencies_us)
            self.least_latency_s = min(self.least_latency_s, latencies_us[0] / 1e6)
        return taken

    def take(self, record: Record, end: int, now_ns: int) -> Taken:
        """What is to be stored for *record*, acknowledged as *end*. Never fails: what can't be
        decoded or normalized becomes a dead letter."""
        if record.kind != FRAME or record.flags & BINARY:
            return self._take_other(record, end, now_ns)
        try:
            decoded = self._exchange.decode(record.payload)
        except Undecodable as error:
            letter = DeadLetter("decode", str(error)[:_REASON_CHARS])
            return self._dead(end, _frame(record, STREAM), letter)
        return self._take(decoded, record, end, now_ns)

    def _take(self, decoded: Decoded, record: Record, end: int, now_ns: int) -> Taken:
        """What is to be stored for a frame of the stream."""
        if self._gone:
            decoded = self._without_gone(decoded, record.connection)
        trades = self._admit(decoded.trades, decoded.origin, record.sequence, now_ns)
        frame = _frame(record, decoded.origin)
        if decoded.origin == SNAPSHOT:
            for trade in decoded.trades:
                self._backfill.snapshot(trade.symbol, trade.trade_id)
        elif trades:
            latency_s = (record.received_ns // 1000 - trades[-1].time_us) / 1e6
            self._counters.observe(Histogram.RECEIVE, latency_s, len(trades))
            if latency_s < self.least_latency_s:  # noqa: PLR1730  min() would cost more
                self.least_latency_s = latency_s
        # A repeated frame brings no trade that was not stored with its bytes before.
        symbol = decoded.trades[0].symbol if trades else None
        return self._taken(end, frame, symbol, trades, decoded, now_ns)

    def _without_gone(self, decoded: Decoded, connection: int) -> Decoded:
        """What a connection brought of symbols that it is to bring."""
        gone = self._gone
        wanted = tuple(t for t in decoded.trades if (connection, t.symbol) not in gone)
        return decoded if len(wanted) == len(decoded.trades) else decoded._replace(trades=wanted)

    def _admit(
        self, trades: Sequence[Trade], origin: int, sequence: int, now_ns: int
    ) -> Sequence[Trade]:
        seen = self._seen
        before = seen.dropped
        seen.cause = ""
        trades = seen.admit(trades, origin, sequence, now_ns // 1000)
        if seen.dropped != before:
            self._counters.add(Field.DUPLICATES, seen.dropped - before)
        while seen.far:
            symbol, trade_id = seen.far.pop()
            self._log.warning(
                "a trade does not fit the ids of its symbol: delivered, not counted on",
                symbol=symbol,
                trade_id=trade_id,
            )
        while seen.begun_anew:
            symbol = seen.begun_anew.pop()
            self._backfill.begun_anew(symbol)
            self._log.warning("trade ids began anew", symbol=symbol)
        while seen.folded:
            self._log.warning("too many holes: the oldest are forgotten", symbol=seen.folded.pop())
        return trades

    def _taken(
        self,
        end: int,
        frame: Frame,
        symbol: str | None,
        trades: Sequence[Trade],
        decoded: Decoded,
        now_ns: int,
        settle: Sequence[Settle] = (),
    ) -> Taken:
        """The entry for admitted trades."""
        problems = list(decoded.problems)
        cause = self._seen.cause
        encoded, failed = self._encode(trades, frame, now_ns // 1_000_000, problems)
        dead = None
        if problems:
            stage = "decode" if decoded.problems else "normalize"
            dead = DeadLetter(stage, "; ".join(problems)[:_REASON_CHARS])
            self._counters.add(Field.DEAD_LETTERS)
        if trades:
            self._counters.add(Field.TRADES, len(encoded))
            self._counters[Field.LAST_TRADE_NS] = frame.received_ns
        if failed:
            now_us = now_ns // 1000
            for trade in failed:
                self._seen.miss(trade, DEAD, now_us)
            settle = (*settle, *(_missed(trade, now_us) for trade in failed))
            trades = (*(t for t in trades if t not in failed), *failed)
        return Taken(Entry(end, frame, symbol, encoded, dead), trades, cause, settle)

    def _encode(
        self, trades: Sequence[Trade], frame: Frame, now_ms: int, problems: list[str]
    ) -> tuple[Sequence[EncodedTrade], Sequence[Trade]]:
        """The trades' encodings, and those that have none."""
        if not trades:
            return (), ()
        names = self._canonical.names
        place = (frame.origin, frame.received_ns, frame.sequence, now_ms)
        try:
            return self._encoder.encode(trades, names, *place), ()
        except (KeyError, ValueError):
            self._canonical.refresh()
        # One of them can't be normalized: the others go on.
        encoded: list[EncodedTrade] = []
        failed: list[Trade] = []
        for trade in trades:
            if trade.symbol not in names:
                problems.append(
                    f"no canonical symbol for {trade.symbol!r}: the exchange's metadata does not "
                    f"list it; name it in exchanges.{self._exchange.name}.canonical_symbols"
                )
                failed.append(trade)
                continue
            try:
                encoded += self._encoder.encode((trade,), names, *place)
            except ValueError as error:
                problems.append(str(error))
                failed.append(trade)
        return encoded, failed

    def _take_other(self, record: Record, end: int, now_ns: int) -> Taken:
        frame = _frame(record, STREAM)
        if record.kind == EVENT:
            self._happened(messages.read_event(record.payload), record.sequence)
            return Taken(Entry(end, frame))
        if record.kind == PAGE:
            return self._take_page(record, end, frame, now_ns)
        return self._dead(end, frame, DeadLetter("decode", "not a text message"))

    def _happened(self, event: messages.Event, sequence: int) -> None:
        """What the reader tells of its connections and of its errands."""
        kind, symbol = event.get("event"), event.get("symbol")
        self._subscriptions(event, sequence)
        if kind == messages.READER:
            self._seen.happened("restart", sequence)
            self._backfill.reader_started()
        elif kind == messages.LOST:
            self._seen.happened(f"disconnect: {event.get('reason')}"[:80], sequence)
        elif kind == messages.FULL:
            self._seen.happened("ring full", sequence)
        elif kind == messages.SUBSCRIBED and isinstance(symbol, str):
            self._backfill.subscribed(symbol)
        elif kind == messages.PAGE_FAILED and isinstance(symbol, str):
            first_id = event.get("first_id")
            if isinstance(first_id, int):
                self._backfill.failed(symbol, first_id, event.get("passing") is True)

    def _subscriptions(self, event: messages.Event, sequence: int) -> None:
        """Keeps which connection is to bring what."""
        kind, symbol, connection = event.get("event"), event.get("symbol"), event.get("connection")
        if kind == messages.READER:
            self._gone.clear()
        if not isinstance(connection, int):
            return
        if kind == messages.CONNECTED:
            self._gone = {(number, each) for number, each in self._gone if number != connection}
        elif isinstance(symbol, str) and kind == messages.UNSUBSCRIBED:
            self._gone.add((connection, symbol))
            self._seen.unsubscribed(symbol, sequence)
        elif isinstance(symbol, str) and kind == messages.SUBSCRIBED:
            self._gone.discard((connection, symbol))

    def _take_page(self, record: Record, end: int, frame: Frame, now_ns: int) -> Taken:
        """A REST answer: what of it is missing is handed on; a page that can't be what was
        asked for becomes a dead letter."""
        read = messages.read_page(record.payload)
        if read is None:
            return self._dead(end, frame, DeadLetter("decode", "a page without its request"))
        wish, body = read
        frame = frame._replace(payload=body, origin=BACKFILL)
        decoded = Decoded(())
        trades: Sequence[Trade] = ()
        try:
            decoded = self._exchange.decode_page(wish.symbol, body)
            wanted = self._backfill.wanted(wish, decoded)
            flaw = wanted.flaw
            if wanted.trades:
                trades = self._admit(wanted.trades, BACKFILL, record.sequence, now_ns)
        except Undecodable as error:
            flaw = str(error)
        # When it was fetched, by a clock that does not step: two looks are to be some time apart.
        age_s = max(0.0, (now_ns - record.received_ns) / 1e9)
        fetched_us = int((steady_time() - age_s) * 1_000_000)
        settle = self._backfill.take(wish, decoded, flaw, len(trades), fetched_us)
        if not flaw:
            self._flaw = ""
            symbol = wish.symbol if trades else None
            return self._taken(end, frame, symbol, trades, decoded, now_ns, settle)
        self._counters.add(Field.PAGES_REFUSED)
        if flaw != self._flaw:
            self._flaw = flaw
            self._log.warning("refused a page", symbol=wish.symbol, reason=flaw[:_REASON_CHARS])
        return self._dead(end, frame, DeadLetter("page", flaw[:_REASON_CHARS], wish.symbol))

    def damaged(self, damage: ring.Damage, end: int, sequence: int) -> Taken:
        """What is to be stored for a part of the ring that could not be read, behind the record
        with that sequence."""
        self._log.error(
            "ring damaged",
            position=damage.position,
            lost_bytes=damage.lost_bytes,
            lost_records=damage.lost_records,
        )
        self._counters.add(Field.DAMAGED_RECORDS)
        self._seen.happened(DAMAGE, sequence + 1)
        frame = Frame(damage.payload, 0, -1, time.time_ns(), STREAM)
        return self._dead(
            end, frame, DeadLetter("ring", f"{damage.lost_bytes} B of the ring were damaged")
        )

    def _dead(self, end: int, frame: Frame, letter: DeadLetter) -> Taken:
        self._counters.add(Field.DEAD_LETTERS)
        return Taken(Entry(end, frame, dead=letter))


def _frame(record: Record, origin: int) -> Frame:
    return Frame(record.payload, record.connection, record.sequence, record.received_ns, origin)


def _missed(trade: Trade, now_us: int) -> Settle:
    def tell(ledger: Ledger) -> None:
        ledger.miss(trade.symbol, trade.trade_id, DEAD, now_us, trade.time_us)

    return tell
