"""``feedmono ledger``: what the ledgers hold, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from feedmono.commands.columns import Column, columns_fit, counted, span
from feedmono.config import Config
from feedmono.delivery import ledger_file
from feedmono.delivery.holes import Hole, State
from feedmono.delivery.ids import Epoch, Ids
from feedmono.delivery.ledger_file import Content, FillRow
from feedmono.workers import Shared

_NEWEST = 20
"""How many ranges of a kind are shown."""
_MAX_HOLES = 100
"""How many open holes are shown."""
_MAX_PLAIN = 100_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_STATES = {State.OPEN: "open", State.ABSENT: "absent", State.BEYOND: "beyond"}
_WHY = {
    "absent": "the exchange does not have them",
    "beyond": "not asked for: too old, or too many",
    "folded": "in holes too many to be remembered one by one",
}


@dataclass(frozen=True, slots=True)
class Look:
    """All that one exchange's ledger holds."""

    exchange: str
    content: Content
    epochs: Mapping[str, Sequence[Epoch]]
    """Those that have ended, in their order, by symbol; symbols that have only one are left out."""
    fills: Sequence[FillRow]
    """The newest first."""

    def only(self, symbol: str) -> Look:
        """The same for one symbol; it must be there."""
        symbols = {symbol: self.content.symbols[symbol]}
        epochs = {symbol: self.epochs[symbol]} if symbol in self.epochs else {}
        fills = [fill for fill in self.fills if fill.symbol == symbol]
        return Look(self.exchange, self.content._replace(symbols=symbols), epochs, fills)


class Sums(NamedTuple):
    """What the ids of a symbol come to."""

    trades: int
    """Delivered."""
    holes: Mapping[State, int]
    missing: Mapping[State, int]
    """How many ids the holes of a state have."""

    @classmethod
    def of(cls, ids: Ids) -> Sums:
        holes = {state: sum(h.state is state for h in ids.holes) for state in State}
        missing = {state: ids.missing(state) for state in State}
        trades = ids.last_id - ids.first_id + 1 - sum(missing.values()) - ids.folded
        return cls(trades, holes, missing)


def look(config: Config, exchange: str, fills: int = ledger_file.MAX_FILLS) -> Look | None:
    """What the ledger of *exchange* holds now, with so many *fills* at most; None if there is none.

    :raises LedgerError: it can't be read.
    """
    path = Shared.of(config, exchange).ledger
    if (content := ledger_file.read(path)) is None:
        return None
    epochs = {
        s: ledger_file.read_epochs(path, s) for s, ids in content.symbols.items() if ids.epoch
    }
    return Look(
        exchange, content, epochs, ledger_file.read_fills(path, count=fills) if fills else ()
    )


def no_ledger(config: Config, exchanges: str) -> str:
    """What to say where `look` finds none."""
    return (
        f"no ledger of {exchanges} in {config.state_dir}: nothing was delivered yet, or another "
        "instance is meant, which is looked at with its own FEEDMONO_STATE_DIR"
    )


# --- JSON


