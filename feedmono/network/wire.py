"""A socket after its handshake: read in bulk, sent to within limits, woken out of any wait."""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable

from feedmono.network import framing

READ_BYTES = 256 * 1024
"""What one read takes at most: `Wire`'s buffer."""
WAIT_LIMIT_S = 60.0
"""No wait is longer; who waits for more looks again."""


class Ended(Exception):
    """Why a connection, or the attempt at one, is over."""

    def __init__(
        self, reason: str, detail: str = "", *, code: int | None = None, drain: bool = False
    ) -> None:
        """:param reason: one of few, for counting; *detail* is for the operator.
        :param code: the close code to send; None sends nothing.
        :param drain: what the peer still sends before its own close frame is taken.
        """
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.code = code
        self.drain = drain


class Wake:
    """Wakes a thread out of any wait, for good or until `clear`. `set` may be called from
    anywhere."""

    def __init__(self) -> None:
        # Reentrant: a signal handler may call `set` while its thread is in `set`.
        self._lock = threading.RLock()
        self._fd = -1
        self.is_set = False

    def open(self) -> None:
        with self._lock:
            self._fd = os.eventfd(int(self.is_set), os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poll = _poll_of(None, 0, (self,))

    def set(self) -> None:
        with self._lock:
            # Before it wakes anybody, who then looks at it.
            self.is_set = True
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """For the thread that was woken: it waits again."""
        with self._lock:
            if self.is_set and self._fd >= 0:
                os.eventfd_read(self._fd)
            self.is_set = False

    def close(self) -> None:
        with self._lock:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        return self._fd

    def wait(self, seconds: float) -> bool:
        """Whether it was set before *seconds* were over."""
        if not self.is_set and seconds > 0.0:
            self._poll.poll(_timeout_ms(seconds))
        return self.is_set


def ready(sock: socket.socket | None, events: int, seconds: float, *wakes: Wake | None) -> bool:
    """Waits for *events* of *sock*, for one of *wakes*, or for *seconds*; whether the socket is
    ready. With no socket: whether the wait was cut short."""
    found = _poll_of(sock, events, wakes).poll(_timeout_ms(seconds))
    return bool(found) if sock is None else any(fd == sock.fileno() for fd, _ in found)


def _poll_of(sock: socket.socket | None, events: int, wakes: Iterable[Wake | None]) -> select.poll:
    poll = select.poll()
    if sock is not None:
        poll.register(sock, events)
    for wake in wakes:
        if wake is not None:
            poll.register(wake, select.POLLIN)
    return poll


def _timeout_ms(seconds: float) -> int:
    """Rounded up, and never 0: waking too early would spin."""
    return max(1, math.ceil(min(seconds, WAIT_LIMIT_S) * 1000))


class Wire:
    """The taken-over socket: reads in bulk, sends within a limit."""

    def __init__(self, sock: socket.socket, buffer: memoryview) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = buffer
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._more = False
        """TLS may hold decrypted bytes that poll() does not see."""
        self._read_events = select.POLLIN
        self._polls: dict[tuple[int, tuple[Wake | None, ...]], select.poll] = {}
        self.peer = _address(sock)

    def wait(self, seconds: float, *wakes: Wake | None) -> bool:
        """Whether there is something to read before *seconds* are over or one of *wakes* is
        set."""
        if self._more:
            return True
        # What is waited for is nearly always the same: to tell the kernel once saves 4 µs.
        key = self._read_events, wakes
        poll = self._polls.get(key)
        if poll is None:
            poll = self._polls[key] = _poll_of(self._sock, self._read_events, wakes)
        number = self._sock.fileno()
        return number in dict(poll.poll(_timeout_ms(seconds)))

    def read(self) -> memoryview:
        """All that has arrived, up to the buffer's size; valid until the next call. Empty: it
        was nothing for us.

        :raises Ended: the peer or the network ended the connection.
        """
        buffer, sock = self._buffer, self._sock
        filled = 0
        self._read_events = select.POLLIN
        try:
            # One call takes all that TCP has, but only one record of TLS: often a single frame.
            while filled < len(buffer):
                size = sock.recv_into(buffer[filled:])
                if size == 0 and not filled:
                    raise Ended("lost", "ended by the peer without a close frame")
                filled += size
                if size == 0 or not self._tls:
                    break
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            self._read_events = select.POLLIN | select.POLLOUT
        except OSError as error:
            if not filled:
                raise Ended("lost", str(error)) from error
        self._more = self._tls and filled == len(buffer)
        return buffer[:filled]

    def send(self, opcode: int, payload: bytes, limit_s: float, wake: Wake | None) -> None:
        """Sends a frame whole.

        :raises Ended: it did not go through within *limit_s* (or before *wake*, if it had to
            wait): a frame that was sent in part makes the connection useless.
        """
        self._send(framing.encode_frame(opcode, payload, os.urandom(4)), limit_s, wake)

    def send_close(self, code: int, limit_s: float) -> None:
        """Sends the close frame, in the same way."""
        self._send(framing.encode_close(code, os.urandom(4)), limit_s, None)

    def _send(self, frame: bytes, limit_s: float, wake: Wake | None) -> None:
        until = time.monotonic() + limit_s
        rest = memoryview(frame)
        while rest:
            events = select.POLLOUT
            try:
                rest = rest[self._sock.send(rest) :]
                continue
            except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
                pass
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except OSError as error:
                raise Ended("lost", str(error)) from error
            remaining_s = until - time.monotonic()
            if remaining_s <= 0.0:
                raise Ended("unsent", f"the peer took nothing for {limit_s:g} s")
            ready(self._sock, events, remaining_s, wake)
            if wake is not None and wake.is_set:
                raise Ended("stopped")

    def close(self) -> None:
        self._sock.close()


def _address(sock: socket.socket) -> str:
    """The peer's address for the log."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "gone"
    return f"{host}:{port}"
