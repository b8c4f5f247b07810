"""Lays the configuration's sources over each other: default, file, variables, flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from feedmono.config.keys import VARIABLE_PREFIX
from feedmono.config.text import Source
from feedmono.config.values import EntriesKind, Key, Mistake, Wrong, describe, nearest

DEFAULT = "default"
"""The origin of what no one set."""


class Value(NamedTuple):
    """An effective value as it is shown, secrets masked."""

    plain: Any
    """For JSON; a number counts `unit`."""
    text: str
    """For a person."""
    unit: str
    """``bytes``, ``s`` or empty."""


class Setting(NamedTuple):
    """An effective value."""

    key: Key
    entry: str
    """The name within a block whose names the operator chooses; else empty."""
    value: Any
    """What the key's kind makes of it."""
    origin: str

    def shown(self) -> Value:
        kind = self.key.kind
        if isinstance(kind, EntriesKind):
            text = kind.plain_entry(self.entry, self.value)
            return Value(text, text, "")
        return Value(kind.plain(self.value), kind.show(self.value), kind.unit)


class Layers:
    """Takes the sources, the lowest first. Every value is checked, one that is overridden as
    well; every mistake is kept."""

    def __init__(self, known: Mapping[str, Key], folder: Path) -> None:
        """*known*: every key by name. *folder*: what relative paths count from."""
        self.mistakes: list[Mistake] = []
        self._known = known
        self._folder = folder
        self._settings: dict[str, Setting] = {}
        self._given: set[str] = set()
        self._by_variable = {key.variable: key for key in known.values() if key.variable}

    def add_file(self, source: Source, tree: Mapping[str, object], origin: str = "") -> None:
        """The values of a file. *origin* is what is told of each; default: file and line."""
        self._add_block(source, tree, "", origin)

    def add_variable(self, variable: str, text: str) -> None:
        key = self._by_variable.get(variable)
        if key is None:
            # Without what all have in common, or any two would seem near.
            ends = {name.removeprefix(VARIABLE_PREFIX): name for name in self._by_variable}
            meant = ends.get(nearest(variable.removeprefix(VARIABLE_PREFIX), ends), "")
            allowed = "the variables named in the default configuration"
            self._mistake(f"variable {variable}", "an unknown variable", allowed, meant)
        else:
            self._add_text(key, text, f"variable {variable}", f"variable {variable}")

    def add_override(self, name: str, text: str, origin: str) -> None:
        key = self._known.get(name)
        if key is None:
            self._mistake(origin, f"an unknown key {name}", "a known one", self._meant(name))
        else:
            self._add_text(key, text, f"{origin}: {name}", origin)

    def check(self, blocks: Sequence[str], default_label: str) -> None:
        """Whether every key has a value, and one of the *blocks* is enabled."""
        missing = [
            key.name
            for key in self._known.values()
            if key.name not in self._given and not isinstance(key.kind, EntriesKind)
        ]
        for block in blocks:
            if not any(name.startswith(f"{block}.") for name in self._given):
                allowed = f"one with {', '.join(self._parts(block))}"
                self._mistake(default_label, f"no block {block}", allowed)
                missing = [name for name in missing if not name.startswith(f"{block}.")]
        for name in missing:
            self._mistake(default_label, f"no value for {name}", "one for every key")
        switches = [self._settings.get(f"{block}.enabled") for block in blocks]
        if all(switch is not None and not switch.value for switch in switches):
            where = ", ".join(dict.fromkeys(s.origin for s in switches if s is not None))
            self._mistake(where, "all exchanges disabled", "enabled = true for at least one")

    def value(self, name: str) -> Any:
        """The effective value of a key."""
        return self._settings[name].value

    def entries(self, name: str) -> dict[str, Any]:
        """The effective values of a block whose names the operator chooses."""
        return {
            s.entry: s.key.kind.entry(s.value)
            for s in self._settings.values()
            if s.entry and s.key.name == name and isinstance(s.key.kind, EntriesKind)
        }

    def fields(self, keys: Mapping[str, Key], prefix: str = "") -> dict[str, Any]:
        """The effective value of each of *keys*, by the same name; *prefix* goes before that of the
        key."""
        return {
            field: self.entries(prefix + key.name)
            if isinstance(key.kind, EntriesKind)
            else self.value(prefix + key.name)
            for field, key in keys.items()
        }

    def effective(self) -> Iterator[tuple[str, str, Value]]:
        """Name, origin and shown value of every setting, in the order of the known keys. An
        empty block is one setting as well."""
        for key in self._known.values():
            if not isinstance(key.kind, EntriesKind):
                setting = self._settings[key.name]
                yield key.name, setting.origin, setting.shown()
                continue
            entries = [s for s in self._settings.values() if s.entry and s.key is key]
            for setting in entries:
                yield f"{key.name}.{setting.entry}", setting.origin, setting.shown()
            if not entries:
                yield key.name, DEFAULT, Value({}, "", "")

    def _mistake(self, where: str, found: str, allowed: str, meant: str = "") -> None:
        self.mistakes.append(Mistake(where, found, allowed, meant))

    def _set(self, key: Key, entry: str, value: object, where: str, origin: str) -> None:
        kind = key.kind
        self._given.add(key.name)
        try:
            if entry and isinstance(kind, EntriesKind):
                parsed = kind.parse_entry(entry, value, self._folder)
            else:
                parsed = kind.parse(value, self._folder)
        except Wrong as wrong:
            self._mistake(where, wrong.found, wrong.allowed, wrong.nearest)
            return
        name = f"{key.name}.{entry}" if entry else key.name
        self._settings[name] = Setting(key, entry, parsed, origin)

    def _add_text(self, key: Key, text: str, where: str, origin: str) -> None:
        kind = key.kind
        if not isinstance(kind, EntriesKind):
            self._set(key, "", text, where, origin)
            return
        try:
            entries = kind.parse(text, self._folder)
        except Wrong as wrong:
            self._mistake(where, wrong.found, wrong.allowed, wrong.nearest)
            return
        for name in [name for name, s in self._settings.items() if s.key is key]:
            del self._settings[name]
        for entry, value in entries.items():
            self._settings[f"{key.name}.{entry}"] = Setting(key, entry, value, origin)

    def _add_block(
        self, source: Source, block: Mapping[str, object], prefix: str, origin: str
    ) -> None:
        for part, value in block.items():
            name = prefix + part
            place = source.where(name)
            key = self._known.get(name)
            if key is not None and isinstance(key.kind, EntriesKind):
                self._add_entries(source, key, key.kind, value, origin)
            elif key is not None:
                self._set(key, "", value, f"{place}: {name}", origin or f"file {place}")
            elif not self._parts(name):
                self._add_unknown(source, prefix, part)
            elif isinstance(value, Mapping):
                self._add_block(source, value, f"{name}.", origin)
            else:
                allowed = f"a block with {', '.join(self._parts(name))}"
                self._mistake(f"{place}: {name}", describe(value), allowed)

    def _add_entries(
        self, source: Source, key: Key, kind: EntriesKind, block: object, origin: str
    ) -> None:
        if not isinstance(block, Mapping):
            place = source.where(key.name)
            self._mistake(f"{place}: {key.name}", "no block", "a block: { name = value }")
            return
        for entry, value in _flat(kind, block, ""):
            name = f"{key.name}.{entry}"
            place = source.where(name)
            self._set(key, entry, value, f"{place}: {name}", origin or f"file {place}")

    def _add_unknown(self, source: Source, prefix: str, part: str) -> None:
        parts = self._parts(prefix.rstrip("."))
        meant = nearest(part, parts) or self._meant(prefix + part)
        name = prefix + part
        self._mistake(f"{source.where(name)}: {name}", "an unknown name", ", ".join(parts), meant)

    def _parts(self, block: str) -> list[str]:
        """The names that stand directly in a block; in the whole file, if it is empty."""
        start = f"{block}." if block else ""
        inner = (name[len(start) :] for name in self._known if name.startswith(start))
        return list(dict.fromkeys(name.split(".")[0] for name in inner))

    def _meant(self, name: str) -> str:
        """The known key, with its blocks, that an unknown name is most likely a slip of."""
        by_end = {known.rpartition(".")[2]: known for known in self._known}
        end = nearest(name.rpartition(".")[2], by_end)
        return by_end.get(end, "")


def _flat(kind: EntriesKind, block: Mapping[str, object], prefix: str) -> Iterator[tuple[str, Any]]:
    """The entries of a block: a dotted name means the same written ``"a.b"``, ``a.b`` and
    ``a { b }``."""
    for part, value in block.items():
        if isinstance(value, Mapping) and not kind.is_entry(value):
            yield from _flat(kind, value, f"{prefix}{part}.")
        else:
            yield prefix + part, value
