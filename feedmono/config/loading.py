"""Configuration: HOCON → frozen dataclasses, every mistake in one message."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedmono import exchanges, resources
from feedmono.config import budget
from feedmono.config.keys import VARIABLE_PREFIX, keys
from feedmono.config.layers import DEFAULT, Layers, Value
from feedmono.config.settings import (
    BackfillConfig,
    Config,
    ConnectionsConfig,
    ExchangeConfig,
    HttpConfig,
    LogConfig,
    SamplesConfig,
)
from feedmono.config.sinks import SINKS
from feedmono.config.text import Source, locate
from feedmono.config.values import EntriesKind, Key, Mistake

_DEFAULT_NAME = "feedmono.conf"
DEFAULT_FILE = os.path.join("etc", _DEFAULT_NAME)
"""In the current folder: taken where no other file is named."""


class ConfigError(Exception):
    """The configuration can't be used; its text names every mistake in it."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        # pyhocon asks for a reference to nothing more than once.
        self.mistakes = list(dict.fromkeys(mistakes))
        count = "a mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        lines = "".join(f"\n  {mistake}" for mistake in self.mistakes)
        super().__init__(f"the configuration has {count}:{lines}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective configuration, and where it came from."""

    config: Config
    origins: Mapping[str, str]
    """By key; in ``canonical_symbols`` and ``kafka.properties`` by each name in them:
    ``default``, ``file etc/x.conf:12``, ``variable FEEDMONO_SINK``, ``flag --demo``."""
    values: Mapping[str, Value]
    """By the same names; secrets are masked."""


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    overrides_origin: str = "flag",
) -> Loaded:
    """The effective configuration: *overrides* (key → text) over the variables of *environ* over
    the file at *path* over the packaged default.

    Without a *path* the file is ``etc/feedmono.conf`` in *cwd* (default: the current folder), if
    it is there. Relative paths count from *cwd*. A reference such as ``${HOME}`` means a key of
    the same file, else one of the default, else a variable of *environ*.

    :raises ConfigError: something is not allowed; a value that is overridden is checked as well.
    """
    folder = Path.cwd() if cwd is None else cwd.absolute()
    names = exchanges.names()
    layers = Layers(keys(names), folder)
    complete = _add_files(layers, path, folder, environ)
    for name, text in sorted(environ.items()):
        if name.startswith(VARIABLE_PREFIX):
            layers.add_variable(name, text)
    for name, text in (overrides or {}).items():
        layers.add_override(name, text, overrides_origin)
    if complete:
        layers.check([f"exchanges.{name}" for name in names], f"etc/{_DEFAULT_NAME}")
    if layers.mistakes:
        raise ConfigError(layers.mistakes)
    effective = list(layers.effective())
    return Loaded(
        _config(layers, names),
        {name: origin for name, origin, _ in effective},
        {name: value for name, _, value in effective},
    )


def read_block(
    path: Path, known: Mapping[str, Key], environ: Mapping[str, str], cwd: Path | None = None
) -> dict[str, Any]:
    """The values of a HOCON file that is no configuration but has *known* keys of its own: by key,
    those that are given. Paths, references and mistakes are as in `load`.

    :raises ConfigError: something is not allowed.
    """
    layers = Layers(known, Path.cwd() if cwd is None else cwd.absolute())
    _add_file(layers, locate(path, str(path)), environ, None)
    if layers.mistakes:
        raise ConfigError(layers.mistakes)
    found: dict[str, Any] = {}
    for key in known.values():
        if isinstance(key.kind, EntriesKind):
            if entries := layers.entries(key.name):
                found[key.name] = entries
            continue
        with suppress(KeyError):  # it is not in the file
            found[key.name] = layers.value(key.name)
    return found


