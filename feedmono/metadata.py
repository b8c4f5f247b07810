"""Canonical symbols: fetched by the reader process, cached in a file, read by the serializer.

The exchange's own metadata is their only source, beside what the operator names in the
configuration: a symbol is never cut into base and quote.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from feedmono import rest
from feedmono.config import ExchangeConfig
from feedmono.exchanges.base import Exchange
from feedmono.log import Log
from feedmono.workers import publish, published

_REFRESH_S = 24 * 3600.0
_FIRST_RETRY_S = 1.0
_RETRY_CAP_S = 60.0
_PATIENCE_S = 60.0
# How often it is looked whether the published file is still there.
_LOOK_S = 60.0


class CanonicalSymbols:
    """Symbol → canonical symbol, from the configuration and from the published file."""

    def __init__(self, config: ExchangeConfig, path: Path) -> None:
        self._config = config
        self._path = path
        self._seen_ns = 0
        self.names: dict[str, str] = dict(config.canonical_symbols)
        """What is known; grows in place by `refresh`."""
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
        self.names.update(symbols)
        self.names.update(self._config.canonical_symbols)
        return True

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
        patience_s = _PATIENCE_S if self.names else float("inf")
        return time.monotonic() - self._begun_s > patience_s

    @property
    def trouble(self) -> str:
        """What is missing, for the operator."""
        return (
            f"waiting for the exchange's metadata (REST) of {', '.join(self._unknown[:5])}; "
            f"or name them in exchanges.{self._config.name}.canonical_symbols"
        )


def keep_fetched(
    exchange: Exchange,
    config: ExchangeConfig,
    path: Path,
    wait: Callable[[float], bool],
    unlisted: Callable[[Sequence[str]], None],
    log: Log,
) -> None:
    """Fetches the metadata at once and then daily, and publishes it at *path*. Tries again with
    growing waits, for ever.

    :param wait: waits so many seconds; True when it is time to end.
    :param unlisted: is told the configured symbols that the exchange does not list.
    """
    retry_s = _FIRST_RETRY_S
    while True:
        pause_s = _REFRESH_S
        try:
            symbols = exchange.read_metadata(rest.get(config.rest_url + exchange.metadata_path))
            asked = config.symbols
            content = {"fetched_at": int(time.time()), "symbols": dict(symbols), "asked": asked}
            publish(path, content)
            log.info("metadata fetched", symbols=len(symbols))
            named = config.canonical_symbols
            unlisted([s for s in asked if s not in symbols and s not in named])
            retry_s = _FIRST_RETRY_S
        except (rest.RestError, ValueError, OSError) as error:
            asked_s = error.retry_after_s if isinstance(error, rest.RestError) else 0.0
            pause_s = max(retry_s, asked_s)
            retry_s = min(retry_s * 2, _RETRY_CAP_S)
            log.warning(
                "no metadata",
                error=str(error),
                retry_in_s=pause_s,
                cached=path.exists(),
            )
        if _waited(pause_s, path, wait):
            return


def _waited(pause_s: float, path: Path, wait: Callable[[float], bool]) -> bool:
    """Waits so long, less if the published file has vanished; True when it is time to end."""
    deadline_s = time.monotonic() + pause_s
    there = path.exists()
    while (left_s := deadline_s - time.monotonic()) > 0:
        if wait(min(left_s, _LOOK_S)):
            return True
        if there and not path.exists():
            return False
    return False
