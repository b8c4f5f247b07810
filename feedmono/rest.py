"""GET requests to an exchange. The only file that knows httpx."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from feedmono.limiter import MAX_HOLD_S

if TYPE_CHECKING:
    import httpx

# A metadata answer of Binance has some 20 MB.
MAX_BODY_BYTES = 128 * 1024 * 1024
LIMITED = frozenset({403, 418, 429})
"""The statuses that say that there were too many requests; 403 is that of a firewall in front
of the exchange (Binance, rest-api.md)."""
_TIMEOUT_S = 20.0
# Of a whole answer: a server that sends a byte now and then is no answer.
_DEADLINE_S = 120.0
_MAX_REDIRECTS = 5
REQUEST_LIMIT_S = 2 * _DEADLINE_S
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

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        """Connects to nobody yet.

        :param base_url: what each path is appended to.
        :param headers: of each request.
        """
        self._base_url = base_url
        self._headers = {"User-Agent": "feedmono", **headers}
        self._client: httpx.Client | None = None

    def get(self, path: str, max_bytes: int = MAX_BODY_BYTES) -> Answer:
        """A 200 answer. Redirects are followed, but never to another scheme.

        :raises RestError: no connection, a timeout, another status; `TooLarge`: a body of more
            than *max_bytes*. No other exception leaves it, whatever the server does.
        """
        deadline_s = time.monotonic() + _DEADLINE_S
        import httpx  # noqa: PLC0415  60 ms and 10 MB that only a request costs

        url = self._base_url + path
        try:
            if self._client is None:
                self._client = httpx.Client(timeout=_TIMEOUT_S, headers=self._headers)
            with contextlib.closing(_opened(self._client, url)) as response:
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
                    if time.monotonic() > deadline_s:
                        raise RestError(f"GET {url}: no whole answer in {_DEADLINE_S:g} s")
                headers = {name.lower(): text for name, text in response.headers.items()}
                return Answer(bytes(body), headers)
        # A ValueError is a URL, a header or a proxy that can't be read.
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            httpx.StreamError,
            OSError,
            ValueError,
        ) as error:
            raise RestError(f"GET {url}: {str(error) or type(error).__name__}") from error

    def close(self) -> None:
        """Gives the connection up; the next `get` makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _opened(client: httpx.Client, url: str) -> httpx.Response:
    """The answer to a request, its body unread; a redirect if it can't be followed."""
    request = client.build_request("GET", url)
    response = client.send(request, stream=True)
    for _ in range(_MAX_REDIRECTS):
        following = response.next_request
        if following is None or following.url.scheme != request.url.scheme:
            break
        response.close()
        response = client.send(following, stream=True)
    return response


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        return 0.0
    # Not so of a NaN.
    return min(seconds, MAX_HOLD_S) if seconds > 0.0 else 0.0
