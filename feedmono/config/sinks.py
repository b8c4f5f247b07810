"""The sinks' configurations: where each is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from feedmono.config import files, kafka
from feedmono.config.files import FilesConfig
from feedmono.config.kafka import KafkaConfig
from feedmono.config.values import Key


@dataclass(frozen=True, slots=True)
class SinkConfigs:
    """Each sink's, whether it is the one that is used or not."""

    files: FilesConfig
    kafka: KafkaConfig


SINKS: Mapping[str, tuple[Callable[..., Any], Mapping[str, Key]]] = {
    "files": (FilesConfig, files.KEYS),
    "kafka": (KafkaConfig, kafka.KEYS),
}
"""By the field of `SinkConfigs`, which is the name that ``sink`` knows: the class, and its keys by
its fields."""