def to_json(looks: Sequence[Look]) -> str:
    """All of it as one object: times as ISO 8601, ids as numbers."""
    content = {
        "complete": not any(row.sums.holes[State.OPEN] for row in _rows(looks)),
        "exchanges": [
            {
                "name": look.exchange,
                "committed": iso(look.content.committed_us),
                "sequence": look.content.sequence,
                "symbols": [
                    _symbol(look, symbol, ids) for symbol, ids in look.content.symbols.items()
                ],
            }
            for look in looks
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=2)


def _symbol(look: Look, symbol: str, ids: Ids) -> dict[str, object]:
    sums = Sums.of(ids)
    return {
        "symbol": symbol,
        "epoch": ids.epoch,
        "epoch_began": iso(ids.epoch_us),
        "first_id": ids.first_id,
        "last_id": ids.last_id,
        "trades": sums.trades,
        "found": {"holes": ids.found, "ids": ids.found_trades},
        "backfilled": ids.backfilled,
        "late": ids.late,
        **{
            name: {"holes": sums.holes[state], "ids": sums.missing[state]}
            for state, name in _STATES.items()
        },
        "folded": {"ids": ids.folded, "until_id": ids.folded_until},
        "newest": iso(ids.newest_us),
        "sequence": ids.sequence,
        "islands": list(ids.islands),
        "holes": [_hole(hole) for hole in ids.holes],
        "fills": [_fill(fill) for fill in look.fills if fill.symbol == symbol],
        "epochs": [_epoch(epoch) for epoch in look.epochs.get(symbol, ())],
    }


def _hole(hole: Hole) -> dict[str, object]:
    return {
        "first_id": hole.first_id,
        "last_id": hole.last_id,
        "ids": hole.size,
        "state": _STATES[hole.state],
        "cause": hole.cause,
        "opened": iso(hole.opened_us),
        "tries": hole.tries,
    }


def _fill(fill: FillRow) -> dict[str, object]:
    return {
        "first_id": fill.first_id,
        "last_id": fill.last_id,
        "cause": fill.cause,
        "opened": iso(fill.opened_us),
        "filled": iso(fill.filled_us),
        "origin": fill.origin,
    }


def _epoch(epoch: Epoch) -> dict[str, object]:
    return {
        "epoch": epoch.epoch,
        "epoch_began": iso(epoch.epoch_us),
        "first_id": epoch.first_id,
        "last_id": epoch.last_id,
        "missing": epoch.missing,
    }


def iso(time_us: int) -> str | None:
    """Unix time in microseconds as ISO 8601; None for none."""
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat() if time_us > 0 else None


# --- text


def render(looks: Sequence[Look], width: int | None = None) -> str:
    """A row per symbol, and below whether everything is complete."""
    rows = _rows(looks)
    if not rows:
        return "no trade was delivered yet"
    columns = [
        Column("exchange", [row.exchange for row in rows], left=True),
        Column("symbol", [row.symbol for row in rows], left=True),
        Column("from id", [f"{row.ids.first_id:,}" for row in rows], rank=1),
        Column("to id", [f"{row.ids.last_id:,}" for row in rows]),
        Column("trades", [_count(row.sums.trades) for row in rows]),
        Column("found", [_holes(row.ids.found, row.ids.found_trades) for row in rows], rank=5),
        Column("backfilled", [f"{row.ids.backfilled:,}" for row in rows], rank=2),
        Column("late", [f"{row.ids.late:,}" for row in rows], rank=6),
        Column("absent", [f"{row.sums.missing[State.ABSENT]:,}" for row in rows], rank=3),
        Column("beyond", [f"{row.sums.missing[State.BEYOND]:,}" for row in rows], rank=4),
        Column("open", [row.open for row in rows]),
        Column("newest", [_moment(row.ids.newest_us) for row in rows]),
    ]
    return "\n".join([columns_fit(columns, width), "", *_verdict(rows)])


class _Row(NamedTuple):
    """A symbol of an exchange."""

    exchange: str
    symbol: str
    ids: Ids
    sums: Sums

    @property
    def open(self) -> str:
        return _holes(self.sums.holes[State.OPEN], self.sums.missing[State.OPEN])

    @property
    def gone(self) -> Mapping[str, int]:
        """How many ids are not asked for, by the kinds of `_WHY`."""
        missing = self.sums.missing
        return {
            "absent": missing[State.ABSENT],
            "beyond": missing[State.BEYOND],
            "folded": self.ids.folded,
        }


def _rows(looks: Sequence[Look]) -> list[_Row]:
    return [
        _Row(look.exchange, symbol, ids, Sums.of(ids))
        for look in looks
        for symbol, ids in look.content.symbols.items()
    ]


def _verdict(rows: Sequence[_Row]) -> Iterator[str]:
    if incomplete := [row for row in rows if row.sums.holes[State.OPEN]]:
        yield f"not complete: {len(incomplete)} of {counted(len(rows), 'symbol')} with open holes"
        for row in incomplete:
            holes = counted(row.sums.holes[State.OPEN], "hole")
            ids = counted(row.sums.missing[State.OPEN], "id")
            yield f"  {row.exchange} {row.symbol}: {holes} open, {ids}"
    else:
        yield "complete: no hole open"
    for kind, why in _WHY.items():
        if gone := [row for row in rows if row.gone[kind]]:
            yield f"{kind} ({why}):"
            for row in gone:
                yield f"  {row.exchange} {row.symbol}: {counted(row.gone[kind], 'id')}"


def render_symbol(look: Look, symbol: str, width: int | None = None) -> str:
    """The row of one symbol, and what it is made of."""
    ids = look.content.symbols[symbol]
    parts = [render([look.only(symbol)], width)]
    for state, title in _STATES.items():
        if holes := [hole for hole in ids.holes if hole.state is state]:
            limit = _MAX_HOLES if state is State.OPEN else _NEWEST
            parts.append(_holes_table(f"{title} holes", holes, limit, width))
    fills = [fill for fill in look.fills if fill.symbol == symbol]
    if newest := fills[:_NEWEST]:
        columns = [
            Column("newest fills", [span(f.first_id, f.last_id) for f in newest], left=True),
            Column("ids", [f"{f.last_id - f.first_id + 1:,}" for f in newest]),
            Column("cause", [f.cause for f in newest], left=True),
            Column("by", [f.origin for f in newest], left=True),
            Column("filled", [_moment(f.filled_us, whole=True) for f in newest], left=True),
            Column("after", [_lasted(f.filled_us - f.opened_us) for f in newest]),
        ]
        parts += [columns_fit(columns, width) + _rest(len(fills) - len(newest), "older")]
    epochs = list(look.epochs.get(symbol, ()))[::-1]
    if epochs:
        shown = epochs[:_NEWEST]
        columns = [
            Column("former epochs", [str(e.epoch) for e in shown], left=True),
            Column("from id", [f"{e.first_id:,}" for e in shown]),
            Column("to id", [f"{e.last_id:,}" for e in shown]),
            Column("missing", [f"{e.missing:,}" for e in shown]),
            Column("began", [_moment(e.epoch_us, whole=True) for e in shown], left=True),
        ]
        parts += [columns_fit(columns, width) + _rest(len(epochs) - len(shown), "older")]
    if ids.islands:
        islands = list(ids.islands)[::-1]
        lines = [f"  {island:,}" for island in islands[:_NEWEST]]
        parts += ["\n".join(["ids far from the others, taken for themselves", *lines])]
        parts[-1] += _rest(len(islands) - len(lines), "older")
    return "\n\n".join(parts)


def _holes_table(title: str, holes: Sequence[Hole], limit: int, width: int | None) -> str:
    """The newest ones first."""
    shown, older = holes[: -limit - 1 : -1], holes[:-limit]
    columns = [
        Column(title, [span(hole.first_id, hole.last_id) for hole in shown], left=True),
        Column("ids", [f"{hole.size:,}" for hole in shown]),
        Column("cause", [hole.cause for hole in shown], left=True),
        Column("since", [_moment(hole.opened_us, whole=True) for hole in shown], left=True),
        Column("tries", [f"{hole.tries:,}" for hole in shown]),
    ]
    rest = _rest(len(older), f"older, {counted(sum(hole.size for hole in older), 'id')}")
    return columns_fit(columns, width) + rest


def _rest(count: int, what: str) -> str:
    return f"\nand {count:,} {what}: all with --format json" if count else ""


def _holes(holes: int, ids: int) -> str:
    return f"{holes:,}/{ids:,}" if holes else "0"


def _count(number: int) -> str:
    return f"{number:,}" if number < _MAX_PLAIN else f"{number / 1e6:,.1f} M"


def _moment(time_us: int, *, whole: bool = False) -> str:
    """UTC; in short, the time of today or another day's date."""
    if time_us <= 0:
        return "-"
    moment = _EPOCH + timedelta(microseconds=time_us)
    if whole:
        return f"{moment:%Y-%m-%d %H:%M:%S}"
    today = moment.date() == datetime.now(timezone.utc).date()
    return f"{moment:%H:%M:%S}" if today else f"{moment:%Y-%m-%d}"


def _lasted(duration_us: int) -> str:
    seconds = duration_us / 1e6
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
