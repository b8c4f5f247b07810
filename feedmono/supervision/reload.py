"""What a changed configuration means for an instance that runs, and how it is told.

Most keys concern one kind of worker: that one is started again, of that exchange only. Symbols
and logging are taken over by running workers. What can't change while anything runs is refused.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feedmono import workers
from feedmono.config import Config, ConfigError, ExchangeConfig, Mistake
from feedmono.sinks import kinds
from feedmono.supervision import statelock

FILE = "reload.json"
"""In ``state_dir``: what became of the last reload."""
ANSWER_LIMIT_S = 15.0
_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done; names of exchanges."""

    config: Config
    begin: tuple[str, ...] = ()
    """Exchanges that are enabled now."""
    end: tuple[str, ...] = ()
    """Those that are not any more."""
    readers: tuple[str, ...] = ()
    """Whose reader is to be started again."""
    serializers: tuple[str, ...] = ()
    rings: tuple[str, ...] = ()
    """Whose ring is to be replaced, between two generations of workers."""
    orders: tuple[str, ...] = ()
    """Whose workers get `feedmono.workers.Orders`."""
    http: bool = False
    """Whether the address of the metrics changes."""

    def told(self) -> list[str]:
        """What it does, for the operator."""
        lines = [f"{name}: enabled" for name in self.begin]
        lines += [f"{name}: disabled" for name in self.end]
        lines += [f"{name}: the ring is replaced" for name in self.rings]
        lines += [f"{name}: the reader is started again" for name in self.readers]
        lines += [f"{name}: the serializer is started again" for name in self.serializers]
        lines += [f"{name}: taken over by the running workers" for name in self.orders]
        lines += ["http: the address changes"] * self.http
        return lines or ["nothing that concerns a worker has changed"]


def plan(old: Config, new: Config) -> Plan:
    """What turns an instance that runs with *old* into one that runs with *new*.

    :raises ConfigError: something can't change while feedmono runs.
    """
    fixed = [key for key in ("state_dir", "ring_dir") if getattr(old, key) != getattr(new, key)]
    if fixed:
        raise ConfigError([_fixed(key, getattr(old, key), getattr(new, key)) for key in fixed])
    before = {e.name for e in old.enabled_exchanges}
    after = {e.name for e in new.enabled_exchanges}
    stay = sorted(before & after)
    rings = tuple(stay if old.ring_capacity_bytes != new.ring_capacity_bytes else ())
    pairs = {name: (old.exchanges[name], new.exchanges[name]) for name in stay}
    anew = {name: _anew(old, new, *pair) for name, pair in pairs.items() if name not in rings}
    logs = old.log != new.log
    return Plan(
        new,
        begin=tuple(sorted(after - before)),
        end=tuple(sorted(before - after)),
        readers=tuple(name for name, roles in anew.items() if "reader" in roles),
        serializers=tuple(name for name, roles in anew.items() if "serializer" in roles),
        rings=rings,
        orders=tuple(name for name in stay if logs or _ordered(*pairs[name])),
        http=old.http != new.http,
    )


def _anew(
    old: Config, new: Config, exchange: ExchangeConfig, changed: ExchangeConfig
) -> frozenset[str]:
    """The roles whose workers must be started again for what changed."""
    roles = set()
    if _reading(old, exchange) != _reading(new, changed):
        roles.add("reader")
    if _delivery(old) != _delivery(new):
        roles.add("serializer")
    return frozenset(roles)


def _reading(config: Config, exchange: ExchangeConfig) -> tuple[object, ...]:
    """What the reader works by."""
    return config.connections, config.linger_s, exchange.ws_url, exchange.rest_url


def _delivery(config: Config) -> tuple[object, ...]:
    """What the serializer works by."""
    return (
        config.window,
        config.linger_s,
        config.coverage_interval_s,
        config.sink,
        config.backfill,
        kinds.configured(config).settings(config),
    )


def _ordered(exchange: ExchangeConfig, changed: ExchangeConfig) -> bool:
    return (exchange.symbols, exchange.canonical_symbols) != (
        changed.symbols,
        changed.canonical_symbols,
    )


def check_room(plan: Plan) -> None:
    """Whether the new rings have room beside the old ones.

    :raises ConfigError: they have not.
    :raises OSError: that can't be told.
    """
    names = (*plan.rings, *plan.begin)
    if not names:
        return
    stat = os.statvfs(plan.config.ring_dir)
    free_bytes = stat.f_bavail * stat.f_frsize
    if len(names) * plan.config.ring_capacity_bytes > free_bytes:
        found = f"{plan.config.ring_capacity_bytes >> 20} MiB for each of {len(names)} new rings"
        allowed = f"what {plan.config.ring_dir} has room for: {free_bytes >> 20} MiB are free"
        raise ConfigError([Mistake("ring_capacity", found, allowed)])


def _fixed(key: str, old: Path, new: Path) -> Mistake:
    return Mistake(
        key,
        f"{new}, another one than that of the running instance",
        f"{old}; stop feedmono, and start it with the new one",
    )


def orders(config: Config, exchange: str) -> workers.Orders:
    """What the workers of an exchange take over as they run."""
    ours = config.exchanges[exchange]
    return workers.Orders(
        ours.symbols, dict(ours.canonical_symbols), config.log.level, config.log.format
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a reload."""

    number: int
    """Counts the reloads of an instance."""
    ok: bool
    lines: Sequence[str]
    """What changes, or what is wrong."""

    def tell(self, state_dir: Path) -> None:
        """:raises OSError: it can't be written."""
        content = {"pid": os.getpid(), "number": self.number, "ok": self.ok}
        workers.publish(state_dir / FILE, {**content, "lines": list(self.lines)})


class NotReloadedError(Exception):
    """No instance could be told to reload, or none answered."""


def request(state_dir: Path) -> Outcome:
    """Has the instance on *state_dir* read its configuration again; what became of it.

    :raises NotReloadedError: see there.
    """
    try:
        pid = statelock.holder(state_dir)
    except OSError as error:
        raise NotReloadedError(f"{state_dir} can't be read: {error.strerror}") from error
    if pid is None:
        raise NotReloadedError(f"nothing runs on state_dir {state_dir}")
    before = _told(pid, state_dir)
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise NotReloadedError(f"process {pid} belongs to another user") from None
    except ProcessLookupError:
        raise NotReloadedError(f"process {pid} is gone") from None
    deadline_s = time.monotonic() + ANSWER_LIMIT_S
    while time.monotonic() < deadline_s:
        told = _told(pid, state_dir)
        if told is not None and (before is None or told.number > before.number):
            return told
        if statelock.holder(state_dir) != pid:
            raise NotReloadedError(f"process {pid} has ended")
        time.sleep(_RETRY_S)
    raise NotReloadedError(
        f"process {pid} has not answered for {ANSWER_LIMIT_S:g} s; its log tells more"
    )


def _told(pid: int, state_dir: Path) -> Outcome | None:
    content = workers.published(state_dir / FILE)
    if content is None or content.get("pid") != pid:
        return None
    number, lines = content.get("number"), content.get("lines")
    if not isinstance(number, int) or not isinstance(lines, list):
        return None
    return Outcome(number, content.get("ok") is True, [str(line) for line in lines])
