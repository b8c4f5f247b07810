"""The reader process: an exchange's connections, a thread each, and its errands, into the ring."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from feedmono import messages, metadata, ring, ring_layout, workers
from feedmono.config import Config, ConnectionsConfig
from feedmono.connection import Connection
from feedmono.counters import Counters, Field
from feedmono.errands import Errands
from feedmono.exchanges import load
from feedmono.exchanges.base import spread
from feedmono.limiter import AttemptLimiter
from feedmono.log import Log
from feedmono.pace import RestPace
from feedmono.slots import Numbers, Slot

# How long the connections may take to say goodbye; their sockets have shorter limits.
_STOP_LIMIT_S = 5.0
_ERRANDS_LIMIT_S = 0.5
# What a crash of the host may cost a ring on a disk.
_SYNC_S = 1.0
_UNLISTED = "the exchange's metadata does not list it"
_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})


class Process:
    """The reader process of one exchange, from its fork to its end.

    Its threads share the ring, the counters, the slots and the note; one lock guards the last
    three.
    """

    def __init__(self, config: Config, name: str, wake_fd: int, request_fd: int, log: Log) -> None:
        self._exchange_config = config.exchanges[name]
        self._shared = workers.Shared.of(config, name)
        self._exchange = load(name)
        self._ring = ring.RingWriter(self._shared.ring)
        self._counters = Counters(self._shared.counters)
        self._wake_fd = wake_fd
        self._log = log
        self._lock = threading.RLock()
        self._unlisted: dict[str, str] = {}
        self._told: dict[str, str] | None = None
        """The refusals that the note tells of."""
        self._stop = threading.Event()
        self._quiet = threading.Event()
        """The connections have ended."""
        self._threads: list[threading.Thread] = []
        """Those of the connections, ended ones among them until the next one begins."""
        self._limits = self._fitting(config.connections)
        self._limiter = AttemptLimiter(self._shared.attempts, self._exchange.limits, log)
        self._pace = RestPace(self._shared.rest_hold, self._exchange.limits, log)
        self._errands = self._errands_of(request_fd)
        numbers = Numbers()
        shares = spread(self._exchange_config.symbols, self._exchange.limits.symbols_per_connection)
        self._slots = [
            Slot(self._connection_for(symbols), self._start, numbers, self, self._lock, log)
            for _ in range(config.connections.redundancy)
            for symbols in shares
        ]

    def _fitting(self, limits: ConnectionsConfig) -> ConnectionsConfig:
        """The limits, that of a frame no larger than what the ring takes."""
        largest_bytes = ring_layout.max_payload_bytes(self._ring.capacity_bytes)
        if limits.frame_limit_bytes <= largest_bytes:
            return limits
        self._log.info(
            "frame_limit lowered to what fits into the ring",
            frame_limit_bytes=largest_bytes,
            ring_capacity_bytes=self._ring.capacity_bytes,
        )
        return replace(limits, frame_limit_bytes=largest_bytes)

    def _errands_of(self, request_fd: int) -> Errands:
        return Errands(
            self._exchange,
            self._exchange_config.rest_url,
            self._shared.metadata,
            self._pace,
            request_fd,
            self._log,
            deliver_page=self._deliver_page,
            tell=lambda payload: self._append_event(payload, 0),
            count_page=lambda: self._count(Field.PAGES),
            count_failed=lambda: self._count(Field.PAGES_FAILED),
            max_page_bytes=ring_layout.max_payload_bytes(self._ring.capacity_bytes),
        )

    def _connection_for(self, symbols: Sequence[str]) -> Callable[[int, Slot, float], Connection]:
        def make(number: int, slot: Slot, delay_s: float) -> Connection:
            return Connection(
                number,
                self._exchange,
                symbols,
                self._exchange_config.ws_url,
                self._limits,
                self._limiter,
                self._deliver,
                slot,
                self._log,
                random=random.Random(),
                delay_s=delay_s,
            )

        return make

    def run(self) -> int:
        """Serves until SIGTERM; the exit status."""
        # The supervisor forked this process with SIGTERM blocked: it stays so in every thread,
        # and `sigwait` gets it.
        self._append_event(messages.event(messages.READER), 0)
        self._counters[Field.CONNECTIONS] = len(self._slots)
        with self._lock:
            self.changed()
        for slot in self._slots:
            slot.start()
        self._thread(self._keep_metadata, "metadata")
        errands = self._thread(self._errands.run, "errands")
        syncing = self._thread(self._keep_synced, "ring-sync")
        signal.sigwait({signal.SIGTERM})
        self._stop.set()
        self._errands.stop()
        for slot in self._slots:
            slot.stop()
        deadline_s = time.monotonic() + _STOP_LIMIT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        late = [thread.name for thread in self._threads if thread.is_alive()]
        if late:
            self._log.warning("connections did not end in time", threads=late)
        # A request under way may take longer; what it would bring is asked for again.
        errands.join(max(0.0, min(deadline_s - time.monotonic(), _ERRANDS_LIMIT_S)))
        self._quiet.set()
        syncing.join(max(0.0, deadline_s - time.monotonic()))
        self._counters[Field.CONNECTED] = 0
        return 0

    def _start(self, connection: Connection) -> None:
        """Runs a connection in its thread; called with the lock held."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(self._thread(connection.run, f"connection-{connection.number}"))

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
            self._pace,
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
            self.changed()

    def _keep_synced(self) -> None:
        """Sees to it that a crash of the host costs a ring on a disk no more than about the last
        `_SYNC_S`."""
        path = self._shared.ring
        if _in_memory(path.parent):
            return
        synced = -1
        told = False
        while True:
            over = self._quiet.wait(_SYNC_S)
            committed = self._ring.committed
            if committed != synced:
                try:
                    _sync(path)
                    synced = committed
                except OSError as error:
                    if not told:
                        told = True
                        self._log.error(
                            "the ring can't be synced",
                            ring=str(path),
                            error=error.strerror,
                            help="a crash of the host may cost what it holds: check the disk",
                        )
            if over:
                return

    def _deliver(
        self, frames: Sequence[bytes], connection: int, received_ns: int, binary: bool
    ) -> int:
        flags = ring_layout.BINARY if binary else 0
        taken = self._ring.append(
            frames, ring_layout.FRAME, connection, received_ns, flags, last=self._stop.is_set()
        )
        if taken:
            os.eventfd_write(self._wake_fd, 1)
            self._count(Field.FRAMES, taken)
        return taken

    def _deliver_page(self, payload: bytes) -> bool:
        taken = self._ring.append((payload,), ring_layout.PAGE, 0, time.time_ns())
        if taken:
            os.eventfd_write(self._wake_fd, 1)
        return taken == 1

    def _count(self, field: Field, amount: int = 1) -> None:
        with self._lock:
            self.count(field, amount)

    def _append_event(self, payload: bytes, connection: int) -> None:
        """Without room even in the ring's reserve it is dropped: the serializer does without."""
        if self._ring.append((payload,), ring_layout.EVENT, connection, time.time_ns()):
            os.eventfd_write(self._wake_fd, 1)

    # What the slots tell, see `feedmono.slots.Owner`.

    def count(self, field: Field, amount: int = 1) -> None:
        self._counters.add(field, amount)

    def event(self, kind: str, connection: int, **fields: object) -> None:
        payload = messages.event(kind, connection=connection, **fields)
        self._append_event(payload, connection)

    def changed(self) -> None:
        served = set().union(*(slot.served for slot in self._slots)) - self._unlisted.keys()
        refused = self._unlisted | {
            symbol: reason
            for slot in self._slots
            for symbol, reason in slot.refused_symbols.items()
            if symbol not in served
        }
        self._counters[Field.CONNECTED] = sum(slot.is_flowing for slot in self._slots)
        self._counters[Field.SUBSCRIBED] = len(served)
        self._counters[Field.REFUSED] = len(refused)
        if refused != self._told:
            self._told = refused
            workers.tell(self._shared.reader_note, {"refused": refused}, self._log)


def file_system(folder: Path, mounts: str) -> str:
    """The type of the file system that a folder lies on.

    :param folder: without symbolic links.
    :param mounts: what ``/proc/self/mountinfo`` says.
    """
    kind, depth = "", 0
    for line in mounts.splitlines():
        # proc(5): … mount point … - type source options. Of several on one point the last counts.
        front, _, back = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), front.split(" ")[4]))
        if folder.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = back.split(" ")[0], len(point.parts)
    return kind


def _in_memory(folder: Path) -> bool:
    """Whether what lies there is gone with the host anyway; False where that can't be told."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return False
    return file_system(folder.resolve(), mounts) in _MEMORY


def _sync(path: Path) -> None:
    """Has a file's content on the disk, what was written through mappings of it included."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def main(config: Config, name: str, wake_fd: int, request_fd: int, log: Log) -> int:
    """The reader process of the exchange *name*: the exit status.

    :param wake_fd: the eventfd that wakes the serializer, written after each append.
    :param request_fd: the reading end of the socket for requests of pages, non-blocking.
    """
    return Process(config, name, wake_fd, request_fd, log).run()
