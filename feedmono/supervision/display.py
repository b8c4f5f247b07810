"""What the operator sees unasked: a display, or a line a minute in the log."""

from __future__ import annotations

from feedmono.log import Log
from feedmono.supervision.snapshot import Snapshot


class Display:
    """Where the operator looks; this one shows nothing but the log."""

    log_fd: int | None = None
    """Where the workers' log lines go; None: standard error."""
    fds: tuple[int, ...] = ()
    """What `readable` is to be called for."""

    def readable(self, fd: int) -> None:
        """Something can be read from one of `fds`."""

    def show(self, state: Snapshot) -> None:
        """Shows a new sample, once a second."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


def summarize(state: Snapshot, log: Log) -> None:
    """What the log tells a minute where no table is shown: a line per exchange."""
    for exchange in state.exchanges:
        log.info(
            "summary",
            exchange=exchange.name,
            state=exchange.state,
            trades_per_s=round(exchange.trades_per_s, 1),
            trades=exchange.trades,
            delivered=exchange.delivered,
            ring_used_bytes=exchange.ring_used_bytes,
            cpu_cores=round(exchange.cpu_cores, 3),
            memory_mib=exchange.memory_bytes >> 20,
            reconnects=exchange.reconnects,
            dead_letters=exchange.dead_letters,
        )
