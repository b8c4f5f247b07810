"""Damaged ring files: what is intact is delivered, nothing else is, and every start succeeds.

Each case runs what a start runs: `ring.prepare`, then the reader process's writer, then the
serializer's reader of each ring that was set aside and of the live one. It runs twice, as after a
crash that delivered nothing, and must find the same.
"""

from __future__ import annotations

import os
import random
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import frame_twins
import pytest

from feedmono import ring
from feedmono.native import Frames
from feedmono.ring import Damage, RingReader, RingWriter, SalvagedReader
from feedmono.ring_layout import (
    ACKNOWLEDGED_WORD,
    COMMITTED_WORD,
    EVENT,
    FRAME,
    HEADER_BYTES,
    MIN_CAPACITY_BYTES,
    NEXT_SEQUENCE_WORD,
    PAD,
    RECORD_BYTES,
    RECORD_FRONT,
    RECORD_REST,
    STATIC,
    Record,
    cursor_position,
    cursor_word,
    record_bytes,
)

CAPACITY = MIN_CAPACITY_BYTES
WORDS = (COMMITTED_WORD, ACKNOWLEDGED_WORD, NEXT_SEQUENCE_WORD)
USED_HEADER_BYTES = (*range(64), *(w * 8 + i for w in WORDS for i in range(8)))
RANDOM_CASES = 100

Key = tuple[int, bytes]


@dataclass
class Sample:
    """A ring as a crash left it."""

    data: bytes
    delivered: list[Record]
    """Acknowledged, as far as they are not overwritten."""
    waiting: list[Record]
    uncommitted: set[bytes]

    def place(self, record: Record) -> int:
        """Where a record begins in the file."""
        return HEADER_BYTES + (record.end - record_bytes(len(record.payload))) % CAPACITY

    @property
    def genuine(self) -> set[bytes]:
        return {r.payload for r in (*self.delivered, *self.waiting)} | self.uncommitted

    @property
    def last_sequence(self) -> int:
        return max((r.sequence for r in (*self.delivered, *self.waiting)), default=0)


def frame(number: int, size_bytes: int) -> bytes:
    text = (
        f'{{"stream":"btcusdt@trade","data":{{"e":"trade","E":17231612553{number:05d},'
        f'"s":"BTCUSDT","t":{3735683259 + number},"p":"61837.63000000","q":"0.02000000","m":true'
    )
    return (text.ljust(size_bytes - 2) + "}}").encode()


def sample(path: Path, sizes: Callable[[int], int], count: int, waiting: int, torn: int) -> Sample:
    """A ring of the smallest capacity through which *count* frames went.

    :param waiting: so many of them are not acknowledged.
    :param torn: so many more were written by a writer that was killed before it committed.
    """
    path.unlink(missing_ok=True)
    ring.create(path, CAPACITY)
    writer, reader = RingWriter(path), RingReader(path)
    records: list[Record] = []
    for number in range(count):
        assert writer.append([frame(number, sizes(number))], FRAME, 3, time.time_ns(), last=True)
        records += reader.read(1, 1)
        if number < count - waiting:
            reader.acknowledge(reader.position)
    header = path.read_bytes()[:HEADER_BYTES]
    uncommitted = [frame(count + i, sizes(count + i)) for i in range(torn)]
    assert writer.append(uncommitted, FRAME, 3, time.time_ns(), last=True) == torn
    data = header + path.read_bytes()[HEADER_BYTES:]
    writer.close()
    reader.close()
    path.unlink()
    split = count - waiting
    return Sample(data, records[:split], records[split:], set(uncommitted))


SAMPLES: dict[str, tuple[Callable[[int], int], int, int, int]] = {
    "new": (lambda _: 200, 0, 0, 0),
    "first lap": (lambda n: 190 + n, 12, 8, 2),
    "second lap": (lambda n: 1000 + 7 * n, 80, 40, 3),
    "drained": (lambda n: 180 + n % 50, 500, 0, 3),
    "aligned": (lambda _: 224, 700, 0, 3),  # each lap's records stand where the last one's stood
    "aligned, one waits": (lambda _: 224, 700, 1, 0),
    "full": (lambda n: 480 + n % 9, 180, 125, 0),
}


@pytest.fixture(params=frame_twins.FRAMES, autouse=True)
def _twin(request: pytest.FixtureRequest) -> Iterator[Frames]:
    yield from frame_twins.at_work(request.param)


