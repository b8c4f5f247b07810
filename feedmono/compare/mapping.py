"""The HOCON file that describes a source to compare: where its records are, and how they name
what feedmono names otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from feedmono.config import ConfigError, kafka, read_block
from feedmono.config.values import (
    Choice,
    EntriesKind,
    Key,
    Kind,
    Mistake,
    Servers,
    Url,
    Wrong,
    describe,
    nearest,
)
from feedmono.trade import SIDES

UNITS_NS: Mapping[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds of the units that numbers may count times in."""

KEY_FIELDS = ("exchange", "symbol", "trade_id")
"""What tells which trade it is: no mapping goes without."""
VALUE_FIELDS = ("price", "quantity", "side", "exchange_timestamp")
"""What is compared, where both sides have it."""
RECEIVED = "received_timestamp"
FIELDS = (*KEY_FIELDS, *VALUE_FIELDS, RECEIVED)
_TIMES = ("exchange_timestamp", RECEIVED)

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a record a value stands."""

    path: tuple[str, ...] = ()
    """Names of nested fields, and numbers of elements, the outermost first."""
    constant: str | None = None
    """The value itself; there is no path then."""
    unit_ns: int = 0
    """Of a time that is a number; 0: times are ISO 8601 texts."""
    instead: Place | None = None
    """Where to look when there is no such field or it holds 0."""
    optional: bool = False
    """Whether it is a time that need not be there."""


@dataclass(frozen=True, slots=True)
class TradeMapping:
    """How the trades of a source are read from its records."""

    fields: Mapping[str, Place]
    """By feedmono's name (`FIELDS`)."""
    sides: Mapping[str, str] = field(default_factory=dict)
    """What the source calls ``BUY`` and ``SELL``, in lower case."""
    symbols: Mapping[str, str] = field(default_factory=dict)
    """The source's names → those of the other side; what is not in it stays as it is."""
    exchanges: Mapping[str, str] = field(default_factory=dict)
    """The same for exchanges."""
    only: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    """Path → text: records that hold something else there are no trades, and passed over."""


FEEDMONO = TradeMapping(
    {
        **{name: Place((name,)) for name in (*KEY_FIELDS, "price", "quantity", "side")},
        # A record of the first twelve fields has no times in microseconds.
        "exchange_timestamp": Place(
            ("exchange_timestamp_us",),
            unit_ns=UNITS_NS["us"],
            instead=Place(("exchange_timestamp",), unit_ns=UNITS_NS["ms"]),
        ),
        RECEIVED: Place(("received_timestamp_us",), unit_ns=UNITS_NS["us"], optional=True),
    },
    {side.lower(): side for side in SIDES},
)
"""How feedmono's own records are read."""


@dataclass(frozen=True, slots=True)
class Described:
    """What such a file says."""

    path: Path | None
    """One of these two is None."""
    topic: str | None
    form: str
    """``avro``, ``json``, or empty: as each record is."""
    bootstrap_servers: str | None
    schema_registry_url: str | None
    properties: Mapping[str, str] | None = field(repr=False)
    """Secrets among them."""
    mapping: TradeMapping


@dataclass(frozen=True, slots=True)
class _FilePath(Kind):
    def parse(self, value: object, folder: Path) -> Path:
        allowed = "the path of a file or a folder"
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise Wrong(describe(value), allowed)
        return folder / value.strip()


@dataclass(frozen=True, slots=True)
class _Topic(Kind):
    def parse(self, value: object, folder: Path) -> str:
        if not isinstance(value, str) or not _TOPIC.fullmatch(value.strip()):
            raise Wrong(describe(value), "a topic's name")
        return value.strip()


