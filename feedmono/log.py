"""Structured events: one line an event, as text or as JSON. The only file that knows structlog.

Nothing is logged per trade. An event's name is a short sentence in the present or past; what
varies stands in its fields: ``log.info("connected", connection=1)``. Every line is one write
of at most 4,096 bytes, so that lines of several processes on one pipe never mix.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
from collections.abc import MutableMapping
from typing import Any, cast

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

# POSIX: a write of up to PIPE_BUF bytes to a pipe is not interleaved with others'.
_LINE_BYTES = 4096


class Log:
    """A logger bound to fields; what `get` gives. A thin name for structlog's own."""

    def __init__(self, bound: Any) -> None:
        self._bound = bound

    def bind(self, **fields: object) -> Log:
        """The same logger with more fields on each line."""
        return Log(self._bound.bind(**fields))

    def debug(self, event: str, **fields: object) -> None:
        self._bound.debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        self._bound.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        self._bound.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        self._bound.error(event, **fields)


class _Line:
    """Writes a line to a descriptor, or drops it where that would block: logging never stops the
    capture, whoever should read it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def msg(self, message: str) -> None:
        data = message.encode("utf-8", "backslashreplace")
        if len(data) >= _LINE_BYTES:
            data = data[: _LINE_BYTES - 5] + b" ..."
        # Of a pipe it says that a whole line fits (PIPE_BUF); nobody may listen any more.
        with contextlib.suppress(OSError):
            # One of its own: a poll object that two threads use at once raises.
            writable = select.poll()
            writable.register(self._fd, select.POLLOUT)
            if writable.poll(0):
                os.write(self._fd, data + b"\n")

    debug = info = warning = error = msg


def configure(level: str, style: str, fd: int | None = None, terminal: bool = False) -> None:
    """Sends all events of *level* (one of `LEVELS`) and above to descriptor *fd* (default:
    standard error), in *style* (one of `FORMATS`).

    :param terminal: whoever reads *fd* shows it in a terminal: colours, and no date.
    """
    import structlog  # noqa: PLC0415  0.2 s, which commands that log nothing need not wait for

    target = sys.stderr.fileno() if fd is None else fd
    terminal = terminal or os.isatty(target)
    renderer: Any
    if style == "json":
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=terminal, pad_event_to=0, pad_level=False, sort_keys=False
        )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt="%H:%M:%S" if terminal and style == "text" else "iso", utc=True
            ),
            structlog.processors.format_exc_info,
            _first_things_first,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            cast(int, getattr(logging, level.upper()))
        ),
        logger_factory=lambda *_: _Line(target),
        cache_logger_on_first_use=False,
    )


def _first_things_first(_: object, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """When, how grave, what; then the fields in the order they were given."""
    front = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    return {**front, **event}


def get(**fields: object) -> Log:
    """A logger with these fields on each of its lines."""
    import structlog  # noqa: PLC0415  as above

    return Log(structlog.get_logger().bind(**fields))
