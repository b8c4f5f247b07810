"""A kept HTTP connection of which another thread can cut short whatever it waits for.

h11 reads and writes HTTP; the socket, TLS and who may end them are here. A whole client would save
the lines on redirects, proxies and gzip below, and costs each reader process 5 MiB more (httpx
0.28, measured).
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import socket
import ssl
import threading
import zlib
from collections.abc import Mapping
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

import h11

OK = 200
ERRORS = (h11.ProtocolError, zlib.error, OSError, ValueError)
"""What `Line.get` may raise; a ValueError is a URL, a packing or a proxy that can't be read."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}
# More than a record of TLS has (16 KiB): so none of it waits unseen in OpenSSL.
_READ_BYTES = 64 * 1024
_MAX_HEAD_BYTES = 64 * 1024
_TIMEOUT_S = 20.0
# What a URL may have unquoted (RFC 3986 2.2, 2.3), and the sign of what is quoted already.
_URL_SIGNS = "%:/?#[]@!$&'()*+,;=~"


def names_proxy() -> bool:
    """Whether the environment names a proxy for anything."""
    return any(name.lower().endswith("_proxy") for name in os.environ)


class Overlong(Exception):
    """The answer has more bytes than were to be taken."""


class Line:
    """GET requests over one connection at a time, which is kept for the next one to the same
    server. One thread uses it; `cut` is for any.

    A proxy is what ``https_proxy``, ``http_proxy`` or ``all_proxy`` names, but for the hosts of
    ``no_proxy``; certificate authorities are the system's, or those of ``SSL_CERT_FILE`` and
    ``SSL_CERT_DIR``.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        """:param headers: of each request."""
        self._headers = {"Accept": "*/*", "Accept-Encoding": "gzip", **headers}
        self._lock = threading.Lock()
        self._is_cut = False
        self._connection: _Connection | None = None
        self._tls: ssl.SSLContext | None = None

    def get(self, url: str, max_bytes: int) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers (names in lower case) and body of the answer; the body of another
        status than `OK` is left out. Redirects are followed, but never to another scheme.

        :raises Overlong: the body has more than *max_bytes*.
        :raises ERRORS: there is no whole answer.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            status, headers, body = self._ask(parts, max_bytes)
            if status not in _REDIRECTS or not headers.get("location"):
                break
            url = urljoin(url, quote(headers["location"].encode("latin-1"), safe=_URL_SIGNS))
            if urlsplit(url).scheme != parts.scheme:
                break
        return status, headers, body

    def cut(self) -> None:
        """Ends what another thread waits for, and what it would begin to wait for."""
        with self._lock:
            self._is_cut = True
            if self._connection is not None:
                self._connection.cut()

    def close(self) -> None:
        """Gives the connection up; the next `get` makes a new one."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _ask(self, parts: SplitResult, max_bytes: int) -> tuple[int, Mapping[str, str], bytes]:
        """As `get`, of that very URL."""
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("the address must be http://HOST or https://HOST")
        connection = self._connection
        is_kept = False
        try:
            if connection is None or not connection.serves(parts):
                connection = self._connect(parts)
            head = connection.ask(parts, self._headers)
            headers = {name.decode(): text.decode("latin-1") for name, text in head.headers}
            if head.status_code != OK:
                return head.status_code, headers, b""
            body = connection.body(headers.get("content-encoding", "identity"), max_bytes)
            is_kept = connection.goes_on()
            return OK, headers, body
        finally:
            # What is left of an answer would stand before the next one.
            if not is_kept:
                self.close()

    def _connect(self, parts: SplitResult) -> _Connection:
        """A new connection, which `cut` knows before it waits for anything."""
        self.close()
        connection = _Connection(parts, self._context(parts.scheme))
        with self._lock:
            self._connection = connection
            if self._is_cut:
                connection.cut()
        connection.open()
        return connection

    def _context(self, scheme: str) -> ssl.SSLContext | None:
        if scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls if scheme == "https" else None


