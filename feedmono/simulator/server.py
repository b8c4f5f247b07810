"""The simulated exchange on its port: connections, REST, and the watch over them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from feedmono.simulator.base import Dialect, Request, Response, Session
from feedmono.simulator.connection import HTTP_IDLE_LIMIT_S, Asked, Connection, Later
from feedmono.simulator.control import Control
from feedmono.simulator.engine import Engine, Listener
from feedmono.simulator.faults import Faults
from feedmono.simulator.journal import Journal
from feedmono.simulator.mischief import Mischief
from feedmono.simulator.options import Options
from feedmono.simulator.venue import Venue, tapes
from feedmono.simulator.websocket import PING, TEXT, frame

MAX_CONNECTIONS = 1000

_WATCH_S = 0.05
_FLUSH_S = 1.0
_BUSY_S = {"rest-429": 1.0, "rest-418": 3.0}


class Server:
    """One exchange on one port, WebSocket and REST."""

    def __init__(self, options: Options, kind: type[Dialect]) -> None:
        """Builds everything, and renders what is to be rendered beforehand.

        :raises OSError: the journal can't be written.
        """
        self.faults = Faults(options.seed)
        for setting in options.faults:
            self.faults.set(setting)
        self.send_limit_bytes = options.send_buffer_bytes
        books = tapes(options, kind.recorded_symbol)
        self.venue = Venue(books, self.faults, options.strict)
        self.dialect = kind(self.venue)
        self.journal = Journal(options.journal) if options.journal else None
        self.engine = Engine(options, self.venue, self.dialect, self.journal)
        self.accepted = 0
        self.connections: dict[Connection, None] = {}
        self._options = options
        interval_s = options.ping_interval_s
        self._ping_interval_s = kind.rules.ping_interval_s if interval_s is None else interval_s
        self._mischief = Mischief(self.faults, self.clients, self.dialect.shutdown_notice)
        self._control = Control(self, self._mischief)
        self._asked = 0
        self._told_until_s = 0.0
        self._told_status = 0
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Handle | None = None
        self._watched_s = 0.0
        self._flushed_s = 0.0

    async def start(self) -> int:
        """Listens and makes trades; gives the port.

        :raises OSError: the address can't be listened on.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, loop), self._options.host, self._options.port, backlog=1024
        )
        self._watched_s = self._flushed_s = loop.time()
        self._watching = loop.call_later(_WATCH_S, self._watch, loop)
        self.engine.start()
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Ends all connections and the journal."""
        self.engine.stop()
        if self._watching is not None:
            self._watching.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort()
        # One turn of the loop lets the aborted transports close their sockets.
        await asyncio.sleep(0)
        if self.journal is not None:
            self.journal.close()

    def clients(self) -> list[Connection]:
        """The open WebSocket connections, the oldest first."""
        return [c for c in self.connections if c.session is not None and not c.closing]

    # --- What a connection asks of its host.

    def joins(self, connection: Connection) -> bool:
        if len(self.connections) >= MAX_CONNECTIONS:
            return False
        self.connections[connection] = None
        return True

    def leaves(self, connection: Connection) -> None:
        self.connections.pop(connection, None)
        self.changed()
        self.engine.wake()

    def room(self) -> None:
        self.engine.wake()

    def changed(self) -> None:
        """Finds anew who gets which trades."""
        listeners: dict[str, dict[str, list[Listener]]] = {}
        for connection in self.clients():
            session = connection.session
            if session is None or connection.silent:
                continue
            for symbol in session.subscribed:
                variants = listeners.setdefault(symbol, {})
                variants.setdefault(session.variant, []).append(connection)
        self.engine.listeners = listeners

    def upgraded(self, connection: Connection) -> None:
        self.accepted += 1
        connection.pinged_s = asyncio.get_running_loop().time()
        if self.faults.happens("mute", f"connection {self.accepted}"):
            connection.hush()

    def upgrade(self, asked: Asked) -> Session | Later:
        refused = int(self.faults.refuse_connections)
        if refused:
            self.faults.done["refuse-connections"] += 1
            return Later(None if refused == 1 else self.dialect.failure(refused, 1.0))
        refusal = self.dialect.admits(time.monotonic())
        if refusal is not None:
            return Later(refusal)
        session = self.dialect.session(asked.path, asked.query)
        return session if session is not None else Later(Response(404, b"no such stream"))

    def answer(self, asked: Asked) -> Later:
        if asked.path.startswith("/sim/"):
            return Later(self._control.answer(asked))
        self._asked += 1
        self.venue.requests[asked.path] += 1
        if asked.method != "GET":
            return Later(Response(405, b"only GET is known"))
        request = Request(asked.path, asked.query, time.monotonic(), asked.headers)
        response = self._faulty(request)
        if response is None and self.dialect.is_trades(request.path) and self._vanishes():
            return Later(None, self.faults.rest_slow)
        return Later(response or self.dialect.rest(request), self.faults.rest_slow)

    # --- REST faults.

    def _faulty(self, request: Request) -> Response | None:
        """The answer that a fault puts in the place of the right one."""
        if request.now_s < self._told_until_s:
            self.faults.done["retry-after ignored"] += 1
            return self.dialect.failure(self._told_status, self._told_until_s - request.now_s)
        key = f"request {self._asked}"
        for kind, wait_s in _BUSY_S.items():
            if self.faults.happens(kind, key):
                self._told_status = int(kind.removeprefix("rest-"))
                self._told_until_s = request.now_s + wait_s
                return self.dialect.failure(self._told_status, wait_s)
        if self.faults.happens("rest-5xx", key):
            return self.dialect.failure((500, 502, 503, 504)[self._asked % 4])
        return None

    def _vanishes(self) -> bool:
        """``rest-none`` closes the connection in half of its cases; the page is empty in the
        others."""
        probability = self.faults.rest_none / 2
        if not probability or self.faults.dice("vanish", f"{self._asked}") >= probability:
            return False
        self.faults.done["rest-none"] += 1
        return True

    # --- The watch.

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks after connections, timed faults and the journal, some times a second."""
        now_s = loop.time()
        passed_s, self._watched_s = now_s - self._watched_s, now_s
        for connection in list(self.connections):
            connection.trickle(passed_s)
            if connection.session is None:
                if now_s - connection.received_s > HTTP_IDLE_LIMIT_S:
                    connection.abort()
            elif not connection.silent and not connection.closing:
                self._look_after(connection, connection.session, now_s)
        self._mischief.poll(now_s)
        if self.journal is not None and now_s - self._flushed_s >= _FLUSH_S:
            self._flushed_s = now_s
            self.journal.flush()
        self._watching = loop.call_later(_WATCH_S, self._watch, loop)

    def _look_after(self, connection: Connection, session: Session, now_s: float) -> None:
        rules = self.dialect.rules
        if math.isinf(self.engine.rate) and connection.is_stuck(now_s):
            self.faults.done["slow client cut"] += 1
            connection.abort()
            return
        idle_s = now_s - max(connection.received_s, connection.sent_s)
        if now_s - connection.opened_s > rules.max_age_s:
            connection.close(1001, "24 hours are over")
        elif rules.idle_limit_s and idle_s > rules.idle_limit_s and not session.idle():
            connection.close(1000, "idle for too long")
        elif connection.ping_payload and now_s - connection.pinged_s > 3 * self._ping_interval_s:
            self.faults.done["client without pong cut"] += 1
            connection.abort()
        else:
            self._speak(connection, session, now_s)

    def _speak(self, connection: Connection, session: Session, now_s: float) -> None:
        """Pings and heartbeats that are due."""
        interval_s = self._ping_interval_s
        if (
            interval_s
            and not connection.ping_payload
            and (now_s - connection.pinged_s >= interval_s)
        ):
            connection.ping_payload = str(self.venue.now_us() // 1000).encode()
            connection.pinged_s = now_s
            connection.send(frame(PING, connection.ping_payload))
        # A session may count what it is asked for.
        if now_s - connection.sent_s >= 1.0 and (text := session.idle()) is not None:
            connection.send(frame(TEXT, text.encode()))

    def broadcast(self, data: bytes) -> int:
        """Sends a frame to every client; gives how many there are."""
        clients: Sequence[Connection] = self.clients()
        for connection in clients:
            connection.send(data)
        return len(clients)
