"""The supervisor: start, watch, reap, restart, stop. It carries no data and has one thread.

It forks a reader and a serializer per exchange and is woken by signals and by the next thing that
is due; a signal handler does nothing but wake it. Its children die with it, and a new instance
goes on from the rings they leave.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from feedmono import ledger, reader, ring, ring_layout, serializer, snapshot, statelock, workers
from feedmono import log as logs
from feedmono.config import Config
from feedmono.counters import Counters
from feedmono.log import Log

_FIRST_RETRY_S = 0.25
_RETRY_CAP_S = 30.0
_SAMPLE_S = 1.0
_SUMMARY_S = 60.0
# Far above any Unix time in µs, and with room behind it in 64 bits: beyond it is damage.
_MOST_SEQUENCE = 1 << 62
# A status that is older is no status.
_SILENT_S = 10.0
# Of an orderly stop, what the readers may take before they are killed; they only say goodbye.
_READERS_SHARE = 0.4


@dataclass(slots=True)
class Worker:
    """A process that is to run, and how it is doing."""

    role: str
    exchange: str
    main: Callable[[Config, str, int, int, Log], int]
    wake_fd: int
    request_fd: int
    """Its end of the socket through which the serializer asks the reader for pages."""
    pid: int | None = None
    progress: int = 0
    """`snapshot.Sampler.progress` when it was started: one that did some work before it ended is
    started again after the shortest wait."""
    retry_s: float = _FIRST_RETRY_S
    due_s: float = 0.0
    """When it is to be started, if it does not run."""
    restarts: int = 0

    @property
    def name(self) -> str:
        return f"{self.role} {self.exchange}"


@dataclass(slots=True)
class _Mending:
    """A ring that is to be replaced; its workers wait for it."""

    retry_s: float = _FIRST_RETRY_S
    due_s: float = 0.0
    trouble: str = ""
    """Why the last attempt failed."""


class Display:
    """Where the operator looks; this one shows nothing but the log."""

    log_fd: int | None = None
    """Where the workers' log lines go; None: standard error."""
    fds: tuple[int, ...] = ()
    """What `readable` is to be called for."""

    def readable(self, fd: int) -> None:
        """Something can be read from one of `fds`."""

    def show(self, state: snapshot.Snapshot) -> None:
        """Shows a new sample, once a second."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


@dataclass(slots=True)
class Supervisor:
    """One instance, from its start to its end: `run`."""

    config: Config
    log: Log
    display: Display = field(default_factory=Display)
    _workers: list[Worker] = field(default_factory=list)
    _samplers: dict[str, snapshot.Sampler] = field(default_factory=dict)
    _signals: list[int] = field(default_factory=list)
    _poll: select.poll = field(default_factory=select.poll)
    _signal_fd: int = -1
    _guards: dict[str, int] = field(default_factory=dict)
    """Exchange → the descriptor that holds the lock on its ring, for its workers to inherit."""
    _mending: dict[str, _Mending] = field(default_factory=dict)
    """By exchange, the rings that can't be used and are not replaced yet."""
    _started_s: float = 0.0
    _status_trouble: str = ""

    # --- start

    def run(self, for_s: float | None = None) -> int:
        """Captures until SIGTERM, SIGINT or SIGHUP, or for *for_s* seconds; the exit status."""
        try:
            lock_fd = statelock.hold(self.config.state_dir)
        except statelock.LockHeldError as error:
            self.log.error("not started", error=str(error))
            return 1
        except OSError as error:
            self.log.error("not started", error=f"state_dir {self.config.state_dir}: {error}")
            return 1
        try:
            self._prepare()
        except (ring.RingError, statelock.LockHeldError, OSError) as error:
            self.log.error("not started", error=str(error))
            os.close(lock_fd)
            return 1
        self._listen()
        workers.set_title("supervisor")
        self._started_s = time.monotonic()
        # What is there by now is never collected: the children share its pages.
        gc.collect()
        gc.freeze()
        self.log.info(
            "started",
            pid=os.getpid(),
            sink=self.config.sink,
            exchanges=[e.name for e in self.config.enabled_exchanges],
            state_dir=str(self.config.state_dir),
        )
        self._watch(None if for_s is None else time.monotonic() + for_s)
        status = self._stop()
        os.close(lock_fd)
        return status

    def _prepare(self) -> None:
        """Rings, counters and workers of each exchange, not started yet."""
        self.config.ring_dir.mkdir(parents=True, exist_ok=True)
        for exchange in self.config.enabled_exchanges:
            shared = workers.Shared.of(self.config, exchange.name)
            with statelock.guarded(shared.ring):
                self._prepare_ring(exchange.name, shared)
            self._guards[exchange.name] = statelock.guard(shared.ring)
            Counters.create(shared.counters)
            for note in (shared.reader_note, shared.serializer_note):
                note.unlink(missing_ok=True)
            self._samplers[exchange.name] = snapshot.Sampler(self.config, exchange)
            wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            asks, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for role, main, end in (
                ("serializer", serializer.main, asks),
                ("reader", reader.main, asked),
            ):
                end.setblocking(False)
                self._workers.append(Worker(role, exchange.name, main, wake_fd, end.detach()))

    def _prepare_ring(self, exchange: str, shared: workers.Shared) -> None:
        capacity_bytes = self.config.ring_capacity_bytes
        prepared = ring.prepare(shared.ring, capacity_bytes, _least_sequence(shared))
        if prepared.set_aside:
            self.log.warning(
                "ring set aside",
                exchange=exchange,
                path=str(prepared.set_aside),
                reason=prepared.reason,
            )
        if prepared.kept_bytes:
            self.log.info(
                "ring holds what was not delivered before",
                exchange=exchange,
                size_bytes=prepared.kept_bytes,
            )

    def _listen(self) -> None:
        """Signals only wake the loop, which reads their numbers from a pipe."""
        self._signal_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        for fd in (self._signal_fd, *self.display.fds):
            self._poll.register(fd, select.POLLIN)

    # --- watch

    def _watch(self, end_s: float | None) -> None:
        """Starts what is due, samples, until the end or until a signal to stop."""
        sample_s = time.monotonic()
        summary_s = sample_s + _SUMMARY_S
        while not self._signals:
            now_s = time.monotonic()
            if end_s is not None and now_s >= end_s:
                return
            for exchange in [e for e, mending in self._mending.items() if mending.due_s <= now_s]:
                self._mend_ring(exchange)
            for worker in self._startable():
                if worker.due_s <= now_s:
                    self._start(worker)
            if sample_s <= now_s:
                sample_s = now_s + _SAMPLE_S
                self._look_for_rings()
                state = self._sample()
                if summary_s <= now_s and not self.display.fds:
                    summary_s = now_s + _SUMMARY_S
                    summarize(state, self.log)
            due = [worker.due_s for worker in self._startable()]
            due += [mending.due_s for mending in self._mending.values()]
            self._wait(min([sample_s, *due] + ([end_s] if end_s is not None else [])))
            self._reap()

    def _startable(self) -> list[Worker]:
        """The workers that do not run, and have a ring to run on."""
        return [w for w in self._workers if w.pid is None and w.exchange not in self._mending]

    def _wait(self, until_s: float) -> None:
        """Waits for a signal, for the display, or until then."""
        timeout_s = max(0.0, until_s - time.monotonic())
        for fd, _ in self._poll.poll(timeout_s * 1000 + 1):
            if fd == self._signal_fd:
                numbers = os.read(fd, 512)
                self._signals += [n for n in numbers if n != signal.SIGCHLD]
            else:
                self.display.readable(fd)

    def _sample(self) -> snapshot.Snapshot:
        now_s, now_at_s = time.monotonic(), time.time()
        state = snapshot.Snapshot(
            os.getpid(),
            # By the clock as it is now: that may have been set since.
            now_at_s - (now_s - self._started_s),
            now_at_s,
            self.config.sink,
            tuple(
                sampler.sample(self._known(exchange, now_s))
                for exchange, sampler in self._samplers.items()
            ),
        )
        try:
            snapshot.publish(state, self.config.state_dir)
            trouble = ""
        except OSError as error:
            trouble = str(error)
        if trouble != self._status_trouble:
            self._status_trouble = trouble
            if trouble:
                self.log.warning("status can't be written", error=trouble)
        self.display.show(state)
        return state

    def _known(self, exchange: str, now_s: float) -> snapshot.Workers:
        ours = {w.role: w for w in self._workers if w.exchange == exchange}
        down = [
            f"{w.name}, in {max(0.0, w.due_s - now_s):.0f} s"
            for w in ours.values()
            if w.pid is None and w.restarts
        ]
        if exchange in self._mending:
            down = [f"the ring can't be replaced: {self._mending[exchange].trouble}"]
        return snapshot.Workers(
            ours["reader"].pid,
            ours["serializer"].pid,
            sum(w.restarts for w in ours.values()),
            "; ".join(down),
        )

    # --- start, reap and restart a worker

    def _start(self, worker: Worker) -> None:
        parent_pid = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # Until the worker is ready for it, a SIGTERM waits.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pid = os.fork()
        if not pid:
            self._become(worker, parent_pid)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        worker.pid = pid
        worker.progress = self._samplers[worker.exchange].progress(worker.role)

    def _become(self, worker: Worker, parent_pid: int) -> None:
        """The child's life; never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            workers.settle(worker.name, parent_pid)
            # What is inherited of rings would keep their memory when they are removed.
            self._samplers.clear()
            for exchange, fd in self._guards.items():
                if exchange != worker.exchange:
                    os.close(fd)
            logging = self.config.log
            logs.configure(
                logging.level, logging.format, self.display.log_fd, bool(self.display.fds)
            )
            log = logs.get(exchange=worker.exchange, worker=worker.role)
            try:
                status = worker.main(
                    self.config, worker.exchange, worker.wake_fd, worker.request_fd, log
                )
            except ring.RingError as error:
                log.error("the ring can't be used", error=str(error))
                status = workers.RING_UNUSABLE
            except Exception as error:
                log.error(f"{worker.role} failed", error=repr(error), exc_info=True)
        except workers.OrphanedError:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Takes in the workers that ended and says when they are to be started again."""
        for worker in self._workers:
            if worker.pid is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            if self._samplers[worker.exchange].progress(worker.role) != worker.progress:
                worker.retry_s = _FIRST_RETRY_S
            worker.pid = None
            worker.due_s = time.monotonic() + worker.retry_s
            worker.restarts += 1
            self.log.warning(
                "worker ended",
                exchange=worker.exchange,
                worker=worker.role,
                pid=pid,
                how=_how(status),
                restart_in_s=worker.retry_s,
            )
            worker.retry_s = min(worker.retry_s * 2, _RETRY_CAP_S)
            told = os.WIFEXITED(status) and os.WEXITSTATUS(status) == workers.RING_UNUSABLE
            if told and not self._is_usable(worker.exchange):
                self._mend_ring(worker.exchange)

    # --- replace a ring

    def _look_for_rings(self) -> None:
        """Replaces the rings that were removed or renamed while they are in use: nobody finds
        again what goes into them."""
        for exchange in self._guards:
            if exchange not in self._mending and not self._is_there(exchange):
                path = workers.Shared.of(self.config, exchange).ring
                self.log.error("the ring's file is gone", exchange=exchange, path=str(path))
                self._mend_ring(exchange)

    def _is_there(self, exchange: str) -> bool:
        """Whether the ring's name leads to the file that is guarded, as far as can be told."""
        path = workers.Shared.of(self.config, exchange).ring
        try:
            return os.path.samestat(path.stat(), os.fstat(self._guards[exchange]))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def _is_usable(self, exchange: str) -> bool:
        """Whether a worker that could not use its ring may try again; one of them has ended."""
        try:
            ring.Ring(workers.Shared.of(self.config, exchange).ring).close()
        except ring.RingError:
            return False
        return self._is_there(exchange)

    def _mend_ring(self, exchange: str) -> None:
        """Replaces a ring that was damaged or removed while it was in use; what is intact in a
        damaged one is read first, as after a start. In vain: the watch tries again."""
        # Whoever has the old one open still must not go on with it.
        self._kill_workers(exchange)
        mending = self._mending.setdefault(exchange, _Mending())
        try:
            self._replace_ring(exchange)
        except (ring.RingError, statelock.LockHeldError, OSError) as error:
            mending.due_s = time.monotonic() + mending.retry_s
            mending.retry_s = min(mending.retry_s * 2, _RETRY_CAP_S)
            # The room that is free changes all the time.
            said, mending.trouble = mending.trouble, str(error)
            if re.sub(r"\d+", "", said) != re.sub(r"\d+", "", mending.trouble):
                self.log.error("the ring can't be replaced", exchange=exchange, error=str(error))
            return
        del self._mending[exchange]
        self.log.info("ring replaced", exchange=exchange)

    def _kill_workers(self, exchange: str) -> None:
        for worker in self._workers:
            if worker.exchange == exchange and worker.pid is not None:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
                worker.pid = None
                worker.due_s = time.monotonic()
                worker.restarts += 1

    def _replace_ring(self, exchange: str) -> None:
        """:raises RingError, LockHeldError, OSError: not now."""
        shared = workers.Shared.of(self.config, exchange)
        old = self._guards[exchange]
        if not os.fstat(old).st_nlink:
            # Nobody can open it any more; its header is all that the sampler looks at.
            os.ftruncate(old, ring_layout.HEADER_BYTES)
        shared.ring.parent.mkdir(parents=True, exist_ok=True)
        ours = self._is_there(exchange)
        with contextlib.nullcontext() if ours else statelock.guarded(shared.ring):
            self._prepare_ring(exchange, shared)
        if not self._is_there(exchange):
            self._guards[exchange] = statelock.guard(shared.ring)
            os.close(old)
        if not shared.counters.exists():
            Counters.create(shared.counters)
        sampler = snapshot.Sampler(self.config, self.config.exchanges[exchange])
        self._samplers[exchange] = sampler

    # --- stop

    def _stop(self) -> int:
        """Ends the readers, then, when the rings are drained, the serializers."""
        self.log.info("stopping", reason=_stop_reason(self._signals))
        self._signals.clear()
        start_s = time.monotonic()
        limit_s = self.config.stop_limit_s
        orderly = self._end("reader", start_s + limit_s * _READERS_SHARE)
        orderly &= self._end("serializer", start_s + limit_s)
        state = self._sample()
        for exchange in state.exchanges:
            shared = workers.Shared.of(self.config, exchange.name)
            if exchange.ring_used_bytes:
                there = shared.ring.exists()
                self.log.warning(
                    "not delivered yet" if there else "the ring was removed",
                    exchange=exchange.name,
                    size_bytes=exchange.ring_used_bytes,
                    ring=str(shared.ring),
                    what="kept there, delivered by the next start" if there else "lost",
                )
            else:
                self._remove_empty(shared)
            shared.counters.unlink(missing_ok=True)
        self.log.info(
            "stopped",
            orderly=orderly,
            delivered={e.name: e.delivered for e in state.exchanges},
        )
        (self.config.state_dir / snapshot.FILE).unlink(missing_ok=True)
        return 0 if orderly else 1

    def _remove_empty(self, shared: workers.Shared) -> None:
        """Gives the ring's memory back; the ledger knows its last sequence."""
        try:
            shared.ring.unlink(missing_ok=True)
        except OSError as error:
            self.log.warning("the empty ring is kept", ring=str(shared.ring), error=str(error))

    def _end(self, role: str, limit_s: float) -> bool:
        """Asks all workers of that role to end and reaps them; kills them at the limit, or when
        another signal hurries. Whether all ended by themselves."""
        ours = [w for w in self._workers if w.role == role and w.pid is not None]
        for worker in ours:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGTERM)
        orderly = True
        while any(w.pid is not None for w in ours):
            hurried = bool(self._signals)
            if orderly and (hurried or time.monotonic() >= limit_s):
                orderly = False
                for worker in ours:
                    if worker.pid is not None:
                        os.kill(worker.pid, signal.SIGKILL)
                        self.log.warning(
                            "worker killed",
                            exchange=worker.exchange,
                            worker=worker.role,
                            reason="hurried by a second signal" if hurried else "stop_limit",
                        )
            self._wait(limit_s if orderly else time.monotonic() + _SAMPLE_S)
            for worker in ours:
                if worker.pid is not None:
                    pid, status = os.waitpid(worker.pid, os.WNOHANG)
                    if pid:
                        worker.pid = None
                        orderly &= status == 0
        return orderly


