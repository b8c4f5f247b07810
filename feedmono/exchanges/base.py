"""What an exchange is to the rest of feedmono: a value, without socket, clock or thread.

An `Exchange` knows how its messages look. A `Session` is the state of one connection: which
symbols were asked for, which were acknowledged, what is to be sent next. Both take bytes and
times and give back trades, messages and events; they never wait and never do I/O, so that a
whole recorded connection is a table in a test.

Adding an exchange is adding one file here, with a class derived from `Exchange` bound to the
module's name ``EXCHANGE``, and its block in ``etc/feedmono.conf``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from feedmono.trade import STREAM, Trade

EXCERPT_BYTES = 120
"""How much of a message a reason quotes."""


class Undecodable(Exception):
    """A frame that carries no trade that could be read; its text says why."""


class Decoded(NamedTuple):
    """What one frame of the stream holds. (A tuple: a frozen dataclass costs six times as much
    to make, as much as reading the whole frame.)"""

    trades: Sequence[Trade]
    """Every trade of the frame, in its order; none in the snapshot of a market without trades."""
    origin: int = STREAM
    """`STREAM` or `SNAPSHOT`, the same for all trades of a frame."""
    problems: Sequence[str] = ()
    """What of the frame could not be read (a trade without a price …), each a reason. The
    frame goes to the dead letters as well then, and its readable trades are delivered."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the exchange allows; each figure's source stands where it is set."""

    symbols_per_connection: int
    """How many symbols one connection may carry."""
    connections: int
    """How many connection attempts are allowed in `connections_window_s`, per address."""
    connections_window_s: float
    connection_age_s: float
    """How long a connection lives at most; ``math.inf`` where no document tells."""
    rest_weight: int
    """How much weight all REST requests of an address may have in `rest_window_s`."""
    rest_window_s: float
    metadata_weight: int
    """Of one request for metadata."""
    page_weight: int
    """Of one request for a page of trades."""
    page_rows: int
    """How many trades a page has at most."""


class Market(NamedTuple):
    """What the exchange's metadata tells of a symbol."""

    canonical: str
    """``BTC/USDT``."""
    rest_name: str
    """How REST requests name it."""


class PageRequest(NamedTuple):
    """A wish for a page of past trades."""

    symbol: str
    first_id: int
    """The id from which on they are wanted; known from the stream where there is one before."""
    since_us: int
    """When that trade was made, Unix time in microseconds."""
    rows: int
    """How many are enough."""
    tail: bool
    """Whether it is asked what came after `first_id`, rather than for a known hole."""


class Refusal(NamedTuple):
    """A REST answer that is an error although its status is 200."""

    reason: str
    limited: bool
    """Whether it says that there were too many requests."""


# --- Events: what a session tells its connection about a frame or about time gone by.


