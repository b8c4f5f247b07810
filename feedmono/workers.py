"""What every worker process does first, and the names of what it shares with the others."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import setproctitle

from feedmono import log as logs
from feedmono.config import Config, ExchangeConfig
from feedmono.log import Log

_PR_SET_PDEATHSIG = 1


YIELD = signal.SIGUSR1
"""Tells a serializer to make room for its successor: to end what is under way and to read on no
more, where SIGTERM would have it drain the ring."""

RING_UNUSABLE = 3
"""Exit status of a worker that can't open its ring: the supervisor replaces the ring."""


class OrphanedError(Exception):
    """The process that forked this one is gone."""


def set_title(role: str) -> None:
    """What ``ps`` shows: ``feedmono: supervisor``, ``feedmono: reader binance``."""
    setproctitle.setproctitle(f"feedmono: {role}")


def settle(role: str, parent_pid: int) -> None:
    """Makes the calling process a worker: it dies with *parent_pid*, leaves Ctrl-C and a
    hang-up to it, and carries a title that ``ps`` shows.

    SIGKILL, because a stopped process does not act on SIGTERM.

    :raises OrphanedError: the parent was gone before this took effect.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        raise OrphanedError(f"process {parent_pid} is gone")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a worker that takes orders handles SIGHUP itself
    set_title(role)


@dataclass(frozen=True, slots=True)
class Shared:
    """Where one exchange's processes find what they share."""

    ring: Path
    counters: Path
    metadata: Path
    """Symbol → canonical symbol, as the exchange's REST answer gave it."""
    attempts: Path
    reader_note: Path
    serializer_note: Path
    ledger: Path
    """What was delivered: `feedmono.delivery.ledger`."""
    orders: Path
    """What the operator changed since the workers were forked: `Orders`."""
    rest_hold: Path
    """Until when the exchange wants no REST request."""
    dead_letters: Path
    """Folder of the whole copies of what the sink did not take."""

    @classmethod
    def of(cls, config: Config, exchange: str) -> Shared:
        # Two instances with different state_dirs share /dev/shm, but nothing in it.
        instance = hashlib.sha256(os.fsencode(config.state_dir)).hexdigest()[:12]
        stem = f"feedmono-{instance}-{exchange}"
        state = config.state_dir
        return cls(
            ring=config.ring_dir / f"{stem}.ring",
            counters=config.ring_dir / f"{stem}.counters",
            metadata=state / f"{exchange}.symbols.json",
            attempts=state / f"{exchange}.attempts",
            reader_note=state / f"{exchange}.reader.json",
            serializer_note=state / f"{exchange}.serializer.json",
            ledger=state / f"{exchange}.ledger",
            orders=state / f"{exchange}.orders.json",
            rest_hold=state / f"{exchange}.rest",
            dead_letters=state / "dead" / exchange,
        )

    @property
    def state_files(self) -> tuple[Path, ...]:
        """All files of the exchange's in ``state_dir``."""
        notes = self.reader_note, self.serializer_note, self.orders
        ledgers = (self.ledger.with_name(self.ledger.name + end) for end in ("", "-wal", "-shm"))
        return self.metadata, self.attempts, self.rest_hold, *ledgers, *notes


@dataclass(frozen=True, slots=True)
class Orders:
    """What running workers take over when they get SIGHUP, without an interruption."""

    symbols: tuple[str, ...]
    canonical_symbols: Mapping[str, str]
    log_level: str
    log_format: str

    def give(self, path: Path) -> None:
        """Leaves them where a worker finds them; then tell it by SIGHUP.

        :raises OSError: they can't be written.
        """
        publish(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Orders | None:
        """What was given last; None if there is nothing readable."""
        content = published(path)
        try:
            return None if content is None else cls(**content)._settled()  # type: ignore[arg-type]
        except TypeError:
            return None

    def obey(self, config: ExchangeConfig) -> ExchangeConfig:
        """Has this process log as ordered; *config* with the symbols as ordered."""
        logs.set_level(self.log_level, self.log_format)
        return replace(config, symbols=self.symbols, canonical_symbols=self.canonical_symbols)

    def _settled(self) -> Orders:
        return replace(self, symbols=tuple(self.symbols))


def publish(path: Path, content: Mapping[str, object]) -> None:
    """Writes a small JSON file such that whoever reads it finds the old or the new one whole.

    :raises OSError: it can't be written; nothing is left behind.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        fresh.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def tell(path: Path, content: Mapping[str, object], log: Log) -> None:
    """Publishes what is only for the operator: a full disk must not stop who tells."""
    try:
        publish(path, content)
    except OSError as error:
        log.warning("a note can't be written", path=str(path), error=error.strerror)


def remove(path: Path, log: Log) -> None:
    """Removes a file that is not needed any more; one that stays is told of."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("a file can't be removed", path=str(path), error=str(error))


def published(path: Path) -> Mapping[str, object] | None:
    """What `publish` wrote; None if there is nothing readable."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
