"""The reader process: an exchange's connections, a thread each, and its errands, into the ring."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from feedmono import log as logs
from feedmono import messages, ring, ring_layout, workers
from feedmono.collector import Collector
from feedmono.config import Config, ConnectionsConfig
from feedmono.counters import Counters, Field
from feedmono.exchanges import load
from feedmono.heartbeat import Pulse
from feedmono.log import Log
from feedmono.network import metadata
from feedmono.network.connection import Connection
from feedmono.network.errands import Errands
from feedmono.network.limiter import AttemptLimiter
from feedmono.network.pace import RestPace
from feedmono.network.rest import REQUEST_LIMIT_S
from feedmono.network.slots import Numbers, Slot

# How long the connections may take to say goodbye; their sockets have shorter limits.
_STOP_LIMIT_S = 5.0
_ERRANDS_LIMIT_S = 0.5
# What a crash of the host may cost a ring on a disk.
_SYNC_S = 1.0
# A slow disk takes its time, and no signal cuts that short.
_SYNC_ALLOWANCE_S = 60.0
_UNLISTED = "the exchange's metadata does not list it"
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGHUP})
_TICK_S = 1.0
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
        self._unnamed: frozenset[str] = frozenset()
        """New symbols that are not subscribed before their metadata are there,"""
        self._patience_end_s = 0.0
        """or until then."""
        self._told: dict[str, str] | None = None
        """The refusals that the note tells of."""
        self._stop = threading.Event()
        self._hurried = threading.Event()
        """The metadata are to be fetched at once."""
        self._look_again = threading.Event()
        """Wakes who fetches them."""
        self._quiet = threading.Event()
        """The connections have ended."""
        self._metadata_pulse = Pulse()
        self._sync_pulse = Pulse()
        self._collector = Collector()
        self._running: list[tuple[threading.Thread, Connection]] = []
        """Those of the connections, ended ones among them until the next one begins."""
        self._limits = self._fitting(config.connections)
        self._linger_s = config.linger_s
        self._limiter = AttemptLimiter(self._shared.attempts, self._exchange.limits, log)
        self._pace = RestPace(self._shared.rest_hold, self._exchange.limits, log)
        self._errands = self._errands_of(request_fd)
        self._numbers = Numbers()
        self._copies: list[list[Slot]] = [[] for _ in range(config.connections.redundancy)]
        """Each has every symbol on one of its slots."""
        self._leaving: list[Slot] = []
        """Slots without symbols, whose connections say goodbye."""

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

    def _make(self, number: int, slot: Slot, delay_s: float) -> Connection:
        return Connection(
            number,
            self._exchange,
            slot.symbols,
            self._exchange_config.ws_url,
            self._limits,
            self._limiter,
            self._deliver,
            self._publish,
            slot,
            self._log,
            random=random.Random(),
            linger_s=self._linger_s,
            delay_s=delay_s,
        )

    @property
    def _slots(self) -> list[Slot]:
        return [slot for copy in self._copies for slot in copy]

    def run(self) -> int:
        """Serves until SIGTERM; the exit status. SIGHUP: there are orders."""
        # The supervisor forked this process with SIGTERM blocked: both stay so in every thread,
        # and `sigwait` gets them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._append_event(messages.event(messages.READER), 0)
        self._begin()
        self._thread(self._keep_metadata, "metadata")
        errands = self._thread(self._errands.run, "errands")
        syncing = self._thread(self._keep_synced, "ring-sync")
        while not self._is_told_to_stop():
            self._tick()
        self._stop.set()
        self._look_again.set()
        self._errands.stop()
        with self._lock:
            for slot in (*self._slots, *self._leaving):
                slot.stop()
        deadline_s = time.monotonic() + _STOP_LIMIT_S
        for thread, _ in self._running:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        late = [thread.name for thread, _ in self._running if thread.is_alive()]
        if late:
            self._log.warning("connections did not end in time", threads=late)
        # A request under way may take longer; what it would bring is asked for again.
        errands.join(max(0.0, min(deadline_s - time.monotonic(), _ERRANDS_LIMIT_S)))
        self._quiet.set()
        syncing.join(max(0.0, deadline_s - time.monotonic()))
        self._counters[Field.CONNECTED] = 0
        return 0

    def _is_told_to_stop(self) -> bool:
        """Waits for a signal, a second at most."""
        told = signal.sigtimedwait(_SIGNALS, _TICK_S)
        if told is not None and told.si_signo == signal.SIGHUP:
            self._take_orders()
        return told is not None and told.si_signo == signal.SIGTERM

    def _tick(self) -> None:
        """Once a second or more often: shows that every thread comes round."""
        logs.tick()
        self._collector.tick()
        self._end_patience()
        if not any(pulse.is_late for pulse in self._pulses()):
            self._counters.add(Field.READER_BEATS)

    def _pulses(self) -> list[Pulse]:
        running = [connection.pulse for thread, connection in self._running if thread.is_alive()]
        return [self._errands.pulse, self._metadata_pulse, self._sync_pulse, *running]

    # --- Which symbols are served, and by which slot.

    def _begin(self) -> None:
        """Subscribes what is configured, or ordered since. Symbols that the exchange was never
        asked about wait for its answer, if there is one about others: the serializer would not
        know them. Without any answer it has not begun, and the ring takes all."""
        self._obey_orders()
        with self._lock:
            if self._shared.metadata.exists():
                self._await_names(
                    metadata.unnamed(self._exchange_config, self._shared.metadata, asked=True)
                )
            self._assign()

    def _take_orders(self) -> None:
        """Serves the symbols that are ordered by now, those that it served before without an
        interruption. New ones are subscribed as soon as the exchange has told what they are, so
        that none of their trades comes before its name."""
        before = self._exchange_config
        self._obey_orders()
        config = self._exchange_config
        if config == before:
            return
        added = set(config.symbols) - set(before.symbols)
        removed = set(before.symbols) - set(config.symbols)
        self._log.info("orders taken over", added=sorted(added), removed=sorted(removed))
        with self._lock:
            unnamed = metadata.unnamed(config, self._shared.metadata, asked=False)
            waiting = unnamed & (added | self._unnamed)
            if waiting - self._unnamed:
                self._await_names(waiting)
            self._unnamed = waiting
            self._assign()

    def _obey_orders(self) -> None:
        """Takes over what is ordered, but for what has to be done about it."""
        if (orders := workers.Orders.read(self._shared.orders)) is not None:
            self._exchange_config = orders.obey(self._exchange_config)

    def _await_names(self, symbols: frozenset[str]) -> None:
        """Has the metadata of these fetched; they are subscribed then, or when patience is out."""
        self._unnamed = symbols
        self._patience_end_s = time.monotonic() + metadata.PATIENCE_S
        self._hurried.set()
        self._look_again.set()

    def _assign(self) -> None:
        """Gives each symbol that is to be served its slots; called with the lock held."""
        symbols = [s for s in self._exchange_config.symbols if s not in self._unnamed]
        for number, copy in enumerate(self._copies):
            self._copies[number] = self._assigned(copy, symbols)
        self._leaving = [slot for slot in self._leaving if slot.is_running]
        self._counters[Field.CONNECTIONS] = len(self._slots)
        self.changed()

    def _assigned(self, slots: Sequence[Slot], symbols: Sequence[str]) -> list[Slot]:
        """One copy's slots for these symbols: each stays where it is, new ones go to where there
        is the most room, then to new slots; a slot that is left without any ends."""
        room = self._exchange.limits.symbols_per_connection
        wanted = set(symbols)
        shares = [[s for s in slot.symbols if s in wanted] for slot in slots]
        new = _without(symbols, shares)
        free = sum(room - len(share) for share in shares)
        for symbol in new[:free]:
            min(shares, key=len).append(symbol)
        kept: list[Slot] = []
        for slot, share in zip(slots, shares, strict=True):
            if share:
                slot.set_symbols(share)
                kept.append(slot)
            else:
                slot.retire()
                self._leaving.append(slot)
        return kept + [self._new_slot(share) for share in _spread(new[free:], room)]

    def _new_slot(self, symbols: Sequence[str]) -> Slot:
        slot = Slot(symbols, self._make, self._start, self._numbers, self, self._lock, self._log)
        slot.start()
        return slot

    def _start(self, connection: Connection) -> None:
        """Runs a connection in its thread; called with the lock held."""
        running = [each for each in self._running if each[0].is_alive()]
        thread = self._thread(connection.run, f"connection-{connection.number}")
        self._running = [*running, (thread, connection)]

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
        self._metadata_pulse.beat(REQUEST_LIMIT_S)
        metadata.keep_fetched(
            self._exchange,
            lambda: self._exchange_config,
            self._shared.metadata,
            self._pace,
            self._pause,
            self._answered,
            self._log,
            self._is_hurried,
        )

    def _pause(self, seconds: float) -> bool:
        """Waits so long, or until there is something to do about metadata; whether to end."""
        self._metadata_pulse.beat(seconds)
        self._look_again.wait(seconds)
        self._look_again.clear()
        # What may follow is a request.
        self._metadata_pulse.beat(REQUEST_LIMIT_S)
        return self._stop.is_set()

    def _end_patience(self) -> None:
        """Subscribes new symbols whose metadata have not come in time, whatever became of the
        request for them."""
        if not self._unnamed:
            return
        with self._lock:
            if self._unnamed and time.monotonic() >= self._patience_end_s:
                self._log.warning("subscribed without metadata", symbols=sorted(self._unnamed))
                self._named(self._unnamed)

    def _is_hurried(self) -> bool:
        if not self._hurried.is_set():
            return False
        self._hurried.clear()
        return True

    def _answered(self, answer: metadata.Answer) -> None:
        """Some exchanges accept the subscription of a symbol that does not exist."""
        if answer.unlisted:
            self._log.warning("refused", symbols=list(answer.unlisted), reason=_UNLISTED)
        with self._lock:
            self._unlisted = dict.fromkeys(answer.unlisted, _UNLISTED)
            self._named(answer.asked)

    def _named(self, symbols: Iterable[str]) -> None:
        """Nothing more is waited for about these; called with the lock held."""
        if self._stop.is_set():
            return
        self._unnamed -= set(symbols)
        self._assign()

    def _keep_synced(self) -> None:
        """Sees to it that a crash of the host costs a ring on a disk no more than about the last
        `_SYNC_S`."""
        path = self._shared.ring
        if _in_memory(path.parent):
            return
        synced = -1
        told = False
        while True:
            self._sync_pulse.beat(_SYNC_S)
            over = self._quiet.wait(_SYNC_S)
            self._sync_pulse.beat(_SYNC_ALLOWANCE_S)
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
                            path=str(path),
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
            self._count(Field.FRAMES, taken)
        return taken

    def _publish(self) -> None:
        """Wakes the serializer."""
        os.eventfd_write(self._wake_fd, 1)

    def _deliver_page(self, payload: bytes) -> bool:
        taken = self._ring.append((payload,), ring_layout.PAGE, 0, time.time_ns())
        if taken:
            self._publish()
        return taken == 1

    def _count(self, field: Field, amount: int = 1) -> None:
        with self._lock:
            self.count(field, amount)

    def _append_event(self, payload: bytes, connection: int) -> None:
        """Without room even in the ring's reserve it is dropped: the serializer does without."""
        if self._ring.append((payload,), ring_layout.EVENT, connection, time.time_ns()):
            self._publish()

    # What the slots tell, see `feedmono.network.slots.Owner`.

    def count(self, field: Field, amount: int = 1) -> None:
        self._counters.add(field, amount)

    def event(self, kind: str, connection: int, **fields: object) -> None:
        payload = messages.event(kind, connection=connection, **fields)
        self._append_event(payload, connection)

    def changed(self) -> None:
        slots = self._slots
        wanted = self._exchange_config.symbols
        unlisted = {s: self._unlisted[s] for s in wanted if s in self._unlisted}
        served = set().union(*(slot.served for slot in slots)) - unlisted.keys()
        refused = unlisted | {
            symbol: reason
            for slot in slots
            for symbol, reason in slot.refused_symbols.items()
            if symbol not in served
        }
        self._counters[Field.CONNECTED] = sum(slot.is_flowing for slot in slots)
        self._counters[Field.SUBSCRIBED] = len(served)
        self._counters[Field.REFUSED] = len(refused)
        if refused != self._told:
            self._told = refused
            workers.tell(self._shared.reader_note, {"refused": refused}, self._log)


def _without(symbols: Sequence[str], shares: Sequence[Sequence[str]]) -> list[str]:
    """The symbols that are in no share."""
    given = set().union(*shares)
    return [symbol for symbol in dict.fromkeys(symbols) if symbol not in given]


def _spread(symbols: Sequence[str], per_connection: int) -> list[tuple[str, ...]]:
    """*symbols* cut into as few connections as the limit allows, in even shares."""
    count = -(-len(symbols) // per_connection)
    return [tuple(symbols[i::count]) for i in range(count)]


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
    # An ignored signal may be dropped although it is blocked, says POSIX.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    return Process(config, name, wake_fd, request_fd, log).run()
