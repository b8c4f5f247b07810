"""The ring: what was taken is read once, in order, over wraps, full rings, kills and damage."""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import frame_twins
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmono import native, ring, ring_layout
from feedmono.native import Frames
from feedmono.ring import RingReader, RingWriter, SalvagedReader
from feedmono.ring_layout import EVENT, FRAME, HEADER_BYTES, MIN_CAPACITY_BYTES

SMALL = MIN_CAPACITY_BYTES


@pytest.fixture(params=frame_twins.FRAMES, autouse=True)
def _twin(request: pytest.FixtureRequest) -> Iterator[Frames]:
    yield from frame_twins.at_work(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ring"


@pytest.fixture
def made(path: Path) -> Iterator[tuple[RingWriter, RingReader]]:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    yield writer, reader
    writer.close()
    reader.close()


def read_all(reader: RingReader | SalvagedReader) -> list[bytes]:
    """Everything that can be read, looking again where the reader is in doubt."""
    found: list[bytes] = []
    for _ in range(100_000):
        records = reader.read(100, 1 << 20)
        found += [r.payload for r in records]
        if not records and reader.position == getattr(reader, "committed", reader.position):
            return found
    raise AssertionError("the reader never comes to the end")


def test_what_is_appended_is_read_in_order_with_its_fields(
    made: tuple[RingWriter, RingReader],
) -> None:
    writer, reader = made
    assert writer.append([b"one", b"", b"three"], FRAME, 7, 123, ring_layout.BINARY) == 3
    records = reader.read(10, 1000)
    assert [r.payload for r in records] == [b"one", b"", b"three"]
    assert {(r.connection, r.kind, r.flags, r.received_ns) for r in records} == {(7, 1, 1, 123)}
    sequences = [r.sequence for r in records]
    assert sequences == list(range(writer.first_sequence, writer.first_sequence + 3))
    assert reader.read(10, 1000) == []


def test_a_new_ring_begins_its_sequence_at_the_time_in_microseconds(path: Path) -> None:
    before = time.time_ns() // 1000
    ring.create(path, SMALL)
    assert before <= RingWriter(path).next_sequence <= time.time_ns() // 1000


def test_a_full_ring_takes_what_fits_and_overwrites_nothing(
    made: tuple[RingWriter, RingReader],
) -> None:
    writer, reader = made
    frames = [bytes([i % 256]) * 1000 for i in range(100)]
    taken = writer.append(frames, FRAME, 0, 1)
    assert 0 < taken < 100
    assert writer.append([b"x" * 1000], FRAME, 0, 1) == 0
    assert [r.payload for r in reader.read(1000, 1 << 20)] == frames[:taken]
    assert writer.append([b"x" * 1000], FRAME, 0, 1) == 0, "read is not acknowledged"
    reader.acknowledge(reader.position)
    assert writer.append(frames[taken:], FRAME, 0, 1) == min(taken, 100 - taken)


def test_a_full_ring_still_has_room_for_events(made: tuple[RingWriter, RingReader]) -> None:
    writer, _ = made
    while writer.append([b"x" * 500], FRAME, 0, 1):
        pass
    assert writer.append([b"the ring is full"], EVENT, 0, 1) == 1


def test_a_payload_that_could_never_fit_is_refused(made: tuple[RingWriter, RingReader]) -> None:
    writer, reader = made
    largest = ring_layout.max_payload_bytes(SMALL)
    assert writer.append([bytes(largest)], FRAME, 0, 1) == 1
    with pytest.raises(ValueError, match="too large"):
        writer.append([b"small", bytes(largest + 1)], FRAME, 0, 1)
    assert writer.append([b"small"], FRAME, 0, 1) == 1
    assert [len(r.payload) for r in reader.read(10, 1 << 20)] == [largest, 5]


def test_a_reader_begins_again_at_what_was_acknowledged(
    made: tuple[RingWriter, RingReader], path: Path
) -> None:
    writer, reader = made
    writer.append([b"a", b"b", b"c"], FRAME, 0, 1)
    records = reader.read(10, 1000)
    reader.acknowledge(records[0].end)
    assert [r.payload for r in RingReader(path).read(10, 1000)] == [b"b", b"c"]


def test_a_writer_goes_on_with_the_next_sequence(
    made: tuple[RingWriter, RingReader], path: Path
) -> None:
    writer, reader = made
    writer.append([b"a", b"b"], FRAME, 0, 1)
    again = RingWriter(path)
    assert again.next_sequence == writer.next_sequence
    again.append([b"c"], FRAME, 0, 1)
    records = reader.read(10, 1000)
    assert [r.payload for r in records] == [b"a", b"b", b"c"]
    reader.acknowledge(reader.position)
    assert RingWriter(path).next_sequence == records[-1].sequence + 1, "of a drained ring as well"


def test_a_reader_seeks_behind_and_before_the_cursor(
    made: tuple[RingWriter, RingReader], path: Path
) -> None:
    writer, reader = made
    writer.append([b"a", b"b", b"c"], FRAME, 0, 1)
    a, b, c = reader.read(10, 1000)
    reader.acknowledge(a.end)
    again = RingReader(path)
    assert again.seek(b.end)
    assert again.acknowledged == a.end, "acknowledge frees what was skipped"
    again.acknowledge(b.end)
    assert again.last_sequence == 0
    assert again.read(10, 1000) == [c]
    assert again.last_sequence == c.sequence
    assert again.seek(c.end)
    assert again.read(10, 1000) == []
    assert again.seek(0)
    assert again.acknowledged == 0, "the writer keeps off"
    assert RingReader(path).read(10, 1000) == [a, b, c]
    assert again.read(10, 1000) + again.read(10, 1000) == [a, b, c]
    again.acknowledge(c.end)


def test_a_reader_does_not_seek_to_what_may_be_gone(made: tuple[RingWriter, RingReader]) -> None:
    writer, reader = made
    ends = [0]
    for number in range(40):
        assert writer.append([bytes([number]) * 4000], FRAME, 0, 1)
        ends += [r.end for r in reader.read(1, 1)]
        reader.acknowledge(reader.position)
    before = (reader.position, reader.acknowledged)
    lost = [end for end in ends if writer.committed - end > SMALL]
    assert len(lost) > 20
    for position in (*lost, -8, ends[-1] + 8, ends[-2] + 8, ends[-2] + 1):
        assert not reader.seek(position), position
        assert (reader.position, reader.acknowledged) == before
    assert reader.seek(ends[-3])
    assert [r.payload[0] for r in reader.read(10, 1 << 20)] == [38, 39]


@pytest.mark.parametrize("drained", [True, False])
def test_an_append_under_way_while_the_cursor_moves_back_does_no_harm(
    drained: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer has looked for room, then the reader moves back, then the writer uses it."""
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    size = 1024 - ring_layout.RECORD_BYTES
    old = [bytes([number]) * size for number in range(62)]
    assert writer.append(old, FRAME, 0, 1, last=True) == 62
    records = reader.read(100, 1 << 20)
    waiting = [] if drained else old[-4:]
    reader.acknowledge(records[-1 - len(waiting)].end)
    fresh = [bytes([100 + number]) * size for number in range(20)]
    frames = native.frames

    def late(*given: Any) -> tuple[int, int]:
        assert reader.seek(records[3].end)
        return frames.append(*given)

    monkeypatch.setattr(native, "frames", SimpleNamespace(append=late, read=frames.read))
    assert writer.append(fresh, FRAME, 0, 1) == 20
    monkeypatch.undo()
    found = read_all(reader)
    behind = [*waiting, *fresh]
    assert found[len(found) - len(behind) :] == behind
    again = found[: len(found) - len(behind)]
    assert again == old[62 - len(waiting) - len(again) : 62 - len(waiting)]
    assert reader.damage
    reader.acknowledge(reader.position)
    assert writer.append([b"next"], FRAME, 0, 1) == 1
    assert read_all(RingReader(path)) == [b"next"]


def test_a_torn_tail_is_cut_at_the_last_commit(
    made: tuple[RingWriter, RingReader], path: Path
) -> None:
    writer, reader = made
    writer.append([b"whole"], FRAME, 0, 1)
    at = HEADER_BYTES + writer.committed
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<II", 100, 1) + b"torn")
    assert [r.payload for r in reader.read(10, 1000)] == [b"whole"]
    again = RingWriter(path)
    again.append([b"next"], FRAME, 0, 1)
    assert [r.payload for r in reader.read(10, 1000)] == [b"next"]
    assert not reader.damage


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data())
def test_the_ring_behaves_like_a_bounded_queue(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("model") / "m.ring"
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    appended: list[bytes] = []
    read: list[bytes] = []
    unacknowledged: list[int] = []
    acknowledged = 0
    sizes = st.lists(st.integers(0, ring_layout.max_payload_bytes(SMALL)), max_size=8)
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["append", "append", "read", "ack", "reopen"])):
            case "append":
                batch = [bytes([len(appended) % 251]) * n for n in data.draw(sizes)]
                appended += batch[: writer.append(batch, FRAME, 0, 1)]
            case "read":
                records = reader.read(data.draw(st.integers(1, 20)), 1 << 20)
                read += [r.payload for r in records]
                unacknowledged += [r.end for r in records]
            case "ack" if unacknowledged:
                count = data.draw(st.integers(1, len(unacknowledged)))
                reader.acknowledge(unacknowledged[count - 1])
                del unacknowledged[:count]
                acknowledged += count
            case "reopen":
                writer.close()
                reader.close()
                writer, reader = RingWriter(path), RingReader(path)
                del read[acknowledged:]
                unacknowledged.clear()
        assert read == appended[: len(read)]
        assert 0 <= writer.used_bytes <= SMALL
    read += read_all(reader)
    assert read == appended
    assert not reader.damage


def test_a_wrap_at_every_place_loses_nothing(tmp_path: Path) -> None:
    for shift in range(0, 80, 8):
        path = tmp_path / f"{shift}.ring"
        ring.create(path, SMALL)
        writer, reader = RingWriter(path), RingReader(path)
        left = SMALL - 40 - shift
        while left > 0:  # up to `shift` bytes before the end of the lap
            size = min(left, 8032) - 32
            assert writer.append([bytes(max(size, 0))], FRAME, 0, 1) == 1
            left -= max(size, 0) + 32
            reader.acknowledge(reader.read(1, 1)[-1].end)
        frames = [bytes([i]) * (i * 3) for i in range(20)]
        assert writer.append(frames, FRAME, 0, 1) == 20
        assert read_all(reader) == frames
        assert not reader.damage
        assert RingWriter(path).next_sequence == writer.next_sequence


def test_killed_writers_leave_whole_batches_and_no_sequence_twice(path: Path) -> None:
    """A writer process is killed at 30 random moments; a reader checks what it left."""
    ring.create(path, 1 << 20)
    reader = RingReader(path)
    chance = random.Random(1)
    last = 0
    for _ in range(30):
        before = reader.committed
        pid = os.fork()
        if not pid:
            try:
                writer = RingWriter(path)
                while True:
                    if writer.used_bytes < 900_000:  # a full ring takes half a batch
                        writer.append([b"x" * n for n in (10, 200, 3000)], FRAME, 0, 1)
            finally:
                os._exit(1)
        try:
            enough = chance.randrange(1, 5000)
            while reader.committed < before + enough:
                pass
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        sizes = [len(r.payload) for r in _acknowledged(reader)]
        assert len(sizes) % 3 == 0
        assert sizes == [10, 200, 3000] * (len(sizes) // 3)
        sequence = RingWriter(path).next_sequence
        assert sequence > last
        last = sequence
    assert not reader.damage


def _acknowledged(reader: RingReader) -> Iterator[ring_layout.Record]:
    """What can be read; the sequences must rise by one within a writer's life."""
    while records := reader.read(1000, 1 << 20):
        yield from records
        reader.acknowledge(records[-1].end)


def test_a_flipped_byte_in_a_record_loses_that_record_alone_and_is_reported(path: Path) -> None:
    frames = [bytes([65 + i]) * 20 for i in range(5)]
    size = ring_layout.record_bytes(20)
    for offset in range(size):
        path.unlink(missing_ok=True)
        ring.create(path, SMALL)
        writer = RingWriter(path)
        writer.append(frames, FRAME, 0, 1)
        _flip(path, HEADER_BYTES + 2 * size + offset)
        reader = RingReader(path)
        found = read_all(reader)
        assert found == frames or offset < 32 + 20, "only padding is not covered by the crc"
        assert found in (frames, frames[:2] + frames[3:]), offset
        if found != frames:
            assert [d.lost_records for d in reader.damage] == [1]


def test_any_flipped_byte_of_the_header_loses_no_frame(path: Path) -> None:
    frames = [bytes([65 + i]) * 20 for i in range(5)]
    for offset in [*range(80), *range(120, 144), *range(184, 208), 4000]:
        path.unlink(missing_ok=True)
        ring.create(path, SMALL)
        writer = RingWriter(path)
        writer.append(frames, FRAME, 0, 1)
        last = writer.next_sequence
        _flip(path, offset)
        prepared = ring.prepare(path, SMALL)
        if prepared.set_aside:
            assert read_all(SalvagedReader(prepared.set_aside)) == frames, offset
            prepared.set_aside.unlink()
        else:
            assert read_all(RingReader(path)) == frames, offset
        assert RingWriter(path).next_sequence >= last or offset in range(192, 200), offset


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


def test_a_file_cut_short_gives_what_is_intact(path: Path) -> None:
    frames = [bytes([65 + i]) * 20 for i in range(5)]
    size = ring_layout.record_bytes(20)
    for length in range(0, HEADER_BYTES + 6 * size, 13):
        path.unlink(missing_ok=True)
        ring.create(path, SMALL)
        RingWriter(path).append(frames, FRAME, 0, 1)
        os.truncate(path, length)
        prepared = ring.prepare(path, SMALL)
        assert prepared.set_aside is not None
        whole = max(0, length - HEADER_BYTES) // size
        found = read_all(SalvagedReader(prepared.set_aside))
        assert found[:whole] == frames[:whole]
        prepared.set_aside.unlink()


def test_a_file_of_another_length_is_not_read_by_its_cursors(path: Path) -> None:
    frames = [bytes([65 + i]) * 2000 for i in range(40)]
    ring.create(path, 256 * 1024)
    writer, reader = RingWriter(path), RingReader(path)
    for _ in range(2):  # beyond the first lap, so that the place depends on the capacity
        assert writer.append(frames, FRAME, 0, 1) == 40
        reader.read(100, 1 << 20)
        reader.acknowledge(reader.position)
    assert writer.append(frames, FRAME, 0, 1) == 40
    os.truncate(path, HEADER_BYTES + 260 * 1024)
    prepared = ring.prepare(path, SMALL)
    assert prepared.set_aside is not None
    assert read_all(SalvagedReader(prepared.set_aside))[-40:] == frames


def test_a_salvaged_ring_leaves_out_what_was_acknowledged(path: Path) -> None:
    ring.create(path, SMALL)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"done", b"waits"], FRAME, 0, 1)
    reader.acknowledge(reader.read(1, 1)[0].end)
    _flip(path, 40)
    prepared = ring.prepare(path, SMALL)
    assert prepared.set_aside is not None
    assert read_all(SalvagedReader(prepared.set_aside)) == [b"waits"]


