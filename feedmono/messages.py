"""What reader and serializer tell each other beside the frames of the stream.

In the ring, from the reader: *events* (what befell its connections) and *pages* (REST answers,
each behind a line that says what had been asked). Through a socket, from the serializer:
requests for pages. A request may get lost; the ledger knows the hole, and asks again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from feedmono.exchanges.base import PageRequest

Event = Mapping[str, object]

READER: Final = "reader"
"""A reader process has started: no request from before will be answered."""
CONNECTED: Final = "connected"
"""Fields ``connection``."""
SUBSCRIBED: Final = "subscribed"
"""Fields ``connection``, ``symbol``: from now on its trades come."""
UNSUBSCRIBED: Final = "unsubscribed"
"""Fields ``connection``, ``symbol``: it was asked for no longer; what still comes is not wanted."""
LOST: Final = "lost"
"""Fields ``connection``, ``reason``: it ended without having been replaced."""
FULL: Final = "full"
"""Field ``connection``: the ring has no room, its socket is not read."""
ROOM: Final = "room"
"""Fields ``connection``, ``seconds``: the ring has room again."""
PAGE_FAILED: Final = "page failed"
"""Fields ``symbol``, ``first_id``, ``reason``: a request brought no page. ``passing``: whether
any request would fail so (too many, a server in trouble, the network), or this one alone."""

MAX_REQUEST_BYTES: Final = 2048


def event(kind: str, **fields: object) -> bytes:
    """The payload of an event record."""
    return json.dumps({"event": kind, **fields}, ensure_ascii=False).encode("utf-8", "replace")


def read_event(payload: bytes) -> Event:
    """What `event` made; empty if it can't be read (another version wrote it)."""
    try:
        content = json.loads(payload)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def request(wish: PageRequest) -> bytes:
    """A datagram that asks for a page."""
    return json.dumps(wish).encode()


def read_request(datagram: bytes) -> PageRequest | None:
    """What `request` made; None if it is no such thing."""
    try:
        symbol, first_id, since_us, rows, tail = json.loads(datagram)
    except (ValueError, TypeError):
        return None
    wish = PageRequest(symbol, first_id, since_us, rows, tail)
    kinds = str, int, int, int, bool
    return wish if all(type(v) is k for v, k in zip(wish, kinds, strict=True)) else None


def page(wish: PageRequest, body: bytes) -> bytes:
    """The payload of a page record: what was asked, a line break, the answer's exact bytes."""
    return request(wish) + b"\n" + body


def read_page(payload: bytes) -> tuple[PageRequest, bytes] | None:
    """What `page` made; None if it is no such thing."""
    head, _, body = payload.partition(b"\n")
    wish = read_request(head)
    return None if wish is None else (wish, body)
