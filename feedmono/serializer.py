"""The serializer process: ring → trades → Avro → sink → ledger, and the cursor behind them.

This is the middle of the program. `Serializer.step` is one round of it: what the sink has
acknowledged is written into the ledger and then frees the ring; what the ring holds is decoded,
normalized and handed to the sink. At most ``window`` records are ahead of the oldest one that is
not in the ledger: that is what a crash can double, since the successor starts at the ledger's
position. `Normalizer` is what happens to one record, `feedmono.backfill` what is asked for by REST.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from feedmono import messages, ring, workers
from feedmono.avro import TradeEncoder
from feedmono.backfill import Backfill, Settle
from feedmono.config import Config
from feedmono.counters import Counters, Field, Histogram
from feedmono.coverage import News
from feedmono.exchanges import load
from feedmono.exchanges.base import Decoded, Exchange, PageRequest, Undecodable
from feedmono.ledger import Ledger, LedgerError
from feedmono.limiter import steady_time
from feedmono.log import Log
from feedmono.metadata import CanonicalSymbols
from feedmono.ring_layout import BINARY, EVENT, FRAME, PAGE, Record
from feedmono.seen import Seen
from feedmono.sinks.base import DeadLetter, Entry, Frame, Sink, SinkFailed
from feedmono.trade import BACKFILL, SNAPSHOT, STREAM, EncodedTrade, Trade

_BATCH_RECORDS = 1000
_BATCH_BYTES = 1 << 20
# A round that read so many records is followed by the next at once: company enough.
_BUSY_RECORDS = 100
_FIRST_RETRY_S = 0.25
_RETRY_CAP_S = 10.0
# A start takes a moment: what is not ready for so long is worth a word.
_SILENT_S = 1.5
_REASON_CHARS = 500
# How long what the sink has acknowledged may wait for the ledger's transaction, 0.35 ms of work.
COMMIT_S = 0.2
_COMMIT_RETRY_S = 1.0

DEAD = "dead"
"""The cause of a hole whose trade could not be stored."""
DAMAGE = "damage"
"""The cause of a hole over a damaged part of the ring."""


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
        self._log = log
        self._encoder = TradeEncoder(exchange.name)
        self._seen = seen
        self._backfill = backfill
        self._flaw = ""

    def take(self, record: Record, end: int, now_ns: int) -> Taken:
        """What is to be stored for *record*, acknowledged as *end*. Never fails: what can't be
        decoded or normalized becomes a dead letter."""
        frame = Frame(
            record.payload, record.connection, record.sequence, record.received_ns, STREAM
        )
        if record.kind != FRAME or record.flags & BINARY:
            return self._take_other(record, end, frame, now_ns)
        try:
            decoded = self._exchange.decode(record.payload)
        except Undecodable as error:
            return self._dead(end, frame, DeadLetter("decode", str(error)[:_REASON_CHARS]))
        trades = self._admit(decoded.trades, decoded.origin, record.sequence, now_ns)
        frame = frame._replace(origin=decoded.origin)
        if decoded.origin == SNAPSHOT:
            for trade in decoded.trades:
                self._backfill.snapshot(trade.symbol, trade.trade_id)
        elif trades:
            latency_s = (record.received_ns // 1000 - trades[-1].time_us) / 1e6
            self._counters.observe(Histogram.RECEIVE, latency_s, len(trades))
        # A repeated frame brings no trade that was not stored with its bytes before.
        symbol = decoded.trades[0].symbol if trades else None
        return self._taken(end, frame, symbol, trades, decoded, now_ns)

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
            self._log.warning("trade ids began anew", symbol=seen.begun_anew.pop())
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

    def _take_other(self, record: Record, end: int, frame: Frame, now_ns: int) -> Taken:
        if record.kind == EVENT:
            self._happened(messages.read_event(record.payload), record.sequence)
            return Taken(Entry(end, frame))
        if record.kind == PAGE:
            return self._take_page(record, end, frame, now_ns)
        return self._dead(end, frame, DeadLetter("decode", "not a text message"))

    def _happened(self, event: messages.Event, sequence: int) -> None:
        """What the reader tells of its connections and of its errands."""
        kind, symbol = event.get("event"), event.get("symbol")
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
                self._backfill.failed(symbol, first_id)

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
        # Two looks are to be some time apart: a clock that is set between them does not count.
        settle = self._backfill.take(
            wish, decoded, flaw, len(trades), int(steady_time() * 1_000_000)
        )
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


def _missed(trade: Trade, now_us: int) -> Settle:
    def tell(ledger: Ledger) -> None:
        ledger.miss(trade.symbol, trade.trade_id, DEAD, now_us, trade.time_us)

    return tell


class Parts(NamedTuple):
    """What a serializer works with, and what outlives its ring."""

    normalizer: Normalizer
    seen: Seen
    backfill: Backfill
    sink: Sink
    """Open."""
    ledger: Ledger
    news: News


class Serializer:
    """The loop over one ring, with a sink that is open."""

    def __init__(
        self,
        source: ring.RingReader | ring.SalvagedReader,
        parts: Parts,
        counters: Counters,
        window: int,
        base: int = 0,
    ) -> None:
        """:param base: what the sink's positions of this ring count from: the end of those of the
        ring before it."""
        self._source = source
        self._normalizer, self._seen, self._backfill, sink, ledger, self._news = parts
        self._sink = sink
        self._ledger = ledger
        self._counters = counters
        self._window = window
        self._base = base
        self._ring = -1
        if isinstance(source, ring.RingReader):
            self._ring = source.first_sequence
            position = ledger.position(self._ring)
            if position is not None and source.seek(position):
                source.acknowledge(position)
        self._skips = True
        self._last_read = ledger.sequence
        self._sequence = ledger.sequence
        self._offered: deque[Taken] = deque()
        # Handed over and not acknowledged.
        self._outstanding: deque[Taken] = deque()
        # Acknowledged and not in the ledger yet: how many, and up to where.
        self._uncommitted = 0
        self._acknowledged = source.position
        self._commit_due_s = math.inf
        self._refused: dict[int, list[int]] = {}
        """Trades that the sink stored as dead letters only, by their entry's end."""
        self._deferred: deque[tuple[int, Settle]] = deque()
        self.trouble = ""
        """Why the ledger can't be written; empty if it can."""
        self._errors_before = sink.stats.errors
        self._dead_before = sink.stats.dead_letters

    @property
    def idle(self) -> bool:
        """Whether everything that was read is in the ledger."""
        return not (self._offered or self._outstanding or self._uncommitted)

    @property
    def base(self) -> int:
        """What the positions of the next ring count from."""
        return self._base + self._source.position

    def step(self, hurry: bool = False) -> int:
        """One round; returns how many records it read.

        :param hurry: what is acknowledged goes into the ledger at once.
        """
        self._acknowledge(self._sink.poll(0))
        self._commit_if_due(hurry)
        read = 0
        if not self._offered:
            read = self._read()
        if self._offered:
            self._hand_over()
        if not read and self._outstanding and self._ahead >= self._window:
            self._sink.flush()
        self._ask()
        self._publish()
        return read

    def wait_s(self) -> float:
        """How long the caller may wait for new records before the next step."""
        now_s = time.monotonic()
        due_s = min(self._commit_due_s, self._backfill.next_s(), self._news.next_s())
        return min(self._sink.wait_s(), max(0.0, due_s - now_s))

    @property
    def _ahead(self) -> int:
        """How many records that were read are not in the ledger."""
        return len(self._offered) + len(self._outstanding) + self._uncommitted

    def _read(self) -> int:
        room = min(self._window - self._ahead, _BATCH_RECORDS)
        if room <= 0:
            return 0
        source = self._source
        before = self._last_read
        records = source.read(room, _BATCH_BYTES)
        now_ns = time.time_ns()
        take, base, offer = self._normalizer.take, self._base, self._offered.append
        if records:
            self._last_read = records[-1].sequence
        if self._skips:
            records = self._without_done(records)
        for record in records:
            offer(take(record, base + record.end, now_ns))
        if records:
            waited_s = (now_ns - records[0].received_ns) / 1e9
            self._counters.observe(Histogram.RING, waited_s, len(records))
        while source.damage:
            damage = source.damage.pop(0)
            end = base + damage.position + damage.lost_bytes
            offer(self._normalizer.damaged(damage, end, before))
        return len(records)

    def _without_done(self, records: list[Record]) -> list[Record]:
        """At the beginning: leaves out what the ledger knows to be done, should the position not
        have told (a cursor that was damaged, a ring that is salvaged a second time)."""
        done = self._ledger.sequence
        fresh = [record for record in records if record.sequence > done]
        if len(fresh) < len(records):
            end = self._base + records[len(records) - len(fresh) - 1].end
            self._offered.append(Taken(Entry(end, Frame(b"", 0, -1, 0, STREAM))))
        if fresh:
            self._skips = False
        return fresh

    def _hand_over(self) -> None:
        offered, outstanding = self._offered, self._outstanding
        taken = self._sink.write([item.entry for item in offered])
        for _ in range(taken):
            outstanding.append(offered.popleft())

    def _acknowledge(self, end: int | None) -> None:
        outstanding = self._outstanding
        if end is None or not outstanding or outstanding[0].entry.end > end:
            return
        now_ns = time.time_ns()
        self._note_refused()
        deliver, max_trades, now_us = self._ledger.deliver, self._seen.max_trades, now_ns // 1000
        trades = done = 0
        entry = outstanding[0].entry
        while outstanding and outstanding[0].entry.end <= end:
            entry, admitted, cause, settle = outstanding.popleft()
            done += 1
            frame = entry.frame
            if frame.sequence > self._sequence:  # noqa: PLR1730  max() would cost more
                self._sequence = frame.sequence
            if admitted:
                count = len(entry.trades)
                trades += count
                deliver(admitted, frame.origin, cause, now_us, max_trades, frame.sequence)
                waited_s = (now_ns - frame.received_ns) / 1e9
                self._counters.observe(Histogram.DELIVERY, waited_s, count)
            for tell in settle:
                tell(self._ledger)
            for index in self._refused.pop(entry.end, ()) if self._refused else ():
                self._miss(admitted[index], now_us)
        self._settle(entry.end)
        self._counters.add(Field.DELIVERED_TRADES, trades)
        if not self._uncommitted:
            self._commit_due_s = min(self._commit_due_s, time.monotonic() + COMMIT_S)
        self._uncommitted += done
        self._acknowledged = entry.end - self._base

    def _note_refused(self) -> None:
        refused = self._sink.refused
        while refused:
            end, index = refused.pop()
            self._refused.setdefault(end, []).append(index)

    def _miss(self, trade: Trade, now_us: int) -> None:
        self._ledger.miss(trade.symbol, trade.trade_id, DEAD, now_us, trade.time_us)
        self._seen.miss(trade, DEAD, now_us)

    def _settle(self, end: int | None) -> None:
        """Tells the ledger what had to wait for that position; None: for all that was read."""
        while self._deferred and (end is None or self._deferred[0][0] <= end):
            self._deferred.popleft()[1](self._ledger)

    def _commit_if_due(self, hurry: bool) -> None:
        """Writes what is acknowledged into the ledger, and then frees the ring."""
        if not self._uncommitted and not self._ledger.dirty:
            return
        now_s = time.monotonic()
        if not self.trouble:
            hurry |= self._ahead >= self._window // 2 or self._uncommitted >= self._window // 4
        if now_s < self._commit_due_s and not (hurry and not self.trouble):
            return
        self._commit()

    def _commit(self) -> None:
        try:
            changed = self._ledger.commit(
                self._ring, self._acknowledged, self._sequence, self._sink.mark()
            )
        except LedgerError as error:
            self._counters.add(Field.LEDGER_ERRORS)
            self.trouble = str(error)
            self._commit_due_s = time.monotonic() + _COMMIT_RETRY_S
            return
        self.trouble = ""
        self._uncommitted = 0
        self._commit_due_s = math.inf
        self._sink.settle()
        self._source.acknowledge(self._acknowledged)
        self._news.changed(changed, self._ledger.symbols)

    def _ask(self) -> None:
        """Asks for what is missing, and tells consumers what is not."""
        for tell in self._backfill.tick():
            newest = self._offered or self._outstanding
            if newest:
                self._deferred.append((newest[-1].entry.end, tell))
            else:
                tell(self._ledger)
                self._commit_due_s = min(self._commit_due_s, time.monotonic() + COMMIT_S)
        if due := self._news.due(self._ledger.symbols):
            self._sink.cover(due)

    def finish(self) -> None:
        """Everything is in the ledger and nothing follows: a last word to consumers."""
        if due := self._news.due(self._ledger.symbols, everything=True):
            self._sink.cover(due)
            self._sink.flush()
            self._acknowledge(self._sink.poll(0))
        self._commit()

    def _publish(self) -> None:
        counters, seen, backfill = self._counters, self._seen, self._backfill
        stats = self._sink.stats
        if stats.errors != self._errors_before:
            counters.add(Field.SINK_ERRORS, stats.errors - self._errors_before)
            self._errors_before = stats.errors
        if stats.dead_letters != self._dead_before:
            counters.add(Field.DEAD_LETTERS, stats.dead_letters - self._dead_before)
            self._dead_before = stats.dead_letters
        if seen.counts_changed:
            seen.counts_changed = False
            for field, amount in (
                (Field.HOLES, seen.found),
                (Field.HOLE_TRADES, seen.found_trades),
                (Field.BACKFILLED, seen.backfilled),
                (Field.LATE, seen.late),
            ):
                counters.add(field, amount)
            seen.found = seen.found_trades = seen.backfilled = seen.late = 0
        counters[Field.HOLES_OPEN] = backfill.open_holes
        counters[Field.OPEN_TRADES] = backfill.open_trades
        counters[Field.ABSENT] = backfill.absent
        counters[Field.BEYOND] = backfill.beyond


