"""A WebSocket server by hand, for tests that want each byte under their control."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

LIMIT_S = 20.0

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(payload: bytes, opcode: int = TEXT, *, final: bool = True, form: int = 0) -> bytes:
    """A server's frame. *form*: 126 or 127 writes the length longer than needed."""
    size = len(payload)
    first = (0x80 if final else 0) | opcode
    if form == 0:
        form = size if size < 126 else 126 if size < 1 << 16 else 127
    length = {126: 2, 127: 8}.get(form, 0)
    return bytes((first, form)) + (size.to_bytes(length, "big") if length else b"") + payload


class ClientFrame(NamedTuple):
    opcode: int
    payload: bytes


class Peer:
    """One accepted connection, after its handshake."""

    def __init__(self, sock: socket.socket, request: str) -> None:
        self.sock = sock
        self.request = request

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> ClientFrame | None:
        """The client's next frame, unmasked; None at the end of the connection."""
        try:
            first, second = self._exactly(2)
            assert first & 0xF0 == 0x80, "a client's frames here are final, no reserved bit"
            assert second & 0x80, "a client masks"
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
            mask = self._exactly(4)
            masked = self._exactly(size)
        except (EOFError, ConnectionError):
            return None
        return ClientFrame(first & 0x0F, bytes(b ^ mask[i % 4] for i, b in enumerate(masked)))

    def until(self, opcode: int) -> ClientFrame:
        """The client's next frame of that opcode.

        :raises EOFError: it went without one, and with it the script ends.
        """
        while (got := self.receive()) is not None:
            if got.opcode == opcode:
                return got
        raise EOFError

    def is_quiet(self) -> bool:
        """Whether the client has said nothing more until now."""
        self.sock.setblocking(False)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(LIMIT_S)
        return False

    def hold(self) -> None:
        """Stays until the client goes; answers nothing but a close frame."""
        with contextlib.suppress(OSError):
            while (got := self.receive()) is not None:
                if got.opcode == CLOSE:
                    self.send(frame(got.payload, CLOSE))
                    return

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        self.sock.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data


Script = Callable[[Peer, int], None]
Answer = Callable[[socket.socket, str, int], bool]


def accept(sock: socket.socket, request: str, number: int) -> bool:
    """The usual answer to a handshake; whether the script is to run."""
    key = next(
        line.partition(":")[2].strip()
        for line in request.split("\r\n")
        if line.lower().startswith("sec-websocket-key:")
    )
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )
    return True


def answer(head: str, body: str = "") -> Answer:
    """Answers a handshake with that head instead, and ends."""

    def give(sock: socket.socket, request: str, number: int) -> bool:
        sock.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        return False

    return give


class Server:
    """Listens on a free loopback port; each connection runs *script* in a thread of its own,
    with the connection's number from 0 on. A script that raises fails the test at the end."""

    def __init__(
        self,
        script: Script,
        *,
        handshake: Answer = accept,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._script = script
        self._handshake = handshake
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self.errors: list[BaseException] = []
        self.accepted = 0
        port = self._listener.getsockname()[1]
        self.url = f"{'wss' if tls else 'ws'}://localhost:{port}"

    def __enter__(self) -> Server:
        self._start(self._listen)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Wakes accept(), which closing alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive(), "a script of the server did not end"
        if kind is None and self.errors:
            raise self.errors[0]

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._socks.append(sock)
            self._start(self._serve, sock, self.accepted)
            self.accepted += 1

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            sock.settimeout(LIMIT_S)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._socks.append(sock)
            request = self._request(sock)
            if self._handshake(sock, request, number):
                self._script(Peer(sock, request), number)
        except AssertionError as error:
            self.errors.append(error)
        except (OSError, EOFError):
            pass  # the client went, or the test is over
        finally:
            sock.close()

    def _request(self, sock: socket.socket) -> str:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            part = sock.recv(1)
            if not part:
                raise EOFError
            request += part
        return request.decode()