class _Connection:
    """A connection to the server of a URL, through a proxy if there is one."""

    def __init__(self, parts: SplitResult, tls: ssl.SSLContext | None) -> None:
        """Connects to nobody yet."""
        assert parts.hostname is not None
        self._origin = parts.scheme, parts.netloc
        self._tls = tls
        self._server = parts.hostname
        # A literal IPv6 address in brackets (RFC 3986 3.2.2).
        self._host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._port = parts.port or _PORTS[parts.scheme]
        self._proxy = _proxy(parts)
        self._http = _client()
        self._sock: socket.socket | None = None
        self._below: socket.socket | None = None
        """The socket below TLS once more: TLS takes it over before it has one of its own."""
        self._lock = threading.Lock()
        self._is_cut = False

    def open(self) -> None:
        """Connects."""
        proxy = self._proxy
        to = (self._server, self._port)
        if proxy is not None:
            to = (proxy.hostname or "", proxy.port or _PORTS[proxy.scheme])
        sock = socket.create_connection(to, _TIMEOUT_S)
        with self._lock:
            self._sock = sock
            self._below = sock.dup()
            if self._is_cut:
                _shut(self._below)
        if self._tls is not None:
            if proxy is not None:
                self._tunnel(sock, proxy)
            self._sock = self._tls.wrap_socket(sock, server_hostname=self._server)

    def _tunnel(self, sock: socket.socket, proxy: SplitResult) -> None:
        """Has the proxy lead everything that follows to the server."""
        to = f"{self._host}:{self._port}"
        http = _client()
        head = _ask(http, sock, "CONNECT", to, {"Host": to, **_credentials(proxy)})
        if not 200 <= head.status_code < 300:
            raise OSError(f"the proxy does not connect: HTTP {head.status_code}")
        if http.trailing_data[0]:
            raise OSError("the proxy sent something before it was asked for it")

    def serves(self, parts: SplitResult) -> bool:
        """Whether it is of use for that URL: to the same server, and not ended meanwhile."""
        if (parts.scheme, parts.netloc) != self._origin or self._sock is None:
            return False
        # What came without being asked for would be the next answer.
        return not _is_readable(self._sock)

    def ask(self, parts: SplitResult, headers: Mapping[str, str]) -> h11.Response:
        """Asks for a URL; the answer's head."""
        assert self._sock is not None, "it is open"
        parts = parts._replace(path=parts.path or "/", fragment="")
        host = self._host if self._port == _PORTS[parts.scheme] else f"{self._host}:{self._port}"
        if self._proxy is not None and self._tls is None:
            headers = {**headers, **_credentials(self._proxy)}
        else:
            parts = parts._replace(scheme="", netloc="")
        return _ask(self._http, self._sock, "GET", parts.geturl(), {"Host": host, **headers})

    def body(self, packed: str, max_bytes: int) -> bytes:
        """The whole body, unpacked.

        :raises Overlong: it has more than *max_bytes*.
        """
        assert self._sock is not None, "it is open"
        if packed.lower() not in ("gzip", "x-gzip", "identity"):
            raise ValueError(f"the answer is packed in an unknown way: {packed[:60]!r}")
        unpack = None if packed.lower() == "identity" else zlib.decompressobj(16 + zlib.MAX_WBITS)
        body = bytearray()
        while isinstance(event := _next(self._http, self._sock), h11.Data):
            room = max_bytes + 1 - len(body)
            body += unpack.decompress(event.data, room) if unpack else event.data
            if len(body) > max_bytes:
                raise Overlong
            if unpack is not None and unpack.unused_data:
                raise ValueError("the answer goes on behind what is packed in it")
        if unpack is not None and not unpack.eof:
            raise ValueError("the answer ends within what is packed in it")
        return bytes(body)

    def goes_on(self) -> bool:
        """Whether another request may follow the answer that was read."""
        http = self._http
        if http.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE} or http.trailing_data[0]:
            return False
        http.start_next_cycle()
        return True

    def cut(self) -> None:
        """Ends what is waited for, now or later; from any thread."""
        with self._lock:
            self._is_cut = True
            if self._below is not None:
                _shut(self._below)

    def close(self) -> None:
        """Ends it."""
        with self._lock:
            socks, self._sock, self._below = (self._sock, self._below), None, None
        for sock in socks:
            if sock is not None:
                sock.close()


def _client() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)


def _ask(
    http: h11.Connection, sock: socket.socket, method: str, target: str, headers: Mapping[str, str]
) -> h11.Response:
    """Sends a request without a body; the answer's head."""
    request = h11.Request(method=method, target=target, headers=list(headers.items()))
    sock.sendall((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    while not isinstance(event := _next(http, sock), h11.Response):
        # Interim answers say that one will come (RFC 9110 15.2).
        if not isinstance(event, h11.InformationalResponse):
            raise OSError("the connection ended before there was an answer")
    return event


def _next(http: h11.Connection, sock: socket.socket) -> object:
    """The event that comes next."""
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(sock.recv(_READ_BYTES))
    return event


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy for a URL; None: there is none."""
    if not names_proxy():
        return None
    # With http.client and email it takes 1.9 MiB, which only who has a proxy is to pay for.
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if not url or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = urlsplit(url if "://" in url else f"http://{url}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise ValueError(
            f"the proxy of the environment must be http://[USER:PASSWORD@]HOST[:PORT], it is a "
            f"{proxy.scheme} one"
        )
    return proxy


def _credentials(proxy: SplitResult) -> dict[str, str]:
    """The header that a proxy with a password wants."""
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