def _add_files(layers: Layers, path: Path | None, folder: Path, environ: Mapping[str, str]) -> bool:
    """Lays the file over the default; False if one of them can't be read."""
    try:
        default = resources.path("etc", _DEFAULT_NAME)
    except FileNotFoundError as error:
        layers.mistakes.append(Mistake(f"etc/{_DEFAULT_NAME}", "no such file", str(error)))
        return False
    label = DEFAULT_FILE if path is None else str(path)
    given = folder / label
    if path is None and not given.is_file():
        return _add_file(layers, locate(default, str(default)), environ, None, DEFAULT) is not None
    if given.exists() and given.samefile(default):
        # In a checkout the operator's file is the default itself.
        return _add_file(layers, locate(given, label), environ, None) is not None
    below = _add_file(layers, locate(default, str(default)), environ, None, DEFAULT)
    above = _add_file(layers, locate(given, label), environ, below)
    return below is not None and above is not None


def _add_file(
    layers: Layers, source: Source, environ: Mapping[str, str], below: Any, origin: str = ""
) -> Any:
    """Adds a file's values; gives pyhocon's tree of them, None if the file can't be read."""
    layers.mistakes.extend(source.mistakes)
    if not source.readable:
        return None
    try:
        tree = _parse(source, environ, below, layers.mistakes)
    except ConfigError as error:
        layers.mistakes.extend(error.mistakes)
        return None
    layers.add_file(source, tree.as_plain_ordered_dict(), origin)
    return tree


def _parse(source: Source, environ: Mapping[str, str], below: Any, mistakes: list[Mistake]) -> Any:
    """pyhocon's tree of a file, references resolved; those to nothing go to *mistakes*.

    :raises ConfigError: it is no HOCON.
    """
    # Importing pyhocon takes 0.1 s, which only those who load a configuration should pay.
    from pyhocon import config_parser, config_tree  # type: ignore[import-untyped]  # noqa: PLC0415

    class Resolver(config_parser.ConfigParser):  # type: ignore[misc]
        @classmethod
        def _resolve_variable(cls, config: Any, substitution: Any) -> tuple[bool, Any]:
            """Whether and to what a reference resolves; pyhocon's own looks into the process's
            environment only, and stops at the first that it does not find."""
            name = substitution.variable.strip()
            found = config.get(name, None)
            if found is None or found is substitution.parent:
                found = below.get(name, None) if below is not None else None
            if found is None:
                found = environ.get(name)
            if found is None and not substitution.optional:
                where = _place(source, substitution.instring, substitution.loc)
                mistakes.append(
                    Mistake(
                        where,
                        f"${{{name}}}, which is neither a key nor a variable",
                        f"one that is set, or ${{?{name}}} for one that may be missing",
                    )
                )
            return found is not None, found

    with _without_periods(config_parser):
        for part in source.parts:
            # A mistake in an included file would come out as one of the including file.
            with _errors_as_mistakes(part.label):
                config_parser.ConfigParser.parse(part.text, str(part.path.parent), resolve=False)
        with _errors_as_mistakes(source.label):
            tree = Resolver.parse(source.text, str(source.path.parent))
            if not isinstance(tree, config_tree.ConfigTree):
                raise ConfigError([Mistake(source.label, "a list", "keys with values")])
            return tree


@contextmanager
def _without_periods(config_parser: Any) -> Iterator[None]:
    """Makes pyhocon leave ``5 ms`` the text that it is. It would cut nanoseconds away, fail on
    a billion days, and turn the password ``5 days late`` into something else."""
    from pyparsing import NoMatch  # noqa: PLC0415

    kept = config_parser.get_period_expr
    config_parser.get_period_expr = NoMatch
    try:
        yield
    finally:
        config_parser.get_period_expr = kept


