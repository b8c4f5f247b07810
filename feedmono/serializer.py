"""The serializer process: from its fork to its end, one ring after another.

It waits until everything is there that the first record needs (names of the symbols, ledger,
sink), then turns the loop of `feedmono.delivery.loop` until it is told to end.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

from feedmono import log as logs
from feedmono import messages, ring, workers
from feedmono.collector import Collector
from feedmono.config import Config
from feedmono.counters import Counters, Field
from feedmono.delivery.backfill import Backfill
from feedmono.delivery.coverage import News
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.ledger_file import LedgerError
from feedmono.delivery.loop import Delivery, Parts, SinkCounts
from feedmono.delivery.normalizer import Normalizer
from feedmono.delivery.seen import Seen
from feedmono.delivery.throttle import Throttle
from feedmono.exchanges import load
from feedmono.exchanges.base import PageRequest
from feedmono.heartbeat import BEAT_S
from feedmono.log import Log
from feedmono.network.metadata import CanonicalSymbols
from feedmono.sinks import kinds
from feedmono.sinks.base import Sink, SinkFailed

# A round that read so many records is followed by the next at once: company enough.
_BUSY_RECORDS = 100
_FIRST_RETRY_S = 0.25
_RETRY_CAP_S = 10.0
# A start takes a moment: what is not ready for so long is worth a word.
_SILENT_S = 1.5
_TICK_S = 1.0
# Topics are created, schemas registered, files cut to what is whole.
_OPEN_ALLOWANCE_S = 120.0
# A damaged ring of many GiB is searched for records.
_SALVAGE_ALLOWANCE_S = 3600.0


class Process:
    """The serializer process of one exchange, from its fork to its end."""

    def __init__(self, config: Config, name: str, wake_fd: int, request_fd: int, log: Log) -> None:
        self._config = config
        self._name = name
        self._exchange_config = config.exchanges[name]
        self._shared = workers.Shared.of(config, name)
        self._counters = Counters(self._shared.counters)
        self._log = log
        self._note: str | None = None
        """The trouble that the operator was told of; None: nothing yet, by this process."""
        self._stopping = False
        self._yielding = False
        self._tick_s = 0.0
        self._collector = Collector()
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
        sink = kinds.configured(self._config).sink(
            self._config, self._name, self._ledger, self._shared.dead_letters, self._log
        )
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
        self._exchange_config = orders.obey(self._exchange_config)
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
            delivery = Delivery(source, parts, self._counters, window, base)
        sink = parts.sink
        while True:
            self._beat()
            self._take_orders()
            ending = self._ending or not last
            read = delivery.step(hurry=ending, reads=not self._yielding)
            self._say(sink.trouble or delivery.trouble)
            if ending and not read:
                if delivery.idle and (self._yielding or not source.used_bytes):
                    delivery.finish()
                    return None if self._yielding else delivery.base
                if not delivery.trouble:
                    sink.flush()
            elif last and not ending:
                self._pause()
                if self._ending:
                    # What told so is read already, and would not wake `_wait`.
                    continue
            if read >= _BUSY_RECORDS:
                continue
            self._wait(delivery.wait_s())

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
            self._collector.tick()

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
        elif self._note:
            self._log.info("delivery goes on")
        self._note = trouble
        workers.tell(self._shared.serializer_note, {"trouble": trouble}, self._log)


def main(config: Config, name: str, wake_fd: int, request_fd: int, log: Log) -> int:
    """The serializer process of the exchange *name*: the exit status.

    :param wake_fd: the eventfd that the reader writes after each append.
    :param request_fd: the socket that takes requests for pages to the reader.
    """
    return Process(config, name, wake_fd, request_fd, log).run()
