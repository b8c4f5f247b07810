"""Structured events: one line an event, as text or as JSON. The only file that knows structlog.

Nothing is logged per trade. An event's name is a short sentence in the present or past; what
varies stands in its fields: ``log.info("connected", connection=1)``. Every line is one write
of at most 4,096 bytes, so that lines of several processes on one pipe never mix. Lines of one
name that come in storms are counted (`feedmono.repeats`); all that is not for debugging is kept
in the file of recent events as well (`feedmono.events`), whatever the level is.

Not for signal handlers: those only wake a loop.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import select
import sys
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from feedmono import events as recent_events
from feedmono.repeats import Held, Repeats

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

_STDERR_FD = 2
# POSIX: a write of up to PIPE_BUF bytes to a pipe is not interleaved with others'.
_LINE_BYTES = 4096
# Of a line that is longer, each value keeps its beginning; of a stack, the end tells what failed.
_VALUE_CHARS = 300
_STACK_CHARS = 1500
# sd-daemon(3): priorities as syslog has them.
_PRIORITIES = {"debug": b"<7>", "info": b"<6>", "warning": b"<4>", "error": b"<3>"}
_ENCODER = json.JSONEncoder(default=str, ensure_ascii=False, skipkeys=True)


class Log:
    """A logger bound to fields; what `get` gives. A thin name for structlog's own."""

    def __init__(self, bound: Any) -> None:
        self._bound = bound

    def bind(self, **fields: object) -> Log:
        """The same logger with more fields on each line."""
        return Log(self._bound.bind(**fields))

    def debug(self, event: str, **fields: object) -> None:
        if _outlet.target.shows("debug"):
            self._bound.debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        self._bound.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        self._bound.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        self._bound.error(event, **fields)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where lines go and how they look; replaced as a whole, so that no thread meets half a
    change."""

    fd: int = _STDERR_FD
    level: str = "info"
    style: str = "text"
    terminal: bool = False
    journal: bool = False
    events: Path | None = None
    """The ``state_dir`` that has the file of recent events."""

    def shows(self, level: str) -> bool:
        return LEVELS.index(level) >= LEVELS.index(self.level)


class _Outlet:
    """Takes every event of this process. Loggers lead here whenever they were bound, so a change
    of the target holds for all of them at once."""

    def __init__(self) -> None:
        self.target = _Target()
        self._repeats = Repeats()

    def begin(self, target: _Target) -> None:
        """Forgets what was counted: after a fork that is the parent's to tell."""
        self._repeats = Repeats()
        self.target = target

    def wants(self, level: str, fields: Mapping[str, Any]) -> bool:
        """Whether this event is to be told; one that is not is counted."""
        if level == "debug":
            return True
        now_s = time.monotonic()
        self._tell(self._repeats.over(now_s))
        return self._repeats.admits(level, str(fields["event"]), fields, now_s)

    def tell_over(self) -> None:
        self._tell(self._repeats.over(time.monotonic()))

    def tell_all(self) -> None:
        self._tell(self._repeats.all(time.monotonic()))

    def _tell(self, held: list[Held]) -> None:
        for one in held:
            more = f"{one.event} … {one.count} more in {max(1.0, one.period_s):.0f} s"
            fields = {**one.place, "repeats": one.event, "more": one.count}
            self.take(one.level, {"event": more, **fields})

    def take(self, level: str, fields: Mapping[str, Any]) -> None:
        """Writes one event to wherever it belongs."""
        target = self.target
        event = {"timestamp": _now(), "level": level, "event": fields["event"], **fields}
        if target.events is not None and level != "debug":
            recent_events.append(target.events, _json_line(event))
        if target.shows(level):
            line = _json_line(event) if target.style == "json" else _text_line(event, target)
            _write(target.fd, _prefixed(line, level) if target.journal else line)


_outlet = _Outlet()


def configure(
    level: str,
    style: str,
    fd: int | None = None,
    terminal: bool = False,
    events: Path | None = None,
) -> None:
    """Sends all events of *level* (one of `LEVELS`) and above to descriptor *fd* (default:
    standard error), in *style* (one of `FORMATS`). Once in each process, right after its fork.

    Where *fd* leads straight to the systemd journal, lines begin with their priority
    (``<4>``), which the journal takes off again: ``journalctl -p warning`` finds them.

    :param terminal: whoever reads *fd* shows it in a terminal: colours, and no date.
    :param events: the ``state_dir`` whose file of recent events gets all of ``info`` and above.
    """
    structlog = _structlog()
    target_fd = _STDERR_FD if fd is None else fd
    terminal = terminal or os.isatty(target_fd)
    journal = _is_journal(target_fd)
    _outlet.begin(_Target(target_fd, level, style, terminal, journal, events))
    structlog.configure(
        processors=[_wanted, structlog.processors.format_exc_info, _taken],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )


