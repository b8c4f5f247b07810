"""The configuration: HOCON in layers → frozen dataclasses. Only this folder knows pyhocon."""

from __future__ import annotations

from feedmono.config.budget import Budget
from feedmono.config.files import FilesConfig
from feedmono.config.kafka import KafkaConfig
from feedmono.config.layers import Value
from feedmono.config.loading import DEFAULT_FILE, ConfigError, Loaded, load, read_block
from feedmono.config.settings import (
    BackfillConfig,
    Config,
    ConnectionsConfig,
    ExchangeConfig,
    HttpConfig,
    LogConfig,
    SamplesConfig,
)
from feedmono.config.values import Mistake, parse_duration

__all__ = [
    "DEFAULT_FILE",
    "BackfillConfig",
    "Budget",
    "Config",
    "ConfigError",
    "ConnectionsConfig",
    "ExchangeConfig",
    "FilesConfig",
    "HttpConfig",
    "KafkaConfig",
    "Loaded",
    "LogConfig",
    "Mistake",
    "SamplesConfig",
    "Value",
    "load",
    "parse_duration",
    "read_block",
]
