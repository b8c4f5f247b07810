"""The loop of the serializer: ring → sink → ledger → cursor.

This is the middle of the program. `Delivery.step` is one round of it: what the sink has
acknowledged is written into the ledger and then frees the ring; what the ring holds is decoded,
normalized and handed to the sink. At most ``window`` records are ahead of the oldest one that is
not in the ledger: that is what a crash can double, since the successor starts at the ledger's
position. `feedmono.delivery.normalizer` is what happens to one record,
`feedmono.delivery.backfill` what is asked for by REST.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from feedmono import ring
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
from feedmono.delivery.fast_path import Batch, Taken
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.ledger_file import LedgerError
from feedmono.delivery.lowest import Lowest
from feedmono.delivery.normalizer import Normalizer
from feedmono.delivery.seen import Seen
from feedmono.ring_layout import Record
from feedmono.sinks.base import Entry, Frame, Sink, SinkStats
from feedmono.trade import STREAM, Trade

# Four times as many are no cheaper.
_BATCH_RECORDS = 250
_BATCH_BYTES = 1 << 20
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
# As `feedmono.delivery.seen.Counts` has them.
_SEEN_FIELDS = (Field.HOLES, Field.HOLE_TRADES, Field.BACKFILLED, Field.LATE)


class Parts(NamedTuple):
    """What a delivery works with, and what outlives its ring."""

    normalizer: Normalizer
    seen: Seen
    backfill: Backfill
    sink: Sink
    """Open."""
    ledger: Ledger
    news: News


def _is_taken(item: Taken | Batch) -> bool:
    return isinstance(item, Taken)


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


class Delivery:
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
        self._offered: deque[Taken | Batch] = deque()
        # Handed over and not acknowledged.
        self._outstanding: deque[Taken | Batch] = deque()
        self._waiting = 0
        """How many records both have."""
        self._few = 1
        """How many records are read one by one before the next try to take a batch."""
        self._trades = 0
        """How many trades were delivered that are not counted yet."""
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
        return self._waiting + self._uncommitted

    def _read(self) -> int:
        room = min(self._window - self._ahead, _BATCH_RECORDS)
        read = 0
        while read < room:
            left = room - read
            source = self._source
            if self._skips or isinstance(source, ring.SalvagedReader):
                found = self._read_records(left)
            elif not (found := self._read_batch(source, left)):
                found = self._read_records(min(left, self._few))
                self._few = min(2 * self._few, _BATCH_RECORDS)
            elif source.drained:
                return read + found
            if not found:
                break
            read += found
        return read

    def _read_batch(self, source: ring.RingReader, room: int) -> int:
        """Reads what is usual; how many records, 0 if the next one is not."""
        now_ns = time.time_ns()
        batch = self._normalizer.take_batch(source, room, _BATCH_BYTES, self._base, now_ns)
        if batch is None:
            return 0
        count = len(batch)
        self._few = 1
        self._last_read = batch.sequence
        self._offered.append(batch)
        self._waiting += count
        self._counters.observe(Histogram.RING, (now_ns - batch.first_received_ns) / 1e9, count)
        return count

    def _read_records(self, room: int) -> int:
        """Reads whatever comes; how many records."""
        source = self._source
        before = self._last_read
        records = source.read(room, _BATCH_BYTES)
        now_ns = time.time_ns()
        base = self._base
        read, offered = len(records), len(self._offered)
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
        self._waiting += len(self._offered) - offered
        return read

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
        while offered:
            first = offered[0]
            if not isinstance(first, Taken):
                if not self._hand_over_batch(first):
                    return
                continue
            entries = [item[0] for item in takewhile(_is_taken, offered)]
            taken = self._sink.write(entries)
            for _ in range(taken):
                outstanding.append(offered.popleft())
            if taken < len(entries):
                return

    def _hand_over_batch(self, batch: Batch) -> bool:
        """Whether the sink has taken all of the first that is offered."""
        taken = self._sink.write(batch)
        if taken == len(batch):
            self._outstanding.append(self._offered.popleft())
            return True
        if taken:
            self._offered[0] = batch.split(taken)
            self._outstanding.append(batch)
        return False

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
        waiting = self._waiting
        while self._outstanding and self._deliver(end, now_ns):
            pass
        done = waiting - self._waiting
        if not done:
            return
        # At once: whoever looks at the count sees all of what was stored together.
        self._counters.add(Field.DELIVERED_TRADES, self._trades)
        self._trades = 0
        now_s = time.monotonic()
        if not self._uncommitted:
            self._commit_due_s = min(self._commit_due_s, now_s + COMMIT_S)
        if self._uncommitted < _COMMIT_SOON_RECORDS <= self._uncommitted + done:
            self._commit_due_s = min(self._commit_due_s, now_s + _COMMIT_SOON_S)
        self._uncommitted += done

    def _deliver(self, end: int, now_ns: int) -> bool:
        """Tells the ledger of what is first outstanding; False if that is not stored yet."""
        first = self._outstanding[0]
        if not isinstance(first, Taken):
            return self._deliver_batch(first, end, now_ns)
        if first.entry.end > end:
            return False
        if not (self._refused or self._deferred):
            latencies_us: list[int] = []
            done, done_end, sequence = self._normalizer.fast_path.deliver(
                self._outstanding, end, self._ledger.symbols, self._ledger.changed, now_ns,
                latencies_us,
            )  # fmt: skip
            if done:
                self._delivered(done, done_end, sequence, latencies_us)
                return True
        self._outstanding.popleft()
        self._deliver_carefully(first, now_ns)
        return True

    def _deliver_batch(self, batch: Batch, end: int, now_ns: int) -> bool:
        """The same of a batch. What is not usual for the ledger is left as single records."""
        outstanding, ledger = self._outstanding, self._ledger
        stored = batch.until(end)
        if not stored:
            return False
        outstanding.popleft()
        if stored < len(batch):
            outstanding.appendleft(batch.split(stored))
        done = trades = 0
        if not (self._refused or self._deferred):
            done, trades = batch.deliver(ledger.symbols, ledger.changed, now_ns)
        if done < stored:
            rest = batch.split(done) if done else batch
            outstanding.extendleft(reversed(rest.items()))
        if done:
            self._trades += trades
            self._delivered(done, batch.end, batch.sequence)
        return True

    def _deliver_carefully(self, taken: Taken, now_ns: int) -> None:
        """Tells the ledger of a record, whatever it holds."""
        entry, admitted, cause, settle = taken
        _, _, sequence, received_ns, origin = entry.frame
        if admitted:
            self._ledger.deliver(
                admitted, origin, cause, now_ns // 1000, self._seen.max_trades, sequence
            )
        for tell in settle:
            tell(self._ledger)
        for index in self._refused.pop(entry.end, ()):
            self._miss(admitted[index], now_ns // 1000)
        self._settle(entry.end)
        latencies_us = [(now_ns - received_ns) // 1000] * len(entry.trades) if admitted else []
        self._delivered(1, entry.end, sequence, latencies_us)

    def _delivered(
        self, records: int, end: int, sequence: int, latencies_us: Sequence[int] = ()
    ) -> None:
        """So many records, up to that end, are done."""
        self._waiting -= records
        self._sequence = max(self._sequence, sequence)
        self._acknowledged = end - self._base
        if latencies_us:
            self._trades += len(latencies_us)
            self._counters.observe_all(Histogram.DELIVERY, list(latencies_us))

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
                self._deferred.append((newest[-1].end, tell))
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
        for field, amount in zip(_SEEN_FIELDS, seen.take_counts(), strict=True):
            if amount:
                counters.add(field, amount)
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
