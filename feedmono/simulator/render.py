"""Trades → bytes for the wire: beforehand, as it goes, and with faults on single frames."""

from __future__ import annotations

from collections.abc import Sequence

from feedmono.simulator.base import Dialect, Print
from feedmono.simulator.faults import Faults
from feedmono.simulator.garbage import garbage
from feedmono.simulator.market import Figures
from feedmono.simulator.tape import MAX_RUN, Tape
from feedmono.simulator.websocket import TEXT, fragmented, frame


def frames(
    dialect: Dialect, variant: str, tape: Tape, ids: range, groups: Sequence[int]
) -> list[bytes]:
    """One frame for each group of these trades, NUL characters where the time belongs."""
    time = dialect.placeholder(variant)
    symbol = tape.symbol
    figures = tape.source.figures_of(ids)
    render = dialect.render
    if len(groups) == len(ids):
        return [
            frame(TEXT, render(variant, symbol, (Print(i, *f, time),)).encode())
            for i, f in zip(ids, figures, strict=True)
        ]
    made = []
    start = 0
    for size in groups:
        prints = [Print(ids[n], *figures[n], time) for n in range(start, start + size)]
        made.append(frame(TEXT, render(variant, symbol, prints).encode()))
        start += size
    return made


class Stock:
    """One tape's next frames, rendered beforehand for one variant."""

    def __init__(self, dialect: Dialect, tape: Tape, count: int) -> None:
        """Renders at least *count* trades, or all that the tape has left."""
        self.variant = dialect.default_variant
        self.frames: list[bytes] = []
        self._at = 0
        self._next_id = first = tape.next_id
        while first - self._next_id < count:
            groups = tape.groups(min(MAX_RUN, count - (first - self._next_id)), first)
            if not groups:
                break
            ids = range(first, first + sum(groups))
            self.frames += frames(dialect, self.variant, tape, ids, groups)
            first = ids.stop
        self._end_id = first

    def take(self, ids: range, groups: Sequence[int]) -> list[bytes] | None:
        """The frames of the next groups; None once there are not enough of them left."""
        if ids.start != self._next_id or ids.stop > self._end_id:
            return None
        self._next_id = ids.stop
        start, self._at = self._at, self._at + len(groups)
        taken = self.frames[start : self._at]
        assert len(taken) == len(groups)
        return taken


class Spoiler:
    """Renders trades one by one, with the faults that touch single frames."""

    def __init__(self, dialect: Dialect, faults: Faults) -> None:
        self._dialect = dialect
        self._faults = faults

    def render(self, tape: Tape, ids: Sequence[int], variants: Sequence[str]) -> dict[str, bytes]:
        """These trades, each at its own time, for each variant; the same faults for all."""
        groups = self._cut(tape, ids)
        plans = [self._plan(tape.symbol, group[0]) for group in groups]
        made: dict[str, bytes] = {}
        for variant in variants:
            parts: list[bytes] = []
            for group, plan in zip(groups, plans, strict=True):
                prints = [self._print(variant, tape, trade_id) for trade_id in group]
                text = self._dialect.render(variant, tape.symbol, prints)
                parts += self._spoil(text, f"{tape.symbol}/{group[0]}", plan)
            made[variant] = b"".join(parts)
        return made

    def _cut(self, tape: Tape, ids: Sequence[int]) -> list[Sequence[int]]:
        groups: list[Sequence[int]] = []
        start = 0
        while start < len(ids):
            size = tape.group_size(ids[start])
            groups.append(ids[start : start + size])
            start += size
        return groups

    def _plan(self, symbol: str, first_id: int) -> frozenset[str]:
        kinds = ("garbage", "oversized", "fragmented")
        key = f"{symbol}/{first_id}"
        return frozenset(k for k in kinds if self._faults.happens(k, key))

    def _print(self, variant: str, tape: Tape, trade_id: int) -> Print:
        figures: Figures = tape.source.figures_of(range(trade_id, trade_id + 1))[0]
        time = self._dialect.time_text(variant, tape.time_ns(trade_id) // 1000)
        return Print(trade_id, *figures, time)

    def _spoil(self, text: str, key: str, plan: frozenset[str]) -> list[bytes]:
        parts = []
        if "garbage" in plan:
            rng = self._faults.generator(f"garbage/{key}")
            parts.append(garbage(text, self._dialect.essential, rng))
        if "oversized" in plan:
            parts.append(frame(TEXT, b'"%s"' % (b"x" * self._faults.oversized_bytes)))
        if "fragmented" in plan:
            parts.append(fragmented(text.encode(), key.encode()[:125]))
        else:
            parts.append(frame(TEXT, text.encode()))
        return parts
