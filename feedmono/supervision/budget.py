"""What is done about an exchange that exceeds its budget: the rules, without any process.

CPU is judged as the mean of the last samples. ``throttle`` gives the serializer what the reader
leaves of the budget. It is lifted while the ring has more than it should, whoever filled it: a
backlog drains at full speed, and the throttle itself never fills the ring.

Memory over budget for longer than the configured patience restarts the larger of the two workers.
Should its successor be too large as well, the next restart waits twice as long.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from feedmono.config import Budget

LEAST_CORES = 0.02
"""What a throttled serializer has in any case."""
LIFT_SHARE = 0.5
"""Of the ring: filled so far, the throttle is lifted,"""
DRAINED_SHARE = 0.05
"""until it holds no more than this; with more it does not begin either."""
CALM_SHARE = 0.9
"""Of the CPU budget: what uses less needs no throttle."""
PATIENCE_CAP_S = 3600.0
"""The longest wait between two restarts, unless the configured patience is longer."""

CPU_WARN, CPU_THROTTLE, MEMORY_RESTART = "cpu warn", "cpu throttle", "memory restart"
"""What is counted, see `feedmono.supervision.snapshot.ExchangeStatus.budget_exceeded`."""


class Use(NamedTuple):
    """What one worker uses."""

    role: str
    cpu_cores: float
    memory_bytes: int


class Verdict(NamedTuple):
    """What is to be done."""

    restart: str = ""
    """The role of the worker that is to be restarted; empty: none."""
    serializer_cores: float = math.inf
    """What the serializer may use."""


class Judge:
    """Judges one exchange, look by look. Seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.acts: Counter[str] = Counter()
        """How often a budget was exceeded, and what was done."""
        self._cpu_exceeded = False
        self._throttles = False
        self._drains = False
        self._over_since_s = math.inf
        self._under_since_s = math.inf
        self._restarts_in_vain = 0

    def look(self, now_s: float, budget: Budget, uses: Sequence[Use], ring_share: float) -> Verdict:
        """:param uses: of the workers that run.
        :param ring_share: how much of the ring is in use.
        """
        return Verdict(
            self._judge_memory(now_s, budget, uses), self._judge_cpu(budget, uses, ring_share)
        )

    def _judge_memory(self, now_s: float, budget: Budget, uses: Sequence[Use]) -> str:
        patience_s = budget.memory_patience_s
        if sum(use.memory_bytes for use in uses) <= budget.memory_bytes:
            self._over_since_s = math.inf
            self._under_since_s = min(self._under_since_s, now_s)
            if now_s >= self._under_since_s + patience_s:
                self._restarts_in_vain = 0
            return ""
        self._under_since_s = math.inf
        self._over_since_s = min(self._over_since_s, now_s)
        doubled_s = min(patience_s * (1 << min(self._restarts_in_vain, 30)), PATIENCE_CAP_S)
        if now_s < self._over_since_s + max(patience_s, doubled_s):
            return ""
        self.acts[MEMORY_RESTART] += 1
        self._restarts_in_vain += 1
        self._over_since_s = math.inf
        return max(uses, key=lambda use: use.memory_bytes).role

    def _judge_cpu(self, budget: Budget, uses: Sequence[Use], ring_share: float) -> float:
        used = sum(use.cpu_cores for use in uses)
        begins = used > budget.cpu and not self._cpu_exceeded
        self._cpu_exceeded = used > budget.cpu
        if budget.cpu_action != "throttle":
            self._throttles = False
            if begins:
                self.acts[CPU_WARN] += 1
            return math.inf
        self._drains = self._is_draining(ring_share)
        if self._drains or used < budget.cpu * CALM_SHARE:
            self._throttles = False
        elif self._cpu_exceeded and not self._throttles:
            self._throttles = True
            self.acts[CPU_THROTTLE] += 1
        if not self._throttles:
            return math.inf
        others = sum(use.cpu_cores for use in uses if use.role != "serializer")
        return max(LEAST_CORES, budget.cpu - others)

    def _is_draining(self, ring_share: float) -> bool:
        """Whether the ring holds more than it should, or did and is not empty yet."""
        if ring_share >= (LIFT_SHARE if self._throttles else DRAINED_SHARE):
            return True
        return self._drains and ring_share >= DRAINED_SHARE
