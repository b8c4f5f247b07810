"""The effective configuration as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from feedmono.config.budget import Budget
from feedmono.config.sinks import SinkConfigs


@dataclass(frozen=True, slots=True)
class ExchangeConfig:
    name: str
    enabled: bool
    symbols: tuple[str, ...]
    ws_url: str
    """Scheme, host, port, no path."""
    rest_url: str
    """Scheme, host, port, no path."""
    canonical_symbols: Mapping[str, str]
    """Symbol → canonical symbol, for those that the operator names; others come by REST."""
    budget: Budget


@dataclass(frozen=True, slots=True)
class ConnectionsConfig:
    frame_limit_bytes: int
    """A message above it ends the connection with close code 1009."""
    silence_limit_s: float
    """A connection on which no byte came for so long is dead and is replaced."""
    stale_limit_s: float
    """A connection on which no trade came for so long is replaced; doubled, up to an hour,
    as long as its successors bring none either."""
    backoff_cap_s: float
    """The longest wait before a reconnect."""
    max_age_s: float
    """A connection this old is replaced by a successor that flows before it closes."""
    redundancy: int
    """On how many connections at once each symbol is subscribed."""


@dataclass(frozen=True, slots=True)
class BackfillConfig:
    """How far what was missed is fetched by REST."""

    max_age_s: float
    """Trades older than this are not fetched; 0: none is."""
    max_trades: int
    """Of one hole, so many of the newest ids are asked for."""
    confirm_after_s: float
    """How long after REST first showed that it lacks an id a second look must confirm it."""


@dataclass(frozen=True, slots=True)
class SamplesConfig:
    keep_s: float
    """How long samples are kept, the older ones thinned."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Where metrics, health and the page are served."""

    enabled: bool
    host: str
    port: int
    """0: any free one."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: str
    format: str


@dataclass(frozen=True, slots=True)
class Config(SinkConfigs):
    """The effective configuration; every path absolute, every value checked."""

    state_dir: Path
    ring_dir: Path
    ring_capacity_bytes: int
    """Of each exchange's ring."""
    window: int
    """How many ring records past the oldest unacknowledged one the serializer reads: what a
    crash can double at most."""
    linger_s: float
    """How long a trade may wait for company."""
    stop_limit_s: float
    """How long an orderly stop may take before the workers are killed."""
    coverage_interval_s: float
    """How often a symbol's coverage is published at most while only its end moves."""
    sink: str
    """One of `SINKS`."""
    exchanges: Mapping[str, ExchangeConfig]
    connections: ConnectionsConfig
    backfill: BackfillConfig
    samples: SamplesConfig
    http: HttpConfig
    log: LogConfig

    @property
    def enabled_exchanges(self) -> tuple[ExchangeConfig, ...]:
        return tuple(e for e in self.exchanges.values() if e.enabled)
