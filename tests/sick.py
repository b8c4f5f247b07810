"""``feedmono`` whose workers fall ill when they are told to: `python sick.py run …`.

The file that ``SICK_FILE`` names holds, as JSON, who is to be ill and how: ``{"pid": 4711, "how":
"spin"}``; another pid, and it is well again. It is looked at in each round of the serializer's loop
and at each read of a connection, by code that stands here and nowhere else.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from feedmono import cli, reader, serializer
from feedmono.delivery.loop import Delivery
from feedmono.network.connection import Connection

_FILE = Path(os.environ["SICK_FILE"])
_LEAK_BYTES = 4 << 20
_SPIN_S = 0.2
_leaked: list[bytearray] = []


def _how() -> str:
    try:
        told = json.loads(_FILE.read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return str(told["how"]) if told["pid"] in (0, os.getpid()) else ""


def _suffer() -> None:
    how = _how()
    if how == "leak":
        _leaked.append(bytearray(os.urandom(4096)) * (_LEAK_BYTES // 4096))
    elif how == "spin":
        end_s = time.thread_time() + _SPIN_S
        while time.thread_time() < end_s:
            pass
    elif how == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()


def _ill(healthy: Callable[..., Any]) -> Callable[..., Any]:
    def work(*args: Any, **options: Any) -> Any:
        _suffer()
        return healthy(*args, **options)

    return work


def _ill_at_start(role: str, healthy: Callable[..., int]) -> Callable[..., int]:
    def main(*args: Any) -> int:
        if _how() == f"crash {role}":
            raise RuntimeError("ill from the start")
        return healthy(*args)

    return main


def main(arguments: Sequence[str]) -> int:
    """The command, in processes that can fall ill."""
    Delivery.step = _ill(Delivery.step)  # type: ignore[method-assign]
    Connection._read = _ill(Connection._read)  # type: ignore[method-assign]
    serializer.main = _ill_at_start("serializer", serializer.main)
    reader.main = _ill_at_start("reader", reader.main)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
