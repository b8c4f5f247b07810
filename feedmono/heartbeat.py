"""When a process counts as hung: its beats do not move any more.

What is counted are the watcher's own looks, not seconds of a clock: a machine that was suspended,
or a supervisor that was, begins to look when it wakes up, and finds its workers beating again. A
process with several threads beats only as long as each of them comes round: `Pulse`.
"""

from __future__ import annotations

import math
import time

BEAT_S = 1.5
"""How often whoever has nothing to do shows that it lives."""
LATE_S = 2.5
"""A thread that has not come round for so long has missed a beat."""
LOOKS = 6
"""So many looks, a second apart, without a beat: it hangs. A thread that never comes round again
is found within 10 s: `LATE_S`, a second of its process's, and these."""


class Pulse:
    """A thread's signs of life, for another thread of the same process."""

    def __init__(self) -> None:
        self._due_s = math.inf

    def beat(self, allowance_s: float = 0.0) -> None:
        """It has come round, and will again.

        :param allowance_s: how long something may take that is known to be slow.
        """
        self._due_s = time.monotonic() + LATE_S + allowance_s

    @property
    def is_late(self) -> bool:
        """Whether it should have come round by now."""
        return time.monotonic() > self._due_s


class Heart:
    """The beats of one process, as its watcher sees them."""

    def __init__(self, beats: int) -> None:
        """:param beats: as they are when it starts."""
        self._beats = beats
        self.looks = 0
        """How many looks in a row have seen no beat."""
        self._spared_at = 0

    def look(self, beats: int, allowance_s: float = 0.0) -> bool:
        """One look, a second after the last; whether the process hangs.

        :param allowance_s: how long it said that it might take until the next beat.
        """
        if beats != self._beats:
            self._beats = beats
            self.looks = self._spared_at = 0
            return False
        self.looks += 1
        return self.looks >= max(self._spared_at + LOOKS, allowance_s)

    def spare(self) -> None:
        """There is an excuse: the process has another `LOOKS` looks' time to beat again."""
        self._spared_at = self.looks

    @property
    def is_spared(self) -> bool:
        """Whether it was spared since it beat last."""
        return self._spared_at > 0
