"""The trades of one symbol: which ids were made, when, and what became of them.

Figures are a function of the id, so what is kept is only when which ids were made: one entry
for each run of trades that share a time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from feedmono.simulator.faults import Faults
from feedmono.simulator.market import Market, Source

MAX_RUNS = 200_000
"""The most recent ones that are kept: REST knows no older trades. A live symbol adds at most
one each period (`Options.period_s`): at 10 ms that is half an hour at the least."""
MAX_BATCH = 100
# Trades that share a time, with one more batch: fewer than a REST page has rows, so that a
# reader who goes on from the last one's time always gets on.
MAX_RUN = 500
_MAX_DELAY = 5

SENT = "sent"
UNHEARD = "unheard"
LOST = "lost"
REPEATED = "repeated"
REORDERED = "reordered"
FATES = (SENT, UNHEARD, LOST, REPEATED, REORDERED)
"""What can become of a trade: sent to at least one subscriber; made while nobody was
subscribed; left out; sent twice; sent after later ones."""


class Made(NamedTuple):
    """A trade as REST shows it."""

    trade_id: int
    price: str
    quantity: str
    side: int
    time_ns: int
    """Unix time of the exchange's clock."""


class Arrangement(NamedTuple):
    """What faults make of some trades."""

    ids: Sequence[int]
    """What is to be sent, in this order."""
    fates: Sequence[str]
    """What becomes of each trade made, in the order of their ids."""


class Tape:
    """One symbol's trades, from ``first_id`` upwards, *limit* of them at most."""

    def __init__(
        self, market: Market, source: Source, first_id: int, limit: int | None, batch: int
    ) -> None:
        self.market = market
        self.symbol = market.symbol
        self.source = source
        self.first_id = first_id
        self.next_id = first_id
        self.fates: Counter[str] = Counter()
        self._end_id = None if limit is None else first_id + limit
        self._batch = batch
        self._run_ids = array("q")
        self._run_times_ns = array("q")
        self._late: list[tuple[int, int]] = []

    @property
    def finished(self) -> bool:
        """Whether the limit is reached."""
        return self.next_id == self._end_id

    @property
    def delays(self) -> bool:
        """Whether trades are still held back."""
        return bool(self._late)

    # --- Making trades.

    def group_size(self, first_id: int) -> int:
        """How many trades the frame that begins with this one has: 1 … batch."""
        if self._batch == 1:
            return 1
        return 1 + ((first_id * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 40) % self._batch

    def groups(self, due: float, first_id: int | None = None) -> list[int]:
        """The sizes of the next frames, so many that less than one trade stays due.

        The last one may go beyond *due*: the next ones come later for it.
        """
        first = self.next_id if first_id is None else first_id
        left = MAX_RUN + MAX_BATCH if self._end_id is None else self._end_id - first
        due = min(due, left, MAX_RUN)
        if self._batch == 1:
            return [1] * int(due)
        sizes: list[int] = []
        total = 0
        while due - total >= 1:
            size = min(self.group_size(first + total), left - total)
            sizes.append(size)
            total += size
        return sizes

    def make(self, count: int, time_us: int) -> range:
        """Makes the next *count* trades, all at one time (Unix, µs)."""
        assert count < MAX_RUN + MAX_BATCH
        ids = range(self.next_id, self.next_id + count)
        self.next_id = ids.stop
        self._run_ids.append(ids.start)
        # REST shows a digit more than the stream does.
        self._run_times_ns.append(time_us * 1000 + ids.start % 10 * 100)
        if len(self._run_ids) >= 2 * MAX_RUNS:
            del self._run_ids[:MAX_RUNS]
            del self._run_times_ns[:MAX_RUNS]
        return ids

    def arrange(self, ids: range, faults: Faults) -> Arrangement:
        """Loses, repeats and delays some of these trades, as the dice say."""
        wanted: list[int] = []
        fates: list[str] = []
        for trade_id in ids:
            key = f"{self.symbol}/{trade_id}"
            if faults.happens("lose", key):
                fates.append(LOST)
            elif faults.happens("reorder", key):
                fates.append(REORDERED)
                self._delay(trade_id, faults)
            else:
                wanted.append(trade_id)
                fates.append(SENT)
                if faults.happens("repeat", key):
                    fates[-1] = REPEATED
                    self._delay(trade_id, faults)
            wanted += self._overdue(trade_id)
        if self.finished:
            wanted += self._overdue(self.next_id + _MAX_DELAY)
        return Arrangement(wanted, fates)

    def _delay(self, trade_id: int, faults: Faults) -> None:
        steps = 1 + int(faults.dice("delay", f"{self.symbol}/{trade_id}") * _MAX_DELAY)
        self._late.append((trade_id + steps, trade_id))

    def _overdue(self, trade_id: int) -> list[int]:
        """The delayed trades whose time has come once *trade_id* was sent."""
        if not self._late:
            return []
        due = [held for until, held in self._late if until <= trade_id]
        self._late = [late for late in self._late if late[0] > trade_id]
        return due

    # --- What REST and snapshots read.

    @property
    def oldest_id(self) -> int:
        """The oldest trade whose time is known still; `next_id` if there is none."""
        return self._run_ids[0] if self._run_ids else self.next_id

    def time_ns(self, trade_id: int) -> int:
        """When a trade was made.

        :raises KeyError: it was not, or too long ago.
        """
        if not self.oldest_id <= trade_id < self.next_id:
            raise KeyError(trade_id)
        return self._run_times_ns[bisect_right(self._run_ids, trade_id) - 1]

    def from_id(self, first_id: int, count: int) -> list[Made]:
        """Up to *count* trades from this id on, the oldest first."""
        start = min(max(first_id, self.oldest_id), self.next_id)
        ids = range(start, min(start + count, self.next_id))
        if not ids:
            return []
        made: list[Made] = []
        run = bisect_right(self._run_ids, start) - 1
        for trade_id, figures in zip(ids, self.source.figures_of(ids), strict=True):
            while run + 1 < len(self._run_ids) and self._run_ids[run + 1] <= trade_id:
                run += 1
            made.append(Made(trade_id, *figures, self._run_times_ns[run]))
        return made

    def since(self, time_ns: int, count: int) -> list[Made]:
        """Up to *count* trades from this time on (Unix, ns, inclusive), the oldest first."""
        run = bisect_left(self._run_times_ns, time_ns)
        return self.from_id(self._run_ids[run], count) if run < len(self._run_ids) else []

    def recent(self, count: int) -> list[Made]:
        """The last *count* trades, the oldest first."""
        return self.from_id(self.next_id - count, count)