def _least_sequence(shared: workers.Shared) -> int:
    """Behind everything that the ledger knows; 0 where no sane number is kept."""
    try:
        content = ledger.read(shared.ledger)
    except ledger.LedgerError:
        return 0  # the serializer sets it aside, and says so
    # However far ahead of the clock, which may have been set back: what has a lower sequence
    # counts as delivered.
    return content.sequence + 1 if content is not None and content.sequence < _MOST_SEQUENCE else 0


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def _stop_reason(numbers: list[int]) -> str:
    return signal.Signals(numbers[0]).name if numbers else "the time given by --for is over"


def summarize(state: snapshot.Snapshot, log: Log) -> None:
    """What the log tells a minute where no table is shown: a line per exchange."""
    for exchange in state.exchanges:
        log.info(
            "summary",
            exchange=exchange.name,
            state=exchange.state,
            trades_per_s=round(exchange.trades_per_s, 1),
            trades=exchange.trades,
            delivered=exchange.delivered,
            ring_used_bytes=exchange.ring_used_bytes,
            cpu_cores=round(exchange.cpu_cores, 3),
            memory_mib=exchange.memory_bytes >> 20,
            reconnects=exchange.reconnects,
            dead_letters=exchange.dead_letters,
        )


def state_of(state_dir: Path) -> snapshot.Snapshot | None:
    """The last sample of the instance that runs on *state_dir*; None if none runs there.

    :raises ValueError: it has not told for a while, or another version of feedmono runs there.
    """
    pid = statelock.holder(state_dir)
    if pid is None:
        return None
    first = _told_by(pid, state_dir)
    age_s = time.time() - first.taken_at_s
    if abs(age_s) <= _SILENT_S:
        return first
    # It hangs, or the clock was set since: then it tells anew before long.
    until_s = time.monotonic() + 3 * _SAMPLE_S
    while time.monotonic() < until_s:
        time.sleep(_SAMPLE_S / 20)
        state = _told_by(pid, state_dir)
        if state.taken_at_s != first.taken_at_s:
            return state
    age_s = max(age_s, 3 * _SAMPLE_S)
    raise ValueError(f"process {pid} has not told how it does for {age_s:.0f} s: does it hang?")


def _told_by(pid: int, state_dir: Path) -> snapshot.Snapshot:
    try:
        return snapshot.Snapshot.from_json((state_dir / snapshot.FILE).read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"process {pid} is starting or ending") from None