def begin_child() -> None:
    """Right after a fork that goes on logging to the same place: what was held back so far is the
    parent's to tell."""
    _outlet.begin(_outlet.target)


def set_level(level: str, style: str) -> None:
    """Changes level and format of the running process, for all loggers that there are."""
    _outlet.target = replace(_outlet.target, level=level, style=style)


def tick() -> None:
    """Tells what was held back in the periods that are over; for each process's loop to call
    about once a second. Without it that waits for the next line."""
    _outlet.tell_over()


def close() -> None:
    """Tells what was held back until now; a process's last word."""
    _outlet.tell_all()


@functools.cache
def _structlog() -> Any:
    """The library, loaded when it is needed: that takes 0.2 s. It would load rich as well, for
    tracebacks that are not shown here: 4 MiB in each process."""
    hides = "rich" not in sys.modules
    if hides:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: PLC0415
    finally:
        if hides:
            del sys.modules["rich"]
    return structlog


def get(**fields: object) -> Log:
    """A logger with these fields on each of its lines."""
    structlog = _structlog()
    return Log(structlog.get_logger().bind(**fields))


def _wanted(_: object, level: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    structlog = _structlog()
    if not _outlet.wants(level, event):
        raise structlog.DropEvent
    return event


def _taken(_: object, level: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    structlog = _structlog()
    _outlet.take(level, event)
    raise structlog.DropEvent  # there is no logger behind


@functools.cache
def _text_renderer(*, colors: bool) -> Any:
    structlog = _structlog()
    return structlog.dev.ConsoleRenderer(
        0,  # nothing stands in columns
        colors=colors,
        pad_level=False,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )


def _now() -> str:
    now = datetime.now(timezone.utc)
    return now.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _text_line(event: dict[str, Any], target: _Target) -> bytes:
    if target.journal:
        del event["timestamp"]  # the journal has its own
    elif target.terminal:
        event["timestamp"] = event["timestamp"][11:19]
    text: str = _text_renderer(colors=target.terminal)(None, "", event)
    return text.encode("utf-8", "backslashreplace")


def _json_line(event: Mapping[str, Any]) -> bytes:
    line = _json(event)
    return line if len(line) < _LINE_BYTES else _json(_shortened(event))


def _json(value: object) -> bytes:
    return _ENCODER.encode(value).encode("utf-8", "backslashreplace")


def _shortened(event: Mapping[str, Any]) -> dict[str, Any]:
    """The same event with long values cut, and without those that there is no room for: what is
    cut in the middle is no JSON any more."""
    short: dict[str, Any] = {"cut": True}
    size_bytes = len(_json(short)) + 1  # and the line's end
    entries: dict[str, Any] = {}
    for key, value in event.items():
        entry = {key: _cut(key, value)}
        # Its braces count for the comma and the blank before it.
        entry_bytes = len(_json(entry))
        if size_bytes + entry_bytes < _LINE_BYTES:
            size_bytes += entry_bytes
            entries |= entry
    return entries | short


def _cut(key: str, value: Any) -> Any:
    text = value if isinstance(value, str) else _json(value).decode("utf-8")
    if key == "exception":
        return text[-_STACK_CHARS:]
    return value if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]} …"


def _prefixed(line: bytes, level: str) -> bytes:
    """As JSON too: the journal takes the prefix off, so its messages are the plain objects. Each
    line of a stack is a message of its own there."""
    prefix = _PRIORITIES[level]
    return prefix + line.replace(b"\n", b"\n" + prefix)


def _is_journal(fd: int) -> bool:
    """Whether a descriptor is connected to the journal itself: systemd.exec(5)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _write(fd: int, line: bytes) -> None:
    """Writes a line to a descriptor, or drops it where that would block: logging never stops the
    capture, whoever should read it."""
    if len(line) >= _LINE_BYTES:
        line = line[: _LINE_BYTES - 5].decode("utf-8", "ignore").encode() + b" ..."
    # Of a pipe it says that a whole line fits (PIPE_BUF); nobody may listen any more.
    with contextlib.suppress(OSError):
        # One of its own: a poll object that two threads use at once raises.
        writable = select.poll()
        writable.register(fd, select.POLLOUT)
        if writable.poll(0):
            os.write(fd, line + b"\n")
