"""A small HTTP/1.1 server for one thread: it answers GET and HEAD, and has a limit on everything.

A client that sends its request a byte at a time, or never reads the answer, holds nobody else up:
it has so many seconds, and when all places are taken the one that has waited longest gives way to
whoever comes. A server that nobody asks sleeps. HTTP itself is h11's.
"""

from __future__ import annotations

import select
import socket
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import h11

from feedmono.log import Log

_READ_BYTES = 65536
# Below it the header of a compressed body would eat what is saved.
_GZIP_FROM_BYTES = 1024
# A third of the time of the usual 6, for a tenth more bytes.
_GZIP_LEVEL = 3
# zlib's word for its largest window and gzip's header; the module gzip would take 1 MB.
_GZIP = 16 + zlib.MAX_WBITS
# How many connections one turn accepts, so that the others get theirs.
_ACCEPTS = 16
# How long accepting pauses when it is not possible: no descriptor, no memory.
_ACCEPT_PAUSE_S = 1.0
# A turn begins no more answers after this; whoever waits is served by the next one.
_TURN_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take."""

    connections: int = 64
    header_bytes: int = 16 * 1024
    """Of the request's line and headers."""
    body_bytes: int = 64 * 1024
    """What comes behind the headers is read up to this, and not looked at."""
    request_s: float = 10.0
    """From the first byte of a request, or the connection's beginning, to the last of its
    answer."""
    idle_s: float = 120.0
    """Between two requests: longer than a scraper's usual interval."""


