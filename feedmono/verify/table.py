"""What ``feedmono verify`` shows: a table, one line for all, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from feedmono.commands.columns import Column, columns_fit, counted, span
from feedmono.verify.findings import (
    BEYOND,
    DOUBLED,
    INVALID,
    KINDS,
    MAX_NAMED,
    MISSING,
    RAW_DOUBLED,
    RAW_INVALID,
    RAW_MISSING,
    UNKNOWN,
    Found,
    Result,
)

_COLUMNS = {
    "missing": (MISSING,),
    "doubled": (DOUBLED,),
    "unknown": (UNKNOWN, BEYOND),
    "invalid": (INVALID,),
    "raw": (RAW_MISSING, RAW_DOUBLED, RAW_INVALID),
}
_NOTES = (
    ("in_flight", "trade", "in flight: newer than the ledger, not judged"),
    ("removed", "id", "removed with the sink's beginning"),
    ("raw_removed", "trade", "whose frame was removed with the sink's beginning"),
    ("folded", "id", "not there: the ledger has folded as many missing ones"),
    ("forgotten", "trade", "from epochs that the ledger has forgotten, not judged"),
)


def summary(results: Sequence[Result]) -> str:
    """All in one line."""
    counts = dict.fromkeys(KINDS, 0)
    for result in results:
        for found in result.found:
            counts[found.kind] += found.count
    symbols = [count for result in results for count in result.symbols]
    judged = sum(count.trades - count.in_flight - count.forgotten for count in symbols)
    read = f"{counted(judged, 'trade')} of {counted(len(symbols), 'symbol')}"
    if any(counts.values()):
        return f"found in {read}: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n)
    return f"verified: {read}, nothing missing, doubled, unknown or invalid, every frame there"


def to_json(results: Sequence[Result]) -> str:
    """All of it as one object."""
    content = {
        "ok": not any(result.found for result in results),
        "summary": summary(results),
        "exchanges": [
            {
                "name": result.exchange,
                "trades": result.trades,
                "frames": result.frames,
                "dead_letters": result.dead_letters,
                "symbols": [asdict(count) for count in result.symbols],
                "found": [
                    {
                        "kind": found.kind,
                        "symbol": found.symbol or None,
                        "count": found.count,
                        "named": [named._asdict() for named in found.named],
                    }
                    for found in result.found
                ],
            }
            for result in results
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=2)


def render(results: Sequence[Result], width: int | None = None) -> str:
    """A row per symbol, below it what was found, and all in one line at last."""
    parts = [_table(results, width)] if any(result.symbols for result in results) else []
    notes = [f"{r.exchange}: {note}" for r in results for note in _notes(r)]
    if notes:
        parts.append("\n".join(notes))
    for kind, meaning in KINDS.items():
        lines = [line for r in results for f in r.found if f.kind == kind for line in _lines(r, f)]
        if lines:
            parts.append("\n".join([f"{kind} ({meaning}):", *lines]))
    return "\n\n".join([*parts, summary(results)])


def _table(results: Sequence[Result], width: int | None) -> str:
    rows = [(result, count) for result in results for count in result.symbols]
    columns = [
        Column("exchange", [result.exchange for result, _ in rows], left=True),
        Column("symbol", [count.symbol for _, count in rows], left=True),
        Column("from id", [_id(count.first_id) for _, count in rows], rank=1),
        Column("to id", [_id(count.last_id) for _, count in rows], rank=2),
        Column("trades", [f"{count.trades:,}" for _, count in rows]),
    ]
    for title, kinds in _COLUMNS.items():
        cells = [
            f"{sum(f.count for f in r.found if f.symbol == c.symbol and f.kind in kinds):,}"
            for r, c in rows
        ]
        columns.append(Column(title, cells))
    return columns_fit(columns, width)


def _notes(result: Result) -> Iterator[str]:
    """What is worth knowing and no finding."""
    yield counted(result.frames, "frame")
    if result.dead_letters:
        yield counted(result.dead_letters, "dead letter")
    for name, noun, what in _NOTES:
        numbers = [number for c in result.symbols if (number := getattr(c, name))]
        if numbers:
            yield f"{counted(sum(numbers), noun)} of {counted(len(numbers), 'symbol')} {what}"


def _lines(result: Result, found: Found) -> Iterator[str]:
    yield f"  {result.exchange} {found.symbol or '(symbol not known)'}: {found.count:,}"
    for first_id, last_id, *where in found.named:
        ids = "" if first_id is None or last_id is None else span(first_id, last_id)
        yield "    " + ", ".join(part for part in (ids, *where) if part)
    if len(found.named) == MAX_NAMED and found.count > MAX_NAMED:
        yield "    …"


def _id(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
