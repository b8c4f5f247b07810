"""What is known of one open connection, from its handshake to its end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from feedmono.exchanges.base import Session
from feedmono.network import framing
from feedmono.network.wire import Ended, Wire

READY_AFTER_S = 10.0
"""How long after the last answer a connection without trades counts as one that would bring
them."""


@dataclass(slots=True)
class Life:
    """One open connection."""

    wire: Wire
    session: Session
    symbols: tuple[str, ...]
    """Those that the session was told to subscribe."""
    cutter: framing.FrameCutter
    opened_s: float
    old_s: float
    """When it is to be replaced."""
    frames: int = 0
    has_data: bool = False
    """Whether it has brought a trade."""
    answered_s: float = math.inf
    """When no symbol was pending any more, those that came later included."""
    aging: bool = False
    """It was told that it is to be replaced."""
    ready: bool = False
    """It was told that it needs no predecessor."""
    trading: bool = False
    """What the exchange said last."""
    blocked_s: float = 0.0
    """For how long the ring had no room."""
    traded_s: float = -math.inf
    """When trades were read last."""
    untold_bytes: int = 0
    """How much was read since the serializer was woken last."""
    tell_s: float = math.inf
    """When it is to be woken for that at the latest."""
    refused: set[str] = field(default_factory=set)
    """Those of its symbols that the exchange refused."""
    left: list[str] = field(default_factory=list)
    """Symbols whose subscriptions ended, to be told behind the batch at hand."""
    pong: bytes | None = None
    """The payload of the last ping, while it is to be answered."""
    pong_after_s: float = -math.inf
    """No pong is sent before."""
    ended: Ended | None = None
    """Why it will end, once the batch at hand is delivered."""

    @property
    def ready_s(self) -> float:
        """When it needs no predecessor any more, as it looks now."""
        return self.answered_s + (0.0 if self.has_data else READY_AFTER_S)

    def next_s(self) -> float:
        """When there is something to tell."""
        return min(math.inf if self.ready else self.ready_s, math.inf if self.aging else self.old_s)