@dataclass(frozen=True, slots=True)
class Request:
    """A GET; of a HEAD the answer's body is left out."""

    path: str
    query: Mapping[str, str]
    """The first value of each name."""
    headers: Mapping[str, str]
    """Names in lower case."""

    def accepts(self, content_type: str) -> bool:
        """Whether the client names that type, not ``*/*``, as one that it takes."""
        accepted = self.headers.get("accept", "").lower().split(",")
        return any(entry.partition(";")[0].strip() == content_type for entry in accepted)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer for people."""
    return Response(status, "text/plain; charset=utf-8", text.encode(), headers or {})


class _Client:
    """A connection, and how far its present request is."""

    def __init__(self, sock: socket.socket, limits: Limits, now_s: float) -> None:
        self.sock = sock
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self.request: h11.Request | None = None
        self.body_bytes = 0
        self.unsent = memoryview(b"")
        self.since_s = now_s
        """When what it does now began."""
        self.is_idle = False
        """Whether it has had an answer and asks nothing."""


class Server:
    """Answers requests on a listening socket, in turns: `turn`."""

    def __init__(
        self,
        listener: socket.socket,
        respond: Callable[[Request], Response],
        log: Log,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*respond* gives the answer to a GET; what it raises becomes status 500."""
        listener.setblocking(False)
        self._listener = listener
        self._respond = respond
        self._log = log
        self._limits = limits or Limits()
        self._clock = clock
        self._clients: dict[int, _Client] = {}
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._accepts_from_s = 0.0

    def turn(self, timeout_s: float) -> None:
        """Waits so long at most until there is something to do, and does it."""
        if self._accepts_from_s and self._clock() >= self._accepts_from_s:
            self._accepts_from_s = 0.0
            self._poll.register(self._listener, select.POLLIN)
        ready = {fd for fd, _ in self._poll.poll(max(0.0, timeout_s) * 1000 + 1)}
        if self._listener.fileno() in ready:
            self._accept()
        until_s = self._clock() + _TURN_S
        # Who was answered last comes last, so that each gets its turn.
        for client in sorted(self._clients.values(), key=lambda client: client.since_s):
            if client.sock.fileno() in ready and self._clock() < until_s:
                self._serve(client)
        self._drop_late()

    def close(self) -> None:
        """Drops all connections; the listener stays as it is."""
        for client in list(self._clients.values()):
            self._drop(client)

    # --- connections

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _address = self._listener.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return
            except OSError as error:
                self._log.warning("no connection can be accepted", error=error.strerror)
                self._poll.unregister(self._listener)
                self._accepts_from_s = self._clock() + _ACCEPT_PAUSE_S
                return
            if len(self._clients) >= self._limits.connections:
                self._drop(min(self._clients.values(), key=lambda client: client.since_s))
            sock.setblocking(False)
            self._clients[sock.fileno()] = _Client(sock, self._limits, self._clock())
            self._poll.register(sock, select.POLLIN)

    def _drop(self, client: _Client) -> None:
        fd = client.sock.fileno()
        self._poll.unregister(fd)
        del self._clients[fd]
        client.sock.close()

    def _drop_late(self) -> None:
        now_s, limits = self._clock(), self._limits
        for client in list(self._clients.values()):
            limit_s = limits.idle_s if client.is_idle else limits.request_s
            if now_s - client.since_s >= limit_s:
                self._drop(client)

    # --- one connection's requests

    def _serve(self, client: _Client) -> None:
        """Goes on with what the client does, as far as that goes now."""
        try:
            if client.unsent:
                self._send(client)
            elif not self._read(client):
                return
            while client.sock.fileno() >= 0 and not client.unsent and self._next(client):
                pass
        except OSError:
            self._drop(client)

    def _read(self, client: _Client) -> bool:
        """Takes in what was sent; False if there was nothing.

        :raises OSError: the connection is lost.
        """
        try:
            data = client.sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        if client.is_idle and data:
            client.is_idle = False
            client.since_s = self._clock()
        client.http.receive_data(data)
        return True

    def _next(self, client: _Client) -> bool:
        """Handles one event of the client's; False if there is none, or no client any more.

        :raises OSError: the connection is lost.
        """
        try:
            event = client.http.next_event()
        except h11.RemoteProtocolError as error:
            self._refuse(client, error.error_status_hint, "this is no HTTP/1.1 request\n")
            return False
        if isinstance(event, h11.Request):
            client.request = event
        elif isinstance(event, h11.Data):
            client.body_bytes += len(event.data)
            if client.body_bytes > self._limits.body_bytes:
                self._refuse(client, 413, "nothing is taken here\n")
                return False
        elif isinstance(event, h11.EndOfMessage):
            self._answer(client)
        elif isinstance(event, h11.ConnectionClosed):
            self._drop(client)
            return False
        else:
            return False  # NEED_DATA or PAUSED
        return True

    def _answer(self, client: _Client) -> None:
        assert client.request is not None
        method = client.request.method
        # Who asks for more without waiting for an answer would get many in one turn.
        last = bool(client.http.trailing_data[0])
        if method in (b"GET", b"HEAD"):
            self._begin(client, self._response_to(client.request), method == b"HEAD", last)
        else:
            text = "only GET and HEAD: nothing can be changed here\n"
            self._begin(client, plain(405, text, {"Allow": "GET, HEAD"}), last=last)

    def _response_to(self, asked: h11.Request) -> Response:
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in asked.headers}
        try:
            parts = urlsplit(asked.target.decode("ascii"))
            query = dict(reversed(parse_qsl(parts.query, max_num_fields=100)))
        except ValueError:
            return plain(400, "no such address\n")
        try:
            response = self._respond(Request(parts.path, query, headers))
        except Exception as error:
            self._log.error("a request failed", path=parts.path, error=repr(error), exc_info=True)
            response = plain(500, "this failed; the log tells why\n")
        return _compressed(response, headers.get("accept-encoding", ""))

    def _refuse(self, client: _Client, status: int, text: str) -> None:
        """Answers what is no request, and ends the connection.

        :raises OSError: the connection is lost.
        """
        if client.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._drop(client)
            return
        self._begin(client, plain(status, text), last=True)

    def _begin(
        self, client: _Client, response: Response, head: bool = False, last: bool = False
    ) -> None:
        """Begins to send an answer.

        :raises OSError: the connection is lost.
        """
        headers = [("Content-Type", response.content_type), *response.headers.items()]
        headers.append(("Content-Length", str(len(response.body))))
        if last:
            headers.append(("Connection", "close"))
        http = client.http
        data = http.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if not head and response.body:
            data += http.send(h11.Data(data=response.body)) or b""
        data += http.send(h11.EndOfMessage()) or b""
        client.unsent = memoryview(data)
        self._poll.modify(client.sock, select.POLLOUT)
        self._send(client)

    def _send(self, client: _Client) -> None:
        """Sends what the client takes of the answer; behind its end the next request may come.

        :raises OSError: the connection is lost.
        """
        try:
            client.unsent = client.unsent[client.sock.send(client.unsent) :]
        except (BlockingIOError, InterruptedError):
            return
        if client.unsent:
            return
        if client.http.our_state is not h11.DONE or client.http.their_state is not h11.DONE:
            self._drop(client)
            return
        client.http.start_next_cycle()
        client.request, client.body_bytes = None, 0
        client.since_s, client.is_idle = self._clock(), True
        self._poll.modify(client.sock, select.POLLIN)


def _compressed(response: Response, accepted: str) -> Response:
    """The same by gzip, where the client takes that and it is worth it."""
    if len(response.body) < _GZIP_FROM_BYTES or not _takes_gzip(accepted):
        return response
    headers = {**response.headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP)
    body = packer.compress(response.body) + packer.flush()
    return Response(response.status, response.content_type, body, headers)


def _takes_gzip(accepted: str) -> bool:
    for entry in accepted.lower().split(","):
        name, _, quality = (part.strip() for part in entry.partition(";"))
        if name == "gzip":
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
