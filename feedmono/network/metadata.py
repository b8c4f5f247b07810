"""Canonical symbols and REST names: fetched by the reader process, cached in a file, read by the
serializer and by the reader.

The exchange's own metadata is their only source, beside what the operator names in the
configuration: a symbol is never cut into base and quote.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from feedmono.config import ExchangeConfig
from feedmono.exchanges.base import Exchange, Market
from feedmono.log import Log
from feedmono.network import rest
from feedmono.network.pace import LIMITED_S, RestPace
from feedmono.workers import publish, published

_REFRESH_S = 24 * 3600.0
_FIRST_RETRY_S = 1.0
_RETRY_CAP_S = 60.0
PATIENCE_S = 60.0
"""How long the trades of a symbol may wait for its name."""
# How often it is looked whether the published file is still there.
_LOOK_S = 60.0


class CanonicalSymbols:
    """Symbol → canonical symbol, from the configuration and from the published file."""

    def __init__(self, config: ExchangeConfig, path: Path) -> None:
        self._config = config
        self._listed: dict[str, str] = {}
        """As the exchange names them."""
        self._path = path
        self._seen_ns = 0
        self.names: dict[str, str] = dict(config.canonical_symbols)
        """What is known; changed in place by `refresh` and `follow`."""
        self._asked: frozenset[str] = frozenset()
        self._begun_s = time.monotonic()
        self.refresh()

    def refresh(self) -> bool:
        """Reads the file again if it changed; whether it did."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
        except OSError:
            return False
        if changed_ns == self._seen_ns:
            return False
        content = published(self._path)
        symbols = content.get("symbols") if content else None
        if not isinstance(symbols, dict):
            return False
        self._seen_ns = changed_ns
        asked = content.get("asked") if content else None
        self._asked = frozenset(map(str, asked if isinstance(asked, list) else ()))
        self._listed.update(symbols)
        self.names.update(self._listed)
        self.names.update(self._config.canonical_symbols)
        return True

    def follow(self, config: ExchangeConfig) -> None:
        """From now on these are the configured symbols, and the names that the operator gives."""
        self._config = config
        names = self._listed | dict(config.canonical_symbols)
        self.names.update(names)
        for symbol in self.names.keys() - names.keys():
            del self.names[symbol]

    @property
    def _unknown(self) -> list[str]:
        """Configured symbols of which nobody has said yet what they are."""
        return [s for s in self._config.symbols if s not in self.names and s not in self._asked]

    def ready(self) -> bool:
        """Whether trades can be normalized by now: each symbol has a name, or the exchange was
        asked and does not list it. With some names known, the others are waited for a minute."""
        self.refresh()
        if not self._unknown:
            return True
        patience_s = PATIENCE_S if self.names else float("inf")
        return time.monotonic() - self._begun_s > patience_s

    @property
    def trouble(self) -> str:
        """What is missing, for the operator."""
        return (
            f"waiting for the exchange's metadata (REST) of {', '.join(self._unknown[:5])}; "
            f"or name them in exchanges.{self._config.name}.canonical_symbols"
        )


def rest_names(path: Path) -> Mapping[str, str]:
    """Symbol → its name in REST requests, as published at *path*; empty if nothing is."""
    content = published(path)
    names = content.get("rest") if content else None
    if not isinstance(names, dict):
        return {}
    return {symbol: name for symbol, name in names.items() if isinstance(name, str)}


def unnamed(config: ExchangeConfig, path: Path, asked: bool) -> frozenset[str]:
    """The configured symbols that nobody has named: neither the configuration, nor what is
    published at *path*.

    :param asked: leave out those that the exchange was asked for already.
    """
    content = published(path) or {}
    known: set[object] = set(config.canonical_symbols)
    for part in ("symbols", "asked") if asked else ("symbols",):
        found = content.get(part)
        known.update(found if isinstance(found, dict | list) else ())
    return frozenset(symbol for symbol in config.symbols if symbol not in known)


