"""A kept HTTP connection of which another thread can cut short whatever it waits for.

The standard library's ``http.client`` makes the connection and reads the answer. A larger library
would save the lines on redirects, proxies and gzip below, and costs each reader process 5 MiB more
(httpx 0.28, measured).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import ssl
import threading
import zlib
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

OK = 200
ERRORS = (http.client.HTTPException, zlib.error, OSError, ValueError)
"""What `Line.get` may raise; a ValueError is a URL, a header or a proxy that can't be read."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}
_CHUNK_BYTES = 64 * 1024
_TIMEOUT_S = 20.0


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
        for redirects in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            response = self._ask(parts)
            try:
                headers = {name.lower(): text for name, text in response.getheaders()}
                following = urljoin(url, headers.get("location", ""))
                if response.status == OK:
                    return OK, headers, _body(response, max_bytes)
            finally:
                # What is left of an answer would stand before the next one.
                if not response.isclosed():
                    response.close()
                    self.close()
            if (
                response.status not in _REDIRECTS
                or urlsplit(following).scheme != parts.scheme
                or redirects == _MAX_REDIRECTS
            ):
                break
            url = following
        return response.status, headers, b""

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

    def _ask(self, parts: SplitResult) -> http.client.HTTPResponse:
        """Asks for a URL; the answer's head."""
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("the address must be http://HOST or https://HOST")
        connection = self._connection
        if connection is None or not connection.serves(parts):
            self.close()
            connection = _Connection(parts, self._context(parts.scheme))
            with self._lock:
                self._connection = connection
                if self._is_cut:
                    connection.cut()
        try:
            target = connection.target(parts)
            connection.request("GET", target, headers={**self._headers, **connection.credentials})
            return connection.getresponse()
        except BaseException:
            self.close()
            raise

    def _context(self, scheme: str) -> ssl.SSLContext | None:
        if scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls if scheme == "https" else None


class _Connection(http.client.HTTPConnection):
    """A connection to the server of a URL, through a proxy if there is one."""

    def __init__(self, parts: SplitResult, tls: ssl.SSLContext | None) -> None:
        """Connects to nobody yet."""
        assert parts.hostname is not None
        self._origin = parts.scheme, parts.netloc
        self._tls = tls
        self._server = parts.hostname
        self._cut_lock = threading.Lock()
        self._is_cut = False
        self._below: socket.socket | None = None
        """The socket below TLS once more: TLS takes it over before it has one of its own."""
        self._proxy = _proxy(parts)
        self.credentials: Mapping[str, str] = {}
        """The headers of each request for the proxy."""
        at, port = self._proxy or parts, _PORTS[parts.scheme]
        super().__init__(at.hostname or "", at.port or _PORTS[at.scheme], timeout=_TIMEOUT_S)
        if self._proxy is not None and tls is not None:
            self.set_tunnel(parts.hostname, parts.port or port, _credentials(self._proxy))
        elif self._proxy is not None:
            self.credentials = _credentials(self._proxy)

    def serves(self, parts: SplitResult) -> bool:
        """Whether it is of use for that URL: to the same server, and not ended meanwhile."""
        if (parts.scheme, parts.netloc) != self._origin:
            return False
        return self.sock is None or not _is_readable(self.sock)

    def target(self, parts: SplitResult) -> str:
        """What stands in the request for that URL."""
        parts = parts._replace(path=parts.path or "/", fragment="")
        if self._proxy is None or self._tls is not None:
            parts = parts._replace(scheme="", netloc="")
        return parts.geturl()

    def connect(self) -> None:
        """Connects; called by `request`."""
        super().connect()
        with self._cut_lock:
            self._below = self.sock.dup()
            if self._is_cut:
                _shut(self._below)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server)

    def cut(self) -> None:
        """Ends what is waited for, now or later; from any thread."""
        with self._cut_lock:
            self._is_cut = True
            for sock in (self._below, self.sock):
                if sock is not None:
                    _shut(sock)

    def close(self) -> None:
        super().close()
        with self._cut_lock:
            below, self._below = self._below, None
        if below is not None:
            below.close()


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy for a URL; None: there is none."""
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


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """The whole body, unpacked."""
    packed = (response.getheader("Content-Encoding") or "identity").lower()
    if packed not in ("gzip", "x-gzip", "identity"):
        raise ValueError(f"the answer is packed in an unknown way: {packed[:60]!r}")
    unpack = None if packed == "identity" else zlib.decompressobj(16 + zlib.MAX_WBITS)
    body = bytearray()
    while chunk := response.read(_CHUNK_BYTES):
        body += unpack.decompress(chunk, max_bytes + 1 - len(body)) if unpack else chunk
        if len(body) > max_bytes:
            raise Overlong
    # With a length told, a connection that ends early is no error to http.client.
    if response.length or (unpack is not None and not unpack.eof):
        raise http.client.HTTPException("the connection ended within the answer")
    return bytes(body)


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _shut(sock: socket.socket) -> None:
    # Of the socket below TLS: its own shutdown is not for a second thread.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
