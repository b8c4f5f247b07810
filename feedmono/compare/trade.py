"""From a source's record to the trade in it, by the source's mapping."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from feedmono.compare.mapping import (
    KEY_FIELDS,
    RECEIVED,
    UNITS_NS,
    VALUE_FIELDS,
    Place,
    TradeMapping,
)
from feedmono.config.values import nearest
from feedmono.trade import MAX_SYMBOL_CHARS

_MAX_TEXT_CHARS = 100
_MAX_KEPT = 20_000
_MAX_TIME_NS = 2**63 - 1
_SHOWN = 60
_NS = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:[.,](\d{1,9})\d*)?(Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
_PLAIN = re.compile(r"\d{1,40}(?:\.\d{1,40})?", re.ASCII)
_NUMBER = re.compile(r"[+-]?[\d.]{1,80}(?:[eE][+-]?\d{1,3})?", re.ASCII)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)?")


class NoTrade(Exception):
    """A record is not what the mapping says; the text tells where it differs."""


class Taken(NamedTuple):
    """A trade as it is compared; None: the mapping does not name it, or it is not known."""

    exchange: str
    symbol: str
    trade_id: int | str
    """Whole numbers as such: they have an order."""
    price: str | None
    quantity: str | None
    side: str | None
    time_ns: int | None
    """The trade's time at the exchange."""
    seen_ns: int | None
    """When the side had it."""


Take = Callable[[object, int | None], Taken | None]
"""Of a record and the time at which it was stored, the trade; None: it is passed over.

:raises NoTrade: it is not what the mapping says."""

_Value = Callable[[object], object]


def taker(mapping: TradeMapping) -> Take:
    """What takes the trades out of a source's records."""
    fields = mapping.fields
    exchange, symbol, trade_id = (_value(fields[name]) for name in KEY_FIELDS)
    exchanges, symbols = _Names(mapping.exchanges), _Names(mapping.symbols)
    price, quantity = _decimal(fields.get("price")), _decimal(fields.get("quantity"))
    side, sides = _optional(fields.get("side")), _Sides(mapping.sides)
    time, seen = _time(fields.get("exchange_timestamp")), _time(fields.get(RECEIVED))
    by_stamp = RECEIVED not in fields
    only = [(_find(path), text) for path, text in mapping.only.items()]
    readers: dict[str, _Value] = {
        "exchange": lambda record: exchanges[exchange(record)],
        "symbol": lambda record: symbols[symbol(record)],
        "trade_id": lambda record: _id(trade_id(record)),
        "price": price,
        "quantity": quantity,
        "side": lambda record: sides[side(record)],
        "exchange_timestamp": time,
        RECEIVED: seen,
    }

    def take(record: object, stamp_ns: int | None) -> Taken | None:
        try:
            for find, text in only:
                if _plain(find(record)) != text:
                    return None
        except (LookupError, TypeError, ValueError):
            return None
        try:
            return Taken(
                exchanges[exchange(record)],
                symbols[symbol(record)],
                _id(trade_id(record)),
                price(record),
                quantity(record),
                sides[side(record)],
                time(record),
                stamp_ns if by_stamp else seen(record),
            )
        except (LookupError, TypeError, ValueError):
            raise NoTrade(_explain(mapping, readers, record)) from None

    return take


def uncompared(mapping: TradeMapping) -> list[str]:
    """The fields that a source does not have."""
    return [name for name in VALUE_FIELDS if name not in mapping.fields]


def seen_by(mapping: TradeMapping, topic: bool) -> str:
    """What tells when the source had a trade; empty: nothing does."""
    if RECEIVED in mapping.fields:
        return ".".join(mapping.fields[RECEIVED].path)
    return "Kafka's timestamp" if topic else ""


def _find(path: tuple[str, ...]) -> _Value:
    """What gives the value at a path. :raises LookupError, TypeError: there is none."""
    if len(path) == 1 and not path[0].isdecimal():
        return itemgetter(path[0])  # type: ignore[return-value]

    def find(record: object) -> object:
        for part in path:
            place = int(part) if part.isdecimal() and isinstance(record, list) else part
            record = record[place]  # type: ignore[index]
        return record

    return find


def _value(place: Place) -> _Value:
    constant = place.constant
    return _find(place.path) if constant is None else lambda _: constant


def _optional(place: Place | None) -> _Value:
    return _value(place) if place is not None else lambda _: None


class _Names(dict[object, str]):
    """What exchanges and symbols are called, kept by what the source calls them."""

    def __init__(self, renamed: Mapping[str, str]) -> None:
        super().__init__()
        self._renamed = renamed

    def __missing__(self, value: object) -> str:
        name = value if isinstance(value, str) else _plain(value)
        if not 0 < len(name) <= MAX_SYMBOL_CHARS or not name.isprintable():
            raise ValueError(f"{_shown(value)} is no name")
        name = self._renamed.get(name, name)
        # 1, 1.0 and true would be the same to it.
        if isinstance(value, str) and len(self) < _MAX_KEPT:
            self[value] = name
        return name


