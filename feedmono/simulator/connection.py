"""One client's connection: HTTP first, and WebSocket frames once it was upgraded."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import responses
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

import h11

from feedmono.simulator.base import Reply, Response, Session
from feedmono.simulator.faults import Faults
from feedmono.simulator.websocket import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Message,
    Reader,
    Violation,
    accept_key,
    close_frame,
    frame,
)

MAX_BODY_BYTES = 128 * 2**20
"""Of a request to the simulator itself (a frame to send); an exchange's have none."""
MAX_HEAD_BYTES = 64 * 1024
"""Of a request: 1024 streams fit into a URL."""
CLOSE_LIMIT_S = 2.0
"""How long a closed client may take to close as well."""
STUCK_LIMIT_S = 60.0
"""How long a client may take nothing while its buffer is full and the others wait for it."""
HTTP_IDLE_LIMIT_S = 120.0

# High and low water of the send buffer: when it is full, and when there is room again.
_HIGH_BYTES = 1 << 20
_LOW_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Asked:
    """A whole HTTP request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes]
    body: bytes


@dataclass(frozen=True, slots=True)
class Later:
    """How a request is answered: with *response* (None: the connection is closed) after
    *delay_s*."""

    response: Response | None
    delay_s: float = 0.0


class Host(Protocol):
    """The server, as a connection sees it."""

    faults: Faults
    send_limit_bytes: int

    def joins(self, connection: Connection) -> bool:
        """A client has connected; false: there are too many."""
        ...

    def leaves(self, connection: Connection) -> None:
        """It is gone."""
        ...

    def answer(self, asked: Asked) -> Later:
        """What a plain request is answered."""
        ...

    def upgrade(self, asked: Asked) -> Session | Later:
        """A new WebSocket session, or what is answered instead of one."""
        ...

    def upgraded(self, connection: Connection) -> None:
        """The session is open: it may be told the first things."""
        ...

    def changed(self) -> None:
        """Some connection's subscriptions have changed."""
        ...

    def room(self) -> None:
        """Some connection's full buffer has room again."""
        ...


