"""What an exchange is to the simulator: its markets, its messages, its REST answers.

A `Dialect` is one exchange's side of both protocols, a `Session` the state of one WebSocket
connection. Neither owns a socket: bytes and times in, bytes out.

Adding an exchange is adding one file here, with a class derived from `Dialect` bound to the
module's name ``DIALECT``.
"""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from feedmono.simulator.market import Market, Shape
from feedmono.simulator.venue import Venue, Window


class Print(NamedTuple):
    """A trade as the stream shows it."""

    trade_id: int
    price: str
    quantity: str
    side: int
    time: str
    """As `Dialect.time_text` or `Dialect.placeholder` gives it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A REST request."""

    path: str
    query: Mapping[str, str]
    now_s: float
    """Monotonic."""
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    """Names in lower case."""


@dataclass(frozen=True, slots=True)
class Response:
    """A REST answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a session does about a client's message."""

    texts: Sequence[str] = ()
    """Messages to send, in this order."""
    close: int = 0
    """The code to close the connection with then; 0: it stays open."""
    reason: str = ""


NOTHING = Reply()


def dump(value: object) -> str:
    """Compact JSON, as exchanges send it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(status, dump(value).encode(), tuple((headers or {}).items()))


@dataclass(frozen=True, slots=True)
class Rules:
    """How the exchange treats connections."""

    ping_interval_s: float
    """How often it pings; 0: never. A pong may take three times as long."""
    idle_limit_s: float
    """When a connection on which neither side has anything to say is closed; 0: never."""
    attempts: int
    """How many connection attempts it allows in *attempts_window_s*."""
    attempts_window_s: float
    max_age_s: float = 86_400.0
    """How long a connection may live."""


@dataclass(slots=True)
class Session(ABC):
    """One client's subscriptions."""

    venue: Venue
    variant: str = ""
    """How its trades are rendered."""
    subscribed: dict[str, None] = field(default_factory=dict)
    """The symbols whose trades it gets."""

    def opened(self) -> Sequence[str]:
        """What is sent as soon as the connection is open."""
        return ()

    def counts(self, now_s: float) -> Reply:
        """Any frame of the client's has come in, control frames too."""
        return NOTHING

    @abstractmethod
    def receive(self, message: bytes, now_s: float) -> Reply:
        """A text message of the client's has come in. Never raises."""

    def idle(self) -> str | None:
        """What is sent when nothing was for a second."""
        return None


class Dialect(ABC):
    """One exchange's protocols."""

    name: ClassVar[str]
    markets: ClassVar[Mapping[str, Market]]
    """Those that need no description on the command line."""
    default_symbols: ClassVar[tuple[str, ...]]
    generic: ClassVar[Shape]
    """Of markets that are not in *markets*; their prices get another height each."""
    batches: ClassVar[bool]
    """Whether a frame may hold several trades."""
    rules: ClassVar[Rules]
    essential: ClassVar[tuple[str, ...] | tuple[int, ...]]
    """The keys without which a trade can't be read; the id is the first, the time the last.
    Positions where a trade is an array."""
    recorded_symbol: ClassVar[str | None] = None
    """The symbol whose recording the package holds."""

    def __init__(self, venue: Venue) -> None:
        self.venue = venue
        self._attempts = Window(self.rules.attempts, self.rules.attempts_window_s)

    @classmethod
    def market(cls, text: str) -> Market:
        """A market from the command line: a known symbol, or ``SYMBOL=BASE/QUOTE``; a symbol
        that is BASE/QUOTE itself needs no more.

        :raises ValueError: neither.
        """
        symbol, _, pair = text.partition("=")
        if symbol in cls.markets and not pair:
            return cls.markets[symbol]
        base, _, quote = (pair or symbol).partition("/")
        if not (symbol and base and quote) or "/" in quote:
            raise ValueError(
                f"symbol {text!r} is not one of {', '.join(cls.markets)}: "
                f"write {symbol or 'SYMBOL'}=BASE/QUOTE to make such a market"
            )
        return Market(symbol, base, quote, cls.shape(symbol))

    @classmethod
    def shape(cls, symbol: str) -> Shape:
        """How the figures of any symbol look."""
        if symbol in cls.markets:
            return cls.markets[symbol].shape
        g = cls.generic
        height = 1 + zlib.crc32(symbol.encode()) % 1000
        return Shape(g.price_ticks * height, g.tick_decimals, g.lot_decimals, g.lots, g.decimals)

    def admits(self, now_s: float) -> Response | None:
        """What is answered to one connection attempt too many; None: it may come in."""
        if not self.venue.strict or self._attempts.admits(now_s):
            return None
        return self.failure(429, self.rules.attempts_window_s)

    @abstractmethod
    def session(self, path: str, query: Mapping[str, str]) -> Session | None:
        """A new client's session; None: there is no such path."""

    @abstractmethod
    def rest(self, request: Request) -> Response:
        """The answer to a REST request."""

    @abstractmethod
    def failure(self, status: int, retry_after_s: float = 0.0) -> Response:
        """A REST answer that is an error; *retry_after_s* above 0: with that header."""

    @abstractmethod
    def is_trades(self, path: str) -> bool:
        """Whether a REST path gives trades, and no others."""

    @abstractmethod
    def render(self, variant: str, symbol: str, prints: Sequence[Print]) -> str:
        """A message with these trades: one of them, unless the exchange *batches*."""

    @abstractmethod
    def time_text(self, variant: str, time_us: int) -> str:
        """A trade's time as its message holds it, always of the same length."""

    @abstractmethod
    def placeholder(self, variant: str) -> str:
        """NUL characters as many as `time_text` has: stands where the time will be put."""

    @property
    @abstractmethod
    def default_variant(self) -> str:
        """The one that is rendered beforehand."""

    @abstractmethod
    def shutdown_notice(self, variant: str) -> str:
        """What announces that all connections are about to be closed."""

    def status_message(self, status: str) -> str:
        """What tells of a change of the exchange's trading status.

        :raises ValueError: it has no such message or no such status.
        """
        raise ValueError(f"{self.name} has no status messages")
