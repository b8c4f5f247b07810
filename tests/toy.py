"""An exchange made up for tests of the connection, and what surrounds a running one."""

from __future__ import annotations

import json
import math
import os
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import pytest
from wsserver import TEXT, Peer, frame

from feedmono import log
from feedmono.config import ConnectionsConfig
from feedmono.counters import Field
from feedmono.exchanges import base
from feedmono.exchanges.base import Event, Exchange, Limits, Market, PageRequest, Session
from feedmono.network.connection import Connection
from feedmono.network.contract import State
from feedmono.network.limiter import AttemptLimiter

LIMIT_S = 20.0


class ToySession(Session):
    """Asks once for all its symbols: ``subscribe A,B``; and, when they change, ``unsubscribe A``
    and ``subscribe C``."""

    def __init__(self, symbols: Sequence[str], answer_limit_s: float) -> None:
        self.path = "/toy?wanted=1"
        self._symbols = tuple(symbols)
        self._pending = set(symbols)
        self._answer_limit_s = answer_limit_s
        self._next_s = -math.inf
        self._todo = [f"subscribe {','.join(symbols)}"]

    def change(self, symbols: Sequence[str]) -> None:
        before, self._symbols = self._symbols, tuple(symbols)
        if self._next_s == -math.inf:
            self._todo = [f"subscribe {','.join(symbols)}"]
            self._pending = set(symbols)
            return
        gone, new = (
            [s for s in one if s not in other]
            for one, other in ((before, self._symbols), (self._symbols, before))
        )
        self._pending = (self._pending - set(gone)) | set(new)
        self._todo += [f"unsubscribe {','.join(gone)}"] if gone else []
        self._todo += [f"subscribe {','.join(new)}"] if new else []

    def poll(self, now_s: float) -> tuple[Sequence[str], Sequence[Event]]:
        if self._todo:
            todo, self._todo = self._todo, []
            self._next_s = now_s + self._answer_limit_s
            return todo, []
        self._next_s = math.inf
        return [], [base.Unanswered(tuple(sorted(self._pending)))] if self._pending else []

    def next_poll_s(self) -> float:
        return -math.inf if self._todo else self._next_s

    @property
    def pending(self) -> frozenset[str]:
        return frozenset(self._pending)

    def receive(self, frame: bytes, now_s: float) -> Sequence[Event]:
        word, _, rest = frame.decode("utf-8", "replace").partition(" ")
        if word in ("ok", "no"):
            symbol, _, reason = rest.partition(" ")
            self._pending.discard(symbol)
            return [base.Subscribed(symbol) if word == "ok" else base.Refused(symbol, reason)]
        if word == "left":
            return [base.Unsubscribed(rest)]
        if word == "bye":
            return [base.Shutdown(rest)]
        if word == "status":
            return [base.SystemStatus(rest, rest == "online")]
        if word == "beat":
            return []
        return [base.Data() if word == "odd" else base.Unknown(f"what is {word[:20]!r}?")]


class Toy(Exchange):
    """``trade …`` is data, and so is ``odd …``, which only the session knows."""

    name = "toy"
    limits: ClassVar[Limits] = Limits(
        symbols_per_connection=10,
        connections=1000,
        connections_window_s=60.0,
        connection_age_s=math.inf,
        rest_weight=1000,
        rest_window_s=1.0,
        metadata_weight=1,
        page_weight=1,
        page_rows=100,
    )
    metadata_path = "/none"
    pages_by_id = True
    rest_headers: ClassVar[Mapping[str, str]] = {"X-Toy": "yes"}

    def __init__(self, answer_limit_s: float = math.inf) -> None:
        self._answer_limit_s = answer_limit_s

    def session(self, symbols: Sequence[str]) -> Session:
        return ToySession(symbols, self._answer_limit_s)

    def is_data(self, frame: bytes) -> bool:
        return frame.startswith(b"trade ")

    def decode(self, frame: bytes) -> base.Decoded:
        raise base.Undecodable("the toy exchange has no trades to decode")

    def read_metadata(self, body: bytes) -> Mapping[str, Market]:
        raise ValueError("the toy exchange has no metadata")

    def page_path(self, request: PageRequest, rest_name: str) -> str:
        return f"/{rest_name}/{request.first_id}/{request.rows}"

    def decode_page(self, symbol: str, body: bytes) -> base.Decoded:
        raise base.Undecodable("the toy exchange has no trades to decode")

    def refusal(self, body: bytes) -> base.Refusal | None:
        if not body.startswith(b"no "):
            return None
        return base.Refusal(body.decode(), body == b"no more")

    def used_weight(self, headers: Mapping[str, str]) -> int | None:
        return int(headers["x-toy-used"]) if "x-toy-used" in headers else None


