"""Opens a WebSocket by websocket-client (TLS, proxies), and tells what a failure means."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable

import websocket

from feedmono.network.wire import Ended, Wake, ready

CONNECT_LIMIT_S = 10.0
"""For name lookup, TCP, TLS and handshake together."""

# Asked for before connecting, so that the window scale fits. With the kernel's own 128 KiB a
# reader that is busy elsewhere holds 250 KB of small frames, with 4 MiB 1.8 MB (Linux 6.18,
# measured on loopback); a host's net.core.rmem_max may give less.
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024


def open_socket(url: str, wake: Wake) -> socket.socket:
    """A socket on which the handshake is done; nothing behind it was read, as the library reads
    the answer byte by byte.

    :raises Exception: it did not come about, or *wake* was set: see `refusal`.
    """
    client = websocket.WebSocket(
        sockopt=[(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)],
        enable_multithread=False,
    )

    def connect() -> socket.socket:
        _connect(client, url)
        assert client.sock is not None, "connected"
        return client.sock

    return Opening(connect, lambda: client.sock).result(CONNECT_LIMIT_S, wake)


def try_handshake(url: str) -> None:
    """Opens a WebSocket and closes it again.

    :raises Exception: why it can't be opened; the library promises no list.
    """
    client = websocket.WebSocket(enable_multithread=False)
    try:
        _connect(client, url)
    finally:
        client.close(timeout=1)


def _connect(client: websocket.WebSocket, url: str) -> None:
    # No redirects: one could lead from TLS to plain text.
    client.connect(  # type: ignore[no-untyped-call]
        url, timeout=CONNECT_LIMIT_S, suppress_origin=True, redirect_limit=0
    )


class Opening(threading.Thread):
    """Opens a socket in a thread of its own: a name lookup can't be cut short, and a library's
    timeout holds for each step, not for all (a server that sends its answer byte by byte would
    be waited for without end).
    """

    def __init__(
        self, connect: Callable[[], socket.socket], opened: Callable[[], socket.socket | None]
    ) -> None:
        """:param connect: connects and shakes hands; may raise anything.
        :param opened: the socket on which *connect* is at work, if there is one yet.
        """
        super().__init__(name="opening", daemon=True)
        self._connect = connect
        self._opened = opened
        self._lock = threading.Lock()
        self._wanted = True
        self._done, self._finished = socket.socketpair()
        self._sock: socket.socket | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._sock = self._connect()
        except Exception as error:  # of a library, the resolver, OpenSSL: `result` raises it
            self._error = error
        with self._lock:
            if not self._wanted and self._sock is not None:
                self._sock.close()
            # Tells `result`, which polls the other end.
            self._finished.close()

    def result(self, limit_s: float, wake: Wake) -> socket.socket:
        """Starts it and waits for the socket.

        :raises TimeoutError: not within *limit_s*, or *wake* was set. The thread then ends by
            itself: at once if it is shaking hands, else after the resolver's or its own limit.
        :raises Exception: what *connect* raised.
        """
        self.start()
        with contextlib.closing(self._done):
            if not ready(self._done, select.POLLIN, limit_s, wake):
                self._abandon()
                raise TimeoutError(f"no connection within {limit_s:g} s")
        self.join()
        if self._error is not None:
            raise self._error
        assert self._sock is not None, "it ends with a socket or an error"
        return self._sock

    def _abandon(self) -> None:
        with self._lock:
            self._wanted = False
            for sock in (self._sock, self._opened()):
                if sock is not None:
                    # Of the socket below TLS: its own shutdown is not for a second thread.
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def refusal(error: Exception) -> Ended:
    """What an exception of the opening means."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        said = (error.resp_body or b"")[:200].decode("utf-8", "replace")
        detail = " ".join(f"{error.status_code} {error.status_message or ''} {said}".split())
        return Ended(f"http {error.status_code}", detail)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Ended("tls", f"{error}; a certificate authority of your own: SSL_CERT_FILE")
    if isinstance(error, ssl.SSLError):
        return Ended("tls", str(error))
    if isinstance(error, websocket.WebSocketAddressException):
        return Ended("unreachable", f"the name can't be looked up: {error}")
    if isinstance(error, (OSError, websocket.WebSocketTimeoutException)):
        return Ended("unreachable", str(error) or repr(error))
    return Ended("handshake", str(error)[:500] or repr(error))


def retry_after_s(error: Exception) -> float:
    """Of the answer's ``Retry-After`` in seconds, as the exchanges write it; 0: none."""
    if not isinstance(error, websocket.WebSocketBadStatusException):
        return 0.0
    value = str((error.resp_headers or {}).get("retry-after", ""))
    return float(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0.0
