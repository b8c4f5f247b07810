"""What a simulator is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from feedmono.simulator.faults import Setting
from feedmono.simulator.market import Market


@dataclass(frozen=True, slots=True)
class Options:
    """The checked command line; `feedmono.simulator.cli` says what each means."""

    exchange: str
    host: str
    port: int
    rate: float
    """Trades a second over all symbols; infinite: as fast as they are taken."""
    period_s: float
    """How often trades are made: one wake-up for all that are due, not one a trade."""
    seed: int
    markets: tuple[Market, ...]
    recorded: bool
    speed: float
    """How many times faster the recording goes than it did; 0: its symbol goes by *rate*."""
    prerender: int
    first_id: int | None
    batch: int
    limit: int | None
    hold: bool
    journal: Path | None
    faults: tuple[Setting, ...]
    strict: bool
    """Whether the exchange's rate limits hold."""
    ping_interval_s: float | None
    """None: as the exchange has it."""
    send_buffer_bytes: int
    """A client with more than this unread is cut."""