class _Sides(dict[object, "str | None"]):
    """BUY or SELL, kept by what the source calls them; None is not known."""

    def __init__(self, sides: Mapping[str, str]) -> None:
        super().__init__({None: None})
        self._sides = sides

    def __missing__(self, value: object) -> str:
        side = self._sides.get(value.lower() if isinstance(value, str) else _plain(value))
        if side is None:
            raise ValueError(f"{_shown(value)} is none of the sides {', '.join(self._sides)}")
        if isinstance(value, str) and len(self) < _MAX_KEPT:
            self[value] = side
        return side


def _plain(value: object) -> str:
    """A value as a mapping writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise ValueError(f"{_shown(value)} is no text")


def _id(value: object) -> int | str:
    if type(value) is int:
        return value
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT_CHARS:
        raise ValueError(f"{_shown(value)} is no id")
    # Only what is a number's one way to be written: 007 and 7 are two ids.
    if value.isdecimal() and value.isascii() and (value[0] != "0" or value == "0"):
        return int(value)
    if not value.isprintable():
        raise ValueError(f"{_shown(value)} is no id")
    return value


def _decimal(place: Place | None) -> Callable[[object], str | None]:
    """What gives a number's text, as it is. A binary fraction is taken for the shortest decimal
    one that it is nearest to."""
    if place is None:
        return lambda _: None
    value, is_plain = _value(place), _PLAIN.fullmatch

    def decimal(record: object) -> str:
        found = value(record)
        text = found if type(found) is str else _number_text(found)
        return text if is_plain(text) else _number(text)

    return decimal


def _number(text: str) -> str:
    """:raises ValueError: it is none."""
    try:
        if _NUMBER.fullmatch(text) and Decimal(text).is_finite():
            return text
    except InvalidOperation:
        pass
    raise ValueError(f"{_shown(text)} is no number")


def _number_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{_shown(value)} is no number")  # noqa: TRY004 - as for bad text
    return str(value)


def _time(place: Place | None) -> Callable[[object], int | None]:
    """Gives Unix time in nanoseconds."""
    if place is None:
        return lambda _: None
    value, unit_ns = _value(place), place.unit_ns
    last = _MAX_TIME_NS // unit_ns if unit_ns else 0

    def time(record: object) -> int | None:
        found = value(record)
        if type(found) is int and 0 <= found <= last:
            return found * unit_ns or None
        return _time_of_text(found, unit_ns)

    if place.instead is None and not place.optional:
        return time
    instead = _time(place.instead)

    def first_known(record: object) -> int | None:
        try:
            return time(record) or instead(record)
        except KeyError:
            return instead(record)

    return first_known


def _time_of_text(value: object, unit_ns: int) -> int | None:
    """ISO 8601, or a number with a fraction; None: null."""
    if value is None:
        return None
    if isinstance(value, datetime):
        at = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return (at - _EPOCH) // timedelta(microseconds=1) * 1000 or None
    text = value if isinstance(value, str) else _number_text(value)
    if match := _ISO.fullmatch(text.strip()):
        moment, fraction, offset = match.groups()
        return _seconds(moment, offset or "") * _NS + int((fraction or "").ljust(9, "0"))
    if not unit_ns:
        raise ValueError(f"{_shown(value)} is no time in ISO 8601; a number needs its unit")
    time_ns = Decimal(_number(text)) * unit_ns
    if not 0 <= time_ns <= _MAX_TIME_NS:
        raise ValueError(f"{_shown(value)} is no time in {_unit(unit_ns)}")
    return int(time_ns) or None


@lru_cache(maxsize=1000)
def _seconds(moment: str, offset: str) -> int:
    """Unix time of a moment to the second; without an offset it is UTC."""
    at = datetime.fromisoformat(moment).replace(tzinfo=timezone.utc)
    seconds = int(at.timestamp())
    if match := _OFFSET.fullmatch(offset):
        sign, hours, minutes = match.groups()
        seconds -= int(f"{sign}1") * (int(hours) * 3600 + int(minutes or 0) * 60)
    return seconds


def _unit(unit_ns: int) -> str:
    return next(name for name, each_ns in UNITS_NS.items() if each_ns == unit_ns)


def _explain(
    mapping: TradeMapping, readers: Mapping[str, Callable[[object], object]], record: object
) -> str:
    """Which of the fields it is that can't be read, and why."""
    for name, read in readers.items():
        try:
            read(record)
        except ValueError as error:
            return f"{name}: {error}"
        except (LookupError, TypeError):
            return f"{name}: {_missing(mapping.fields[name], record)}"
    return f"it is {_outline(record, '')}"


def _missing(place: Place, record: object) -> str:
    """Where the way to a place ends."""
    inner = record
    for part in (place.instead or place).path:
        try:
            inner = _find((part,))(inner)
        except (LookupError, TypeError):
            return f"no field {part} in {_outline(inner, part)}"
    return f"no field {'.'.join(place.path)}"


def _outline(value: object, wanted: str) -> str:
    if not isinstance(value, Mapping):
        return f"{_shown(value)}, which is no record"
    meant = nearest(wanted, [str(name) for name in value])
    names = ", ".join(str(name)[:_SHOWN] for name in list(value)[:20])
    return f"a record of {names or 'nothing'}" + (f" (is it {meant}?)" if meant else "")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
