"""An exchange that is served: its reader, its serializer, and how the supervisor judges them."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from feedmono import reader, serializer, workers
from feedmono.config import Config, ExchangeConfig
from feedmono.counters import Counters
from feedmono.log import Log
from feedmono.supervision import alarms, budget
from feedmono.supervision.children import FIRST_RETRY_S, HUNG, MEMORY, RETRY_CAP_S, Child
from feedmono.supervision.processes import Usage
from feedmono.supervision.sampler import Sampler, Workers
from feedmono.supervision.snapshot import ExchangeStatus


@dataclass(slots=True)
class Mending:
    """A ring that is to be replaced; its workers wait for it."""

    retry_s: float = FIRST_RETRY_S
    due_s: float = 0.0
    trouble: str = ""
    """Why the last attempt failed."""

    def failed(self, now_s: float, trouble: str) -> str:
        """Puts the next attempt off; what was in the way of the last one."""
        self.due_s = now_s + self.retry_s
        self.retry_s = min(self.retry_s * 2, RETRY_CAP_S)
        before, self.trouble = self.trouble, trouble
        return before


@dataclass(slots=True)
class Served:
    """One of the exchanges that an instance serves."""

    sampler: Sampler
    reader: Child
    serializer: Child
    fds: tuple[int, ...]
    """Of the workers' eventfd and sockets."""
    judge: budget.Judge = field(default_factory=budget.Judge)
    mending: Mending | None = None
    """Its ring can't be used and is not replaced yet."""
    resizing: bool = False
    """Its ring is to be replaced once both workers have ended."""
    drains: int = 0
    """How many serializers were started only to drain its ring."""
    drain_at_s: float = 0.0
    """When such a one is told to end, though its sink is not ready."""

    @classmethod
    def begin(cls, config: Callable[[], Config], exchange: ExchangeConfig) -> Served:
        """Counters and workers of an exchange that has a ring, not started yet.

        :param config: gives what is in force when a worker starts.
        :raises OSError, RingError: it can't be served.
        """
        name = exchange.name
        shared = workers.Shared.of(config(), name)
        Counters.create(shared.counters)
        for note in (shared.reader_note, shared.serializer_note, shared.orders):
            note.unlink(missing_ok=True)
        sampler = Sampler(config(), exchange)
        wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in ends:
            end.setblocking(False)
        asks_fd, asked_fd = (end.detach() for end in ends)

        def read(log: Log) -> int:
            return reader.main(config(), name, wake_fd, asked_fd, log)

        def serialize(log: Log) -> int:
            return serializer.main(config(), name, wake_fd, asks_fd, log)

        return cls(
            sampler=sampler,
            reader=Child("reader", name, read),
            serializer=Child("serializer", name, serialize, workers.YIELD),
            fds=(wake_fd, asks_fd, asked_fd),
        )

    @property
    def children(self) -> tuple[Child, Child]:
        return self.serializer, self.reader

    @property
    def startable(self) -> list[Child]:
        """The workers that do not run, and have a ring to run on."""
        if self.mending or self.resizing:
            return []
        return [child for child in self.children if child.pid is None and not child.leaving]

    def sample(self, now_s: float, usages: Mapping[int, Usage]) -> ExchangeStatus:
        """Its state now."""
        return self.sampler.sample(self._known(now_s), usages)

    def _known(self, now_s: float) -> Workers:
        children = (self.reader, self.serializer)
        down = [
            f"{child.name}, in {max(0.0, child.due_s - now_s):.0f} s"
            for child in children
            if child.pid is None and child.restarts and not child.leaving
        ]
        if self.mending:
            down = [f"the ring can't be replaced: {self.mending.trouble}"]
        return Workers(
            pids={child.role: child.pid for child in children},
            restarting="; ".join(down),
            restarts={child.role: dict(child.restarts) for child in children},
            budget_exceeded=self.judge.acts,
            ending=self.reader.leaving,
        )

    def keep_budget(self, now_s: float, status: ExchangeStatus, limit_s: float, log: Log) -> None:
        """Acts on what the judge says of a sample.

        :param limit_s: how long a worker that is restarted may take to end.
        """
        uses = [
            budget.Use(worker.role, worker.cpu_cores, worker.memory_bytes)
            for worker in status.workers
            if worker.pid is not None
        ]
        share = status.ring_used_bytes / status.ring_capacity_bytes
        limits = self.sampler.exchange.budget
        verdict = self.judge.look(now_s, limits, uses, share)
        if self.sampler.throttle(verdict.serializer_cores):
            event = "throttled" if verdict.serializer_cores < math.inf else "throttle lifted"
            log.info(event, exchange=status.name, worker="serializer")
        for child in self.children:
            if child.role == verdict.restart:
                log.warning(
                    "over its memory budget: restarted",
                    **child.place,
                    memory_bytes=status.memory_bytes,
                    budget_bytes=limits.memory_bytes,
                )
                child.end(MEMORY, limit_s)

    def close(self) -> None:
        """Gives up what its workers had; they are gone."""
        for fd in self.fds:
            os.close(fd)


def check_heart(
    child: Child, beats: int, allowance_s: float, usage: Usage | None, log: Log
) -> alarms.Condition | None:
    """Ends who hangs; tells of one that waits for a disk, which no signal would end."""
    if child.pid is None:
        return None
    heart = child.heart
    hangs = heart.look(beats, allowance_s)
    # One that was spared is looked at each time: its disk may be there again by now.
    if (hangs or heart.is_spared) and usage is not None and usage.waits_for_disk():
        heart.spare()
    elif hangs and child.reason != HUNG:
        log.error("a worker hangs: killed", **child.place, pid=child.pid, silent_s=heart.looks)
        child.kill(HUNG)
    if not heart.is_spared:
        return None
    text = f"the {child.role} has waited for the disk for {heart.looks} s"
    return alarms.Condition("hung", child.exchange, text)
