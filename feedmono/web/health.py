"""Whether an instance is alive, and whether it is ready: the rules, and since when they fail.

*Alive*: the supervisor renews its status. *Ready*: each enabled exchange is connected with all the
symbols that it serves, the sink acknowledges what it gets, and each symbol trades at its usual
pace. A symbol's pace is learned from ten-second slots of the last hour. Of a symbol that trades
at random, the share of the slots without a trade tells the usual time between two trades; a burst
of trades, such as one large order makes, fills one slot only and does not spoil it. A symbol that
was seen to trade too little is not judged, and what happens while the exchange is not connected
says nothing about a symbol's pace.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import NamedTuple

from feedmono.config import Config
from feedmono.counters import Field
from feedmono.web.observer import ExchangeView, SymbolView, View

SNAPSHOT_LIMIT_S = 10.0
"""A status that is older tells that the supervisor hangs."""
STALE_FROM_S = 30.0
"""No symbol is stale before."""
STALE_GAPS = 20
"""A symbol is stale when nothing came for so many of its usual gaps."""
SINK_PATIENCE_S = 30.0
"""How long something may wait in the ring while nothing is acknowledged; on top of
``files.sync_interval``."""
SLOT_S = 10.0
SLOTS = 360
"""What is remembered of a symbol: an hour."""

# To judge a symbol, it must have been watched for a minute, and seen to trade in three slots.
_LEAST_SLOTS = 6
_LEAST_ACTIVE = 3
_MASK = (1 << SLOTS) - 1
_CONNECTED = ("flowing", "partial")
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the instance is not ready."""

    exchange: str
    """Empty if it concerns all."""
    kind: str
    """``supervisor``, ``state``, ``symbols``, ``sink``, ``stale``."""
    text: str
    for_s: float
    """How long it has been so."""


@dataclass(frozen=True, slots=True)
class SymbolHealth:
    """How a symbol trades."""

    silent_s: float
    """How long no new trade of it was seen, at most since the status process began."""
    usual_gap_s: float | None
    """The usual time between two trades; None: too little is known to judge it."""
    limit_s: float | None
    """How long it may be silent."""

    @property
    def stale(self) -> bool:
        return self.limit_s is not None and self.silent_s > self.limit_s


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict on one look."""

    at_s: float
    """Unix time."""
    dead: Reason | None
    """Why it is not alive."""
    reasons: tuple[Reason, ...]
    """Why it is not ready."""
    notes: tuple[str, ...]
    """What an operator should know besides."""
    symbols: Mapping[str, Mapping[str, SymbolHealth]]
    """By exchange and symbol."""

    def ready(self, exchange: str) -> bool:
        return not any(reason.exchange in ("", exchange) for reason in self.reasons)


@dataclass(slots=True)
class _Pace:
    """What is remembered of a symbol's trading."""

    newest: tuple[int, int]
    changed_s: float
    slots: int = 0
    """A bit each, the newest lowest: whether there was a trade in it. The newest one had: the
    silence that is being judged says nothing about the usual pace."""
    watched: int = 0
    """How many slots these are."""
    silent: int = 0
    """How many there were since, without a trade."""
    active: bool = False
    """Whether there was a trade in the present slot."""

    def see(self, symbol: SymbolView, now_s: float) -> None:
        if symbol.newest != self.newest:
            self.newest, self.changed_s, self.active = symbol.newest, now_s, True

    def end_slot(self) -> None:
        if not self.active:
            self.silent = min(SLOTS, self.silent + 1)
            return
        self.slots = (self.slots << self.silent + 1 | 1) & _MASK
        self.watched = min(SLOTS, self.watched + self.silent + 1)
        self.silent, self.active = 0, False

    def health(self, now_s: float) -> SymbolHealth:
        gap_s = usual_gap_s(self.slots.bit_count(), self.watched)
        limit_s = None if gap_s is None else max(STALE_FROM_S, STALE_GAPS * gap_s)
        return SymbolHealth(now_s - self.changed_s, gap_s, limit_s)


