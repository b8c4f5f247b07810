"""GET requests to an exchange. The only file that knows httpx.

A request is made by a thread of its own: httpx has a limit for each step only, and none for a name
lookup, so that who asks could be held for ever by a server that sends a byte now and then.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from feedmono.network.limiter import MAX_HOLD_S

if TYPE_CHECKING:
    import httpx

# A metadata answer of Binance has some 20 MB.
MAX_BODY_BYTES = 128 * 1024 * 1024
LIMITED = frozenset({403, 418, 429})
"""The statuses that say that there were too many requests; 403 is that of a firewall in front
of the exchange (Binance, rest-api.md)."""
_TIMEOUT_S = 20.0
_MAX_REDIRECTS = 5
REQUEST_LIMIT_S = 120.0
"""A request has ended by then, whatever the server does."""


class RestError(Exception):
    """A request that brought no answer to read; its text says what, and from where."""

    def __init__(self, text: str, status: int | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        """The answer's, which is not 200; None: there was no whole answer."""
        self.retry_after_s = retry_after_s
        """How long the exchange wants to be left alone; 0 if it did not say."""


class TooLarge(RestError):
    """The answer has more bytes than were to be taken."""


class Answer(NamedTuple):
    """A 200 answer."""

    body: bytes
    headers: Mapping[str, str]
    """Names in lower case."""


class RestClient:
    """GET requests to one server, over a connection that is kept for the next one. Not
    thread-safe: one thread owns it. Proxies and extra certificates come from the environment
    (``HTTPS_PROXY``, ``SSL_CERT_FILE``), as httpx has it."""

    def __init__(
        self, base_url: str, headers: Mapping[str, str], limit_s: float = REQUEST_LIMIT_S
    ) -> None:
        """Connects to nobody yet.

        :param base_url: what each path is appended to.
        :param headers: of each request.
        :param limit_s: how long a request may take, redirects and the whole answer included.
        """
        self._base_url = base_url
        self._headers = {"User-Agent": "feedmono", **headers}
        self._limit_s = limit_s
        self._line: _Line | None = None

    def get(self, path: str, max_bytes: int = MAX_BODY_BYTES) -> Answer:
        """A 200 answer. Redirects are followed, but never to another scheme.

        :raises RestError: no connection, a timeout, another status; `TooLarge`: a body of more
            than *max_bytes*. No other exception leaves it, whatever the server does.
        """
        url = self._base_url + path
        if self._line is None:
            self._line = _Line(self._headers)
        attempt = _Attempt(self._line, url, max_bytes)
        try:
            attempt.start()
        except RuntimeError as error:
            # The system lets no thread begin.
            raise RestError(f"GET {url}: {error}") from error
        answer = attempt.result(self._limit_s)
        if answer is None:
            # It is the attempt's to close.
            self._line = None
            raise RestError(f"GET {url}: no whole answer in {self._limit_s:g} s")
        return answer

    def close(self) -> None:
        """Gives the connection up; the next `get` makes a new one."""
        line, self._line = self._line, None
        if line is not None:
            line.close()


class _Attempt(threading.Thread):
    """One request, and what became of it."""

    def __init__(self, line: _Line, url: str, max_bytes: int) -> None:
        super().__init__(name="rest-request", daemon=True)
        self._line = line
        self._url = url
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._wanted = True
        self._answer: Answer | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._answer = self._line.get(self._url, self._max_bytes)
        except Exception as error:  # `result` raises it
            self._error = error
        with self._lock:
            self._ended.set()
            if self._wanted:
                return
        self._line.close()

    def result(self, limit_s: float) -> Answer | None:
        """The answer; None if there is none within *limit_s*. The line is lost then, and closed
        by the thread, which ends at once, or after the resolver's or httpx's own limit.

        :raises RestError: it failed.
        """
        if not self._ended.wait(limit_s):
            with self._lock:
                self._wanted = self._ended.is_set()
            if not self._wanted:
                self._line.cut()
                return None
        self.join()
        if self._error is not None:
            raise self._error
        return self._answer


class _Line:
    """An httpx client, and the sockets that it has opened: what it waits for can be cut short."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._is_cut = False
        self._sockets: list[socket.socket] = []
        self._shaking: list[socket.socket] = []
        """The new ones once more: TLS takes a socket over before it has one of its own to tell
        of."""

    def get(self, url: str, max_bytes: int) -> Answer:
        """:raises RestError: no answer."""
        import httpx  # noqa: PLC0415  60 ms and 10 MB that only a request costs

        try:
            if self._client is None:
                self._client = httpx.Client(timeout=_TIMEOUT_S, headers=self._headers)
            with self._opened(self._client, url) as response:
                return _read(response, url, max_bytes)
        # A ValueError is a URL, a header or a proxy that can't be read.
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            httpx.StreamError,
            OSError,
            ValueError,
        ) as error:
            raise RestError(f"GET {url}: {str(error) or type(error).__name__}") from error
        finally:
            self._forget_shaking()

    def cut(self) -> None:
        """Ends what another thread waits for, and what it would begin to wait for."""
        with self._lock:
            self._is_cut = True
            for sock in (*self._sockets, *self._shaking):
                _shut(sock)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    @contextlib.contextmanager
    def _opened(self, client: httpx.Client, url: str) -> Iterator[httpx.Response]:
        """The answer to a request, its body unread; a redirect if it can't be followed."""
        request = client.build_request("GET", url, extensions={"trace": self._trace})
        response = client.send(request, stream=True)
        try:
            for _ in range(_MAX_REDIRECTS):
                following = response.next_request
                if following is None or following.url.scheme != request.url.scheme:
                    break
                response.close()
                response = client.send(following, stream=True)
            yield response
        finally:
            response.close()

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Is told by httpx what it does, in the thread that does it."""
        is_new = event.endswith(".connect_tcp.complete")
        if not is_new and not event.endswith(".start_tls.complete"):
            return
        sock = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._sockets = [each for each in self._sockets if each.fileno() >= 0]
            self._sockets.append(sock)
            if is_new:
                self._shaking.append(sock.dup())
            if self._is_cut:
                _shut(sock)

    def _forget_shaking(self) -> None:
        with self._lock:
            for sock in self._shaking:
                sock.close()
            self._shaking = []


def _shut(sock: socket.socket) -> None:
    # Of the socket below TLS: its own shutdown is not for a second thread.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _read(response: httpx.Response, url: str, max_bytes: int) -> Answer:
    """:raises RestError: this is no answer to read."""
    if response.status_code != 200:
        raise RestError(
            f"GET {url}: HTTP {response.status_code}",
            response.status_code,
            _seconds(response.headers.get("Retry-After")),
        )
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"GET {url}: the answer exceeds {max_bytes} B")
    headers = {name.lower(): text for name, text in response.headers.items()}
    return Answer(bytes(body), headers)


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        return 0.0
    # Not so of a NaN.
    return min(seconds, MAX_HOLD_S) if seconds > 0.0 else 0.0
