"""Makes the trades at their rate and hands them to the connections."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from feedmono.simulator.base import Dialect
from feedmono.simulator.journal import Journal
from feedmono.simulator.options import Options
from feedmono.simulator.render import Spoiler, Stock, frames
from feedmono.simulator.tape import REORDERED, REPEATED, SENT, UNHEARD, Tape
from feedmono.simulator.venue import Venue

# A tick that comes late (a busy machine) makes up for at most so much.
_CATCH_UP_S = 1.0
_LONGEST_NAP_S = 0.1
# As fast as they are taken: so many trades of a symbol before the next symbol's turn.
_SATURATION_RUN = 250


class Listener(Protocol):
    """A connection, as the engine sees it."""

    @property
    def full(self) -> bool:
        """Whether it has as many unsent bytes as it should."""
        ...

    def push(self, data: bytes) -> None:
        """Takes whole frames, to be sent by the next `flush`."""
        ...

    def flush(self) -> None:
        """Sends what was pushed."""
        ...


Listeners = Mapping[str, Mapping[str, Sequence[Listener]]]
"""Who gets the trades: by symbol, then by variant."""


class Engine:
    """The clockwork of a simulated exchange."""

    def __init__(
        self, options: Options, venue: Venue, dialect: Dialect, journal: Journal | None
    ) -> None:
        self.rate = options.rate
        self.held = options.hold
        self.listeners: Listeners = {}
        self._venue = venue
        self._dialect = dialect
        self._journal = journal
        self._spoiler = Spoiler(dialect, venue.faults)
        self._tapes = list(venue.tapes.values())
        self._recorded = venue.recorded_tape() if options.speed else None
        self._speed = options.speed
        self._period_s = options.period_s
        share = -(-options.prerender // len(self._tapes)) if options.prerender else 0
        self._stocks = {t.symbol: Stock(dialect, t, share) for t in self._tapes} if share else {}
        # The first trade of the first symbol is due at once, those of the others in turn.
        count = len(self._tapes)
        self._due = {t.symbol: (count - n) / count for n, t in enumerate(self._tapes)}
        self._played_s = 0.0
        self._last_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None

    def start(self) -> None:
        """Begins making trades, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._timer = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        """Makes no more trades."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = None

    def wake(self) -> None:
        """Something changed that may let it go on: room in a buffer, a subscription."""
        if self._loop is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_soon(self._turn)

    # --- One turn: whatever is due.

    def _turn(self) -> None:
        assert self._loop is not None
        now_s = self._loop.time()
        passed_s, self._last_s = now_s - self._last_s, now_s
        if self.held:
            self.held = any(t.symbol not in self.listeners for t in self._tapes)
        if self.held or self._venue.faults.pause:
            nap_s: float | None = _LONGEST_NAP_S
        elif math.isinf(self.rate):
            nap_s = self._saturate()
        else:
            nap_s = self._tick(min(passed_s, _CATCH_UP_S))
        for connection in self._connections():
            connection.flush()
        if nap_s is not None:
            self._timer = self._loop.call_later(nap_s, self._turn)
        else:
            self._timer = self._loop.call_soon(self._turn)

    def _connections(self) -> set[Listener]:
        return {c for kinds in self.listeners.values() for cs in kinds.values() for c in cs}

    def _tick(self, passed_s: float) -> float:
        """Makes what came due in that time; says how long nothing will be due."""
        self._played_s += passed_s
        paced = self._recorded[0] if self._recorded else None
        others = sum(t is not paced for t in self._tapes)
        share = self.rate / others if others else 0.0
        nap_s = _LONGEST_NAP_S
        for tape in self._tapes:
            if tape.finished:
                continue
            if tape is paced:
                nap_s = self._period_s
                self._due[tape.symbol] = self._paced_due(tape)
            elif share:
                self._due[tape.symbol] += share * passed_s
                nap_s = min(nap_s, (1.0 - self._due[tape.symbol]) / share)
            else:
                continue
            while self._due[tape.symbol] >= 1.0:
                made = self._emit(tape, self._due[tape.symbol])
                self._due[tape.symbol] = self._due[tape.symbol] - made if made else 0.0
        return max(self._period_s, nap_s)

    def _paced_due(self, tape: Tape) -> float:
        assert self._recorded is not None
        elapsed_us = int(self._played_s * self._speed * 1_000_000)
        return self._recorded[1].due(elapsed_us) - (tape.next_id - tape.first_id)

    def _saturate(self) -> float | None:
        """Makes a run of each symbol unless a connection has enough; None: more at once."""
        connections = self._connections()
        if not connections or any(c.full for c in connections):
            return self._period_s
        made = [self._emit(tape, _SATURATION_RUN) for tape in self._tapes]
        return None if any(made) else _LONGEST_NAP_S

    # --- One symbol's next trades.

    def _emit(self, tape: Tape, due: float) -> int:
        """Makes trades of *tape* and sends them; gives how many."""
        groups = tape.groups(due)
        count = sum(groups)
        if not count:
            return 0
        time_us = self._venue.now_us()
        ids = tape.make(count, time_us)
        listeners = self.listeners.get(tape.symbol, {})
        if self._venue.faults.touch_trades or tape.delays:
            fates = self._send_spoiled(tape, ids, listeners)
            tape.fates.update(Counter(fates))
        else:
            self._send(tape, ids, groups, time_us, listeners)
            fates = [SENT if listeners else UNHEARD] * count
            tape.fates[fates[0]] += count
        if self._journal is not None:
            figures = tape.source.figures_of(ids)
            self._journal.write(tape.symbol, ids.start, figures, time_us, fates)
        return count

    def _send(
        self,
        tape: Tape,
        ids: range,
        groups: Sequence[int],
        time_us: int,
        listeners: Mapping[str, Sequence[Listener]],
    ) -> None:
        stock = self._stocks.get(tape.symbol)
        ready = stock.take(ids, groups) if stock else None
        if stock and ready is None:
            del self._stocks[tape.symbol]
        for variant, connections in listeners.items():
            if stock and ready is not None and variant == stock.variant:
                parts = ready
            else:
                parts = frames(self._dialect, variant, tape, ids, groups)
            time = self._dialect.time_text(variant, time_us).encode()
            data = b"".join(parts).replace(self._dialect.placeholder(variant).encode(), time)
            for connection in connections:
                connection.push(data)

    def _send_spoiled(
        self, tape: Tape, ids: range, listeners: Mapping[str, Sequence[Listener]]
    ) -> Sequence[str]:
        self._stocks.pop(tape.symbol, None)
        if not listeners:
            return [UNHEARD] * len(ids)
        arranged = tape.arrange(ids, self._venue.faults)
        rendered = self._spoiler.render(tape, arranged.ids, list(listeners))
        for variant, connections in listeners.items():
            for connection in connections:
                connection.push(rendered[variant])
        return arranged.fates


def sent(fates: Mapping[str, int]) -> int:
    """How many trades were sent, at least once each."""
    return sum(fates.get(fate, 0) for fate in (SENT, REPEATED, REORDERED))
