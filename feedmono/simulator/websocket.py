"""WebSocket frames from the server's side (RFC 6455): made as bytes, the client's read."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

MAX_MESSAGE_BYTES = 64 * 1024
"""What a client may send; more ends its connection with code 1009."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MEDIUM = struct.Struct("!BBH")
_LARGE = struct.Struct("!BBQ")


class Violation(Exception):
    """The client broke the protocol: the connection is to be closed with *code*."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Message(NamedTuple):
    """A whole message, or a control frame."""

    opcode: int
    payload: bytes


def accept_key(key: bytes) -> bytes:
    """The value of Sec-WebSocket-Accept for a Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """One unmasked frame."""
    size = len(payload)
    first = opcode | (0x80 if final else 0)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return _MEDIUM.pack(first, 126, size) + payload
    return _LARGE.pack(first, 127, size) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason.encode()[:123])


def fragmented(payload: bytes, ping: bytes) -> bytes:
    """A text message in three fragments, a ping between the second and the third."""
    third = max(1, len(payload) // 3)
    return b"".join(
        (
            frame(TEXT, payload[:third], final=False),
            frame(CONTINUATION, payload[third : 2 * third], final=False),
            frame(PING, ping),
            frame(CONTINUATION, payload[2 * third :]),
        )
    )


class Reader:
    """Cuts a client's bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fragments = bytearray()
        self._opcode = 0

    def messages(self, data: bytes) -> Iterator[Message]:
        """The messages that *data* completes.

        :raises Violation: the connection can't go on.
        """
        self._buffer += data
        while True:
            cut = self._cut()
            if cut is None:
                return
            message = self._join(*cut)
            if message is not None:
                yield message

    def _cut(self) -> tuple[bool, int, bytes] | None:
        """The next frame: whether it is final, its opcode, its payload."""
        data = self._buffer
        if len(data) < 2:
            return None
        if data[0] & 0x70:
            raise Violation(1002, "reserved bits are set")
        if not data[1] & 0x80:
            raise Violation(1002, "a client's frames must be masked")
        size, start = data[1] & 0x7F, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(data) < 2 + width:
                return None
            size, start = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
        if size > MAX_MESSAGE_BYTES:
            raise Violation(1009, f"a message above {MAX_MESSAGE_BYTES} bytes")
        end = start + 4 + size
        if len(data) < end:
            return None
        mask = bytes(data[start : start + 4]) * (size // 4 + 1)
        masked = int.from_bytes(data[start + 4 : end], "big")
        payload = (masked ^ int.from_bytes(mask[:size], "big")).to_bytes(size, "big")
        final, opcode = bool(data[0] & 0x80), data[0] & 0x0F
        del data[:end]
        return final, opcode, payload

    def _join(self, final: bool, opcode: int, payload: bytes) -> Message | None:
        if opcode >= CLOSE:
            if opcode > PONG or not final or len(payload) > 125:
                raise Violation(1002, "a bad control frame")
            return Message(opcode, payload)
        if opcode > BINARY or (opcode == CONTINUATION) != bool(self._opcode):
            raise Violation(1002, "a frame out of turn")
        if final and opcode != CONTINUATION:
            return Message(opcode, payload)
        self._opcode = self._opcode or opcode
        self._fragments += payload
        if len(self._fragments) > MAX_MESSAGE_BYTES:
            raise Violation(1009, f"a message above {MAX_MESSAGE_BYTES} bytes")
        if not final:
            return None
        message = Message(self._opcode, bytes(self._fragments))
        self._fragments.clear()
        self._opcode = 0
        return message
