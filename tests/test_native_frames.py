"""The twins of frame cutting and ring: the extension does what Python does, and stays in bounds.

The two are held against each other here, call by call; the tests of framing and ring run with each.
"""

from __future__ import annotations

import gc
import mmap
import random
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frame_twins
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsserver import frame

from feedmono import native, ring
from feedmono.native import Frames, plain_frames
from feedmono.network.framing import FrameCutter
from feedmono.ring import Damage, RingReader, RingWriter
from feedmono.ring_layout import (
    EVENT,
    FRAME,
    HEADER_BYTES,
    MIN_CAPACITY_BYTES,
    RECORD,
    RECORD_BYTES,
    Record,
    cursor_word,
    max_payload_bytes,
    record_bytes,
)

CAPACITY = MIN_CAPACITY_BYTES
LARGEST = max_payload_bytes(CAPACITY)
MAX_SEQUENCE = (1 << 64) - 1
BUILT = frame_twins.BUILT


@pytest.fixture(params=frame_twins.FRAMES)
def twin(request: pytest.FixtureRequest) -> Iterator[Frames]:
    """Each of the two, at work."""
    yield from frame_twins.at_work(request.param)


def memory(data: bytes = b"") -> mmap.mmap:
    """What a ring of the smallest capacity is mapped to."""
    mapped = mmap.mmap(-1, HEADER_BYTES + CAPACITY)
    mapped[: len(data)] = data
    return mapped


def append(frames: Frames, data: mmap.mmap, payloads: list[bytes], **other: int) -> tuple[int, int]:
    """With a place and fields that suit unless told otherwise."""
    told = {
        "capacity": CAPACITY, "position": 0, "limit": CAPACITY, "largest": LARGEST,
        "sequence": 1, "received_ns": 1, "connection": 0, "kind": FRAME, "flags": 0, **other,
    }  # fmt: skip
    call: Any = frames.append
    taken, end = call(data, *told.values(), payloads)
    return taken, end


def read(frames: Frames, data: Any, records: list[Record], **other: int) -> tuple[int, int]:
    told = {
        "capacity": CAPACITY, "position": 0, "committed": CAPACITY, "limit": CAPACITY,
        "last_sequence": 0, "max_records": 1000, **other,
    }  # fmt: skip
    call: Any = frames.read
    end, last_sequence = call(data, *told.values(), records, Record)
    return end, last_sequence


# --- The same of both.


@frame_twins.NEEDS_NATIVE
@settings(derandomize=True, max_examples=500, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.builds(frame, st.binary(max_size=200), form=st.sampled_from([0, 126, 127])),
            st.integers(65_530, 65_540).map(lambda size: frame(b"x" * size)),
        ),
        max_size=6,
    ),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([0, 1, 100, 1 << 20]),
)
def test_both_twins_cut_the_same_messages_out_of_any_bytes(
    parts: list[bytes], torn_bytes: int, position: int, limit_bytes: int
) -> None:
    stream = b"".join(parts)
    chunk = stream[: max(0, len(stream) - torn_bytes)]
    ours: list[bytes] = []
    theirs: list[bytes] = []
    assert BUILT.cut(chunk, position, limit_bytes, ours) == plain_frames.cut(
        chunk, position, limit_bytes, theirs
    )
    assert ours == theirs


_payload_lists = st.lists(
    st.one_of(
        st.binary(max_size=100),
        st.integers(0, LARGEST + 1).map(lambda size: b"p" * size),
        st.sampled_from([63, 64, 65, 79, 80, 4064]).map(lambda size: b"q" * size),
    ),
    max_size=12,
)


