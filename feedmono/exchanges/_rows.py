"""Lists of trades, read row by row: the good ones, and why the others are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from feedmono.exchanges.base import Decoded, Undecodable
from feedmono.trade import Trade

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What reading JSON of any shape may raise, and what a row that is no trade does."""

_MAX_PROBLEMS = 20


def read_rows(
    rows: Sequence[msgspec.Raw],
    read: Callable[[msgspec.Raw], Trade],
    origin: int,
    flaws: Sequence[str] = (),
) -> Decoded:
    """What *read* makes of the rows of a frame or a page.

    :param read: a trade of a row; raises one of `UNREADABLE` where it is none.
    :param flaws: what is wrong beside the rows.
    :raises Undecodable: something is wrong, and no row is a trade.
    """
    trades: list[Trade] = []
    problems: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            trades.append(read(row))
        except UNREADABLE as error:
            problems.append(f"trade {number} of {len(rows)}: {str(error)[:200]}")
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [f"and {len(problems) - _MAX_PROBLEMS} more"]
    problems[:0] = flaws
    if problems and not trades:
        raise Undecodable("; ".join(problems))
    return Decoded(tuple(trades), origin, tuple(problems))