def usual_gap_s(active: int, slots: int) -> float | None:
    """The usual time between two trades of a symbol that traded in *active* of *slots* slots;
    None if that is too little to tell.

    Trades at random, λ a second, leave a share of e^(-λ · slot) of the slots empty. The half slot
    that is added keeps a symbol that filled every one of a few slots from looking infinitely fast.
    """
    if slots < _LEAST_SLOTS or active < _LEAST_ACTIVE:
        return None
    return SLOT_S / math.log(slots / (slots - active + 0.5))


@dataclass(slots=True)
class _Watched:
    """What is remembered of an exchange."""

    paces: dict[str, _Pace] = field(default_factory=dict)
    handled: int = 0
    """What the sink has dealt with."""
    handled_s: float = 0.0
    """When that moved, or nothing waited, the last time."""

    def see(self, view: ExchangeView, now_s: float) -> None:
        handled = sum(map(view.count, _HANDLED))
        waits = view.status is not None and view.status.ring_used_bytes > 0
        if handled != self.handled or not waits:
            self.handled, self.handled_s = handled, now_s
        for name, symbol in view.symbols.items():
            pace = self.paces.get(name)
            if pace is None:
                self.paces[name] = _Pace(symbol.newest, now_s)
            else:
                pace.see(symbol, now_s)

    def end_slot(self) -> None:
        for pace in self.paces.values():
            pace.end_slot()

    def health(self, now_s: float) -> dict[str, SymbolHealth]:
        return {name: pace.health(now_s) for name, pace in self.paces.items()}


_HANDLED = (Field.DELIVERED_TRADES, Field.DUPLICATES, Field.DEAD_LETTERS)


class _Found(NamedTuple):
    """A reason before it is known how long it holds."""

    exchange: str
    kind: str
    text: str
    for_s: float | None = None
    """None: since it was found first."""


class Judge:
    """Judges one look after the other; what it remembers between them is an hour of paces and
    since when each reason holds."""

    def __init__(self, config: Config) -> None:
        self._patience_s = SINK_PATIENCE_S + config.files.sync_interval_s
        self._watched = {e.name: _Watched() for e in config.enabled_exchanges}
        self._slot_end_s: float | None = None
        self._since_s: dict[tuple[str, str], float] = {}

    def due(self, now_s: float) -> bool:
        """Whether it must have a look, because a slot ends."""
        return self._slot_end_s is None or now_s >= self._slot_end_s

    def judge(self, view: View) -> Health:
        """The verdict on *view*; views come in the order of their time."""
        now_s = view.monotonic_s
        dead = self._dead(view)
        ends = self.due(now_s)
        symbols: dict[str, Mapping[str, SymbolHealth]] = {}
        found: list[_Found] = []
        if dead is not None:
            found.append(_Found("", dead.kind, dead.text, dead.for_s))
        for name, exchange in view.exchanges.items():
            watched = self._watched[name]
            watched.see(exchange, now_s)
            if ends and dead is None and self._slot_end_s is not None and _flows(exchange):
                watched.end_slot()
            symbols[name] = watched.health(now_s)
            if dead is None:
                stalled_s = now_s - watched.handled_s
                found += self._reasons(name, exchange, symbols[name], stalled_s)
        if ends:
            self._slot_end_s = now_s + SLOT_S
        notes = tuple(_notes(view))
        return Health(view.at_s, dead, self._dated(found, now_s), notes, symbols)

    def _dead(self, view: View) -> Reason | None:
        if view.snapshot is None:
            return Reason("", "supervisor", view.trouble, view.snapshot_age_s)
        if view.snapshot_age_s < SNAPSHOT_LIMIT_S:
            return None
        text = "the supervisor does not renew its status: it hangs, or can't write to state_dir"
        return Reason("", "supervisor", text, view.snapshot_age_s)

    def _reasons(
        self,
        name: str,
        view: ExchangeView,
        symbols: Mapping[str, SymbolHealth],
        stalled_s: float,
    ) -> Iterator[_Found]:
        status = view.status
        if status is None:
            yield _Found(name, "state", "the supervisor does not run it")
            return
        if status.state not in _CONNECTED:
            yield _Found(name, "state", _with_detail(status.state, status.detail))
        elif (missing := status.symbols - len(status.refused) - status.subscribed) > 0:
            text = f"{missing} of {status.symbols} symbols are not subscribed"
            yield _Found(name, "symbols", _with_detail(text, status.detail))
        elif not status.subscribed:
            yield _Found(name, "symbols", "the exchange refuses all symbols")
        if status.state != "waiting" and stalled_s > self._patience_s:
            text = "the sink acknowledges nothing, and the ring holds what waits for it"
            yield _Found(name, "sink", text, stalled_s)
        if status.state in _CONNECTED:
            stale = {s: health for s, health in symbols.items() if health.stale}
            if stale:
                longest_s = max(health.silent_s for health in stale.values())
                yield _Found(name, "stale", _stale_text(stale), longest_s)

    def _dated(self, found: Sequence[_Found], now_s: float) -> tuple[Reason, ...]:
        """The reasons, and how long each has been one."""
        before_s = self._since_s
        self._since_s = {f[:2]: before_s.get(f[:2], now_s) for f in found}
        return tuple(
            Reason(
                reason.exchange,
                reason.kind,
                reason.text,
                now_s - self._since_s[reason[:2]] if reason.for_s is None else reason.for_s,
            )
            for reason in found
        )


