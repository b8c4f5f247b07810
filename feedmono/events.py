"""The file of recent events: what every process logs, for the page and `top` to show.

``events.jsonl`` in ``state_dir``: a JSON object a line, as the log has it; all processes append to
it, and the supervisor renames it to ``events.1.jsonl`` when it is large, over the one before. Each
line is one write to a descriptor opened for it: appended lines never mix, and who appends needs
not be told that the file is another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

FILE = "events.jsonl"
OLD_FILE = "events.1.jsonl"
FILES = (FILE, OLD_FILE)

_ROTATE_BYTES = 256 * 1024
# Nothing is appended to a file of this size, which nobody seems to rotate; nor is more of it read.
_MOST_BYTES = 4 * _ROTATE_BYTES
# How every line begins: behind the rest of a line that a full disk cut off, the next one is found.
_BEGIN = b'{"timestamp":'


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log."""

    at_s: float
    """Unix time."""
    level: str
    exchange: str
    """Empty if it concerns none."""
    worker: str
    """The worker that it comes from or concerns; empty if there is none."""
    event: str
    """What happened, in a few words."""
    fields: Mapping[str, Any]
    """What else is known of it, such as ``connection``."""


def append(state_dir: Path, line: bytes) -> None:
    """Adds a line (without its end) to the file. Never raises: when the disk is full or the folder
    is gone the line is dropped, and the next one is tried again."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with contextlib.suppress(OSError), _opened(state_dir / FILE, flags) as (fd, status):
        if status.st_size < _MOST_BYTES:
            os.write(fd, line + b"\n")


def rotate(state_dir: Path) -> None:
    """Begins a new file if the present one is larger than 256 KiB; for one process of an instance
    to call, about once a second. Never raises."""
    path = state_dir / FILE
    with contextlib.suppress(OSError):
        if path.stat().st_size > _ROTATE_BYTES:
            path.replace(state_dir / OLD_FILE)


def recent(
    state_dir: Path,
    count: int,
    levels: Collection[str] | None = None,
    exchange: str | None = None,
) -> list[Event]:
    """The newest *count* events, the oldest of them first. What can't be read is left out.

    :param levels: only these; None: all that are kept, which is ``info`` and above.
    :param exchange: only what concerns this one; what concerns none is left out then.
    """
    found: list[Event] = []
    for line in _lines_backwards(state_dir):
        if len(found) >= count:
            break
        event = _parsed(line)
        if (
            event is not None
            and (levels is None or event.level in levels)
            and exchange in (None, event.exchange)
        ):
            found.append(event)
    return found[::-1]


def _lines_backwards(state_dir: Path) -> Iterator[bytes]:
    """Of both files, the newest first."""
    last: os.stat_result | None = None
    for name in FILES:
        try:
            with _opened(state_dir / name, os.O_RDONLY) as (fd, status):
                if last is not None and os.path.samestat(last, status):
                    return  # it was renamed since it was read
                last = status
                data = os.pread(fd, _MOST_BYTES, max(0, status.st_size - _MOST_BYTES))
        except OSError:
            continue
        yield from reversed(data.split(b"\n"))


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor of a regular file, and what the file is like.

    :raises OSError: there is none.
    """
    # Whatever else may stand there, a pipe for one, must not keep the caller waiting.
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no regular file")
        yield fd, status
    finally:
        os.close(fd)


def _parsed(line: bytes) -> Event | None:
    """None if that is no event."""
    event = _decoded(line)
    if event is None and (begin := line.rfind(_BEGIN)) > 0:
        event = _decoded(line[begin:])
    return event


def _decoded(line: bytes) -> Event | None:
    try:
        fields = json.loads(line)
        timestamp, level, event = (fields.pop(key) for key in ("timestamp", "level", "event"))
        at_s = datetime.fromisoformat(timestamp.removesuffix("Z") + "+00:00").timestamp()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    exchange, worker = fields.pop("exchange", ""), fields.pop("worker", "")
    if not all(isinstance(text, str) for text in (level, event, exchange, worker)):
        return None
    return Event(at_s, level, exchange, worker, event, fields)
