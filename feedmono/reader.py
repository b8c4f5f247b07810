"""The reader process: an exchange's connections, a thread each, into the ring."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from feedmono import metadata, ring, ring_layout, workers
from feedmono.config import Config
from feedmono.connection import Connection, State
from feedmono.counters import Counters, Field
from feedmono.exchanges import load
from feedmono.exchanges.base import spread
from feedmono.limiter import AttemptLimiter
from feedmono.log import Log

# How long the connections may take to say goodbye; their sockets have shorter limits.
_STOP_LIMIT_S = 5.0
_UNLISTED = "the exchange's metadata does not list it"


class Process:
    """The reader process of one exchange, from its fork to its end.

    Its threads share the ring, the counters and the note; one lock guards the last two.
    """

    def __init__(self, config: Config, name: str, wake_fd: int, log: Log) -> None:
        self._exchange_config = config.exchanges[name]
        self._shared = workers.Shared.of(config, name)
        self._exchange = load(name)
        self._ring = ring.RingWriter(self._shared.ring)
        self._counters = Counters(self._shared.counters)
        self._wake_fd = wake_fd
        self._log = log
        self._lock = threading.Lock()
        self._states: dict[int, State] = {}
        self._subscribed: dict[int, set[str]] = {}
        self._refused: dict[str, str] = {}
        self._unlisted: dict[str, str] = {}
        self._stop = threading.Event()
        limits = config.connections
        largest_bytes = ring_layout.max_payload_bytes(self._ring.capacity_bytes)
        if limits.frame_limit_bytes > largest_bytes:
            log.info(
                "frame_limit lowered to what fits into the ring",
                frame_limit_bytes=largest_bytes,
                ring_capacity_bytes=self._ring.capacity_bytes,
            )
            limits = replace(limits, frame_limit_bytes=largest_bytes)
        limiter = AttemptLimiter(self._shared.attempts, self._exchange.limits, log)
        shares = spread(self._exchange_config.symbols, self._exchange.limits.symbols_per_connection)
        self._connections = [
            Connection(
                number,
                self._exchange,
                symbols,
                self._exchange_config.ws_url,
                limits,
                limiter,
                self._deliver,
                self,
                log,
                random=random.Random(),
            )
            for number, symbols in enumerate(shares)
        ]

    def run(self) -> int:
        """Serves until SIGTERM; the exit status."""
        # The supervisor forked this process with SIGTERM blocked: it stays so in every thread,
        # and `sigwait` gets it.
        for field in (Field.CONNECTED, Field.SUBSCRIBED, Field.REFUSED):
            self._counters[field] = 0
        self._counters[Field.CONNECTIONS] = len(self._connections)
        self._publish()
        threads = [self._thread(c.run, f"connection-{c.number}") for c in self._connections]
        self._thread(self._keep_metadata, "metadata")
        signal.sigwait({signal.SIGTERM})
        self._stop.set()
        for connection in self._connections:
            connection.stop()
        deadline_s = time.monotonic() + _STOP_LIMIT_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        late = [thread.name for thread in threads if thread.is_alive()]
        if late:
            self._log.warning("connections did not end in time", threads=late)
        self._counters[Field.CONNECTED] = 0
        return 0

    def _thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        def run() -> None:
            try:
                target()
            except BaseException as error:
                # Half a reader is worse than none: the supervisor starts a whole one.
                self._log.error("reader failed", thread=name, error=repr(error), exc_info=True)
                os._exit(1)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _keep_metadata(self) -> None:
        metadata.keep_fetched(
            self._exchange,
            self._exchange_config,
            self._shared.metadata,
            self._stop.wait,
            self._unlisted_are,
            self._log,
        )

    def _unlisted_are(self, symbols: Sequence[str]) -> None:
        """Some exchanges accept the subscription of a symbol that does not exist."""
        if symbols:
            self._log.warning("refused", symbols=list(symbols), reason=_UNLISTED)
        with self._lock:
            self._unlisted = dict.fromkeys(symbols, _UNLISTED)
            self._count_symbols()
            self._publish()

    def _deliver(
        self, frames: Sequence[bytes], connection: int, received_ns: int, binary: bool
    ) -> int:
        flags = ring_layout.BINARY if binary else 0
        taken = self._ring.append(
            frames, ring_layout.FRAME, connection, received_ns, flags, last=self._stop.is_set()
        )
        if taken:
            os.eventfd_write(self._wake_fd, 1)
            with self._lock:
                self._counters.add(Field.FRAMES, taken)
        return taken

    # What the connections report, each from its own thread: `feedmono.connection.Report`.

    def state(self, number: int, state: State) -> None:
        with self._lock:
            self._states[number] = state
            if state is not State.FLOWING:
                self._subscribed.pop(number, None)
            flowing = sum(s is State.FLOWING for s in self._states.values())
            self._counters[Field.CONNECTED] = flowing
            self._count_symbols()

    def received(self, number: int, frames: int, size_bytes: int, data: bool) -> None:
        with self._lock:
            self._counters.add(Field.BYTES, size_bytes)

    def reconnect(self, number: int, reason: str) -> None:
        with self._lock:
            self._counters.add(Field.RECONNECTS)

    def subscribed(self, number: int, symbol: str) -> None:
        with self._lock:
            self._subscribed.setdefault(number, set()).add(symbol)
            cleared = self._refused.pop(symbol, None)
            self._count_symbols()
            if cleared is not None:
                self._publish()

    def refused(self, number: int, symbol: str, reason: str) -> None:
        with self._lock:
            if self._refused.get(symbol) != reason:
                self._refused[symbol] = reason
                self._publish()
            self._count_symbols()

    def unknown(self, number: int, reason: str) -> None:
        with self._lock:
            self._counters.add(Field.UNKNOWN_MESSAGES)

    def blocked(self, number: int, seconds: float) -> None:
        with self._lock:
            self._counters.add(Field.RING_FULL)

    def lost(self, number: int, frames: int) -> None:
        with self._lock:
            self._counters.add(Field.LOST_FRAMES, frames)

    def _count_symbols(self) -> None:
        subscribed = set().union(*self._subscribed.values()) - self._unlisted.keys()
        self._counters[Field.SUBSCRIBED] = len(subscribed)
        self._counters[Field.REFUSED] = len(self._unlisted | self._refused)

    def _publish(self) -> None:
        note = {"refused": self._unlisted | self._refused}
        workers.tell(self._shared.reader_note, note, self._log)


def main(config: Config, name: str, wake_fd: int, log: Log) -> int:
    """The reader process of the exchange *name*: the exit status.

    :param wake_fd: the eventfd that wakes the serializer, written after each append.
    """
    return Process(config, name, wake_fd, log).run()
