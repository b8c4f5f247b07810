"""A process that the supervisor keeps running: forked, watched, ended for a reason, begun again."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from feedmono import log as logs
from feedmono import ring, workers
from feedmono.heartbeat import Heart
from feedmono.log import Log

FIRST_RETRY_S = 0.25
RETRY_CAP_S = 30.0

CRASHED, HUNG, MEMORY, RING, RELOAD = "crashed", "hung", "memory", "ring", "reload"
"""Why a process was started again, see `feedmono.supervision.snapshot.WorkerStatus.restarts`."""
# Ended by the supervisor in order: the successor need not wait.
_WANTED = frozenset({MEMORY, RING, RELOAD})


@dataclass(slots=True)
class Child:
    """A process that is to run, and how it is doing. All seconds are of the monotonic clock."""

    role: str
    """``reader``, ``serializer`` or ``status``."""
    exchange: str
    """Empty for one that serves all."""
    main: Callable[[Log], int]
    """Its life: the exit status."""
    end_signal: signal.Signals = signal.SIGTERM
    """Ends it in order, for a successor to go on."""
    pid: int | None = None
    heart: Heart = field(default_factory=lambda: Heart(0))
    progress: int = 0
    """`sampler.Sampler.progress` when it was started: one that did some work before it ended is
    started again after the shortest wait."""
    retry_s: float = FIRST_RETRY_S
    due_s: float = 0.0
    """When it is to be started, if it does not run."""
    reason: str = ""
    """Why the supervisor ends it; empty while it does not."""
    kill_at_s: float = math.inf
    """Until when it may take to end in order."""
    leaving: bool = False
    """It is not to be started again."""
    restarts: Counter[str] = field(default_factory=Counter)
    """By reason."""

    @property
    def name(self) -> str:
        return f"{self.role} {self.exchange}".rstrip()

    @property
    def place(self) -> dict[str, str]:
        """What a log line about it names."""
        exchange = {"exchange": self.exchange} if self.exchange else {}
        return {**exchange, "worker": self.role}

    def start(self, beats: int, settle: Callable[[], None]) -> None:
        """Forks it.

        :raises OSError: the system lets nobody begin.
        :param beats: as they are now.
        :param settle: gives up in the child what it should not have of its parent's, and
            configures its log.
        """
        parent_pid = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # Until the child is ready for them, these wait.
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, workers.YIELD}
        )
        try:
            pid = os.fork()
            if not pid:
                self._become(parent_pid, settle)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid = pid
        self.heart = Heart(beats)
        self.reason, self.kill_at_s = "", math.inf

    def _become(self, parent_pid: int, settle: Callable[[], None]) -> NoReturn:
        """The child's life."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            workers.settle(self.name, parent_pid)
            settle()
            log = logs.get(**self.place)
            try:
                status = self.main(log)
            except ring.RingError as error:
                log.error("the ring can't be used", error=str(error))
                status = workers.RING_UNUSABLE
            except Exception as error:
                log.error(f"{self.role} failed", error=repr(error), exc_info=True)
            logs.close()
        except workers.OrphanedError:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, if it runs."""
        if self.pid is not None:
            os.kill(self.pid, number)

    def end(self, reason: str, limit_s: float) -> None:
        """Asks it to end, for a successor; it is killed if it has not within the limit."""
        if self.pid is not None and not self.reason:
            self.reason, self.kill_at_s = reason, time.monotonic() + limit_s
            os.kill(self.pid, self.end_signal)

    def kill(self, reason: str) -> None:
        """Ends it at once; `reap` takes it in."""
        if self.pid is not None:
            self.reason, self.kill_at_s = reason, math.inf
            os.kill(self.pid, signal.SIGKILL)

    def kill_and_wait(self, reason: str) -> None:
        """Ends it at once, and returns when it is gone."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None
            self.reason, self.kill_at_s = "", math.inf
            self.due_s = time.monotonic()
            self.restarts[reason] += 1

    def put_off(self) -> None:
        """It could not be started: it is tried again later."""
        self.due_s = time.monotonic() + self.retry_s
        self.retry_s = min(self.retry_s * 2, RETRY_CAP_S)

    def gone(self) -> int | None:
        """Its status, as ``waitpid`` has it, if it has ended; None if it runs, or this was told."""
        if self.pid is None:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.pid = None
        return status

    def reap(self, progressed: Callable[[], bool]) -> Ended | None:
        """Takes it in if it has ended, and says when the next one is to start; None if it runs.

        :param progressed: whether it did any work.
        """
        pid, status = self.pid, self.gone()
        if pid is None or status is None:
            return None
        reason = self.reason or CRASHED
        self.kill_at_s = math.inf
        if self.leaving:
            return Ended(pid, status, reason, math.inf)
        if progressed():
            self.retry_s = FIRST_RETRY_S
        self.restarts[reason] += 1
        if reason in _WANTED:
            self.due_s = time.monotonic()
            return Ended(pid, status, reason, 0.0)
        wait_s = self.retry_s
        self.put_off()
        return Ended(pid, status, reason, wait_s)


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that is gone."""

    pid: int
    status: int
    """As ``waitpid`` has it."""
    reason: str
    retry_s: float
    """After how long it is started again; infinite: it is not."""

    @property
    def how(self) -> str:
        if os.WIFSIGNALED(self.status):
            return f"killed by {signal.Signals(os.WTERMSIG(self.status)).name}"
        return f"exit status {os.waitstatus_to_exitcode(self.status)}"

    @property
    def ring_unusable(self) -> bool:
        return os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == workers.RING_UNUSABLE
