"""Configuration: HOCON → frozen dataclasses. The only file that knows pyhocon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Budget:
    """What one exchange's reader and serializer together may use."""

    cpu: float
    """Cores."""
    memory_bytes: int


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


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    bootstrap_servers: str
    schema_registry_url: str
    topic_prefix: str
    partitions: int
    """Of the raw and the normalized topic, when feedmono creates them."""
    properties: Mapping[str, str]
    """Passed to librdkafka as they are."""


@dataclass(frozen=True, slots=True)
class FilesConfig:
    dir: Path
    roll_interval_s: float
    roll_size_bytes: int
    sync_interval_s: float
    """The longest time a record waits for the fsync that acknowledges it."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: str
    format: str


@dataclass(frozen=True, slots=True)
class Config:
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
    sink: str
    """``files`` or ``kafka``."""
    exchanges: Mapping[str, ExchangeConfig]
    connections: ConnectionsConfig
    kafka: KafkaConfig
    files: FilesConfig
    log: LogConfig

    @property
    def enabled_exchanges(self) -> tuple[ExchangeConfig, ...]:
        return tuple(e for e in self.exchanges.values() if e.enabled)