@contextmanager
def _errors_as_mistakes(label: str) -> Iterator[None]:
    """Turns what pyhocon and pyparsing raise into a `ConfigError` about the file *label*. Their
    own texts are left out: they quote values, secrets too."""
    from pyhocon.exceptions import (  # type: ignore[import-untyped]  # noqa: PLC0415
        ConfigSubstitutionException,
        ConfigWrongTypeException,
    )
    from pyparsing import ParseBaseException  # noqa: PLC0415

    try:
        yield
    except ConfigError:
        raise
    except ParseBaseException as error:
        char = error.line[error.column - 1 : error.column]
        found = f"{char!r} at column {error.column}" if char else "the end of the line"
        if error.loc >= len(error.pstr.rstrip()):
            found = "the end of the file, with a brace, a bracket or a value open"
        where = f"{label}:{error.lineno}"
        allowed = 'HOCON: key = value, key { … }, a list [ … ]; other characters only within "…"'
        raise ConfigError([Mistake(where, f"{found}, which is no HOCON", allowed)]) from None
    except ConfigSubstitutionException as error:
        circle = ", ".join(dict.fromkeys(re.findall(r"\$\{[^}]*\}", str(error)))) or "references"
        line = re.search(r"line: (\d+)", str(error))
        where = f"{label}:{line[1]}" if line else label
        raise ConfigError(
            [Mistake(where, f"{circle} in a circle", "references that end at a value")]
        ) from None
    except ConfigWrongTypeException as error:
        line = re.search(r"line: (\d+)", str(error))
        key = re.match(r"Cannot concatenate the list (\S+):", str(error))
        where = label + (f":{line[1]}" if line else "") + (f": {key[1]}" if key else "")
        found = "a block, a list and text mixed in one value"
        raise ConfigError([Mistake(where, found, "one of them")]) from None
    except Exception as error:
        # pyhocon lets out whatever befalls it: KeyError, AttributeError, RecursionError …
        found = f"text that pyhocon can't read ({type(error).__name__})"
        raise ConfigError([Mistake(label, found, "HOCON")]) from error


def _place(source: Source, text: object, offset: int) -> str:
    """File and line of an offset in one of the source's texts, as pyparsing has it."""
    for label, own in [(source.label, source.text), *((p.label, p.text) for p in source.parts)]:
        if own.expandtabs() == text:
            return f"{label}:{1 + str(text).count(chr(10), 0, offset)}"
    return source.label


def _config(layers: Layers, names: Sequence[str]) -> Config:
    value = layers.value
    return Config(
        # Resolved once: a ring's name is made from it, and a link may change while it runs.
        state_dir=value("state_dir").resolve(),
        ring_dir=value("ring_dir"),
        ring_capacity_bytes=value("ring_capacity"),
        window=value("window"),
        linger_s=value("linger"),
        stop_limit_s=value("stop_limit"),
        coverage_interval_s=value("coverage_interval"),
        sink=value("sink"),
        exchanges={name: _exchange(layers, name) for name in names},
        connections=ConnectionsConfig(
            frame_limit_bytes=value("connections.frame_limit"),
            silence_limit_s=value("connections.silence_limit"),
            stale_limit_s=value("connections.stale_limit"),
            backoff_cap_s=value("connections.backoff_cap"),
            max_age_s=value("connections.max_age"),
            redundancy=value("connections.redundancy"),
        ),
        backfill=BackfillConfig(
            max_age_s=value("backfill.max_age"),
            max_trades=value("backfill.max_trades"),
            confirm_after_s=value("backfill.confirm_after"),
        ),
        samples=SamplesConfig(value("samples.keep")),
        http=HttpConfig(value("http.enabled"), value("http.host"), value("http.port")),
        log=LogConfig(level=value("log.level"), format=value("log.format")),
        **{sink: made(**layers.fields(own)) for sink, (made, own) in SINKS.items()},
    )


def _exchange(layers: Layers, name: str) -> ExchangeConfig:
    block = f"exchanges.{name}"
    return ExchangeConfig(
        name=name,
        enabled=layers.value(f"{block}.enabled"),
        symbols=layers.value(f"{block}.symbols"),
        ws_url=layers.value(f"{block}.ws_url"),
        rest_url=layers.value(f"{block}.rest_url"),
        canonical_symbols=layers.entries(f"{block}.canonical_symbols"),
        budget=budget.Budget(**layers.fields(budget.KEYS, f"{block}.")),
    )