@dataclass(frozen=True, slots=True)
class Data:
    """The frame carries trades, or should: it belongs into the ring."""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The exchange acknowledged the subscription of *symbol*."""

    symbol: str


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """The exchange ended the subscription of *symbol* as asked, or never answered: what still
    comes of it is not wanted."""

    symbol: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The exchange refused *symbol* for good; the other symbols go on."""

    symbol: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Subscriptions that were sent repeatedly and never answered: reconnect."""

    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The exchange announced that it will end this connection: it is replaced before."""

    reason: str


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """The exchange told its trading status. While *trading* is false, silence is legitimate."""

    status: str
    trading: bool


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message that this exchange is not known to send: counted, kept, never fatal."""

    reason: str


Event = Data | Subscribed | Unsubscribed | Refused | Unanswered | Shutdown | SystemStatus | Unknown


class Session(ABC):
    """The protocol state of one connection. Not thread-safe: one thread owns it.

    All times are seconds of one monotonic clock of the caller's.
    """

    path: str
    """Path and query to open, appended to the configured ``ws_url``."""

    @abstractmethod
    def receive(self, frame: bytes, now_s: float) -> Sequence[Event]:
        """What one frame means. Empty for what needs no action (heartbeats, pongs).

        Never raises, whatever the bytes are: what can't be read is `Unknown`. Called only
        for frames that `Exchange.is_data` does not recognize, but gives `Data` for a trade
        message that is merely written in another order.
        """

    @abstractmethod
    def poll(self, now_s: float) -> tuple[Sequence[str], Sequence[Event]]:
        """The text messages that are due now (subscriptions, keep-alives), within the
        exchange's message rate, and the events of time gone by (`Unanswered`).

        The first call marks the connection as open.
        """

    @abstractmethod
    def change(self, symbols: Sequence[str]) -> None:
        """From now on these symbols are wanted, and no others: `poll` gives what is to be sent
        for it. New ones are answered by `Subscribed` or `Refused`, those that go by
        `Unsubscribed`; one that goes and comes back before the exchange was told, by nothing.
        """

    @abstractmethod
    def next_poll_s(self) -> float:
        """When `poll` has something to do at the latest; ``math.inf`` if nothing is due."""

    @property
    @abstractmethod
    def pending(self) -> frozenset[str]:
        """The wanted symbols that are neither acknowledged nor refused yet."""


class Exchange(ABC):
    """One exchange's public trades: its messages, its limits, its metadata. Stateless."""

    name: ClassVar[str]
    """As in the configuration, the topics and the ``exchange`` field."""
    limits: ClassVar[Limits]
    metadata_path: ClassVar[str]
    """Path and query of the REST answer that `read_metadata` reads, appended to ``rest_url``."""
    pages_by_id: ClassVar[bool]
    """Whether a page can begin at an id; else it begins at a time, and ids follow from it."""
    rest_headers: ClassVar[Mapping[str, str]] = {}
    """Headers of each REST request."""
    native_reader: object | None = None
    """What `decode` leaves its usual frames to, where that is the native extension's reader."""

    @abstractmethod
    def session(self, symbols: Sequence[str]) -> Session:
        """A new connection's state, for at most ``limits.symbols_per_connection`` symbols."""

    @abstractmethod
    def is_data(self, frame: bytes) -> bool:
        """Whether *frame* begins as a frame with trades does, as the exchange writes it today:
        the reader's fast test, made for every frame. What it does not recognize takes the slow
        way through `Session.receive`, so it must never claim a control message. Never raises.
        """

    @abstractmethod
    def decode(self, frame: bytes) -> Decoded:
        """Every trade of a frame.

        :raises Undecodable: it holds no readable trade. No other exception leaves it, whatever
            the bytes are.
        """

    @abstractmethod
    def read_metadata(self, body: bytes) -> Mapping[str, Market]:
        """Every market in a metadata answer, by its symbol.

        :raises ValueError: the body is not such an answer.
        """

    @abstractmethod
    def page_path(self, request: PageRequest, rest_name: str) -> str:
        """Path and query of the page that *request* wants, appended to ``rest_url``."""

    @abstractmethod
    def decode_page(self, symbol: str, body: bytes) -> Decoded:
        """Every trade of a REST page, in its order, origin `BACKFILL`; none for an empty page.

        :raises Undecodable: it is no such page. No other exception leaves it.
        """

    def is_page_of(self, body: bytes, rest_name: str) -> bool:
        """Whether a page is of the market asked for, as far as it names one; `decode_page` judges
        what is no page at all. Cheap, never raises."""
        return True

    def refusal(self, body: bytes) -> Refusal | None:
        """Whether a body with status 200 is an error. Cheap, never raises."""
        return None

    def used_weight(self, headers: Mapping[str, str]) -> int | None:
        """What an answer's headers (names in lower case) tell of the weight that all programs
        behind this address have used in the current window; None if they don't."""
        return None


def excerpt(message: bytes) -> str:
    """The beginning of a message in printable form, for a reason that an operator reads."""
    return repr(message[:EXCERPT_BYTES])[1:] + ("…" if len(message) > EXCERPT_BYTES else "")