def test_the_last_frames_before_a_stop_may_use_the_reserve(
    made: tuple[RingWriter, RingReader],
) -> None:
    writer, reader = made
    while writer.append([b"x" * 500], FRAME, 0, 1):
        pass
    assert writer.append([b"last"], FRAME, 0, 1, last=True) == 1
    assert reader.read(1000, 1 << 20)[-1].payload == b"last"


def test_another_capacity_replaces_an_empty_ring_and_sets_a_full_one_aside(path: Path) -> None:
    ring.create(path, SMALL)
    assert ring.prepare(path, 2 * SMALL).set_aside is None
    writer = RingWriter(path)
    assert writer.capacity_bytes == 2 * SMALL
    writer.append([b"undelivered"], FRAME, 0, 1)
    prepared = ring.prepare(path, SMALL)
    assert prepared.set_aside is not None
    assert read_all(RingReader(prepared.set_aside)) == [b"undelivered"]
    assert RingWriter(path).next_sequence >= writer.next_sequence


def test_no_room_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ring.RingError, match="ring_capacity or another ring_dir"):
        ring.create(tmp_path / "x.ring", 1 << 44)
    with pytest.raises(ring.RingError, match="ring_dir must be a folder"):
        ring.create(tmp_path / "nowhere" / "x.ring", SMALL)
    assert list(tmp_path.iterdir()) == []


@given(position=st.integers(0, 2**45 - 1).map(lambda n: n * 8), bit=st.integers(0, 63))
@settings(derandomize=True, max_examples=2000)
def test_a_cursor_with_a_flipped_bit_is_not_believed(position: int, bit: int) -> None:
    word = ring_layout.cursor_word(position)
    assert ring_layout.cursor_position(word) == position
    assert ring_layout.cursor_position(word ^ 1 << bit) is None
