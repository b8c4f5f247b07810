"""The serializer process: ring → trades → Avro → sink → ledger, and the cursor behind them.

This is the middle of the program. `Serializer.step` is one round of it: what the sink has
acknowledged is written into the ledger and then frees the ring; what the ring holds is decoded,
normalized and handed to the sink. At most ``window`` records are ahead of the oldest one that is
not in the ledger: that is what a crash can double, since the successor starts at the ledger's
position. `feedmono.delivery.normalizer` is what happens to one record,
`feedmono.delivery.backfill` what is asked for by REST.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from feedmono import log as logs
from feedmono import messages, ring, workers
from feedmono.config import Config
from feedmono.counters import (
    NO_OFFSET,
    OFFSET_SPAN_S,
    SINK_ERROR_KINDS,
    Counters,
    Field,
    Histogram,
)
from feedmono.delivery.backfill import DEAD, Backfill, Settle
from feedmono.delivery.coverage import News
from feedmono.delivery.ledger import Ledger, LedgerError
from feedmono.delivery.lowest import Lowest
from feedmono.delivery.normalizer import Normalizer, Taken
from feedmono.delivery.seen import Seen
from feedmono.delivery.throttle import Throttle
from feedmono.exchanges import load
from feedmono.exchanges.base import PageRequest
from feedmono.heartbeat import BEAT_S
from feedmono.log import Log
from feedmono.network.metadata import CanonicalSymbols
from feedmono.ring_layout import Record
from feedmono.sinks.base import Entry, Frame, Sink, SinkFailed, SinkStats
from feedmono.trade import STREAM, Trade

# Four times as many are no cheaper, and leave the caches: 18 µs a trade instead of 16.
_BATCH_RECORDS = 250
_BATCH_BYTES = 1 << 20
# A round that read so many records is followed by the next at once: company enough.
_BUSY_RECORDS = 100
_FIRST_RETRY_S = 0.25
_RETRY_CAP_S = 10.0
# A start takes a moment: what is not ready for so long is worth a word.
_SILENT_S = 1.5
# How long what the sink has acknowledged may wait for the ledger's transaction: 0.35 ms of work in
# a busy process, a millisecond in one that has just woken up.
COMMIT_S = 1.0
# The same once there are so many records, which a crash would double.
_COMMIT_SOON_RECORDS = 100
_COMMIT_SOON_S = 0.2
_COMMIT_RETRY_S = 1.0
CHORES_S = 0.2
"""How often what is missing is asked for, coverage is published and counts are told while trades
come: not in each round, which may come for a single trade."""
IDLE_CHORES_S = 1.0
"""The same while there are none."""
_TICK_S = 1.0
# Topics are created, schemas registered, files cut to what is whole.
_OPEN_ALLOWANCE_S = 120.0
# A damaged ring of many GiB is searched for records.
_SALVAGE_ALLOWANCE_S = 3600.0


class Parts(NamedTuple):
    """What a serializer works with, and what outlives its ring."""

    normalizer: Normalizer
    seen: Seen
    backfill: Backfill
    sink: Sink
    """Open."""
    ledger: Ledger
    news: News


class SinkCounts:
    """Takes what a sink counts into the exchange's counters."""

    def __init__(self, counters: Counters, stats: SinkStats) -> None:
        """What it has counted so far is known already."""
        self._counters = counters
        self._stats = stats
        self._failures = Counter(stats.failures)
        self._dead_letters = stats.dead_letters

    def publish(self) -> None:
        """Adds what came since."""
        counters, stats = self._counters, self._stats
        if stats.failures != self._failures:
            for kind, times in (stats.failures - self._failures).items():
                counters.add(SINK_ERROR_KINDS[kind], times)
                counters.add(Field.SINK_ERRORS, times)
            self._failures = Counter(stats.failures)
        if stats.dead_letters != self._dead_letters:
            counters.add(Field.DEAD_LETTERS, stats.dead_letters - self._dead_letters)
            self._dead_letters = stats.dead_letters


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
        self._sink_counts = SinkCounts(counters, sink.stats)
        self._offset = Lowest(OFFSET_SPAN_S)
        self._offset_due_s = -math.inf
        self._chores_due_s = -math.inf

    @property
    def idle(self) -> bool:
        """Whether everything that was read is in the ledger."""
        return not (self._offered or self._outstanding or self._uncommitted)

    @property
    def base(self) -> int:
        """What the positions of the next ring count from."""
        return self._base + self._source.position

    def step(self, hurry: bool = False, reads: bool = True) -> int:
        """One round; returns how many records it read.

        :param hurry: what is acknowledged goes into the ledger at once.
        :param reads: whether to read on, rather than only to end what is under way.
        """
        self._acknowledge(self._sink.poll(0))
        self._commit_if_due(hurry)
        read = 0
        if not self._offered and reads:
            read = self._read()
        if self._offered:
            self._hand_over()
        if not read and self._outstanding and self._ahead >= self._window:
            self._sink.flush()
        now_s = time.monotonic()
        if hurry or now_s >= self._chores_due_s:
            self._do_chores(reads, not (read or self._offered or self._source.searching))
            self._chores_due_s = self._next_chores_s(now_s)
        elif read:
            self._chores_due_s = min(self._chores_due_s, now_s + CHORES_S)
        return read

    def _do_chores(self, reads: bool, caught_up: bool) -> None:
        """What need not be done in each round."""
        # With a full window no answer could be read, and whatever is missing can wait.
        if self._ahead < self._window and reads:
            self._ask(caught_up)
        if due := self._news.due(self._ledger.symbols):
            self._sink.cover(due)
        self._publish()

    def _next_chores_s(self, now_s: float) -> float:
        """When there is something to do if nothing happens."""
        due_s = self._news.next_s()
        if self._ahead < self._window:
            due_s = min(due_s, self._backfill.next_s())
        moves = self._offered or self._outstanding or self._uncommitted
        return max(now_s, min(due_s, now_s + (CHORES_S if moves else IDLE_CHORES_S)))

    def wait_s(self) -> float:
        """How long the caller may wait for new records before the next step."""
        if self._source.searching:
            return 0.0
        due_s = min(self._commit_due_s, self._chores_due_s)
        return min(self._sink.wait_s(), max(0.0, due_s - time.monotonic()))

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
        base = self._base
        if records:
            self._last_read = records[-1].sequence
        if self._skips:
            records = self._without_done(records)
        if records:
            self._offered.extend(self._normalizer.take_all(records, base, now_ns))
            waited_s = (now_ns - records[0].received_ns) / 1e9
            self._counters.observe(Histogram.RING, waited_s, len(records))
        while source.damage:
            damage = source.damage.pop(0)
            end = base + damage.position + damage.lost_bytes
            self._offered.append(self._normalizer.damaged(damage, end, before))
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
        taken = self._sink.write([item[0] for item in offered])
        if taken == len(offered):
            outstanding.extend(offered)
            offered.clear()
            return
        for _ in range(taken):
            outstanding.append(offered.popleft())

    def _acknowledge(self, end: int | None) -> None:
        """Everything up to that position is stored."""
        if end is None:
            return
        self._note_refused()
        stored = self._sink.stored
        while stored:
            self._acknowledge_at(*stored.popleft())
        self._acknowledge_at(end, time.time_ns())

    def _acknowledge_at(self, end: int, now_ns: int) -> None:
        """Everything up to that position was stored at that time."""
        outstanding = self._outstanding
        if not outstanding or outstanding[0].entry.end > end:
            return
        deliver, max_trades, now_us = self._ledger.deliver, self._seen.max_trades, now_ns // 1000
        rare = bool(self._refused or self._deferred)
        latencies_us: list[int] = []
        done = 0
        entry = outstanding[0].entry
        while outstanding and outstanding[0][0][0] <= end:
            entry, admitted, cause, settle = outstanding.popleft()
            done += 1
            _, _, sequence, received_ns, origin = entry[1]
            if sequence > self._sequence:  # noqa: PLR1730  max() would cost more
                self._sequence = sequence
            if admitted:
                deliver(admitted, origin, cause, now_us, max_trades, sequence)
                latency_us = (now_ns - received_ns) // 1000
                if len(entry[3]) == 1:
                    latencies_us.append(latency_us)
                else:
                    latencies_us += (latency_us,) * len(entry[3])
            for tell in settle:
                tell(self._ledger)
            if rare:
                for index in self._refused.pop(entry.end, ()):
                    self._miss(admitted[index], now_us)
                self._settle(entry.end)
        if latencies_us:
            self._counters.add(Field.DELIVERED_TRADES, len(latencies_us))
            self._counters.observe_all(Histogram.DELIVERY, latencies_us)
        now_s = time.monotonic()
        if not self._uncommitted:
            self._commit_due_s = min(self._commit_due_s, now_s + COMMIT_S)
        if self._uncommitted < _COMMIT_SOON_RECORDS <= self._uncommitted + done:
            self._commit_due_s = min(self._commit_due_s, now_s + _COMMIT_SOON_S)
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

    def _settle(self, end: int) -> None:
        """Tells the ledger what had to wait for that position."""
        while self._deferred and self._deferred[0][0] <= end:
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
                self._ring,
                self._acknowledged,
                self._sequence,
                self._sink.mark(),
                self._sink.place,
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

    def _ask(self, caught_up: bool) -> None:
        """Asks for what is missing."""
        for tell in self._backfill.tick(caught_up):
            newest = self._offered or self._outstanding
            if newest:
                self._deferred.append((newest[-1].entry.end, tell))
            else:
                tell(self._ledger)
                self._commit_due_s = min(self._commit_due_s, time.monotonic() + COMMIT_S)

    def finish(self) -> None:
        """Everything is in the ledger and nothing follows: a last word to consumers."""
        if due := self._news.due(self._ledger.symbols, everything=True):
            self._sink.cover(due)
            self._sink.flush()
            self._acknowledge(self._sink.poll(0))
        self._commit()

    def _publish(self) -> None:
        counters, seen, backfill = self._counters, self._seen, self._backfill
        self._sink_counts.publish()
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
        if (now_s := time.monotonic()) >= self._offset_due_s:
            self._offset_due_s = now_s + 1.0
            offset_s = self._offset.look(now_s, self._normalizer.least_latency_s)
            self._normalizer.least_latency_s = math.inf
            offset_ns = NO_OFFSET if offset_s == math.inf else int(offset_s * 1e9)
            counters.set_signed(Field.CLOCK_OFFSET_NS, offset_ns)


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
        self._yielding = False
        self._tick_s = 0.0
        self._ordered = True
        self._throttle = Throttle(self._counters)
        self._wake_fd = wake_fd
        self._requests = socket.socket(fileno=os.dup(request_fd))
        self._requests.setblocking(False)
        # Made by `run`.
        self._canonical: CanonicalSymbols
        self._backfill: Backfill | None = None
        self._ledger: Ledger
        self._ledger_trouble = ""
        stop_read, stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(stop_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(workers.YIELD, self._yield)
        signal.signal(signal.SIGHUP, self._order)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP, workers.YIELD})
        self._stop_read = stop_read
        self._stop_poll = select.poll()
        self._stop_poll.register(stop_read, select.POLLIN)
        self._poll = select.poll()
        self._poll.register(stop_read, select.POLLIN)
        self._poll.register(wake_fd, select.POLLIN)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _yield(self, *_: object) -> None:
        self._yielding = True

    def _order(self, *_: object) -> None:
        self._ordered = True

    @property
    def _ending(self) -> bool:
        return self._stopping or self._yielding

    def run(self) -> int:
        """Serves until SIGTERM, and then until the ring is empty; or until `workers.YIELD`, and
        then until what it has read is in the ledger. The exit status."""
        canonical = CanonicalSymbols(self._exchange_config, self._shared.metadata)
        self._canonical = canonical
        self._take_orders()
        if not self._until(canonical.ready, lambda: canonical.trouble):
            return 0
        if not self._until(self._open_ledger, lambda: self._ledger_trouble):
            return 0
        sink = open_sink(self._config, self._name, self._shared, self._ledger, self._log)
        counts = SinkCounts(self._counters, sink.stats)

        def opened() -> bool:
            try:
                return sink.open()
            finally:
                counts.publish()

        try:
            ready = self._until(opened, lambda: sink.trouble, _OPEN_ALLOWANCE_S)
            if ready and self._until(lambda: self._begun(sink), lambda: self._ledger_trouble):
                self._deliver(canonical, sink)
        except SinkFailed as error:
            self._log.error("sink failed", error=str(error))
            for field in (Field.SINK_ERRORS, Field.SINK_ERRORS_FATAL):
                self._counters.add(field)
            return 1
        finally:
            self._counters[Field.SINK_READY] = 0
        sink.close()
        self._ledger.close()
        return 0

    def _take_orders(self) -> None:
        """Takes over what was ordered since the last time. Trades of a new symbol come when its
        name is published: the reader sees to that."""
        if not self._ordered:
            return
        self._ordered = False
        orders = workers.Orders.read(self._shared.orders)
        if orders is None:
            return
        logs.set_level(orders.log_level, orders.log_format)
        self._exchange_config = replace(
            self._exchange_config,
            symbols=orders.symbols,
            canonical_symbols=orders.canonical_symbols,
        )
        self._canonical.follow(self._exchange_config)
        if self._backfill is not None:
            self._backfill.follow(orders.symbols)

    def _open_ledger(self) -> bool:
        try:
            self._ledger = Ledger(self._shared.ledger, self._log)
        except (LedgerError, OSError) as error:
            self._ledger_trouble = f"the ledger: {error}"
            return False
        return True

    def _begun(self, sink: Sink) -> bool:
        try:
            self._ledger.begin(sink.mark(), sink.place)
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
        symbols = self._exchange_config.symbols
        backfill = Backfill(seen, exchange, config.backfill, symbols, self._request)
        self._backfill = backfill
        normalizer = Normalizer(exchange, canonical, seen, backfill, self._counters, self._log)
        news = News(config.coverage_interval_s)
        news.changed(ledger.symbols, ledger.symbols)
        parts = Parts(normalizer, seen, backfill, sink, ledger, news)
        base = self._drain_rings_set_aside(parts)
        if base is None:
            return
        with self._allowed(_SALVAGE_ALLOWANCE_S):
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

    def _drain_rings_set_aside(self, parts: Parts) -> int | None:
        """Delivers what lies in rings that were replaced (another capacity, damage); a damaged
        one is kept under a new name, the others are removed. What the positions of the next ring
        count from; None if it is to yield."""
        base = 0
        for path in ring.set_aside_of(self._shared.ring):
            self._log.info("draining a ring that was set aside", path=str(path))
            source: ring.RingReader | ring.SalvagedReader
            with self._allowed(_SALVAGE_ALLOWANCE_S):
                try:
                    source = ring.RingReader(path)
                    intact = True
                except ring.RingError:
                    source = ring.SalvagedReader(path)
                    intact = False
            served = self._serve(source, parts, base, last=False)
            source.close()
            if served is None:
                return None
            base = served
            if intact:
                path.unlink()
            else:
                ring.keep_damaged(path)
        return base

    def _serve(
        self, source: ring.RingReader | ring.SalvagedReader, parts: Parts, base: int, last: bool
    ) -> int | None:
        """Runs the loop over one ring: for ever if it is the *last*, else until it is empty. What
        the positions of the next one count from; None if it is to yield."""
        window = self._config.window
        with self._allowed(_SALVAGE_ALLOWANCE_S):
            serializer = Serializer(source, parts, self._counters, window, base)
        sink = parts.sink
        while True:
            self._beat()
            self._take_orders()
            ending = self._ending or not last
            read = serializer.step(hurry=ending, reads=not self._yielding)
            self._say(sink.trouble or serializer.trouble)
            if ending and not read:
                if serializer.idle and (self._yielding or not source.used_bytes):
                    serializer.finish()
                    return None if self._yielding else serializer.base
                if not serializer.trouble:
                    sink.flush()
            elif last and not ending:
                self._pause()
                if self._ending:
                    # What told so is read already, and would not wake `_wait`.
                    continue
            if read >= _BUSY_RECORDS:
                continue
            self._wait(serializer.wait_s())

    def _pause(self) -> None:
        """As long as the supervisor's throttle demands it; orders are taken meanwhile."""
        while not self._ending and (pause_s := self._throttle.pause_s()):
            self._beat()
            if self._stop_poll.poll(math.ceil(pause_s * 1000)):
                os.read(self._stop_read, 64)
            self._take_orders()

    def _wait(self, timeout_s: float) -> None:
        """Waits for records, for a signal, or for so long."""
        for fd, _ in self._poll.poll(min(timeout_s, BEAT_S) * 1000):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            else:
                os.read(fd, 64)

    def _beat(self) -> None:
        """Shows that the loop comes round, and about once a second what the log has counted."""
        self._counters.add(Field.SERIALIZER_BEATS)
        if (now_s := time.monotonic()) >= self._tick_s:
            self._tick_s = now_s + _TICK_S
            logs.tick()

    @contextlib.contextmanager
    def _allowed(self, seconds: float) -> Iterator[None]:
        """The block may take so long, without a beat."""
        self._counters[Field.SERIALIZER_ALLOWANCE_S] = int(seconds)
        self._beat()
        try:
            yield
        finally:
            self._beat()
            self._counters[Field.SERIALIZER_ALLOWANCE_S] = 0

    def _until(
        self, ready: Callable[[], bool], trouble: Callable[[], str], allowance_s: float = 0.0
    ) -> bool:
        """Tries with growing waits until it is *ready*; False if it is to end before.

        :param allowance_s: how long a try may take.
        """
        pause_s = _FIRST_RETRY_S
        begun_s = time.monotonic()
        while not self._ending:
            with self._allowed(allowance_s):
                if ready():
                    return True
            if time.monotonic() - begun_s >= _SILENT_S:
                self._say(trouble())
            deadline_s = time.monotonic() + pause_s
            # The reader's wake-ups are of no interest before there is a sink.
            while not self._ending and (left_s := deadline_s - time.monotonic()) > 0:
                if self._stop_poll.poll(min(left_s, BEAT_S) * 1000):
                    os.read(self._stop_read, 64)
                self._take_orders()
                self._beat()
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


def open_sink(
    config: Config,
    exchange: str,
    shared: workers.Shared,
    ledger: Ledger,
    log: Log,
) -> Sink:
    """The configured sink, not opened yet. Each is imported only where it is used.

    :param ledger: it has the marks of its predecessors.
    """
    if config.sink == "kafka":
        from feedmono.sinks.kafka import KafkaSink  # noqa: PLC0415

        # The reader has lingered already; librdkafka gets what it needs to fill a batch.
        linger_s = min(config.linger_s, 0.001)
        return KafkaSink(
            config.kafka, exchange, linger_s=linger_s, dead_dir=shared.dead_letters, log=log
        )
    from feedmono.sinks.files import FilesSink, place_of  # noqa: PLC0415

    place = place_of(config.files, exchange)
    mark, others = ledger.mark_of(place), ledger.marks_besides(place)
    return FilesSink(config.files, exchange, mark=mark, others=others)


def main(config: Config, name: str, wake_fd: int, request_fd: int, log: Log) -> int:
    """The serializer process of the exchange *name*: the exit status.

    :param wake_fd: the eventfd that the reader writes after each append.
    :param request_fd: the socket that takes requests for pages to the reader.
    """
    return Process(config, name, wake_fd, request_fd, log).run()
