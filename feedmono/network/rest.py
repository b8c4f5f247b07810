"""GET requests to an exchange, each whole or an error, within a limit of time and of bytes.

A request is made by a thread of its own: a socket has a limit for each step only, and a name lookup
none, so that who asks could be held for ever by a server that sends a byte now and then.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple

from feedmono.network.limiter import MAX_HOLD_S
from feedmono.network.line import ERRORS, OK, Line, Overlong

# A metadata answer of Binance has some 20 MB.
MAX_BODY_BYTES = 128 * 1024 * 1024
LIMITED = frozenset({403, 418, 429})
"""The statuses that say that there were too many requests; 403 is that of a firewall in front
of the exchange (Binance, rest-api.md)."""
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
    thread-safe: one thread owns it. Proxies and certificate authorities come from the
    environment, see `feedmono.network.line.Line`."""

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
        self._line: Line | None = None

    def get(self, path: str, max_bytes: int = MAX_BODY_BYTES) -> Answer:
        """A 200 answer. Redirects are followed, but never to another scheme.

        :raises RestError: no connection, a timeout, another status; `TooLarge`: a body of more
            than *max_bytes*. No other exception leaves it, whatever the server does.
        """
        url = self._base_url + path
        if self._line is None:
            self._line = Line(self._headers)
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

    def __init__(self, line: Line, url: str, max_bytes: int) -> None:
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
            self._answer = _get(self._line, self._url, self._max_bytes)
        except Exception as error:  # `result` raises it
            self._error = error
        with self._lock:
            self._ended.set()
            if self._wanted:
                return
        self._line.close()

    def result(self, limit_s: float) -> Answer | None:
        """The answer; None if there is none within *limit_s*. The line is lost then, and closed
        by the thread, which ends at once, or after the resolver's or the connecting's own limit.

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


def _get(line: Line, url: str, max_bytes: int) -> Answer:
    """:raises RestError: no answer."""
    try:
        status, headers, body = line.get(url, max_bytes)
    except Overlong as error:
        raise TooLarge(f"GET {url}: the answer exceeds {max_bytes} B") from error
    except ERRORS as error:
        raise RestError(f"GET {url}: {str(error)[:500] or type(error).__name__}") from error
    if status != OK:
        wait_s = _seconds(headers.get("retry-after"))
        raise RestError(f"GET {url}: HTTP {status}", status, wait_s)
    return Answer(body, headers)


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        return 0.0
    # Not so of a NaN.
    return min(seconds, MAX_HOLD_S) if seconds > 0.0 else 0.0
