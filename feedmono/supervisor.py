"""The supervisor: start, watch, reap, restart, reload, stop. It carries no data and has one thread.

It forks a reader and a serializer per exchange, and a process that serves metrics. It is woken by
signals and by the next thing that is due; a signal handler does nothing but wake it. Each second it
looks: at rings, processes, beats, budgets. Its children die with it, and a new instance goes on
from the rings they leave.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from feedmono import events, native, ring, workers
from feedmono import log as logs
from feedmono.collector import Collector
from feedmono.config import Config, ConfigError, ExchangeConfig
from feedmono.counters import Counters
from feedmono.log import Log
from feedmono.sinks import kinds
from feedmono.supervision import ahead, alarms, reload, samples, snapshot, statelock, systemd
from feedmono.supervision.children import RELOAD, RING, Child
from feedmono.supervision.display import Display, summarize
from feedmono.supervision.listener import Listener
from feedmono.supervision.processes import Processes, Usage
from feedmono.supervision.rings import Rings
from feedmono.supervision.sampler import TreeSampler
from feedmono.supervision.served import Mending, Served, check_heart

_SUMMARY_S = 60.0
# Of an orderly stop, what the readers may take before they are killed; they only say goodbye.
_READERS_SHARE = 0.4
# How many serializers of an exchange that is disabled may try to drain its ring.
_DRAINS = 3
# CPU is judged once the start, which takes much, is out of the samples.
_SETTLED_S = 15.0


class Supervisor:
    """One instance, from its start to its end: `run`."""

    def __init__(
        self,
        config: Config,
        log: Log,
        display: Display | None = None,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        """:param reread: gives the configuration as it is now, for a reload, or raises
        `ConfigError`; default: the same as before.
        """
        self.config = config
        self.log = log
        self.display = display or Display()
        self._reread = reread or (lambda: self.config)
        self._reloads = 0
        self._unordered: set[str] = set()
        """Exchanges whose workers are to be told something, which was not possible."""
        self._exchanges: dict[str, Served] = {}
        self._rings = Rings(log)
        self._listener = Listener(log)
        self._status = Child("status", "", self._serve_status)
        self._processes = Processes()
        self._tree = TreeSampler()
        self._alarms = alarms.Alarms(log)
        self._store: samples.Store
        self._signals: list[int] = []
        self._poll = select.poll()
        self._signal_fd = -1
        self._started_s = 0.0
        self._status_trouble = ""

    # --- start

    def run(self, for_s: float | None = None) -> int:
        """Captures until SIGTERM or SIGINT, or for *for_s* seconds; the exit status."""
        self._listen()
        try:
            lock_fd = self._claim()
        except (ring.RingError, statelock.LockHeldError, OSError) as error:
            self.log.error("not started", error=str(error))
            return 1
        workers.remove(self.config.state_dir / reload.FILE, self.log)
        self._store = samples.Store(self.config.state_dir, self.config.samples.keep_s, self.log)
        self._collector = Collector()
        workers.set_title("supervisor")
        self._started_s = time.monotonic()
        ahead.make_what_workers_share(self.config)
        self.log.info(
            "started",
            pid=os.getpid(),
            sink=self.config.sink,
            exchanges=list(self._exchanges),
            state_dir=str(self.config.state_dir),
            loops=native.describe(),
        )
        self._listener.bind(self.config.http)
        systemd.notify(systemd.READY)
        self._watch(None if for_s is None else time.monotonic() + for_s)
        status = self._stop()
        os.close(lock_fd)
        return status

    def _claim(self) -> int:
        """Takes `state_dir` and what the exchanges need; the descriptor that holds the lock.

        :raises RingError, LockHeldError, OSError: something can't be had.
        """
        try:
            lock_fd = statelock.hold(self.config.state_dir)
        except OSError as error:
            raise OSError(f"state_dir {self.config.state_dir}: {error}") from error
        try:
            for exchange in self.config.enabled_exchanges:
                self._add(exchange)
        except BaseException:
            os.close(lock_fd)
            raise
        return lock_fd

    def _add(self, exchange: ExchangeConfig) -> None:
        """Ring, counters and workers of an exchange, not started yet.

        :raises RingError, LockHeldError, OSError: it can't be served.
        """
        self._rings.open(self.config, exchange.name)
        try:
            self._exchanges[exchange.name] = Served.begin(lambda: self.config, exchange)
        except (ring.RingError, OSError):
            self._rings.give_up(exchange.name)
            raise

    def _serve_status(self, log: Log) -> int:
        from feedmono import status  # noqa: PLC0415  not for an instance that serves nothing

        assert self._listener.socket is not None, "it is started only with an address"
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return status.main(self.config, self._listener.socket, self._listener.beat_fd, log)

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
        """Starts what is due, looks, until the end or until a signal to stop."""
        look_s = time.monotonic()
        summary_s = look_s + _SUMMARY_S
        while True:
            now_s = time.monotonic()
            if self._is_to_stop():
                return
            if self._signals:
                # Any number of them is one reload.
                self._signals.clear()
                self._reload()
            if end_s is not None and now_s >= end_s:
                return
            for name, exchange in self._exchanges.items():
                if exchange.mending and exchange.mending.due_s <= now_s:
                    self._mend_ring(name)
            for child in self._startable():
                if child.due_s <= now_s:
                    self._start(child)
            for child in self._children():
                if child.kill_at_s <= now_s:
                    self._kill(child, "stop_limit")
            if look_s <= now_s:
                look_s = now_s + snapshot.SAMPLE_S
                state = self._look()
                if summary_s <= now_s and not self.display.fds:
                    summary_s = now_s + _SUMMARY_S
                    summarize(state, self.log)
            self._wait(min([look_s, *self._due(), *([] if end_s is None else [end_s])]))
            self._reap()

    def _is_to_stop(self) -> bool:
        """Whether a signal came that ends it."""
        return bool(_ending(self._signals)) or (bool(self._signals) and self._hung_up())

    def _hung_up(self) -> bool:
        """Whether the terminal that showed it is gone: then SIGHUP means the end, as of old."""
        return bool(self.display.fds) and not os.isatty(sys.stdout.fileno())

    def _children(self) -> Iterator[Child]:
        for exchange in self._exchanges.values():
            yield from exchange.children
        yield self._status

    def _startable(self) -> list[Child]:
        """The children that do not run, and have what they need to."""
        found = [child for e in self._exchanges.values() for child in e.startable]
        if self._status.pid is None and self._listener.socket is not None:
            found.append(self._status)
        return found

    def _due(self) -> Iterator[float]:
        """When something is to be done."""
        yield from (child.due_s for child in self._startable())
        yield from (child.kill_at_s for child in self._children())
        yield from (e.mending.due_s for e in self._exchanges.values() if e.mending)

    def _wait(self, until_s: float) -> None:
        """Waits for a signal, for the display, or until then."""
        timeout_s = max(0.0, until_s - time.monotonic())
        for fd, _ in self._poll.poll(timeout_s * 1000 + 1):
            if fd == self._signal_fd:
                numbers = os.read(fd, 512)
                self._signals += [n for n in numbers if n != signal.SIGCHLD]
            else:
                self.display.readable(fd)

    # --- look, once a second

    def _look(self) -> snapshot.Snapshot:
        self._look_for_rings()
        for name in [name for name, e in self._exchanges.items() if e.reader.leaving]:
            self._go_on(name, False)
        for name in sorted(self._unordered):
            self._order(name)
        self._listener.bind(self.config.http)
        usages = self._processes.look(
            [os.getpid(), *(child.pid for child in self._children() if child.pid is not None)]
        )
        state = self._sample(usages)
        found = list(alarms.conditions(state, self._alarms.kinds))
        found += self._look_at_hearts(usages)
        if time.monotonic() < self._started_s + _SETTLED_S:
            found = [condition for condition in found if condition.kind not in alarms.CPU_KINDS]
        else:
            self._keep_budgets(state)
        state = replace(state, alarms=self._alarms.look(found, state.taken_at_s))
        self._publish(state)
        self._store.add(state)
        logs.tick()
        self._collector.tick()
        events.rotate(self.config.state_dir)
        systemd.notify(systemd.ALIVE)
        return state

    def _sample(self, usages: dict[int, Usage]) -> snapshot.Snapshot:
        now_s, now_at_s = time.monotonic(), time.time()
        exchanges = tuple(exchange.sample(now_s, usages) for exchange in self._exchanges.values())
        folders = {"state_dir": self.config.state_dir, "ring_dir": self.config.ring_dir}
        folders |= kinds.configured(self.config).folders(self.config)
        return snapshot.Snapshot(
            pid=os.getpid(),
            # By the clock as it is now: that may have been set since.
            started_at_s=now_at_s - (now_s - self._started_s),
            taken_at_s=now_at_s,
            sink=self.config.sink,
            exchanges=exchanges,
            tree=self._tree.sample(self._status.pid, exchanges, usages),
            disks=alarms.disks(folders),
            http=self._listener.url,
        )

    def _look_at_hearts(self, usages: dict[int, Usage]) -> list[alarms.Condition]:
        exchanges = self._exchanges.values()
        hearts = [(child, *e.sampler.beats(child.role)) for e in exchanges for child in e.children]
        hearts.append((self._status, self._listener.beats, 0.0))
        found = [
            check_heart(child, beats, allowance_s, usages.get(child.pid or 0), self.log)
            for child, beats, allowance_s in hearts
        ]
        return [condition for condition in found if condition is not None]

    def _keep_budgets(self, state: snapshot.Snapshot) -> None:
        for status in state.exchanges:
            exchange = self._exchanges[status.name]
            exchange.keep_budget(time.monotonic(), status, self.config.stop_limit_s, self.log)

    def _publish(self, state: snapshot.Snapshot) -> None:
        """Shows the sample to whoever looks."""
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

    # --- start, reap and restart a child

    def _start(self, child: Child) -> None:
        if child is self._status:
            child.progress = beats = self._listener.beats
        else:
            sampler = self._exchanges[child.exchange].sampler
            child.progress = sampler.progress(child.role)
            beats = sampler.begin(child.role)
        try:
            child.start(beats, partial(self._settle_child, child))
        except OSError as error:
            child.put_off()
            self.log.error("not started", **child.place, error=str(error))

    def _settle_child(self, child: Child) -> None:
        """In a child: gives up what is inherited of rings, which would keep their memory when they
        are removed, and of the address, which would keep it busy; configures its log."""
        for exchange in self._exchanges.values():
            del exchange.sampler
        self._rings.keep_only(child.exchange)
        if child is not self._status:
            self._listener.close()
        logging, terminal = self.config.log, bool(self.display.fds)
        logs.configure(
            logging.level, logging.format, self.display.log_fd, terminal, self.config.state_dir
        )

    def _kill(self, child: Child, why: str) -> None:
        self.log.warning("worker killed", **child.place, reason=why)
        child.kill(child.reason)

    def _reap(self) -> None:
        """Takes in the children that ended and says when they are to be started again."""
        for child in list(self._children()):
            ended = child.reap(partial(self._progressed, child))
            if ended is None:
                continue
            tell = self.log.info if ended.reason == RELOAD else self.log.warning
            tell(
                "worker ended",
                **child.place,
                pid=ended.pid,
                how=ended.how,
                reason=ended.reason,
                restart_in_s=None if child.leaving else ended.retry_s,
            )
            if child is not self._status:
                self._go_on(child.exchange, ended.ring_unusable)

    def _progressed(self, child: Child) -> bool:
        if child is self._status:
            return self._listener.beats != child.progress
        return self._exchanges[child.exchange].sampler.progress(child.role) != child.progress

    def _go_on(self, name: str, ring_unusable: bool) -> None:
        """A worker of that exchange has ended; what has to wait for that is done."""
        exchange = self._exchanges[name]
        if ring_unusable and not self._rings.is_usable(self.config, name):
            self._mend_ring(name)
        running = [child for child in exchange.children if child.pid is not None]
        if exchange.resizing and not running:
            exchange.resizing = False
            self._mend_ring(name)
        if exchange.reader.leaving and exchange.reader.pid is None:
            self._drain(name)

    def _drain(self, name: str) -> None:
        """The reader of an exchange that is not to be served any more is gone: its serializer
        drains the ring, if it must be started once more for that; then all is over."""
        exchange = self._exchanges[name]
        worker = exchange.serializer
        now_s = time.monotonic()
        if worker.pid is None and exchange.drains < _DRAINS and self._holds(name):
            exchange.drains += 1
            exchange.drain_at_s = now_s + self.config.stop_limit_s
            self._start(worker)
        if worker.pid is None:
            self._remove(name)
        elif not worker.reason and (exchange.sampler.sink_ready or now_s >= exchange.drain_at_s):
            # Before its sink is ready it would end at once.
            worker.end_signal = signal.SIGTERM
            worker.end(RELOAD, self.config.stop_limit_s)

    def _holds(self, name: str) -> bool:
        """Whether something of it waits to be delivered."""
        path = workers.Shared.of(self.config, name).ring
        return bool(ring.set_aside_of(path)) or self._exchanges[name].sampler.ring_used_bytes > 0

    # --- replace a ring

    def _look_for_rings(self) -> None:
        """Replaces the rings that were removed or renamed while they are in use: nobody finds
        again what goes into them."""
        for name, exchange in self._exchanges.items():
            if not exchange.mending and not self._rings.is_there(self.config, name):
                path = workers.Shared.of(self.config, name).ring
                self.log.error("the ring's file is gone", exchange=name, path=str(path))
                self._mend_ring(name)

    def _mend_ring(self, name: str) -> None:
        """Replaces a ring; in vain: the watch tries again."""
        exchange = self._exchanges[name]
        # Whoever has the old one open still must not go on with it.
        for child in exchange.children:
            child.kill_and_wait(RING)
        mending = exchange.mending = exchange.mending or Mending()
        try:
            self._rings.replace(self.config, name)
            counters = workers.Shared.of(self.config, name).counters
            if not counters.exists():
                Counters.create(counters)
            exchange.sampler.reopen()
        except (ring.RingError, statelock.LockHeldError, OSError) as error:
            before = mending.failed(time.monotonic(), str(error))
            # The room that is free changes all the time.
            if re.sub(r"\d+", "", before) != re.sub(r"\d+", "", mending.trouble):
                self.log.error("the ring can't be replaced", exchange=name, error=str(error))
            return
        exchange.mending = None
        self.log.info("ring replaced", exchange=name)
        if exchange.reader.leaving:
            self._drain(name)

    # --- reload

    def _reload(self) -> None:
        """Reads the configuration again, and takes over what changed; a broken one changes
        nothing."""
        self._reloads += 1
        try:
            plan = reload.plan(self.config, self._reread())
            reload.check_room(plan)
        except (ConfigError, OSError) as error:
            refused = "not reloaded: nothing has changed"
            self.log.error(refused, error=str(error))
            outcome = reload.Outcome(self._reloads, False, [refused, *str(error).splitlines()])
        else:
            lines = plan.told()
            self.log.info("reloaded", changes="; ".join(lines))
            troubles = self._apply(plan)
            if plan.http and self.config.http.enabled and not self._listener.url:
                lines.append("http: it can't be had, which is tried again every 10 s")
            outcome = reload.Outcome(self._reloads, not troubles, lines + troubles)
        try:
            outcome.tell(self.config.state_dir)
        except OSError as error:
            self.log.warning("the outcome of the reload can't be told", error=str(error))

    def _apply(self, plan: reload.Plan) -> list[str]:
        """Does what is planned; gives what could not be done."""
        if plan.config != self.config:
            # Else the address that it holds could not be had anew.
            self._status.kill_and_wait(RELOAD)
        self.config = plan.config
        logs.set_level(self.config.log.level, self.config.log.format)
        self._store.keep_s = self.config.samples.keep_s
        troubles = [trouble for name in plan.begin for trouble in self._begin(name)]
        for name in plan.end:
            self._end_exchange(name)
        for name, exchange in self._exchanges.items():
            exchange.sampler.exchange = self.config.exchanges[name]
        for name in plan.rings:
            self._exchanges[name].resizing = True
        for name in (*plan.readers, *plan.rings):
            self._exchanges[name].reader.end(RELOAD, self.config.stop_limit_s)
        for name in (*plan.serializers, *plan.rings):
            self._exchanges[name].serializer.end(RELOAD, self.config.stop_limit_s)
        for name in plan.rings:
            self._go_on(name, False)
        troubles += [trouble for name in plan.orders for trouble in self._order(name)]
        if plan.http:
            self._listener.close()
            self._listener.bind(self.config.http)
        return troubles

    def _order(self, name: str) -> list[str]:
        """Has the running workers take over what they can; gives what is in the way, which is
        tried again with each look."""
        told = name in self._unordered
        self._unordered.discard(name)
        if name not in self._exchanges:
            return []
        try:
            path = workers.Shared.of(self.config, name).orders
            reload.orders(self.config, name).give(path)
        except OSError as error:
            self._unordered.add(name)
            if not told:
                self.log.error("orders can't be written", exchange=name, error=str(error))
            return [f"{name}: not taken over yet: {error}; it is tried again each second"]
        for child in self._exchanges[name].children:
            if not child.reason:
                child.send(signal.SIGHUP)
        return []

    def _begin(self, name: str) -> list[str]:
        """Serves another exchange; gives what is in the way."""
        trouble = "it is still ending"
        if name not in self._exchanges:
            try:
                self._add(self.config.exchanges[name])
            except (ring.RingError, statelock.LockHeldError, OSError) as error:
                trouble = str(error)
            else:
                return []
        self.log.error("not enabled", exchange=name, error=trouble)
        off = replace(self.config.exchanges[name], enabled=False)
        self.config = replace(self.config, exchanges={**self.config.exchanges, name: off})
        return [f"{name}: not enabled: {trouble}; reload again"]

    def _end_exchange(self, name: str) -> None:
        """Ends the reader; `_go_on` ends the serializer when it is gone and the ring drained."""
        exchange = self._exchanges[name]
        for child in exchange.children:
            child.leaving = True
        exchange.reader.end(RELOAD, self.config.stop_limit_s)
        if exchange.reader.pid is None:
            self._go_on(name, False)

    def _remove(self, name: str) -> None:
        """Forgets an exchange whose workers are gone; what its ring holds is kept."""
        exchange = self._exchanges.pop(name)
        self._rings.give_up(name)
        exchange.close()
        state = exchange.sample(0.0, {})
        self._tree.forget(state)
        self._rings.put_away(self.config, state)
        self.log.info("not served any more", exchange=name, delivered=state.delivered)

    # --- stop

    def _stop(self) -> int:
        """Ends the readers, then, when the rings are drained, the serializers."""
        systemd.notify(systemd.STOPPING)
        self.log.info("stopping", reason=_stop_reason(self._signals))
        self._signals.clear()
        start_s = time.monotonic()
        limit_s = self.config.stop_limit_s
        exchanges = self._exchanges.values()
        orderly = self._end([e.reader for e in exchanges], start_s + limit_s * _READERS_SHARE)
        orderly &= self._end([e.serializer for e in exchanges], start_s + limit_s)
        state = self._sample(self._processes.look([os.getpid()]))
        self._publish(state)
        self._store.add(state)
        self._store.close()
        self._status.kill_and_wait(RELOAD)
        for exchange in state.exchanges:
            self._rings.put_away(self.config, exchange)
        self.log.info(
            "stopped",
            orderly=orderly,
            delivered={e.name: e.delivered for e in state.exchanges},
        )
        workers.remove(self.config.state_dir / snapshot.FILE, self.log)
        return 0 if orderly else 1

    def _end(self, ours: list[Child], limit_s: float) -> bool:
        """Asks them to end and reaps them; kills them at the limit, or when another signal
        hurries. Whether all ended by themselves."""
        for child in ours:
            child.send(signal.SIGTERM)
        orderly = True
        while running := [child for child in ours if child.pid is not None]:
            hurried = bool(_ending(self._signals))
            if orderly and (hurried or time.monotonic() >= limit_s):
                orderly = False
                for child in running:
                    self._kill(child, "hurried by a second signal" if hurried else "stop_limit")
            self._wait(limit_s if orderly else time.monotonic() + snapshot.SAMPLE_S)
            for child in running:
                orderly &= child.gone() in (None, 0)
        return orderly


def _ending(numbers: list[int]) -> list[int]:
    """Those of the signals that always mean the end."""
    return [number for number in numbers if number != signal.SIGHUP]


def _stop_reason(numbers: list[int]) -> str:
    if not numbers:
        return "the time given by --for is over"
    return signal.Signals((_ending(numbers) or numbers)[0]).name
