"""The ring against a model of it: random operations, and a kill at every store.

After each store into the mapped file, and in the middle of each, a copy of the file is opened anew
(the native twin's are one store: it writes from the first byte to the last, as the other does):
it must hold exactly what was committed and not acknowledged. Now and then the run itself goes on
from such a copy. ``RING_SEED=17 pytest tests/test_ring_model.py`` runs one seed again.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import frame_twins
import pytest

from feedmono import ring, ring_layout
from feedmono.native import Frames, plain_frames
from feedmono.ring import RingReader, RingWriter
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    EVENT,
    FRAME,
    HEADER_BYTES,
    MIN_CAPACITY_BYTES,
    PAGE,
    RECORD_BYTES,
    Record,
)

SEEDS = 1_000
BLOCKS = 10
OPERATIONS = 25
LARGEST_BATCH = 60
FIRST_SEQUENCE = 1_000_000


class Kill(NamedTuple):
    """What a kill behind one store, or in the middle of it, leaves."""

    data: bytes
    done: bool
    """Whether the operation counts: its cursor was stored."""
    written: int
    """The position up to which records were written, committed or not."""


class Image(bytearray):
    """A ring's file in memory, which notes what a kill at each of its stores would leave."""

    def __init__(self, data: bytes, chance: random.Random | None = None) -> None:
        super().__init__(data)
        self.chance = chance
        self.kills: list[Kill] = []
        self.done = False
        self.written = self.committed = 0

    def begin(self, written: int, committed: int) -> None:
        """Before each operation."""
        self.kills = [Kill(bytes(self), False, written)]
        self.done = False
        self.written, self.committed = written, committed

    def __setitem__(self, place: Any, data: Any) -> None:
        if self.chance is None:
            super().__setitem__(place, data)
            return
        torn_bytes = self.chance.randrange(len(data) + 1)
        super().__setitem__(slice(place.start, place.start + torn_bytes), data[:torn_bytes])
        self._note(place.start, torn_bytes)
        super().__setitem__(place, data)
        self._note(place.start, len(data))

    def _note(self, at: int, size_bytes: int) -> None:
        capacity = len(self) - HEADER_BYTES
        begin = self.committed + (at - HEADER_BYTES - self.committed) % capacity
        if size_bytes:
            self.written = max(self.written, begin + size_bytes)
        self.kills.append(Kill(bytes(self), self.done, self.written))

    def written_at_once(self, before: bytes, begin: int, end: int) -> None:
        """Behind a write from position *begin* to *end* that went past `__setitem__`."""
        if self.chance is None or begin == end:
            return
        capacity = len(self) - HEADER_BYTES
        for done in (*sorted(self.chance.randrange(end - begin) for _ in range(3)), end - begin):
            torn = bytearray(before)
            for place in _places(begin, begin + done, capacity):
                torn[place] = self[place]
            self.written = max(self.written, begin + done)
            self.kills.append(Kill(bytes(torn), self.done, self.written))

    def stored(self, word: int) -> None:
        """Behind the store of one of the header's words."""
        self.done |= word in (COMMITTED_WORD, ACKNOWLEDGED_WORD)
        if self.chance:
            self.kills.append(Kill(bytes(self), self.done, self.written))

    def close(self) -> None:
        """As a map's."""


def _places(begin: int, end: int, capacity: int) -> Iterator[slice]:
    """Where in the file the positions from *begin* to *end* lie, lap by lap."""
    while begin < end:
        offset = begin % capacity
        size = min(end - begin, capacity - offset)
        yield slice(HEADER_BYTES + offset, HEADER_BYTES + offset + size)
        begin += size