class Answer(NamedTuple):
    """What an exchange's answer means for the configured symbols."""

    asked: Sequence[str]
    """The configured symbols when it was asked."""
    unlisted: Sequence[str]
    """Those of them that it does not list and the operator does not name."""


def keep_fetched(
    exchange: Exchange,
    current: Callable[[], ExchangeConfig],
    path: Path,
    pace: RestPace,
    wait: Callable[[float], bool],
    answered: Callable[[Answer], None],
    log: Log,
    hurried: Callable[[], bool] = lambda: False,
) -> None:
    """Fetches the metadata at once and then daily, and publishes it at *path*. Tries again with
    growing waits, for ever.

    :param current: the configuration as it is now; its symbols may change.
    :param pace: the exchange's, shared with all that ask it.
    :param wait: waits so many seconds, or less; True when it is time to end.
    :param answered: is told each answer, once it is published.
    :param hurried: whether it is to be fetched at once, since it was called last.
    """
    client = rest.RestClient(current().rest_url, exchange.rest_headers)
    retry_s = _FIRST_RETRY_S
    while _granted(exchange, pace, wait):
        pause_s = _REFRESH_S
        hurried()
        config = current()
        try:
            # Closed each time: nobody keeps a connection for a day.
            with contextlib.closing(client):
                markets = _fetched(exchange, client, pace)
            _publish(markets, config.symbols, path)
            log.info("metadata fetched", symbols=len(markets))
            known = {*markets, *config.canonical_symbols}
            answered(Answer(config.symbols, [s for s in config.symbols if s not in known]))
            retry_s = _FIRST_RETRY_S
        except (rest.RestError, ValueError, OSError) as error:
            held_s = _hold_of(error)
            pace.hold(held_s)
            pause_s = retry_s
            retry_s = min(retry_s * 2, _RETRY_CAP_S)
            log.warning(
                "no metadata",
                error=str(error),
                retry_in_s=max(pause_s, held_s),
                cached=path.exists(),
            )
        if _waited(pause_s, path, wait, hurried):
            return


def _publish(markets: Mapping[str, Market], asked: Sequence[str], path: Path) -> None:
    """Of the markets that were asked for."""
    content = {
        "fetched_at": int(time.time()),
        "symbols": {symbol: market.canonical for symbol, market in markets.items()},
        "rest": {symbol: market.rest_name for symbol, market in markets.items()},
        "asked": asked,
    }
    publish(path, content)


def _granted(exchange: Exchange, pace: RestPace, wait: Callable[[float], bool]) -> bool:
    """Waits until the pace lets a request go; False when it is time to end."""
    while (wait_s := pace.reserve(exchange.limits.metadata_weight)) > 0.0:
        if wait(min(wait_s, _LOOK_S)):
            return False
    return True


def _fetched(exchange: Exchange, client: rest.RestClient, pace: RestPace) -> Mapping[str, Market]:
    """:raises RestError: no answer.
    :raises ValueError: the answer is no metadata.
    """
    answer = client.get(exchange.metadata_path)
    used = exchange.used_weight(answer.headers)
    if used is not None:
        pace.told(used)
    refusal = exchange.refusal(answer.body)
    if refusal is not None and refusal.limited:
        raise rest.RestError(f"the exchange refused its metadata: {refusal.reason}", 429)
    return exchange.read_metadata(answer.body)


def _hold_of(error: Exception) -> float:
    """How long the exchange wants to be left alone."""
    if not isinstance(error, rest.RestError):
        return 0.0
    return error.retry_after_s or (LIMITED_S if error.status in rest.LIMITED else 0.0)


def _waited(
    pause_s: float, path: Path, wait: Callable[[float], bool], hurried: Callable[[], bool]
) -> bool:
    """Waits so long, less if the published file has vanished or it is *hurried*; True when it is
    time to end."""
    deadline_s = time.monotonic() + pause_s
    there = path.exists()
    while (left_s := deadline_s - time.monotonic()) > 0:
        if wait(min(left_s, _LOOK_S)):
            return True
        if hurried() or (there and not path.exists()):
            return False
    return False