@dataclass(frozen=True, slots=True)
class _PlaceKind(Kind):
    """``name``, ``outer.name``, ``{ field = outer.name, unit = ms }``, ``{ constant = text }``."""

    is_time: bool
    _UNITS: ClassVar[str] = ", ".join(UNITS_NS)

    def parse(self, value: object, folder: Path) -> Place:
        allowed = "a field's name, a path such as data.price, { constant = text }"
        if self.is_time:
            allowed = f"a field's name or {{ field = name, unit = one of {self._UNITS} }}"
        if isinstance(value, str) and value.strip():
            return Place(_path(value, allowed))
        known = ("field", "unit") if self.is_time else ("field", "constant")
        if not isinstance(value, Mapping) or not value:
            raise Wrong(describe(value), allowed)
        for name in value:
            if name not in known:
                raise Wrong(f"an unknown name {name}", allowed, nearest(name, known))
        if "constant" in value and len(value) == 1:
            return Place(constant=_text(value["constant"]))
        if not isinstance(value.get("field"), str) or "constant" in value:
            raise Wrong(f"a block with {' and '.join(value)}", allowed)
        return Place(_path(value["field"], allowed), unit_ns=self._unit(value, allowed))

    def _unit(self, block: Mapping[str, object], allowed: str) -> int:
        if "unit" not in block:
            return 0
        if (unit := block["unit"]) not in UNITS_NS:
            raise Wrong(f"unit = {describe(unit)}", allowed, nearest(str(unit), UNITS_NS))
        return UNITS_NS[str(unit)]


@dataclass(frozen=True, slots=True)
class _Words(EntriesKind):
    """Names of the source → others."""

    others: tuple[str, ...] = ()
    """Those that are allowed; empty: any."""

    def parse(self, value: object, folder: Path) -> Any:
        raise Wrong(describe(value), "a block: { name = value }")

    def parse_entry(self, name: str, value: object, folder: Path) -> str:
        text = _text(value)
        if self.others:
            text = text.upper()
            if text not in self.others:
                raise Wrong(describe(value), " or ".join(self.others), nearest(text, self.others))
        return text


_KEYS = {
    key.name: key
    for key in (
        Key("path", _FilePath()),
        Key("topic", _Topic()),
        Key("bootstrap_servers", Servers()),
        Key("schema_registry_url", Url(("http", "https"), bare=False)),
        Key("properties", kafka.KEYS["properties"].kind),
        Key("format", Choice(("avro", "json"))),
        *(Key(f"fields.{name}", _PlaceKind(name in _TIMES)) for name in FIELDS),
        Key("sides", _Words(SIDES)),
        Key("symbols", _Words()),
        Key("exchanges", _Words()),
        Key("only", _Words()),
    )
}


def load(path: Path, environ: Mapping[str, str]) -> Described:
    """What the file at *path* describes. Relative paths in it count from the current folder.

    :raises ConfigError: something in it is not allowed; its text names every mistake.
    """
    given = read_block(path, _KEYS, environ)
    mistakes = []
    if ("path" in given) == ("topic" in given):
        found = "path and topic" if "path" in given else "neither path nor topic"
        mistakes.append(Mistake(str(path), found, "one of the two"))
    mapped = {name: given[f"fields.{name}"] for name in FIELDS if f"fields.{name}" in given}
    if missing := [name for name in KEY_FIELDS if mapped and name not in mapped]:
        found = f"fields without {' and '.join(missing)}"
        mistakes.append(Mistake(str(path), found, "these and others, or no fields at all"))
    if "path" in given:
        mistakes += [
            Mistake(str(path), f"{name} beside a path", f"{name} with a topic")
            for name in ("bootstrap_servers", "schema_registry_url", "properties")
            if name in given
        ]
    if mistakes:
        raise ConfigError(mistakes)
    return Described(
        path=given.get("path"),
        topic=given.get("topic"),
        form=given.get("format", ""),
        bootstrap_servers=given.get("bootstrap_servers"),
        schema_registry_url=given.get("schema_registry_url"),
        properties=given.get("properties"),
        mapping=TradeMapping(
            mapped or FEEDMONO.fields,
            {name.lower(): side for name, side in given.get("sides", FEEDMONO.sides).items()},
            given.get("symbols", {}),
            given.get("exchanges", {}),
            {_path(name, ""): text for name, text in given.get("only", {}).items()},
        ),
    )


def _path(text: str, allowed: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split("."))
    if not all(parts):
        raise Wrong(describe(text), allowed)
    return parts


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int) or not str(value).strip():
        raise Wrong(describe(value), "text (a decimal number in quotation marks)")
    return str(value).strip()