@frame_twins.NEEDS_NATIVE
@settings(derandomize=True, max_examples=500, deadline=None)
@given(
    payloads=_payload_lists,
    left=st.one_of(st.integers(0, 40), st.integers(0, CAPACITY // 8)).map(lambda words: words * 8),
    room_bytes=st.one_of(st.just(CAPACITY), st.integers(0, CAPACITY)),
    fields=st.fixed_dictionaries(
        {
            "sequence": st.integers(0, MAX_SEQUENCE - 100),
            "received_ns": st.integers(0, MAX_SEQUENCE),
            "connection": st.integers(0, 0xFFFF),
            "kind": st.integers(1, 3),
            "flags": st.integers(0, 255),
        }
    ),
)
def test_both_twins_write_the_same_bytes_and_take_as_many(
    payloads: list[bytes], left: int, room_bytes: int, fields: dict[str, int]
) -> None:
    position = 3 * CAPACITY - left
    before = random.Random(position).randbytes(HEADER_BYTES + CAPACITY)
    ours, theirs = memory(before), memory(before)
    place = {"position": position, "limit": position + room_bytes}
    assert append(BUILT, ours, payloads, **place, **fields) == append(
        plain_frames, theirs, payloads, **place, **fields
    )
    assert ours[:] == theirs[:]
    assert ours[:HEADER_BYTES] == before[:HEADER_BYTES], "the header page is not theirs"


def test_the_crc_is_the_one_of_zlib_for_every_size(twin: Frames) -> None:
    chance = random.Random(1)
    for size in [*range(400), 1000, 4095, LARGEST]:
        data, payload = memory(), chance.randbytes(size)
        append(twin, data, [payload], sequence=chance.randrange(1 << 64))
        stored = data[HEADER_BYTES : HEADER_BYTES + RECORD_BYTES + size]
        assert RECORD.unpack_from(stored)[1] == zlib.crc32(stored[8:]), size
        assert stored[RECORD_BYTES:] == payload
        records: list[Record] = []
        read(twin, data, records)
        assert [r.payload for r in records] == [payload], size


@frame_twins.NEEDS_NATIVE
def test_both_twins_read_the_same_of_any_damaged_ring(full: bool, tmp_path: Path) -> None:
    """Whatever one does not know, it leaves to the same slow path: records, damage, positions."""
    path = tmp_path / "x.ring"
    cases = 3000 if full else 300
    intact = damaged = 0
    for seed in range(cases):
        path.write_bytes(damaged_ring(path, random.Random(seed)))
        found = [all_of(path, frames, random.Random(seed)) for frames in (plain_frames, BUILT)]
        assert found[0] == found[1], f"seed {seed}"
        intact += len(found[0][0])
        damaged += len(found[0][1])
    assert intact > 10 * cases
    assert damaged > cases // 4


def damaged_ring(path: Path, chance: random.Random) -> bytes:
    """The bytes of a ring, many times run through, damaged in up to three places of its records."""
    path.unlink(missing_ok=True)
    ring.create(path, CAPACITY, 1_000_000)
    writer, reader = RingWriter(path), RingReader(path)
    largest = chance.choice([40, 300, LARGEST])
    for _ in range(chance.choice([1, 5, 40])):
        payloads = [chance.randbytes(chance.randrange(largest)) for _ in range(60)]
        writer.append(payloads, chance.choice([FRAME, EVENT]), 3, chance.randrange(1 << 64))
        records = reader.read(chance.randrange(1, 60), 1 << 20)
        if chance.random() < 0.9:
            reader.acknowledge(reader.position if records else reader.acknowledged)
    writer.close()
    reader.close()
    data = bytearray(path.read_bytes())
    for _ in range(chance.randrange(4)):
        at = chance.randrange(HEADER_BYTES, len(data) - 8)
        # Most of what is tried is a size, a kind or a sequence.
        size = chance.choice([1, 1, 4, 8])
        data[at : at + size] = chance.choice([chance.randbytes(size), b"\xff" * size, bytes(size)])
    return bytes(data)


def all_of(
    path: Path, frames: Frames, chance: random.Random
) -> tuple[list[Record], list[Damage], list[int]]:
    """What can be read in batches of any size, the damage, and where each batch ended."""
    reader = RingReader(path)
    records: list[Record] = []
    positions: list[int] = []
    for _ in frame_twins.at_work(frames):
        while reader.position < reader.committed:
            records += reader.read(chance.randrange(1, 50), chance.choice([1, 1000, 1 << 20]))
            positions += [reader.position, reader.last_sequence]
    reader.close()
    return records, reader.damage, positions


# --- In bounds.


@pytest.mark.parametrize("size", [CAPACITY - 31, CAPACITY, (1 << 31) - 1, (1 << 32) - 1])
def test_a_size_that_leaves_the_ring_is_not_followed(twin: Frames, size: int) -> None:
    """The record says so itself, its crc fits as far as anyone could tell."""
    data = memory()
    header = RECORD.pack(size, 0, 5, 1, 0, FRAME, 0, 0)
    crc = zlib.crc32(header[8:] + bytes(CAPACITY - RECORD_BYTES))
    data[HEADER_BYTES : HEADER_BYTES + RECORD_BYTES] = RECORD.pack(size, crc, 5, 1, 0, FRAME, 0, 0)
    records: list[Record] = []
    assert read(twin, data, records, committed=1 << 40, limit=1 << 40) == (0, 0)
    assert records == []


def test_a_record_across_the_end_of_a_lap_is_not_read(twin: Frames) -> None:
    data = memory()
    at = HEADER_BYTES + CAPACITY - 64
    data[at : at + RECORD_BYTES] = RECORD.pack(40, 0, 5, 1, 0, FRAME, 0, 0)
    records: list[Record] = []
    end = 2 * CAPACITY
    assert read(twin, data, records, position=CAPACITY - 64, committed=end, limit=end) == (
        CAPACITY - 64,
        0,
    )


def test_a_record_behind_what_was_committed_is_not_read(twin: Frames) -> None:
    data = memory()
    taken, end = append(twin, data, [b"one", b"two"])
    assert taken == 2
    records: list[Record] = []
    assert read(twin, data, records, committed=end - 8) == (end // 2, 1)
    assert [r.payload for r in records] == [b"one"]


def test_a_record_whose_sequence_does_not_rise_is_not_read(twin: Frames) -> None:
    """It is intact, and of an earlier lap."""
    data = memory()
    _, middle = append(twin, data, [b"one"], sequence=5)
    append(twin, data, [b"two"], position=middle, sequence=5)
    records: list[Record] = []
    assert read(twin, data, records, last_sequence=5) == (0, 5)
    assert records == []
    assert read(twin, data, records, last_sequence=4) == (middle, 5)
    assert [r.payload for r in records] == [b"one"]


@frame_twins.NEEDS_NATIVE
@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity": CAPACITY + 8},
        {"capacity": (1 << 63) - 8},
        {"capacity": 0},
        {"capacity": -8},
        {"capacity": CAPACITY - 4},
        {"position": -8},
        {"position": (1 << 63) - 8},
    ],
)
def test_a_place_outside_the_mapping_is_refused_by_the_extension(wrong: dict[str, int]) -> None:
    data = memory()
    with pytest.raises(ValueError, match="do not fit the ring"):
        append(BUILT, data, [b"x"], **wrong)
    with pytest.raises(ValueError, match="do not fit the ring"):
        read(BUILT, data, [], **wrong)
    assert data[:] == bytes(HEADER_BYTES + CAPACITY)


@frame_twins.NEEDS_NATIVE
def test_the_extension_takes_no_payload_that_the_ring_could_not_hold() -> None:
    data = memory()
    assert append(BUILT, data, [bytes(CAPACITY)], largest=1 << 62, limit=1 << 62) == (0, 0)
    assert append(BUILT, data, [b"x"], limit=-(1 << 63)) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sequence": -1},
        {"sequence": 1 << 64},
        {"received_ns": 1 << 64},
        {"connection": 1 << 16},
        {"connection": -1},
        {"flags": 256},
        {"kind": -1},
    ],
)
def test_a_field_that_its_place_can_not_hold_is_refused(
    twin: Frames, wrong: dict[str, int]
) -> None:
    data = memory()
    with pytest.raises((OverflowError, struct.error)):
        append(twin, data, [b"x"], **wrong)
    assert data[:] == bytes(HEADER_BYTES + CAPACITY)


