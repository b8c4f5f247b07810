"""What the sink of Avro files works by, and the keys that say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from feedmono.config.values import Duration, Folder, Key, Size

_KIB = 1024
_TIB = 1024**4


@dataclass(frozen=True, slots=True)
class FilesConfig:
    dir: Path
    roll_interval_s: float
    roll_size_bytes: int
    sync_interval_s: float
    """The longest time a record waits for the fsync that acknowledges it."""


KEYS: Mapping[str, Key] = {
    "dir": Key("files.dir", Folder(), "FEEDMONO_FILES_DIR"),
    "roll_interval_s": Key(
        "files.roll_interval", Duration("10 ms", "31 d"), "FEEDMONO_FILES_ROLL_INTERVAL"
    ),
    "roll_size_bytes": Key("files.roll_size", Size(_KIB, _TIB), "FEEDMONO_FILES_ROLL_SIZE"),
    "sync_interval_s": Key(
        "files.sync_interval", Duration("0", "1 m"), "FEEDMONO_FILES_SYNC_INTERVAL"
    ),
}
"""By the field of `FilesConfig`."""
