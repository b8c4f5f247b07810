"""The hot loops: the native extension where it was built, their twins in Python where not.

Whoever has a hot loop looks here at each call, so that a test chooses the twin by setting `frames`
or `trades`. Both twins give the same results for the same input, and leave what is unusual to their
caller.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Protocol, cast

from feedmono.native import plain_frames
from feedmono.ring_layout import Record


class Frames(Protocol):
    """Frame cutting and ring: frames.c, or `feedmono.native.plain_frames`."""

    def cut(self, chunk: bytes, position: int, limit_bytes: int, messages: list[bytes], /) -> int:
        """Adds the text frames in one piece from *position* on; where anything else begins."""

    def append(
        self,
        data: mmap.mmap,
        capacity_bytes: int,
        position: int,
        limit: int,
        largest_bytes: int,
        sequence: int,
        received_ns: int,
        connection: int,
        kind: int,
        flags: int,
        payloads: Sequence[bytes],
        /,
    ) -> tuple[int, int]:
        """Writes records from *position* on and commits nothing: how many, up to the first that
        would end behind *limit* or is above *largest_bytes*, and the position behind them."""

    def read(
        self,
        data: mmap.mmap,
        capacity_bytes: int,
        position: int,
        committed: int,
        limit: int,
        last_sequence: int,
        max_records: int,
        records: list[Record],
        record_type: type[Record],
        /,
    ) -> tuple[int, int]:
        """Adds intact records with rising sequences until there are *max_records*, or *limit* is
        reached, or something else comes: the position there, and the last one's sequence."""


def _load() -> tuple[ModuleType | None, str]:
    try:
        return import_module("feedmono.native._native"), "native extension"
    except ModuleNotFoundError:
        return None, "pure Python (no compiler at installation)"
    except ImportError as error:
        return None, f"pure Python (the native extension can't be loaded: {error})"


_module, _description = _load()

frames = cast("Frames", _module or plain_frames)
"""Frame cutting and ring."""
trades = _module
"""Parsing and encoding; None: in Python."""


def describe() -> str:
    """Which twin is at work, and why, in a few words."""
    return _description
