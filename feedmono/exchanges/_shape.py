"""How an exchange's frames always look, told to the native reader.

An exchange reads its frames in plain Python, and needs nothing of this file. Where reading them
costs too much, it may describe the usual frame by a `Shape`; where the native extension is built,
such frames are then read in C, and all others by the exchange's own Python as before.

Keys that a shape does not name may be there or not, in any order, with any value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from feedmono import native
from feedmono.exchanges.base import Decoded
from feedmono.trade import MAX_DECIMAL_CHARS, MAX_SYMBOL_CHARS, MAX_TIME_US, STREAM, Trade

# Times are milliseconds or microseconds. 10^14 ms is the year 5138, 10^14 µs is 1973: the
# magnitude tells.
FIRST_MICROSECOND = 10**14

_FIELDS = {name: number for number, name in enumerate(Trade._fields)}
_NOWHERE = -1
_ORIGIN = -2
_MOST_FIELDS = 2


@dataclass(frozen=True, slots=True)
class Key:
    """How the value of a key is written, and what it tells."""

    kind: str
    """One of the kinds that ``trades.c`` reads."""
    fields: tuple[str, ...] = ()
    """Which fields of a trade it gives (or ``origin``, which is the frame's)."""
    choices: Mapping[str, tuple[object, ...]] | None = None
    """The values that may stand there, as JSON, and what each means for the fields."""
    required: bool = True

    def plan(self, name: str) -> tuple[object, ...]:
        """What the native reader is told of it."""
        numbers = [_ORIGIN if field == "origin" else _FIELDS[field] for field in self.fields]
        unused = _MOST_FIELDS - len(numbers)
        targets = (*numbers, *[_NOWHERE] * unused)
        choices = tuple(
            (text.encode("ascii"), *values, *[None] * unused)
            for text, values in (self.choices or {}).items()
        )
        return (name.encode("ascii"), self.kind, self.required, targets, choices)


def one_of(meanings: Mapping[object, Mapping[str, object]]) -> Key:
    """One of these JSON values, and the fields (two at most) that each gives: the same for all."""
    fields = tuple(next(iter(meanings.values())))
    choices = {
        json.dumps(value): tuple(meaning[field] for field in fields)
        for value, meaning in meanings.items()
    }
    return Key("choice", fields, choices)


def only(value: object) -> Key:
    """Always this JSON value."""
    return one_of({value: {}})


SYMBOL = Key("symbol", ("symbol",))
TRADE_ID = Key("identity", ("trade_id",))
PRICE = Key("decimal", ("price",))
QUANTITY = Key("decimal", ("quantity",))
QUOTED_PRICE = Key("quoted", ("price",))
"""A decimal number in a JSON string."""
QUOTED_QUANTITY = Key("quoted", ("quantity",))
"""A decimal number in a JSON string."""
UNIX_TIME = Key("unix time", ("time_us",))
"""A number of milliseconds, or of microseconds: see `FIRST_MICROSECOND`."""
RFC_3339_TIME = Key("rfc 3339", ("time_us",))
"""``2024-05-27T12:33:10.826003Z``."""
ABSENT = Key("choice", (), {"null": ()}, required=False)
"""Not there, or null: frames that carry it are read in Python."""
ONE_TRADE = Key("one")
"""The object that is the trade."""
MANY_TRADES = Key("many")
"""The list of the objects that are the trades."""


class NativeReader(Protocol):
    """trades.c, made for one shape."""

    def read(self, frame: bytes, /) -> Decoded:
        """What a frame holds."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The usual frame of an exchange: an object that holds one trade or a list of them."""

    frame: Mapping[str, Key]
    """The keys of the outer object that matter, one of them `ONE_TRADE` or `MANY_TRADES`."""
    trade: Mapping[str, Key]
    """The keys of a trade that matter. All fields of `Trade` without a default must come of it."""

    def __post_init__(self) -> None:
        given = [field for key in self.trade.values() for field in key.fields]
        needed = Trade._fields[: len(Trade._fields) - len(Trade._field_defaults)]
        if missing := set(needed) - set(given):
            raise ValueError(f"a shape whose trades lack {', '.join(sorted(missing))}")
        if sum(key in (ONE_TRADE, MANY_TRADES) for key in self.frame.values()) != 1:
            raise ValueError("a shape needs ONE_TRADE or MANY_TRADES once")

    def reader(self, otherwise: Callable[[bytes], Decoded]) -> NativeReader | None:
        """What reads a frame of this shape in C and any other by *otherwise*, whose results for
        this shape must be the same; None where there is no native extension."""
        if native.trades is None:
            return None
        limits = (FIRST_MICROSECOND, MAX_TIME_US, MAX_SYMBOL_CHARS, MAX_DECIMAL_CHARS)
        keys = (_plan(self.frame), _plan(self.trade))
        plan = (Trade, Decoded, len(Trade._fields), STREAM, *limits, *keys)
        return cast("NativeReader", native.trades.TradeReader(plan, otherwise))


def _plan(keys: Mapping[str, Key]) -> tuple[object, ...]:
    return tuple(key.plan(name) for name, key in keys.items())
