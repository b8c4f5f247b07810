"""The address where metrics and the page are served: bound by the supervisor, for a process that
may be replaced while nobody who asks notices."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from feedmono.config import HttpConfig
from feedmono.log import Log

RETRY_S = 10.0
"""How often an address that can't be had is tried again."""
_BACKLOG = 128


class Listener:
    """A listening socket, and the beats of the process that serves it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._trouble = ""
        self._retry_at_s = 0.0
        self.socket: socket.socket | None = None
        self.beat_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._beats = 0

    @property
    def url(self) -> str:
        """Where it listens; empty while it does not."""
        if self.socket is None:
            return ""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def beats(self) -> int:
        """How often the serving process has come round."""
        with contextlib.suppress(BlockingIOError):
            self._beats += os.eventfd_read(self.beat_fd)
        return self._beats

    def bind(self, http: HttpConfig) -> None:
        """Listens, if it is to and does not; in vain it is said once, and tried again later."""
        if not http.enabled or self.socket is not None or time.monotonic() < self._retry_at_s:
            return
        try:
            self.socket = _listening(http.host, http.port)
        except OSError as error:
            self._retry_at_s = time.monotonic() + RETRY_S
            # What Python itself says of it quotes the address once more.
            number = error.errno or 0
            trouble = os.strerror(number) if number > 0 else str(error)
            if trouble != self._trouble:
                self._trouble = trouble
                self._log.warning(
                    "no metrics: the address can't be had",
                    host=http.host,
                    port=http.port,
                    error=trouble,
                    help="capture goes on; free it, or set http.host and http.port",
                )
            return
        self._trouble = ""
        self._log.info("metrics and page", url=self.url)

    def close(self) -> None:
        """Gives the address up; `bind` may take another one at once."""
        if self.socket is not None:
            self.socket.close()
        self.socket = None
        self._retry_at_s = 0.0


def _listening(host: str, port: int) -> socket.socket:
    """:raises OSError: the address is busy or not ours."""
    # No name is looked up: that can take minutes, and would stop the supervisor so long.
    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=_BACKLOG)
