"""The serializer process: ring → trades → Avro → sink, and the cursor behind acknowledgements.

This is the middle of the program. `Serializer.step` is one round of it: what the sink has
acknowledged frees the ring, what the ring holds is decoded, normalized and handed to the sink.
At most ``window`` records are ahead of the oldest unacknowledged one: that is what a crash can
double, since the successor starts at the acknowledged position.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from feedmono import ring, workers
from feedmono.avro import TradeEncoder
from feedmono.config import Config
from feedmono.counters import Counters, Field, Histogram
from feedmono.exchanges import load
from feedmono.exchanges.base import Exchange, Undecodable
from feedmono.log import Log
from feedmono.metadata import CanonicalSymbols
from feedmono.ring_layout import BINARY, EVENT, FRAME, Record
from feedmono.seen import SeenIds
from feedmono.sinks.base import DeadLetter, Entry, Frame, Sink, SinkFailed
from feedmono.trade import STREAM, EncodedTrade, Trade

_BATCH_RECORDS = 1000
_BATCH_BYTES = 1 << 20
# A round that read so many records is followed by the next at once: company enough.
_BUSY_RECORDS = 100
_FIRST_RETRY_S = 0.25
_RETRY_CAP_S = 10.0
# A start takes a moment: what is not ready for so long is worth a word.
_SILENT_S = 1.5
_REASON_CHARS = 500


class Normalizer:
    """Ring records → sink entries: decoding, dropping what was seen, encoding. No I/O."""

    def __init__(
        self, exchange: Exchange, canonical: CanonicalSymbols, counters: Counters, log: Log
    ) -> None:
        self._exchange = exchange
        self._canonical = canonical
        self._counters = counters
        self._log = log
        self._encoder = TradeEncoder(exchange.name)
        self._seen = SeenIds()

    def entry(self, record: Record, end: int, now_ns: int) -> Entry:
        """What is to be stored for *record*, acknowledged as *end*. Never fails: what can't be
        decoded or normalized becomes a dead letter."""
        frame = Frame(
            record.payload, record.connection, record.sequence, record.received_ns, STREAM
        )
        if record.kind == EVENT:
            return Entry(end, frame)
        if record.kind != FRAME or record.flags & BINARY:
            return self._dead(end, frame, DeadLetter("decode", "not a text message"))
        try:
            decoded = self._exchange.decode(record.payload)
        except Undecodable as error:
            return self._dead(end, frame, DeadLetter("decode", str(error)[:_REASON_CHARS]))
        before = self._seen.dropped
        trades = self._seen.admit(decoded.trades, decoded.origin)
        if self._seen.dropped != before:
            self._counters.add(Field.DUPLICATES, self._seen.dropped - before)
        while self._seen.begun_anew:
            self._log.warning("trade ids began anew", symbol=self._seen.begun_anew.pop())
        frame = frame._replace(origin=decoded.origin)
        problems = list(decoded.problems)
        encoded = self._encode(trades, frame, now_ns // 1_000_000, problems)
        dead = None
        if problems:
            stage = "decode" if decoded.problems else "normalize"
            dead = DeadLetter(stage, "; ".join(problems)[:_REASON_CHARS])
            self._counters.add(Field.DEAD_LETTERS)
        if trades:
            self._counters.add(Field.TRADES, len(encoded))
            self._counters[Field.LAST_TRADE_NS] = record.received_ns
            if decoded.origin == STREAM:
                latency_s = (record.received_ns // 1000 - trades[-1].time_us) / 1e6
                self._counters.observe(Histogram.RECEIVE, latency_s, len(encoded))
        # A repeated frame brings no trade that was not stored with its bytes before.
        symbol = decoded.trades[0].symbol if trades else None
        return Entry(end, frame, symbol, encoded, dead)

    def _encode(
        self, trades: Sequence[Trade], frame: Frame, now_ms: int, problems: list[str]
    ) -> Sequence[EncodedTrade]:
        if not trades:
            return ()
        names = self._canonical.names
        place = (frame.origin, frame.received_ns, frame.sequence, now_ms)
        try:
            return self._encoder.encode(trades, names, *place)
        except (KeyError, ValueError):
            self._canonical.refresh()
        # One of them can't be normalized: the others go on.
        encoded: list[EncodedTrade] = []
        for trade in trades:
            if trade.symbol not in names:
                problems.append(
                    f"no canonical symbol for {trade.symbol!r}: the exchange's metadata does not "
                    f"list it; name it in exchanges.{self._exchange.name}.canonical_symbols"
                )
                continue
            try:
                encoded += self._encoder.encode((trade,), names, *place)
            except ValueError as error:
                problems.append(str(error))
        return encoded

    def damaged(self, damage: ring.Damage, end: int) -> Entry:
        """What is to be stored for a part of the ring that could not be read."""
        self._log.error(
            "ring damaged",
            position=damage.position,
            lost_bytes=damage.lost_bytes,
            lost_records=damage.lost_records,
        )
        self._counters.add(Field.DAMAGED_RECORDS)
        frame = Frame(damage.payload, 0, -1, time.time_ns(), STREAM)
        return self._dead(
            end, frame, DeadLetter("ring", f"{damage.lost_bytes} B of the ring were damaged")
        )

    def _dead(self, end: int, frame: Frame, letter: DeadLetter) -> Entry:
        self._counters.add(Field.DEAD_LETTERS)
        return Entry(end, frame, dead=letter)


class Serializer:
    """The loop over one ring, with a sink that is open."""

    def __init__(
        self,
        source: ring.RingReader | ring.SalvagedReader,
        normalizer: Normalizer,
        sink: Sink,
        counters: Counters,
        window: int,
        base: int = 0,
    ) -> None:
        """:param base: what the sink's positions of this ring count from: the end of those of the
        ring before it."""
        self._source = source
        self._normalizer = normalizer
        self._sink = sink
        self._counters = counters
        self._window = window
        self._base = base
        self._offered: deque[Entry] = deque()
        # One item per entry handed over: its end, its receipt time, its trades.
        self._outstanding: deque[tuple[int, int, int]] = deque()
        self._errors_before = sink.stats.errors
        self._dead_before = sink.stats.dead_letters

    @property
    def idle(self) -> bool:
        """Whether everything that was read is acknowledged."""
        return not self._offered and not self._outstanding

    @property
    def base(self) -> int:
        """What the positions of the next ring count from."""
        return self._base + self._source.position

    def step(self) -> int:
        """One round; returns how many records it read."""
        self._acknowledge(self._sink.poll(0))
        read = 0
        if not self._offered:
            read = self._read()
        if self._offered:
            self._hand_over()
        if not read and self._outstanding and len(self._outstanding) >= self._window:
            self._sink.flush()
        self._publish()
        return read

    def _read(self) -> int:
        room = min(self._window - len(self._outstanding), _BATCH_RECORDS)
        if room <= 0:
            return 0
        records = self._source.read(room, _BATCH_BYTES)
        now_ns = time.time_ns()
        entry = self._normalizer.entry
        for record in records:
            self._offered.append(entry(record, self._base + record.end, now_ns))
        if records:
            waited_s = (now_ns - records[0].received_ns) / 1e9
            self._counters.observe(Histogram.RING, waited_s, len(records))
        while self._source.damage:
            damage = self._source.damage.pop(0)
            end = self._base + damage.position + damage.lost_bytes
            self._offered.append(self._normalizer.damaged(damage, end))
        return len(records)

    def _hand_over(self) -> None:
        batch = tuple(self._offered)
        taken = self._sink.write(batch)
        for entry in batch[:taken]:
            self._offered.popleft()
            self._outstanding.append((entry.end, entry.frame.received_ns, len(entry.trades)))

    def _acknowledge(self, end: int | None) -> None:
        outstanding = self._outstanding
        if end is None or not outstanding or outstanding[0][0] > end:
            return
        now_ns = time.time_ns()
        trades = 0
        last = 0
        while outstanding and outstanding[0][0] <= end:
            last, received_ns, count = outstanding.popleft()
            if count:
                trades += count
                self._counters.observe(Histogram.DELIVERY, (now_ns - received_ns) / 1e9, count)
        self._counters.add(Field.DELIVERED_TRADES, trades)
        self._source.acknowledge(last - self._base)

    def _publish(self) -> None:
        stats = self._sink.stats
        if stats.errors != self._errors_before:
            self._counters.add(Field.SINK_ERRORS, stats.errors - self._errors_before)
            self._errors_before = stats.errors
        if stats.dead_letters != self._dead_before:
            self._counters.add(Field.DEAD_LETTERS, stats.dead_letters - self._dead_before)
            self._dead_before = stats.dead_letters


class Process:
    """The serializer process of one exchange, from its fork to its end."""

    def __init__(self, config: Config, name: str, wake_fd: int, log: Log) -> None:
        self._config = config
        self._name = name
        self._exchange_config = config.exchanges[name]
        self._shared = workers.Shared.of(config, name)
        self._counters = Counters(self._shared.counters)
        self._log = log
        self._note = ""
        self._stopping = False
        self._wake_fd = wake_fd
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
        sink = open_sink(self._config, self._name, self._shared, self._log)
        try:
            if self._until(sink.open, lambda: sink.trouble):
                self._deliver(canonical, sink)
        except SinkFailed as error:
            self._log.error("sink failed", error=str(error))
            return 1
        finally:
            self._counters[Field.SINK_READY] = 0
        sink.close()
        return 0

    def _deliver(self, canonical: CanonicalSymbols, sink: Sink) -> None:
        """Serves all rings there are, the live one last and until SIGTERM."""
        self._say("")
        self._counters[Field.SINK_READY] = 1
        normalizer = Normalizer(load(self._name), canonical, self._counters, self._log)
        base = self._drain_rings_set_aside(normalizer, sink)
        self._serve(ring.RingReader(self._shared.ring), normalizer, sink, base, last=True)

    def _drain_rings_set_aside(self, normalizer: Normalizer, sink: Sink) -> int:
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
            base = self._serve(source, normalizer, sink, base, last=False)
            source.close()
            if intact:
                path.unlink()
            else:
                path.rename(path.with_name(path.name.replace(".aside-", ".damaged-")))
        return base

    def _serve(
        self,
        source: ring.RingReader | ring.SalvagedReader,
        normalizer: Normalizer,
        sink: Sink,
        base: int,
        last: bool,
    ) -> int:
        """Runs the loop over one ring: for ever if it is the *last*, else until it is empty."""
        serializer = Serializer(source, normalizer, sink, self._counters, self._config.window, base)
        linger_s = self._config.linger_s
        while True:
            read = serializer.step()
            self._say(sink.trouble)
            if (self._stopping or not last) and not read:
                if serializer.idle and not source.used_bytes:
                    return serializer.base
                sink.flush()
            if read >= _BUSY_RECORDS:
                continue
            if self._wait(sink.wait_s()) and linger_s:
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


def open_sink(config: Config, exchange: str, shared: workers.Shared, log: Log) -> Sink:
    """The configured sink, not opened yet. Each is imported only where it is used."""
    if config.sink == "kafka":
        from feedmono.sinks.kafka import KafkaSink  # noqa: PLC0415

        # The serializer has lingered already; librdkafka gets what it needs to fill a batch.
        linger_s = min(config.linger_s, 0.001)
        return KafkaSink(
            config.kafka, exchange, linger_s=linger_s, dead_dir=shared.dead_letters, log=log
        )
    from feedmono.sinks.files import FilesSink  # noqa: PLC0415

    return FilesSink(config.files, exchange)


def main(config: Config, name: str, wake_fd: int, log: Log) -> int:
    """The serializer process of the exchange *name*: the exit status.

    :param wake_fd: the eventfd that the reader writes after each append.
    """
    return Process(config, name, wake_fd, log).run()