def test_sequences_do_not_begin_again(twin: Frames) -> None:
    data = memory()
    with pytest.raises((OverflowError, struct.error)):
        append(twin, data, [b"x", b"y"], sequence=(1 << 64) - 1)
    assert data[:] == bytes(HEADER_BYTES + CAPACITY)
    assert append(twin, data, [b"x"], sequence=(1 << 64) - 1)[0] == 1


@frame_twins.NEEDS_NATIVE
def test_arguments_of_another_type_are_refused_by_the_extension() -> None:
    data, wrong = memory(), [1, "text", None, bytearray(b"x"), memoryview(b"x")]
    for payload in wrong:
        with pytest.raises(TypeError, match="must be bytes"):
            append(BUILT, data, [b"good", payload])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        append(BUILT, bytes(data), [b"x"])  # type: ignore[arg-type]
    for record_type in (list, int, object, type("Larger", (tuple,), {})):
        with pytest.raises(TypeError, match="named tuple"):
            BUILT.read(data, CAPACITY, 0, 8, 8, 0, 1, [], record_type)
    with pytest.raises(TypeError):
        BUILT.cut(bytearray(b"x"), 0, 1, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="below 0"):
        BUILT.cut(b"x" * 9, -1, 1, [])
    data.close()  # nothing holds it any more
    with pytest.raises((TypeError, ValueError)):
        append(BUILT, data, [b"x"])


