"""GET requests to an exchange. The only file that knows httpx."""

from __future__ import annotations

import time

# A metadata answer of Binance has some 20 MB.
MAX_BODY_BYTES = 128 * 1024 * 1024
_TIMEOUT_S = 20.0
# Of a whole answer: a server that sends a byte now and then is no answer.
_DEADLINE_S = 120.0


class RestError(Exception):
    """A request that brought no answer to read; its text says what, and from where."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        """How long the exchange wants to be left alone; 0 if it did not say."""


def get(url: str) -> bytes:
    """The body of a 200 answer. Proxies and extra certificates come from the environment
    (``HTTPS_PROXY``, ``SSL_CERT_FILE``), as httpx has it.

    :raises RestError: no connection, a timeout, another status, too large an answer.
    """
    deadline_s = time.monotonic() + _DEADLINE_S
    import httpx  # noqa: PLC0415  60 ms and 10 MB that only a request costs

    try:
        with httpx.stream(
            "GET",
            url,
            timeout=_TIMEOUT_S,
            follow_redirects=True,
            headers={"User-Agent": "feedmono"},
        ) as response:
            if response.status_code != 200:
                raise RestError(
                    f"GET {url}: HTTP {response.status_code}",
                    _seconds(response.headers.get("Retry-After")),
                )
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise RestError(f"GET {url}: the answer exceeds {MAX_BODY_BYTES} B")
                if time.monotonic() > deadline_s:
                    raise RestError(f"GET {url}: no whole answer in {_DEADLINE_S:g} s")
            return bytes(body)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise RestError(f"GET {url}: {error or type(error).__name__}") from error


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, min(float(text or 0), 24 * 3600.0))
    except ValueError:
        return 0.0
