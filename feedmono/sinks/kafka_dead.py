"""Dead letters: what a topic refuses for good goes to another one, cut to what that takes, and
whole into a local file."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from feedmono.log import Log
from feedmono.sinks.base import DeadLetter
from feedmono.sinks.kafka_message import Headers, Outgoing

COPIES_LIMIT_BYTES = 256 << 20
COPIES_LIMIT = 10_000
_REASON_CHARS = 500
# Below it, a letter that is still refused is cut to nothing: its key and headers remain.
_SMALLEST_CUT_BYTES = 1024


class Copies:
    """Whole payloads of dead letters as files of one folder, bounded in number and bytes.

    A file's name comes from the payload and its frame, so a replay writes none twice.
    """

    def __init__(
        self,
        folder: Path,
        exchange: str,
        log: Log,
        limit_bytes: int = COPIES_LIMIT_BYTES,
        limit: int = COPIES_LIMIT,
    ) -> None:
        self._folder = folder
        self._exchange = exchange
        self._log = log
        self._limit_bytes = limit_bytes
        self._limit = limit
        self._used_bytes = 0
        self._count = 0
        self._counted = False

    def keep(self, sequence: int, payload: bytes, reason: str) -> bool:
        """Writes the payload and syncs it; False, and an error in the log, if it could not be."""
        digest = hashlib.sha256(payload).hexdigest()[:16]
        path = self._folder / f"{self._exchange}-{sequence}-{digest}.bin"
        about = {"path": str(path), "size_bytes": len(payload), "reason": reason}
        try:
            if path.exists():
                return True
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._has_room(len(payload)):
                self._log.error("dead letter not copied: the folder is at its limit", **about)
                return False
            _write(path, payload)
        except OSError as error:
            self._log.error("dead letter not copied", error=str(error), **about)
            return False
        self._used_bytes += len(payload)
        self._count += 1
        self._log.warning("dead letter copied", **about)
        return True

    def _has_room(self, size_bytes: int) -> bool:
        """Looks into the folder at first, and when it seems full: someone may have made room."""

        def fits() -> bool:
            return self._used_bytes + size_bytes <= self._limit_bytes and self._count < self._limit

        if not self._counted or not fits():
            sizes = [file.stat().st_size for file in self._folder.glob("*.bin")]
            self._used_bytes, self._count, self._counted = sum(sizes), len(sizes), True
        return fits()


def _write(path: Path, payload: bytes) -> None:
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class DeadLetters:
    """Makes dead letters for one topic."""

    def __init__(self, topic: str, limit_bytes: int, copies: Copies) -> None:
        """:param limit_bytes: the largest record batch that the topic takes."""
        self._topic = topic
        # The tenth is room for key, headers and the batch around them.
        self._payload_bytes = limit_bytes * 9 // 10
        self._copies = copies

    def instead_of(self, refused: Outgoing, reason: str) -> Outgoing:
        """The dead letter for a message that its topic refuses for good."""
        return self.letter(refused, DeadLetter("sink", reason, refused.key), refused.value)

    def letter(self, place: Outgoing, dead: DeadLetter, payload: bytes) -> Outgoing:
        """A dead letter of the same entry and rank as *place*."""
        frame = place.entry.frame
        reason = dead.reason[:_REASON_CHARS]
        headers: Headers = [("reason", reason), ("stage", dead.stage), ("frame", frame.tag)]
        if len(payload) > self._payload_bytes:
            self._copies.keep(frame.sequence, payload, reason)
        return place._replace(
            topic=self._topic,
            value=payload[: self._payload_bytes],
            key=dead.symbol,
            headers=headers,
            whole=payload,
        )

    def smaller(self, refused: Outgoing) -> Outgoing | None:
        """The same letter with half of the payload, at last with none; None: that was it."""
        if not refused.value:
            return None
        half = len(refused.value) // 2
        self.keep(refused)
        return refused._replace(value=refused.value[: half if half > _SMALLEST_CUT_BYTES else 0])

    def keep(self, letter: Outgoing) -> bool:
        """Whether the whole payload of *letter* is in a local file."""
        assert letter.whole is not None
        sequence = letter.entry.frame.sequence
        return self._copies.keep(sequence, letter.whole, f"{letter.topic} refuses it")