class Connection(asyncio.Protocol):
    """See the head of this file."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self.session: Session | None = None
        self.silent = False
        """It gets nothing any more, and is not listened to: muted or half open."""
        self.closing = False
        self.opened_s = self.received_s = self.sent_s = loop.time()
        """When it was opened, when the client last sent, when it was last sent to."""
        self.pinged_s = 0.0
        self.ping_payload = b""
        """The ping that has no pong yet."""
        self._host = host
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._busy = False
        self._reader = Reader()
        self._pushed: list[bytes] = []
        self._queue = bytearray()
        self._full_since_s = 0.0
        self._buffered_bytes = 0

    # --- What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(_HIGH_BYTES, _LOW_BYTES)
        if not self._host.joins(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._host.leaves(self)

    def data_received(self, data: bytes) -> None:
        self.received_s = self._loop.time()
        if self.session is not None:
            self._receive_frames(data)
        else:
            self._read_http(data)

    def pause_writing(self) -> None:
        self._full_since_s = self._loop.time()
        self._buffered_bytes = self._size()

    def resume_writing(self) -> None:
        self._full_since_s = 0.0
        self._host.room()

    # --- HTTP.

    def _read_http(self, data: bytes) -> None:
        try:
            # To h11, no bytes mean that the client is done.
            if data:
                self._http.receive_data(data)
            self._handle_http()
        except h11.RemoteProtocolError as error:
            self._respond(Response(error.error_status_hint, str(error).encode()), close=True)

    def _handle_http(self) -> None:
        """Reads requests until one has to be waited for."""
        while not self._busy and self.session is None and self._transport is not None:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._request = event
                self._body.clear()
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_BODY_BYTES:
                    self._respond(Response(413, b"the body is too large"), close=True)
                    return
            elif isinstance(event, h11.EndOfMessage):
                self._dispatch()
            else:
                return

    def _dispatch(self) -> None:
        assert self._request is not None
        url = urlsplit(self._request.target.decode("ascii", "replace"))
        headers = dict(self._request.headers)
        asked = Asked(
            self._request.method.decode("ascii"),
            url.path,
            dict(parse_qsl(url.query, keep_blank_values=True)),
            headers,
            bytes(self._body),
        )
        if headers.get(b"upgrade", b"").lower() == b"websocket":
            self._upgrade(asked)
            return
        later = self._host.answer(asked)
        self._busy = True
        if later.delay_s > 0:
            self._loop.call_later(later.delay_s, self._finish, later.response)
        else:
            self._finish(later.response)

    def _finish(self, response: Response | None) -> None:
        if self._transport is None:
            return
        if response is None:
            self._transport.close()
            return
        self._respond(response)
        self._busy = False
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            # A pipelined request may wait already; not by recursion, there may be many.
            self._loop.call_soon(self._go_on)
        else:
            self._transport.close()

    def _go_on(self) -> None:
        if self._transport is not None and self.session is None:
            self._read_http(b"")

    def _respond(self, response: Response, close: bool = False) -> None:
        if self._transport is None:
            return
        headers = [("Content-Length", str(len(response.body))), *response.headers]
        if not any(name == "Content-Type" for name, _ in headers):
            headers.append(("Content-Type", "application/json;charset=UTF-8"))
        if close:
            headers.append(("Connection", "close"))
        try:
            phrase = responses.get(response.status, "").encode("ascii")
            head = self._http.send(
                h11.Response(status_code=response.status, headers=headers, reason=phrase)
            )
            body = self._http.send(h11.Data(data=response.body))
            end = self._http.send(h11.EndOfMessage())
        except h11.LocalProtocolError:
            self._transport.close()
            return
        self._transport.write((head or b"") + (body or b"") + (end or b""))
        if close:
            self._transport.close()

    def _upgrade(self, asked: Asked) -> None:
        key = asked.headers.get(b"sec-websocket-key", b"")
        if asked.method != "GET" or not key or asked.headers.get(b"sec-websocket-version") != b"13":
            self._respond(Response(400, b"not a WebSocket handshake"), close=True)
            return
        outcome = self._host.upgrade(asked)
        if isinstance(outcome, Later):
            if outcome.response is None:
                self.abort()
            else:
                self._respond(outcome.response, close=True)
            return
        accept = accept_key(key).decode("ascii")
        headers = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        headers.append(("Sec-WebSocket-Accept", accept))
        data = self._http.send(
            h11.InformationalResponse(
                status_code=101, headers=headers, reason=b"Switching Protocols"
            )
        )
        assert self._transport is not None
        self._transport.write(data or b"")
        self.session = outcome
        early = self._http.trailing_data[0]
        self._host.upgraded(self)
        self._act(Reply(outcome.opened()))
        self._host.changed()
        if early:
            self._receive_frames(early)

    # --- WebSocket: what comes in.

    def _receive_frames(self, data: bytes) -> None:
        if self.silent:
            return
        try:
            for message in self._reader.messages(data):
                self._receive(message)
                if self._transport is None:
                    return
        except Violation as violation:
            self.close(violation.code, str(violation))

    def _receive(self, message: Message) -> None:
        assert self.session is not None
        if message.opcode == CLOSE:
            if not self.closing:
                self.send(frame(CLOSE, message.payload[:2]))
                self.closing = True
                self._host.changed()
            if self._transport is not None:
                self._transport.close()
            return
        if self.closing:
            return
        now_s = self._loop.time()
        self._act(self.session.counts(now_s))
        if self.closing:
            return
        if message.opcode == PING:
            self.send(frame(PONG, message.payload))
        elif message.opcode == PONG:
            if message.payload == self.ping_payload:
                self.ping_payload = b""
        else:
            before = len(self.session.subscribed)
            self._act(self.session.receive(message.payload, now_s))
            if before or self.session.subscribed:
                self._host.changed()

    def _act(self, reply: Reply) -> None:
        for text in reply.texts:
            # A client may have sent half a surrogate pair, escaped: it comes back as "?".
            self.send(frame(TEXT, text.encode("utf-8", "replace")))
        if reply.close:
            self.close(reply.close, reply.reason)

    # --- WebSocket: what goes out.

    @property
    def full(self) -> bool:
        """Whether it has as many unsent bytes as it should."""
        return self._full_since_s > 0.0 or len(self._queue) > _HIGH_BYTES

    def push(self, data: bytes) -> None:
        """Takes whole frames, to be sent by the next `flush`."""
        self._pushed.append(data)

    def flush(self) -> None:
        """Sends what was pushed; cuts a client that leaves too much unread."""
        if not self._pushed:
            return
        data = b"".join(self._pushed)
        self._pushed.clear()
        faults = self._host.faults
        allowed = self._host.send_limit_bytes + (faults.oversized_bytes if faults.oversized else 0)
        if self._size() > allowed:
            faults.done["slow client cut"] += 1
            self.abort()
        else:
            self.send(data)

    def send(self, data: bytes) -> None:
        """Sends whole frames, in the order of the calls."""
        if self._transport is None or self.silent or self.closing:
            return
        if self._pushed:
            data, self._pushed = b"".join((*self._pushed, data)), []
        self.sent_s = self._loop.time()
        if self._queue or self._host.faults.slow:
            self._queue += data
        else:
            self._transport.write(data)

    def trickle(self, passed_s: float) -> None:
        """Sends as much of the queue as the fault ``slow`` lets through in that time."""
        if not self._queue or self._transport is None:
            return
        rate = self._host.faults.slow
        count = max(1, int(rate * passed_s)) if rate else len(self._queue)
        self._transport.write(bytes(self._queue[:count]))
        del self._queue[:count]
        if self._queue and len(self._queue) <= _HIGH_BYTES:
            self._host.room()

    def _size(self) -> int:
        buffered = self._transport.get_write_buffer_size() if self._transport else 0
        return buffered + len(self._queue)

    def is_stuck(self, now_s: float) -> bool:
        """Whether its buffer is full and nothing of it was taken for too long."""
        if not self._full_since_s:
            return False
        size = self._size()
        if size < self._buffered_bytes:
            self._full_since_s, self._buffered_bytes = now_s, size
        return now_s - self._full_since_s > STUCK_LIMIT_S

    # --- The ends it can come to.

    def close(self, code: int, reason: str = "") -> None:
        """Closes in order: a close frame, and the socket once the client has answered."""
        if self.closing or self._transport is None:
            return
        self.send(close_frame(code, reason))
        self.closing = True
        self._host.changed()
        self._loop.call_later(CLOSE_LIMIT_S, self.abort)

    def cut(self, tail: bytes, reset: bool) -> None:
        """Ends at once, *tail* (part of a frame) being the last that the client gets; with
        *reset* by a TCP reset instead of an end."""
        if self._transport is None:
            return
        if tail and not self._size():
            self._transport.write(tail)
        if reset:
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def hush(self) -> None:
        """From now on it is silent, and stays open."""
        self.silent = True
        self._pushed.clear()
        self._queue.clear()
        self._host.changed()

    def abort(self) -> None:
        """Ends at once."""
        if self._transport is not None:
            self._transport.abort()
