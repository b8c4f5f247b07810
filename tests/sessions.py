"""Drives an exchange's session by a clock of its own, and reads the recorded frames."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from feedmono.exchanges.base import Event, Session

FRAMES = Path(__file__).resolve().parents[2] / "shared" / "frames"
START_S = 1000.0

Answer = Callable[[Any], Iterable[object]]
"""A message as JSON has it → the exchange's answers to it."""


@dataclass
class Run:
    """What a session sent and told, with the time of each."""

    messages: list[tuple[float, Any]] = field(default_factory=list)
    events: list[tuple[float, Event]] = field(default_factory=list)

    def told(self) -> list[Event]:
        return [event for _, event in self.events]

    def most_in(self, window_s: float) -> int:
        """The largest number of messages in any half-open window of that length."""
        times = [when for when, _ in self.messages]
        return max(sum(start <= t < start + window_s for t in times) for start in times)


def frame(message: object) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def drive(session: Session, answer: Answer, for_s: float = 100.0) -> Run:
    """Polls *session* exactly when it asks to be, and hands it the answers 0.05 s after each
    message; a session that asks to be polled at once again, for ever, fails."""
    run = Run()
    now_s = START_S
    while True:
        texts, events = session.poll(now_s)
        run.events += [(now_s, event) for event in events]
        for text in texts:
            message = json.loads(text)
            run.messages.append((now_s, message))
            for reply in answer(message):
                later_s = now_s + 0.05
                run.events += [(later_s, e) for e in session.receive(frame(reply), later_s)]
        next_s = session.next_poll_s()
        assert next_s > now_s, "the session has nothing to do, but wants to be polled again"
        if next_s == math.inf or next_s > START_S + for_s:
            return run
        now_s = next_s


def recorded(name: str) -> Sequence[bytes]:
    """The recorded frames of that file; skips the test where they are not at hand."""
    path = FRAMES / name
    if not path.exists():
        pytest.skip(f"the recorded frames are not here: ../shared/frames/{name}")
    data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    return data.splitlines()