class Reply(NamedTuple):
    """What a `RestServer` answers."""

    status: int = 200
    body: bytes = b"a page"
    headers: Mapping[str, str] = {}


class RestServer:
    """A REST server whose answers a test gives."""

    def __init__(
        self, answer: Callable[[str], Reply], port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        """:param answer: what a path (with its query) is answered."""
        self.paths: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer is one write: two wait for each other's acknowledgement.
            wbufsize = -1

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def do_GET(self) -> None:
                outer.paths.append(self.path)
                outer.headers.append({name.lower(): text for name, text in self.headers.items()})
                status, body, headers = answer(self.path)
                self.send_response(status)
                if "Transfer-Encoding" not in headers:
                    headers = {"Content-Length": str(len(body)), **headers}
                for name, text in headers.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            # The handshake is the handler's: one that fails is to hold up nobody else.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    def __enter__(self) -> RestServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def trades(first: int, count: int) -> list[bytes]:
    return [b"trade %d" % number for number in range(first, first + count)]


def wire(messages: Sequence[bytes]) -> bytes:
    return b"".join(map(frame, messages))


def welcome(peer: Peer, symbols: Sequence[str] = ("A", "B")) -> None:
    """Takes the subscription and acknowledges it."""
    assert peer.until(TEXT).payload.startswith(b"subscribe ")
    peer.send(wire([b"ok " + symbol.encode() for symbol in symbols]))


class Delivered(NamedTuple):
    payload: bytes
    received_ns: int
    binary: bool


class Desk:
    """Takes what a connection delivers and reports, and waits for it.

    *room*: how many frames there is room for; None is without end.
    """

    def __init__(self, room: int | None = None) -> None:
        self._changed = threading.Condition()
        self.room = room
        self.delivered: list[Delivered] = []
        self.told: list[int] = []
        """How many were delivered at each `publish` that told of more."""
        self.states: list[State] = []
        self.reconnects: list[str] = []
        self.agings: list[str] = []
        self.readies = 0
        self.full_rings = 0
        self.symbols: dict[str, str] = {}
        self.counts: Counter[Field] = Counter()
        self.unknowns: list[str] = []
        self.blocks: list[float] = []
        self.lost_frames = 0
        self.offers = 0
        self.frames = 0
        self.size_bytes = 0

    @property
    def payloads(self) -> list[bytes]:
        return [frame.payload for frame in self.delivered]

    def wait(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, limit_s), (
                f"never came; states {self.states[-5:]}, reconnects {self.reconnects[-5:]}, "
                f"{len(self.delivered)} delivered, the last {self.payloads[-1:]}"
            )

    def make_room(self) -> None:
        with self._changed:
            self.room = None

    def deliver(
        self, frames: Sequence[bytes], connection: int, received_ns: int, binary: bool
    ) -> int:
        with self._changed:
            taken = len(frames) if self.room is None else min(self.room, len(frames))
            if self.room is not None:
                self.room -= taken
            self.offers += 1
            self.delivered += [Delivered(frame, received_ns, binary) for frame in frames[:taken]]
            self._changed.notify_all()
            return taken

    def publish(self) -> None:
        with self._changed:
            if len(self.delivered) > (self.told[-1] if self.told else 0):
                self.told.append(len(self.delivered))
            self._changed.notify_all()

    def state(self, number: int, state: State) -> None:
        with self._changed:
            self.states.append(state)
            self._changed.notify_all()

    def received(self, number: int, frames: int, size_bytes: int) -> None:
        with self._changed:
            self.frames += frames
            self.size_bytes += size_bytes
            self._changed.notify_all()

    def reconnect(self, number: int, reason: str) -> None:
        with self._changed:
            self.reconnects.append(reason)
            self._changed.notify_all()

    def aging(self, number: int, reason: str) -> None:
        with self._changed:
            self.agings.append(reason)
            self._changed.notify_all()

    def ready(self, number: int) -> None:
        with self._changed:
            self.readies += 1
            self._changed.notify_all()

    def subscribed(self, number: int, symbol: str) -> None:
        with self._changed:
            self.symbols[symbol] = "subscribed"
            self._changed.notify_all()

    def unsubscribed(self, number: int, symbol: str) -> None:
        with self._changed:
            self.symbols[symbol] = f"unsubscribed behind {len(self.delivered)}"
            self._changed.notify_all()

    def refused(self, number: int, symbol: str, reason: str) -> None:
        with self._changed:
            self.symbols[symbol] = reason
            self._changed.notify_all()

    def count(self, number: int, field: Field, amount: int = 1) -> None:
        with self._changed:
            self.counts[field] += amount
            self._changed.notify_all()

    def unknown(self, number: int, reason: str) -> None:
        with self._changed:
            self.unknowns.append(reason)
            self._changed.notify_all()

    def full(self, number: int) -> None:
        with self._changed:
            self.full_rings += 1
            self._changed.notify_all()

    def blocked(self, number: int, seconds: float) -> None:
        with self._changed:
            self.blocks.append(seconds)
            self._changed.notify_all()

    def lost(self, number: int, frames: int) -> None:
        with self._changed:
            self.lost_frames += frames
            self._changed.notify_all()


class Dice(random.Random):
    """Notes the upper bound of each draw, and draws *share* of it."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__(0)
        self.share = share
        self.bounds: list[float] = []

    def uniform(self, a: float, b: float) -> float:
        self.bounds.append(b)
        return a + (b - a) * self.share


def limits(
    *,
    frame_limit_bytes: int = 1 << 20,
    silence_limit_s: float = 30.0,
    stale_limit_s: float = 120.0,
    max_age_s: float = 3600.0,
) -> ConnectionsConfig:
    return ConnectionsConfig(
        frame_limit_bytes, silence_limit_s, stale_limit_s, 30.0, max_age_s, redundancy=1
    )


class Running:
    """A connection in its thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.connection.run()
        except BaseException as error:  # for the test to look at
            self.error = error

    def stop(self, limit_s: float = LIMIT_S) -> float:
        """Stops it; how many seconds that took."""
        started = time.monotonic()
        self.connection.stop()
        self.join(limit_s)
        return time.monotonic() - started

    def join(self, limit_s: float = LIMIT_S) -> None:
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), f"the connection did not end within {limit_s} s"