# --- What it leaves behind.


def test_nothing_is_kept_of_what_was_read_and_let_go(twin: Frames) -> None:
    data = memory()
    payloads = [b"x" * size for size in range(200)]
    _, end = append(twin, data, payloads)
    # A record whose crc does not fit, behind the last good one.
    data[HEADER_BYTES + end - 100] ^= 1
    held = [sys.getrefcount(Record), sys.getrefcount(payloads[7])]
    counts: set[int] = set()
    blocks = 0
    for turn in range(150):
        records: list[Record] = []
        read(twin, data, records, committed=end)
        assert len(records) == 199
        payload = records[100].payload
        counts.add(sys.getrefcount(payload))
        del records, payload
        append(twin, data, payloads[:1])
        if turn == 10:
            gc.collect()
            blocks = sys.getallocatedblocks()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 50
    assert counts == {3}, "the record's, the variable's, the argument's"
    assert [sys.getrefcount(Record), sys.getrefcount(payloads[7])] == held


def test_records_are_named_tuples_like_any_other(twin: Frames) -> None:
    data = memory()
    append(twin, data, [b"payload"], sequence=7, received_ns=8, connection=9, kind=EVENT, flags=3)
    records: list[Record] = []
    read(twin, data, records)
    (record,) = records
    assert type(record) is Record
    assert record == Record(record_bytes(7), 7, 8, 9, EVENT, 3, b"payload")
    assert record._replace(flags=0).flags == 0
    assert hash(record) == hash(tuple(record))


@frame_twins.NEEDS_NATIVE
def test_the_collector_does_not_look_at_records_that_wait() -> None:
    data = memory()
    append(BUILT, data, [b"x"])
    records: list[Record] = []
    read(BUILT, data, records)
    assert not gc.is_tracked(records[0])
    gc.collect()
    assert records[0].payload == b"x"


def test_threads_that_append_to_one_ring_lose_and_mix_nothing(twin: Frames, tmp_path: Path) -> None:
    path = tmp_path / "x.ring"
    ring.create(path, 16 << 20)
    writer, reader = RingWriter(path), RingReader(path)

    def work(number: int) -> None:
        for turn in range(300):
            batch = [b"%d %d %d" % (number, turn, index) for index in range(20)]
            assert writer.append(batch, FRAME, number, turn) == 20

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = reader.read(100_000, 16 << 20)
    assert [r.sequence - writer.first_sequence for r in records] == list(range(4 * 300 * 20))
    for number in range(4):
        own = [r.payload for r in records if r.connection == number]
        assert own == [b"%d %d %d" % (number, t, i) for t in range(300) for i in range(20)]
    assert len(records) == 24_000
    assert not reader.damage


# --- Which one is at work.


def test_the_program_uses_the_twin_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every test with two twins would run the same one twice."""
    called: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(plain_frames, name)

    monkeypatch.setattr(native, "frames", Counting())
    ring.create(tmp_path / "x.ring", CAPACITY)
    assert RingWriter(tmp_path / "x.ring").append([b"x"], FRAME, 0, 1) == 1
    assert RingReader(tmp_path / "x.ring").read(1, 1)
    assert FrameCutter(100).feed(frame(b"whole")).messages == [b"whole"]
    assert called == ["append", "read", "cut"]


def test_without_an_extension_the_program_says_so_and_works() -> None:
    """As where pip found no compiler: the module is not there."""
    code = (
        "import sys; sys.modules['feedmono.native._native'] = None\n"
        "from feedmono import native\n"
        "from feedmono.network.framing import FrameCutter\n"
        "print(native.describe(), native.trades)\n"
        "print(FrameCutter(9).feed(bytes([0x81, 2]) + b'ok').messages)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.splitlines() == [
        "pure Python (no compiler at installation) None",
        "[b'ok']",
    ]


def test_a_cursor_beyond_the_mapping_is_never_followed(twin: Frames, tmp_path: Path) -> None:
    """Its check bits fit; what it promises is not there."""
    path = tmp_path / "x.ring"
    ring.create(path, CAPACITY)
    writer, reader = RingWriter(path), RingReader(path)
    writer.append([b"one"], FRAME, 0, 1)
    with path.open("r+b") as file:
        file.seek(64)
        file.write(cursor_word((1 << 48) - 8).to_bytes(8, "little"))
    assert [r.payload for r in reader.read(10, 1 << 50)] == [b"one"]
    for _ in range(3):
        assert reader.read(10, 1 << 50) == []
