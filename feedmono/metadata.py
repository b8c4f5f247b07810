"""Canonical symbols: fetched by the reader process, cached in a file, read by the serializer.

The exchange's own metadata is their only source, beside what the operator names in the
configuration: a symbol is never cut into base and quote.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from feedmono import rest
from feedmono.config import ExchangeConfig
from feedmono.exchanges.base import Exchange
from feedmono.log import Log
from feedmono.workers import publish, published

_REFRESH_S = 24 * 3600.0
_FIRST_RETRY_S = 1.0
_RETRY_CAP_S = 60.0


class CanonicalSymbols:
    """Symbol → canonical symbol, from the configuration and from the published file."""

    def __init__(self, config: ExchangeConfig, path: Path) -> None:
        self._config = config
        self._path = path
        self._seen_ns = 0
        self.names: dict[str, str] = dict(config.canonical_symbols)
        """What is known; grows in place by `refresh`."""
        self.fetched = False
        """Whether there is an answer of the exchange's, today's or a cached one."""
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
        self.fetched = True
        self.names.update(symbols)
        self.names.update(self._config.canonical_symbols)
        return True

    @property
    def sufficient(self) -> bool:
        """Whether trades can be normalized: the exchange was asked, or need not be."""
        return self.fetched or all(s in self.names for s in self._config.symbols)


def keep_fetched(
    exchange: Exchange, config: ExchangeConfig, path: Path, wait: Callable[[float], bool], log: Log
) -> None:
    """Fetches the metadata at once and then daily, publishes it at *path*, and warns of
    configured symbols that it does not know. Tries again with growing waits, for ever.

    :param wait: waits so many seconds; True when it is time to end.
    """
    retry_s = _FIRST_RETRY_S
    while True:
        pause_s = _REFRESH_S
        try:
            symbols = exchange.read_metadata(rest.get(config.rest_url + exchange.metadata_path))
            _store(path, symbols, config, log)
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
        if wait(pause_s):
            return


def _store(path: Path, symbols: Mapping[str, str], config: ExchangeConfig, log: Log) -> None:
    publish(path, {"fetched_at": int(time.time()), "symbols": dict(symbols)})
    log.info("metadata fetched", symbols=len(symbols))
    unknown = [s for s in config.symbols if s not in symbols]
    if unknown:
        log.warning(
            "symbols refused",
            symbols=unknown,
            reason="the exchange's metadata does not list them; mend exchanges."
            f"{config.name}.symbols",
        )