def make(
    tmp_path: Path,
    url: str,
    desk: Desk,
    *,
    exchange: Exchange | None = None,
    symbols: Sequence[str] = ("A", "B"),
    config: ConnectionsConfig | None = None,
    dice: Dice | None = None,
    clock: Callable[[], float] = time.monotonic,
    attempts: Limits | None = None,
    linger_s: float = 0.0,
) -> Connection:
    """A connection to *url*. Its backoff waits 0 s unless *dice* say more."""
    exchange = exchange or Toy()
    limiter = AttemptLimiter(tmp_path / "toy.attempts", attempts or exchange.limits, log.get())
    return Connection(
        7,
        exchange,
        symbols,
        url,
        config or limits(),
        limiter,
        desk.deliver,
        desk.publish,
        desk,
        log.get(exchange=exchange.name),
        random=dice or Dice(),
        clock=clock,
        linger_s=linger_s,
    )


@contextmanager
def running(tmp_path: Path, url: str, desk: Desk, **options: Any) -> Iterator[Running]:
    """The same in its thread, stopped at the end."""
    run = Running(make(tmp_path, url, desk, **options))
    try:
        yield run
    finally:
        run.stop()


class Events:
    """What was logged, read back from the file that it went to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def named(self, event: str) -> list[dict[str, object]]:
        lines = self._path.read_text().splitlines()
        return [entry for line in lines if (entry := json.loads(line))["event"] == event]


@pytest.fixture(autouse=True)
def events(tmp_path: Path) -> Iterator[Events]:
    """The log of a test goes to a file; import it where it is used."""
    path = tmp_path / "log.json"
    fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    log.configure("info", "json", fd)
    yield Events(path)
    log.configure("info", "text")
    os.close(fd)
