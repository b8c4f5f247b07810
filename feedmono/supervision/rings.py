"""The rings of an instance: made or taken over, locked, replaced where they can't be used, put
away at the end."""

from __future__ import annotations

import contextlib
import os

from feedmono import ring, ring_layout, workers
from feedmono.config import Config
from feedmono.delivery import ledger_file
from feedmono.log import Log
from feedmono.supervision import statelock
from feedmono.supervision.snapshot import ExchangeStatus

# Far above any Unix time in µs, and with room behind it in 64 bits: beyond it is damage.
_MOST_SEQUENCE = 1 << 62


class Rings:
    """Those of the exchanges that are served, by their names."""

    def __init__(self, log: Log) -> None:
        self._log = log
        # The descriptor that holds the lock on each ring, for its workers to inherit.
        self._guards: dict[str, int] = {}

    def open(self, config: Config, exchange: str) -> None:
        """Makes a ring, or takes over the one that a predecessor left.

        :raises RingError, LockHeldError, OSError: it can't be.
        """
        shared = workers.Shared.of(config, exchange)
        config.ring_dir.mkdir(parents=True, exist_ok=True)
        with statelock.guarded(shared.ring):
            self._prepare(config, exchange)
        self._guards[exchange] = statelock.guard(shared.ring)

    def is_there(self, config: Config, exchange: str) -> bool:
        """Whether the ring's name leads to the file that is guarded, as far as can be told."""
        path = workers.Shared.of(config, exchange).ring
        try:
            return os.path.samestat(path.stat(), os.fstat(self._guards[exchange]))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def is_usable(self, config: Config, exchange: str) -> bool:
        """Whether a worker that could not use its ring may try again; one of them has ended."""
        try:
            ring.Ring(workers.Shared.of(config, exchange).ring).close()
        except ring.RingError:
            return False
        return self.is_there(config, exchange)

    def replace(self, config: Config, exchange: str) -> None:
        """Puts another ring in the place of one that is damaged, gone, or of another capacity,
        while nobody uses it. What is intact in the old one is delivered first, as after a start.

        :raises RingError, LockHeldError, OSError: not now.
        """
        shared = workers.Shared.of(config, exchange)
        old = self._guards[exchange]
        if not os.fstat(old).st_nlink:
            # Nobody can open it any more; its header is all that the sampler looks at.
            os.ftruncate(old, ring_layout.HEADER_BYTES)
        shared.ring.parent.mkdir(parents=True, exist_ok=True)
        ours = self.is_there(config, exchange)
        with contextlib.nullcontext() if ours else statelock.guarded(shared.ring):
            self._prepare(config, exchange)
        if not self.is_there(config, exchange):
            self._guards[exchange] = statelock.guard(shared.ring)
            os.close(old)

    def give_up(self, exchange: str) -> None:
        """Its lock is free again; its file is the caller's business."""
        os.close(self._guards.pop(exchange))

    def put_away(self, config: Config, exchange: ExchangeStatus) -> None:
        """Its workers are gone: an empty ring is removed, with the counters; one that is not stays,
        and is named."""
        shared = workers.Shared.of(config, exchange.name)
        then = "kept there, delivered by the next start that serves the exchange"
        if exchange.ring_used_bytes:
            there = shared.ring.exists()
            self._log.warning(
                "not delivered yet" if there else "the ring was removed",
                exchange=exchange.name,
                size_bytes=exchange.ring_used_bytes,
                path=str(shared.ring),
                consequence=then if there else "lost",
            )
        else:
            # Its memory is given back; the ledger knows its last sequence.
            workers.remove(shared.ring, self._log)
        for path in ring.set_aside_of(shared.ring):
            self._log.warning(
                "not delivered yet", exchange=exchange.name, path=str(path), consequence=then
            )
        workers.remove(shared.counters, self._log)

    def keep_only(self, exchange: str) -> None:
        """In a process that was forked for that exchange (empty: for none): holds no lock but
        that one's."""
        for name in [name for name in self._guards if name != exchange]:
            self.give_up(name)

    def _prepare(self, config: Config, exchange: str) -> None:
        shared = workers.Shared.of(config, exchange)
        prepared = ring.prepare(shared.ring, config.ring_capacity_bytes, _least_sequence(shared))
        if prepared.set_aside:
            self._log.warning(
                "ring set aside",
                exchange=exchange,
                path=str(prepared.set_aside),
                reason=prepared.reason,
            )
        if prepared.kept_bytes:
            self._log.info(
                "ring holds what was not delivered before",
                exchange=exchange,
                size_bytes=prepared.kept_bytes,
            )


def _least_sequence(shared: workers.Shared) -> int:
    """Behind everything that the ledger knows; 0 where no sane number is kept."""
    try:
        content = ledger_file.read(shared.ledger)
    except ledger_file.LedgerError:
        return 0  # the serializer sets it aside, and says so
    # However far ahead of the clock, which may have been set back: what has a lower sequence
    # counts as delivered.
    return content.sequence + 1 if content is not None and content.sequence < _MOST_SEQUENCE else 0
