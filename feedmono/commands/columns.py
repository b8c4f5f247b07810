"""Text in columns that fit the terminal, and numbers as people read them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """Of a table."""

    title: str
    cells: Sequence[str]
    left: bool = False
    rank: int = 0
    """Where there is no room, the column with the highest is left out first, and those with 0
    never."""


def columns_fit(columns: Sequence[Column], width: int | None = None) -> str:
    """A table of the columns that there is room for; *width* in characters, default: the
    terminal's, and 80 where there is none."""
    if width is None:
        width = shutil.get_terminal_size().columns
    shown = list(columns)
    sizes = {c.title: max(map(len, (c.title, *c.cells))) for c in columns}
    while sum(sizes[c.title] + 1 for c in shown) - 1 > width and any(c.rank for c in shown):
        shown.remove(max(shown, key=lambda c: c.rank))
    lines = zip(*((c.title, *c.cells) for c in shown), strict=True)
    return "\n".join(
        " ".join(
            cell.ljust(sizes[c.title]) if c.left else cell.rjust(sizes[c.title])
            for c, cell in zip(shown, line, strict=True)
        ).rstrip()
        for line in lines
    )


def span(first_id: int, last_id: int) -> str:
    """Ids from one to another, as text."""
    return f"{first_id:,}" if first_id == last_id else f"{first_id:,} to {last_id:,}"


def counted(count: int, noun: str) -> str:
    """``1 trade``, ``1,000 trades``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