def _flows(view: ExchangeView) -> bool:
    """Whether what a symbol does now is its own doing."""
    return view.status is not None and view.status.state in _CONNECTED


def _with_detail(text: str, detail: str) -> str:
    return f"{text}: {detail}" if detail else text


def _stale_text(stale: Mapping[str, SymbolHealth]) -> str:
    """What is silent: the longest beyond their limits first."""
    worst = sorted(stale, key=lambda s: stale[s].silent_s / (stale[s].limit_s or 1), reverse=True)
    told = [
        f"{symbol} (usually each {_seconds(stale[symbol].usual_gap_s or 0.0)}, "
        f"borne for {_seconds(stale[symbol].limit_s or 0.0)})"
        for symbol in worst[:_NAMED]
    ]
    more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    return f"no trade of {', '.join(told)}{more}"


def _seconds(duration_s: float) -> str:
    return f"{duration_s:.1f} s" if duration_s < 10 else f"{duration_s:.0f} s"


def _notes(view: View) -> Iterator[str]:
    """What does not make it unready, and yet wants to be known."""
    for name, exchange in view.exchanges.items():
        if exchange.status is not None:
            for symbol, why in exchange.status.refused.items():
                yield f"{name}: {symbol} is refused: {why}"
        if exchange.ledger_trouble:
            yield f"{name}: how fresh its symbols are is not known: {exchange.ledger_trouble}"
    if view.snapshot is not None:
        for alarm in view.snapshot.alarms:
            yield f"{alarm.exchange}: {alarm.text}" if alarm.exchange else alarm.text


# --- as text and as JSON


def alive_text(health: Health) -> str:
    if health.dead is None:
        return "alive\n"
    return f"not alive, for {_seconds(health.dead.for_s)}: {health.dead.text}\n"


def alive_json(health: Health) -> str:
    reasons = [] if health.dead is None else [_entry(health.dead, health.at_s)]
    return json.dumps({"alive": health.dead is None, "reasons": reasons}, ensure_ascii=False)


def ready_text(health: Health) -> str:
    """The verdict, then a line a reason, then a line a note."""
    lines = ["not ready" if health.reasons else "ready"]
    for reason in health.reasons:
        where = f"{reason.exchange}: " if reason.exchange else ""
        since = _iso(health.at_s - reason.for_s)
        lines.append(f"{where}{reason.text}, for {_seconds(reason.for_s)} (since {since})")
    lines += [f"note: {note}" for note in health.notes]
    return "\n".join(lines) + "\n"


def ready_json(health: Health) -> str:
    content = {
        "ready": not health.reasons,
        "exchanges": {name: health.ready(name) for name in health.symbols},
        "reasons": [_entry(reason, health.at_s) for reason in health.reasons],
        "notes": health.notes,
    }
    return json.dumps(content, ensure_ascii=False)


def _entry(reason: Reason, at_s: float) -> dict[str, object]:
    return {
        "exchange": reason.exchange,
        "kind": reason.kind,
        "text": reason.text,
        "since": _iso(at_s - reason.for_s),
        "for_s": round(reason.for_s, 1),
    }


def _iso(at_s: float) -> str:
    at = datetime.fromtimestamp(at_s, tz=timezone.utc)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