class Noted:
    """The native twin, with an image told of what it wrote."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.read = frames.read

    def append(self, data: Any, capacity: int, begin: int, *more: Any) -> tuple[int, int]:
        before = bytes(data)
        taken, end = self._frames.append(data, capacity, begin, *more)
        if isinstance(data, Image):
            data.written_at_once(before, begin, end)
        return taken, end


class Words:
    """The words of an image; a store of one is never torn."""

    def __init__(self, words: memoryview, image: Image) -> None:
        self._words = words
        self._image = image
        self.release = words.release

    def __getitem__(self, word: int) -> int:
        return self._words[word]

    def __setitem__(self, word: int, value: int) -> None:
        self._words[word] = value
        self._image.stored(word)


class InMemory(ring.Ring):
    """A ring on an image."""

    def __init__(self, image: Image) -> None:
        self._image = image
        super().__init__(Path("image"))

    def _mapped(self) -> mmap.mmap:
        return cast(mmap.mmap, self._image)

    @property
    def _words(self) -> Any:
        return self._noting

    @_words.setter
    def _words(self, words: memoryview) -> None:
        self._noting = Words(words, self._image)


class Writer(InMemory, RingWriter):
    pass


class Reader(InMemory, RingReader):
    pass


@dataclass
class Model:
    """What a ring should hold."""

    capacity: int
    next_sequence: int
    records: list[Record] = field(default_factory=list)
    """All that were committed."""
    starts: set[int] = field(default_factory=lambda: {0})
    """Where something may be read from: behind each record, and where each begins."""
    acknowledged: int = 0
    written: int = 0

    @property
    def committed(self) -> int:
        return self.records[-1].end if self.records else 0

    @property
    def waiting(self) -> list[Record]:
        return self.behind(self.acknowledged)

    def goes_on_with(self, sequence: int) -> bool:
        """Whether a writer may begin with this one: the next, one behind a batch that was not
        committed, or any above if a killed writer has used the room of the last record."""
        if sequence <= self.next_sequence + LARGEST_BATCH or not self.records:
            return 0 <= sequence - self.next_sequence <= LARGEST_BATCH
        last_bytes = ring_layout.record_bytes(len(self.records[-1].payload))
        return self.written > self.committed - last_bytes + self.capacity

    def behind(self, position: int) -> list[Record]:
        return [r for r in self.records if r.end > position]

    def appended(self, payloads: list[bytes], last: bool, **fields: int) -> Model:
        """The model with as many of these as fit."""
        after = replace(self, records=list(self.records), starts=set(self.starts))
        reserve = RECORD_BYTES if last or fields["kind"] == EVENT else self.capacity // 8
        limit = self.acknowledged + self.capacity - reserve
        position = self.committed
        for payload in payloads:
            total = ring_layout.record_bytes(len(payload))
            left = self.capacity - position % self.capacity
            start = position if total <= left else position + left
            if start + total > limit:
                break
            position = start + total
            after.starts |= {start, position}
            record = Record(position, after.next_sequence, payload=payload, **fields)
            after.records.append(record)
            after.next_sequence += 1
        after.written = max(after.written, position)
        return after

    def can_seek(self, position: int) -> bool | None:
        """Whether everything is there from *position* on; None if it does not matter."""
        if position % 8 or not self.committed - self.capacity <= position <= self.committed:
            return False
        left = self.capacity - position % self.capacity
        if left < RECORD_BYTES:
            if position not in self.starts:
                return None
            position += left
        elif position not in self.starts:
            return False
        return position >= min(self.acknowledged, self.written - self.capacity)


class Run:
    """One seed."""

    def __init__(self, seed: int, path: Path, empty: bytes) -> None:
        self.chance = random.Random(seed)
        self.path = path
        self.image = Image(empty, self.chance)
        self.model = Model(MIN_CAPACITY_BYTES, FIRST_SEQUENCE)
        self.writer, self.reader = Writer(self.image), Reader(self.image)
        self.position = 0
        self.old_end = 0
        """After a seek back, a read may stop here."""
        self.sizes: Callable[[], int] = self.chance.choice(
            [
                lambda: self.chance.randrange(300),
                lambda: 96,
                lambda: int(16_352 * self.chance.random() ** 4),
                lambda: self.chance.choice([0, 32, 4064, 16_352]),
            ]
        )

    def go(self) -> None:
        operations = [self.append] * 6 + [self.read] * 4 + [self.acknowledge] * 4
        operations += [self.reopen_writer, self.reopen_reader, self.seek, self.seek]
        for _ in range(OPERATIONS):
            before = self.model
            self.image.begin(before.written, before.committed)
            self.chance.choice(operations)()
            kills, after = self.image.kills, self.model
            for kill in kills[1:]:
                model = after if kill.done else before
                self._check(kill.data, replace(model, written=kill.written))
            if self.chance.random() < 0.1:
                self._go_on_from(kills[self.chance.randrange(len(kills))], before, after)
            if self.chance.random() < 0.02:
                self.prepare()
        self._check_file(bytes(self.image))

    def append(self) -> None:
        count = self.chance.choice([0, 1, 1, 2, 5, LARGEST_BATCH])
        payloads = [self.chance.randbytes(self.sizes()) for _ in range(count)]
        last = self.chance.random() < 0.1
        fields = {
            "kind": self.chance.choice([FRAME, FRAME, FRAME, PAGE, EVENT]),
            "connection": self.chance.randrange(1 << 16),
            "received_ns": self.chance.randrange(1 << 64),
            "flags": self.chance.randrange(256),
        }
        after = self.model.appended(payloads, last, **fields)
        taken = self.writer.append(payloads, last=last, **fields)
        assert taken == len(after.records) - len(self.model.records)
        self.model = after

    def read(self) -> None:
        most, most_bytes = self.chance.randint(1, 12), self.chance.choice([1, 5000, 1 << 20])
        expected = self.model.behind(self.position)
        records = self.reader.read(most, most_bytes)
        assert records == expected[: len(records)]
        if most_bytes == 1 << 20 and self.position >= self.old_end:
            assert len(records) == min(most, len(expected))
        assert bool(records) == bool(expected)
        if records:
            assert self.reader.last_sequence == records[-1].sequence
            # Behind the end of a lap, maybe.
            self.position = self.reader.position
            assert self.model.behind(self.position) == expected[len(records) :]
        assert self.reader.position == self.position

    def acknowledge(self) -> None:
        ends = [r.end for r in self.model.waiting if r.end <= self.position]
        if ends:
            position = self.chance.choice([self.position, *ends])
            self.reader.acknowledge(position)
            self.model = replace(self.model, acknowledged=position)

    def reopen_writer(self) -> None:
        self.writer.close()
        self.writer = Writer(self.image)
        self._settle_sequence()

    def _settle_sequence(self) -> None:
        sequence = self.writer.next_sequence
        assert self.model.goes_on_with(sequence), (sequence, self.model.next_sequence)
        self.model = replace(self.model, next_sequence=sequence)

    def reopen_reader(self) -> None:
        self.reader.close()
        self.reader = Reader(self.image)
        self.position = self.model.acknowledged

    def seek(self) -> None:
        if self.chance.random() < 0.8:
            position = self.chance.choice(sorted(self.model.starts)[-40:])
        else:
            position = self.chance.randrange(self.model.committed + 64)
            position &= self.chance.choice([-1, -8])
        possible = self.model.can_seek(position)
        sought = self.reader.seek(position)
        assert possible is None or sought == possible, (position, possible)
        if sought:
            self.position = position
            if position < self.model.acknowledged:
                self.old_end = max(self.old_end, self.model.acknowledged)
            acknowledged = min(position, self.model.acknowledged)
            self.model = replace(self.model, acknowledged=acknowledged)
        assert self.reader.position == self.position
        assert self.reader.acknowledged == self.model.acknowledged

    def prepare(self) -> None:
        """A start, with the same capacity or another one."""
        capacity = MIN_CAPACITY_BYTES * self.chance.choice([1, 1, 2])
        self.path.write_bytes(self.image)
        prepared = ring.prepare(self.path, capacity, self.model.next_sequence)
        waiting = self.model.waiting
        if capacity == self.model.capacity:
            used = self.model.committed - self.model.acknowledged
            assert prepared == ring.Prepared(used, None, "")
        else:
            assert bool(prepared.set_aside) == bool(waiting)
            if prepared.set_aside:
                assert everything(RingReader(prepared.set_aside)) == waiting
                prepared.set_aside.unlink()
            next_sequence = RingWriter(self.path).next_sequence
            assert next_sequence >= self.model.next_sequence
            self.model = Model(capacity, next_sequence)
        self._open(self.path.read_bytes())

    def _go_on_from(self, kill: Kill, before: Model, after: Model) -> None:
        """Both processes were killed; their successors go on."""
        self.model = replace(after if kill.done else before, written=kill.written)
        self._open(kill.data)

    def _open(self, data: bytes) -> None:
        self.image = Image(data, self.chance)
        self.image.begin(self.model.written, self.model.committed)
        self.writer, self.reader = Writer(self.image), Reader(self.image)
        self.position = self.model.acknowledged
        self._settle_sequence()

    def _check(self, data: bytes, model: Model) -> None:
        image = Image(data)
        writer, reader = Writer(image), Reader(image)
        assert everything(reader) == model.waiting
        sequence = writer.next_sequence
        assert model.goes_on_with(sequence)
        if writer.append([b"next"], EVENT, 0, 1):
            assert [(r.sequence, r.payload) for r in reader.read(2, 1)] == [(sequence, b"next")]
        else:
            assert model.committed - model.acknowledged > model.capacity - 128

    def _check_file(self, data: bytes) -> None:
        """The same of a real file, as a start does it."""
        self.path.write_bytes(data)
        ring.prepare(self.path, self.model.capacity)
        writer, reader = RingWriter(self.path), RingReader(self.path)
        assert everything(reader) == self.model.waiting
        assert self.model.goes_on_with(writer.next_sequence)
        writer.close()
        reader.close()


def everything(reader: RingReader) -> list[Record]:
    """All that can be read at once, with no doubt about anything."""
    found: list[Record] = []
    while records := reader.read(1000, 1 << 20):
        found += records
    assert reader.position == reader.committed
    assert not reader.damage
    return found


@pytest.fixture(params=frame_twins.FRAMES, autouse=True)
def _twin(request: pytest.FixtureRequest) -> Iterator[Frames]:
    frames = request.param
    yield from frame_twins.at_work(
        frames if frames is plain_frames else cast(Frames, Noted(frames))
    )


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A new ring."""
    monkeypatch.setattr(ring.mapped, "boot_id", lambda: b"one and the same")
    path = tmp_path / "empty.ring"
    ring.create(path, MIN_CAPACITY_BYTES, FIRST_SEQUENCE)
    return path.read_bytes()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_kill_at_any_store_leaves_what_was_committed_and_not_acknowledged(
    block: int, full: bool, tmp_path: Path, empty: bytes
) -> None:
    seeds = (SEEDS * 10 if full else SEEDS) // BLOCKS
    wanted = range(block * seeds, (block + 1) * seeds)
    if "RING_SEED" in os.environ:
        wanted = range(int(os.environ["RING_SEED"]), int(os.environ["RING_SEED"]) + 1)
    for seed in wanted:
        try:
            Run(seed, tmp_path / "x.ring", empty).go()
        except Exception as error:
            raise AssertionError(f"failed with RING_SEED={seed}") from error
