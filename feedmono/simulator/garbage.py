"""Frames that no decoder can read a trade from, made out of a real trade's message."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from feedmono.simulator.websocket import BINARY, TEXT, frame

_WRONG: tuple[object, ...] = (None, True, [], {}, [1], {"a": 1}, "", "x", "1e999999")
_HUGE = 10**30
_DEPTH = 20_000

Key = str | int
"""Of a trade's object; or a position, where a trade is an array."""


def garbage(text: str, essential: Sequence[Key], rng: random.Random) -> bytes:
    """A whole WebSocket frame of one of the kinds below. None of them holds a trade: a key of
    *essential* is missing or of a wrong type where the message is otherwise whole."""
    return rng.choice(_KINDS)(text, essential, rng)


def _broken(text: str, essential: Sequence[Key], rng: random.Random) -> bytes:
    payload = text.encode()
    return frame(TEXT, payload[: rng.randrange(1, len(payload))])


def _invalid_utf8(text: str, essential: Sequence[Key], rng: random.Random) -> bytes:
    payload = bytearray(_spoil(text, essential[0], _remove).encode())
    payload[rng.randrange(len(payload))] = 0xFF
    return frame(TEXT, bytes(payload))


def _binary(text: str, essential: Sequence[Key], rng: random.Random) -> bytes:
    return frame(BINARY, rng.randbytes(rng.randrange(1, 300)))


def _deep(text: str, essential: Sequence[Key], rng: random.Random) -> bytes:
    opening = rng.choice(("[", '{"a":'))
    return frame(TEXT, (opening * _DEPTH).encode())


def _wrong_type(text: str, essential: Sequence[Key], rng: random.Random) -> bytes:
    key = rng.choice(essential)
    # A huge price would be a price; a huge id or time can be none.
    is_bounded = key in (essential[0], essential[-1])
    wrong = rng.choice((*_WRONG, _HUGE) if is_bounded else _WRONG)

    def replace(trade: Any, key: Key) -> None:
        trade[key] = wrong

    return frame(TEXT, _spoil(text, key, replace).encode())


def _missing(text: str, essential: Sequence[Key], rng: random.Random) -> bytes:
    return frame(TEXT, _spoil(text, rng.choice(essential), _remove).encode())


def _empty(text: str, essential: Sequence[Key], rng: random.Random) -> bytes:
    return frame(TEXT, rng.choice((b"", b" ", b"null", b"0", b'""', b"[]", b"{}", b"\x00")))


_KINDS: tuple[Callable[[str, Sequence[Key], random.Random], bytes], ...] = (
    _broken,
    _invalid_utf8,
    _binary,
    _deep,
    _wrong_type,
    _missing,
    _empty,
)


def _remove(trade: Any, key: Key) -> None:
    del trade[key]


def _spoil(text: str, key: Key, change: Callable[[Any, Key], None]) -> str:
    """*text* with *change* made to every object that has *key*; if that is a position, to every
    array that is long enough and holds nothing but values."""

    def visit(value: Any) -> None:
        children = list(value.values()) if isinstance(value, dict) else value
        inner = [child for child in children if isinstance(child, dict | list)]
        for child in inner:
            visit(child)
        if isinstance(key, int):
            found = isinstance(value, list) and not inner and len(value) > key
        else:
            found = isinstance(value, dict) and key in value
        if found:
            change(value, key)

    # Figures that are JSON numbers stay exact, as texts: a spoiled trade is not read anyway.
    message = json.loads(text, parse_float=str)
    visit(message)
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)