@pytest.fixture(params=list(SAMPLES))
def some(request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
    return sample(tmp_path / "sample", *SAMPLES[request.param])


@dataclass
class Started:
    """What a start delivers."""

    records: list[Record]
    damage: list[Damage]
    set_aside: bool

    @property
    def found(self) -> list[Key]:
        return [(r.sequence, r.payload) for r in self.records]


def keys(records: list[Record]) -> list[Key]:
    return [(r.sequence, r.payload) for r in records]


def drain(source: RingReader | SalvagedReader) -> Iterator[Record]:
    while source.position != getattr(source, "committed", -1):
        records = source.read(1000, 1 << 20)
        yield from records
        if not records and isinstance(source, SalvagedReader):
            return


def start(path: Path) -> Started:
    """What supervisor, reader process and serializer do; acknowledges nothing."""
    prepared = ring.prepare(path, CAPACITY)
    writer = RingWriter(path)
    records: list[Record] = []
    damage: list[Damage] = []
    for old in sorted(path.parent.glob(path.name + ".aside-*")):
        source: RingReader | SalvagedReader
        try:
            source = RingReader(old)
        except ring.RingError:
            source = SalvagedReader(old)
        records += drain(source)
        damage += source.damage
        source.close()
    reader = RingReader(path)
    records += drain(reader)
    damage += reader.damage
    writer.close()
    reader.close()
    return Started(records, damage, prepared.set_aside is not None)


def survive(path: Path, data: bytes, last_sequence: int) -> Started:
    """Starts twice on that file, and then goes on; what both starts delivered."""
    path.write_bytes(data)
    first, second = start(path), start(path)
    assert second.found == first.found
    assert not second.set_aside, "once is enough"
    writer = RingWriter(path)
    assert writer.next_sequence > last_sequence
    if writer.append([b"later"], EVENT, 0, 1):
        third = start(path)
        assert third.found == [*first.found, (writer.next_sequence - 1, b"later")]
    else:
        assert writer.used_bytes > CAPACITY - 128
    writer.close()
    for left in path.parent.glob(path.name + "*"):
        left.unlink()
    return first


def flipped(data: bytes, at: int, mask: int) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def masks(offset: int, every_bit: bool) -> tuple[int, ...]:
    """What is flipped of a byte: each bit alone where the check bits of a word must see it (and
    with ``--full``), else one bit, since a crc sees each alike; and the whole byte."""
    return (*((1 << bit for bit in range(8)) if every_bit else (1 << offset % 8,)), 0xFF)


@pytest.mark.timeout(600)
def test_a_flip_in_the_header_loses_and_invents_nothing(
    some: Sample, full: bool, tmp_path: Path
) -> None:
    waiting = keys(some.waiting)
    for at in USED_HEADER_BYTES:
        for mask in masks(at, every_bit=full or at >= 64):
            data = flipped(some.data, at, mask)
            case = f"byte {at}, mask {mask:#x}"
            started = survive(tmp_path / "x.ring", data, some.last_sequence)
            assert not started.damage, case
            found = started.found
            if at // 8 == ACKNOWLEDGED_WORD:
                # What was delivered may come again, in order and up to the first that waits.
                delivered = keys(some.delivered)
                again = found[: len(found) - len(waiting)]
                assert again == delivered[len(delivered) - len(again) :], case
                found = found[len(again) :]
            if at // 8 == COMMITTED_WORD:
                # What a killed writer had written to its end may come.
                more = found[len(waiting) :]
                assert {payload for _, payload in more} <= some.uncommitted, case
                found = found[: len(waiting)]
            assert found == waiting, case


@pytest.mark.timeout(600)
def test_a_flip_in_a_record_loses_that_record_alone(
    some: Sample, full: bool, tmp_path: Path
) -> None:
    """Of the payload, every eighth byte and the last ones; every byte with ``--full``."""
    records = some.waiting or some.delivered[-1:]
    if not records:
        pytest.skip("an empty ring has no records")
    for index in sorted({0, len(records) // 2, len(records) - 1}):
        record = records[index]
        size = len(record.payload)
        for offset in range(record_bytes(size)):
            if offset % 8 and RECORD_BYTES < offset < RECORD_BYTES + size - 8 and not full:
                continue
            for mask in masks(offset, every_bit=full and offset < RECORD_BYTES):
                data = flipped(some.data, some.place(record) + offset, mask)
                case = f"record {index}, byte {offset}, mask {mask:#x}"
                started = survive(tmp_path / "x.ring", data, some.last_sequence)
                touched = offset < RECORD_BYTES + size
                rest = [r for r in some.waiting if r is not record or not touched]
                assert started.found == keys(rest), case
                _assert_reported(started.damage, some, record if touched else None, case)


def _assert_reported(damage: list[Damage], some: Sample, record: Record | None, case: str) -> None:
    if record is None or record not in some.waiting:
        assert not damage, case
        return
    size_bytes = record_bytes(len(record.payload))
    assert len(damage) == 1, case
    assert damage[0].position <= record.end - size_bytes, case
    assert damage[0].position + damage[0].lost_bytes >= record.end, case
    surrounded = record not in (some.waiting[0], some.waiting[-1])
    assert damage[0].lost_records == (1 if surrounded else None), case


@pytest.mark.parametrize("waits_at_the_pad", [False, True])
def test_a_flip_in_the_filling_of_a_lap_loses_nothing(
    waits_at_the_pad: bool, tmp_path: Path
) -> None:
    """Records of an earlier lap stood where the filling is: they must not come back."""
    path = tmp_path / "x.ring"
    ring.create(path, CAPACITY)
    writer, reader = RingWriter(path), RingReader(path)
    small = record_bytes(96)
    for _ in range(CAPACITY // small):
        assert writer.append([b"old" * 32], FRAME, 0, 1)
        reader.read(1, 1)
        reader.acknowledge(reader.position)
    for _ in range(4):
        assert writer.append([b"x" * 16_000], FRAME, 0, 1)
        reader.acknowledge(reader.read(1, 1)[0].end)
    if not waits_at_the_pad:
        assert writer.append([b"before the pad"], FRAME, 0, 1)
    pad = HEADER_BYTES + writer.committed % CAPACITY
    expected = [] if waits_at_the_pad else [b"before the pad"]
    expected += [b"behind the pad" * 1150]
    assert writer.append(expected[-1:], FRAME, 0, 1)
    assert writer.committed > 2 * CAPACITY
    last_sequence = writer.next_sequence - 1
    data = path.read_bytes()
    for offset in range(RECORD_BYTES + 16):
        for mask in masks(offset, every_bit=False):
            started = survive(path, flipped(data, pad + offset, mask), last_sequence)
            assert [r.payload for r in started.records] == expected, (offset, mask)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["first lap", "second lap"])
def test_a_file_cut_short_gives_every_record_that_is_whole(
    name: str, full: bool, tmp_path: Path
) -> None:
    """Cut at every length with ``--full``; without, at each byte of the used header, around each
    record's beginning and end, and at every 64th byte: between those nothing is told apart."""
    some = sample(tmp_path / "sample", *SAMPLES[name])
    lengths = set(range(len(some.data)) if full else range(0, len(some.data), 64))
    for edge in (64, *(w * 8 for w in WORDS), HEADER_BYTES, len(some.data) - 2):
        lengths |= {*range(max(0, edge - 9), edge + 10)} & {*range(len(some.data))}
    for record in some.waiting:
        begin = some.place(record)
        end = begin + record_bytes(len(record.payload))
        lengths |= {e + i for e in (begin, end) for i in (-9, -8, -7, -1, 0, 1)}
        lengths |= {begin + i for i in (7, 8, 31, 32, 33)}
    ends = [some.place(r) + RECORD_BYTES + len(r.payload) for r in some.waiting]
    path = tmp_path / "x.ring"
    for length in sorted(lengths):
        if length >= len(some.data):
            continue
        path.write_bytes(some.data)
        os.truncate(path, length)
        started = start(path)
        assert started.set_aside
        found = started.found
        # Those that were delivered before may come again: the cursors of such a file don't count.
        whole = [r for r, end in zip(some.waiting, ends, strict=True) if end <= length]
        sequences = {r.sequence for r in some.waiting}
        waited = [k for k in found if k[0] in sequences and k[1] not in some.uncommitted]
        assert waited == keys(whole), length
        assert {payload for _, payload in found} <= some.genuine, length
        assert [s for s, _ in found] == sorted(s for s, _ in found), length
        if length % 1024 < 2:
            assert start(path).found == found, length
        assert RingWriter(path).next_sequence > some.last_sequence
        for left in path.parent.glob("x.ring*"):
            left.unlink()


@pytest.mark.timeout(600)
def test_any_damage_is_survived_and_what_comes_later_is_delivered(
    some: Sample, full: bool, tmp_path: Path
) -> None:
    """Several places at once: bytes, blocks of zeroes and noise, header and records alike."""
    for seed in range(RANDOM_CASES * 10 if full else RANDOM_CASES):
        chance = random.Random(seed)
        data = bytearray(some.data)
        for _ in range(chance.choice([1, 2, 3, 10, 50])):
            at = chance.choice(
                [
                    chance.choice(USED_HEADER_BYTES),
                    chance.randrange(HEADER_BYTES, len(data)),
                    chance.randrange(HEADER_BYTES, len(data)),
                ]
            )
            size = min(chance.choice([1, 1, 8, 32, 512, 4096]), len(data) - at)
            data[at : at + size] = chance.choice([bytes(size), chance.randbytes(size)])
        try:
            started = survive(tmp_path / "x.ring", bytes(data), some.last_sequence)
            assert {r.payload for r in started.records} <= some.genuine
        except Exception as error:
            raise AssertionError(f"failed with seed {seed}") from error


@pytest.mark.parametrize("capacity", [0, 8, 100, 4096, CAPACITY + 8])
def test_a_header_with_a_capacity_that_no_ring_has_is_none_of_ours(
    tmp_path: Path, capacity: int
) -> None:
    """Even if its crc fits."""
    path = tmp_path / "x.ring"
    ring.create(path, CAPACITY)
    data = bytearray(path.read_bytes()[: HEADER_BYTES + capacity])
    data += bytes(HEADER_BYTES + capacity - len(data))
    fields = list(STATIC.unpack_from(data))
    fields[2:4] = 0, capacity
    fields[2] = zlib.crc32(STATIC.pack(*fields))
    STATIC.pack_into(data, 0, *fields)
    path.write_bytes(data)
    for opened in (RingReader, RingWriter):
        with pytest.raises(ring.ForeignRingError, match="no ring has"):
            opened(path)


def test_a_cursor_inside_a_record_is_a_damaged_one() -> None:
    assert cursor_position(cursor_word(40)) == 40
    assert cursor_position(cursor_word(36)) is None


def test_a_cursor_far_ahead_is_followed_for_one_lap(tmp_path: Path) -> None:
    """A lap that is one filling, round and round: no record would ever end the search."""
    path = tmp_path / "x.ring"
    ring.create(path, CAPACITY)
    reader = RingReader(path)
    data = bytearray(path.read_bytes())
    rest = RECORD_REST.pack(1, 0, 0, PAD, 0, 0)
    RECORD_FRONT.pack_into(data, HEADER_BYTES, CAPACITY - RECORD_BYTES, zlib.crc32(rest))
    data[HEADER_BYTES + 8 : HEADER_BYTES + RECORD_BYTES] = rest
    word = cursor_word(CAPACITY * 2**30).to_bytes(8, "little")
    data[COMMITTED_WORD * 8 : COMMITTED_WORD * 8 + 8] = word
    with path.open("r+b") as file:
        file.write(data)
    assert reader.read(10, 1 << 20) == []
    assert reader.position == CAPACITY


def test_a_ring_is_opened_with_a_clock_that_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sequence goes on above what it gave, or the reader would take the next for damage."""
    path = tmp_path / "x.ring"
    ring.create(path, CAPACITY)
    writer = RingWriter(path)
    writer.append([b"one", b"two"], FRAME, 0, 1)
    monkeypatch.setattr(time, "time_ns", lambda: 10**9)
    for boot in (ring.boot_id(), b"after the reboot"):
        monkeypatch.setattr(ring.mapped, "boot_id", lambda boot=boot: boot)
        assert RingWriter(path).next_sequence == writer.next_sequence


def test_no_ring_that_was_set_aside_is_replaced_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two starts within one tick of the clock."""
    path = tmp_path / "x.ring"
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    for payload in (b"one", b"two"):
        ring.prepare(path, CAPACITY)
        RingWriter(path).append([payload], FRAME, 0, 1)
        path.write_bytes(flipped(path.read_bytes(), 0, 1))
    assert [payload for _, payload in start(path).found] == [b"one", b"two"]
