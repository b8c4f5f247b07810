"""The simulator's own REST paths: what it did so far, and faults on demand."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from feedmono.simulator.base import Dialect, Response, answer
from feedmono.simulator.connection import Asked, Connection
from feedmono.simulator.engine import Engine, sent
from feedmono.simulator.mischief import Mischief
from feedmono.simulator.tape import LOST, REORDERED, REPEATED, UNHEARD, Tape
from feedmono.simulator.venue import Venue
from feedmono.simulator.websocket import TEXT, frame


class Senseless(ValueError):
    """A request that can't be fulfilled; its text says what is wanted."""


class Controlled(Protocol):
    """The server, as its control sees it."""

    venue: Venue
    dialect: Dialect
    engine: Engine
    accepted: int

    def clients(self) -> Sequence[Connection]:
        """The open WebSocket connections."""
        ...

    def broadcast(self, data: bytes) -> int:
        """Sends a frame to every client; gives how many there are."""
        ...


def totals(tape: Tape) -> dict[str, int]:
    """What became of one symbol's trades; *last_id* is below *first_id* while there are none."""
    return {
        "first_id": tape.first_id,
        "last_id": tape.next_id - 1,
        "made": tape.next_id - tape.first_id,
        "sent": sent(tape.fates),
        "lost": tape.fates[LOST],
        "repeated": tape.fates[REPEATED],
        "reordered": tape.fates[REORDERED],
        "unheard": tape.fates[UNHEARD],
    }


class Control:
    """``GET /sim/state``, ``POST /sim/fault``, ``POST /sim/send``."""

    def __init__(self, server: Controlled, mischief: Mischief) -> None:
        self._server = server
        self._mischief = mischief

    def answer(self, asked: Asked) -> Response:
        """The answer to a request; 400 with the reason if it makes no sense."""
        route = (asked.method, asked.path)
        if route == ("GET", "/sim/state"):
            return answer(self._state())
        if route not in (("POST", "/sim/fault"), ("POST", "/sim/send")):
            known = "GET /sim/state, POST /sim/fault, POST /sim/send"
            return answer({"error": f"no such path; known: {known}"}, 404)
        try:
            body = _body(asked)
            if asked.path == "/sim/fault":
                return answer(self._fault(body.get("kind"), body.get("value")))
            return answer({"clients": self._send(body)})
        except (ValueError, RecursionError) as error:
            return answer({"error": str(error)}, 400)

    def _state(self) -> dict[str, Any]:
        server = self._server
        clients = server.clients()
        subscriptions = Counter(s for c in clients if c.session for s in c.session.subscribed)
        return {
            "exchange": server.dialect.name,
            "seed": server.venue.faults.seed,
            "rate": None if math.isinf(server.engine.rate) else server.engine.rate,
            "held": server.engine.held,
            "connections_open": len(clients),
            "connections_silent": sum(c.silent for c in clients),
            "connections_accepted": server.accepted,
            "subscriptions": dict(subscriptions),
            "symbols": {s: totals(t) for s, t in server.venue.tapes.items()},
            "finished": all(t.finished for t in server.venue.tapes.values()),
            "faults": dict(server.venue.faults.done),
            "requests": dict(server.venue.requests),
        }

    def _fault(self, kind: object, value: object) -> dict[str, Any]:
        server = self._server
        if not isinstance(kind, str):
            raise Senseless('a fault is {"kind": …, "value": …}')
        if kind == "rate":
            server.engine.rate = _rate(value)
        elif kind == "status":
            text = server.dialect.status_message(str(value))
            server.broadcast(frame(TEXT, text.encode()))
        else:
            self._mischief.act(kind, value, asyncio.get_running_loop().time())
        server.engine.wake()
        return {"kind": kind, "value": value}

    def _send(self, body: dict[str, Any]) -> int:
        opcode = body.get("opcode", TEXT)
        if not isinstance(opcode, int) or not 0 <= opcode <= 15:
            raise ValueError("an opcode from 0 to 15 is wanted")
        if isinstance(body.get("text"), str):
            payload = body["text"].encode("utf-8", "surrogatepass")
        elif isinstance(body.get("base64"), str):
            try:
                payload = base64.b64decode(body["base64"], validate=True)
            except binascii.Error as error:
                raise ValueError(f"no base64: {error}") from None
        else:
            raise Senseless('a frame is {"text": …} or {"base64": …, "opcode": …}')
        return self._server.broadcast(frame(opcode, payload))


def _body(asked: Asked) -> dict[str, Any]:
    body = json.loads(asked.body)
    if not isinstance(body, dict):
        raise Senseless("a JSON object is wanted")
    return body


def _rate(value: object) -> float:
    if value == "max":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError("a rate is trades per second, or max")
    return float(value)