class Process:
    """The serializer process of one exchange, from its fork to its end."""

    def __init__(self, config: Config, name: str, wake_fd: int, request_fd: int, log: Log) -> None:
        self._config = config
        self._name = name
        self._exchange_config = config.exchanges[name]
        self._shared = workers.Shared.of(config, name)
        self._counters = Counters(self._shared.counters)
        self._log = log
        self._note = ""
        self._stopping = False
        self._wake_fd = wake_fd
        self._requests = socket.socket(fileno=os.dup(request_fd))
        self._requests.setblocking(False)
        # Made by `run`.
        self._ledger: Ledger
        self._ledger_trouble = ""
        stop_read, stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(stop_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._stop_poll = select.poll()
        self._stop_poll.register(stop_read, select.POLLIN)
        self._poll = select.poll()
        self._poll.register(stop_read, select.POLLIN)
        self._poll.register(wake_fd, select.POLLIN)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def run(self) -> int:
        """Serves until SIGTERM, and then until the ring is empty; the exit status."""
        canonical = CanonicalSymbols(self._exchange_config, self._shared.metadata)
        if not self._until(canonical.ready, lambda: canonical.trouble):
            return 0
        if not self._until(self._open_ledger, lambda: self._ledger_trouble):
            return 0
        sink = open_sink(self._config, self._name, self._shared, self._ledger.mark, self._log)
        try:
            ready = self._until(sink.open, lambda: sink.trouble)
            if ready and self._until(lambda: self._begun(sink), lambda: self._ledger_trouble):
                self._deliver(canonical, sink)
        except SinkFailed as error:
            self._log.error("sink failed", error=str(error))
            return 1
        finally:
            self._counters[Field.SINK_READY] = 0
        sink.close()
        self._ledger.close()
        return 0

    def _open_ledger(self) -> bool:
        try:
            self._ledger = Ledger(self._shared.ledger, self._log)
        except (LedgerError, OSError) as error:
            self._ledger_trouble = f"the ledger: {error}"
            return False
        return True

    def _begun(self, sink: Sink) -> bool:
        try:
            self._ledger.begin(sink.mark())
        except LedgerError as error:
            self._ledger_trouble = str(error)
            return False
        return True

    def _deliver(self, canonical: CanonicalSymbols, sink: Sink) -> None:
        """Serves all rings there are, the live one last and until SIGTERM."""
        self._say("")
        self._counters[Field.SINK_READY] = 1
        ledger, config = self._ledger, self._config
        exchange = load(self._name)
        seen = Seen(ledger.copy(), config.backfill.max_trades, ledger.sequence)
        backfill = Backfill(seen, exchange, config.backfill, self._request)
        normalizer = Normalizer(exchange, canonical, seen, backfill, self._counters, self._log)
        news = News(config.coverage_interval_s)
        news.changed(ledger.symbols, ledger.symbols)
        parts = Parts(normalizer, seen, backfill, sink, ledger, news)
        base = self._drain_rings_set_aside(parts)
        live = ring.RingReader(self._shared.ring)
        ledger.keep_ring(live.first_sequence)
        self._serve(live, parts, base, last=True)

    def _request(self, wish: PageRequest) -> bool:
        """Asks the reader for a page; False: not now."""
        try:
            self._requests.send(messages.request(wish))
        except OSError:
            return False
        return True

    def _drain_rings_set_aside(self, parts: Parts) -> int:
        """Delivers what lies in rings that were replaced (another capacity, damage); a damaged
        one is kept under a new name, the others are removed."""
        base = 0
        for path in aside(self._shared.ring):
            self._log.info("draining a ring that was set aside", path=str(path))
            source: ring.RingReader | ring.SalvagedReader
            try:
                source = ring.RingReader(path)
                intact = True
            except ring.RingError:
                source = ring.SalvagedReader(path)
                intact = False
            base = self._serve(source, parts, base, last=False)
            source.close()
            if intact:
                path.unlink()
            else:
                path.rename(path.with_name(path.name.replace(".aside-", ".damaged-")))
        return base

    def _serve(
        self, source: ring.RingReader | ring.SalvagedReader, parts: Parts, base: int, last: bool
    ) -> int:
        """Runs the loop over one ring: for ever if it is the *last*, else until it is empty."""
        window = self._config.window
        serializer = Serializer(source, parts, self._counters, window, base)
        sink = parts.sink
        linger_s = self._config.linger_s
        while True:
            ending = self._stopping or not last
            read = serializer.step(hurry=ending)
            self._say(sink.trouble or serializer.trouble)
            if ending and not read:
                if serializer.idle and not source.used_bytes:
                    serializer.finish()
                    return serializer.base
                sink.flush()
            if read >= _BUSY_RECORDS:
                continue
            if self._wait(serializer.wait_s()) and linger_s:
                # Company for the trade that just came: one wake-up for several.
                time.sleep(linger_s)

    def _wait(self, timeout_s: float) -> bool:
        """Waits for records, for SIGTERM, or for so long; whether there are records."""
        woken = False
        for fd, _ in self._poll.poll(timeout_s * 1000):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                woken = True
            else:
                os.read(fd, 64)
        return woken

    def _until(self, ready: Callable[[], bool], trouble: Callable[[], str]) -> bool:
        """Tries with growing waits until it is *ready*; False if SIGTERM came first."""
        pause_s = _FIRST_RETRY_S
        begun_s = time.monotonic()
        while not self._stopping:
            if ready():
                return True
            if time.monotonic() - begun_s >= _SILENT_S:
                self._say(trouble())
            deadline_s = time.monotonic() + pause_s
            # The reader's wake-ups are of no interest before there is a sink.
            while not self._stopping and (left_s := deadline_s - time.monotonic()) > 0:
                self._stop_poll.poll(left_s * 1000)
            pause_s = min(pause_s * 2, _RETRY_CAP_S)
        return False

    def _say(self, trouble: str) -> None:
        """Tells the operator, once per change, why nothing moves, or that it does again."""
        if trouble == self._note:
            return
        if trouble:
            self._log.warning("delivery waits", reason=trouble)
        else:
            self._log.info("delivery goes on")
        self._note = trouble
        workers.tell(self._shared.serializer_note, {"trouble": trouble}, self._log)


def aside(path: Path) -> list[Path]:
    """The rings that were replaced by the one at *path* and are not drained yet, oldest first."""
    return sorted(path.parent.glob(path.name + ".aside-*"))


def open_sink(
    config: Config,
    exchange: str,
    shared: workers.Shared,
    mark: Mapping[str, int] | None,
    log: Log,
) -> Sink:
    """The configured sink, not opened yet. Each is imported only where it is used.

    :param mark: of its predecessor, as the ledger has it.
    """
    if config.sink == "kafka":
        from feedmono.sinks.kafka import KafkaSink  # noqa: PLC0415

        # The serializer has lingered already; librdkafka gets what it needs to fill a batch.
        linger_s = min(config.linger_s, 0.001)
        return KafkaSink(
            config.kafka, exchange, linger_s=linger_s, dead_dir=shared.dead_letters, log=log
        )
    from feedmono.sinks.files import FilesSink  # noqa: PLC0415

    return FilesSink(config.files, exchange, mark=mark)


def main(config: Config, name: str, wake_fd: int, request_fd: int, log: Log) -> int:
    """The serializer process of the exchange *name*: the exit status.

    :param wake_fd: the eventfd that the reader writes after each append.
    :param request_fd: the socket that takes requests for pages to the reader.
    """
    return Process(config, name, wake_fd, request_fd, log).run()
