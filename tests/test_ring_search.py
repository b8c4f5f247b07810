"""Large damaged parts of a ring: each call looks at a part of them, and loses nothing behind."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from delivery import wait_complete
from instance import Instance
from sim import Sim, wait_until

from feedmono import ring
from feedmono.ring import RingReader, RingWriter, SalvagedReader
from feedmono.ring_layout import EVENT, FRAME, HEADER_BYTES, RECORD_BYTES, Record, record_bytes

MIB = 1 << 20
LARGE = b'{"channel":"trade"}' * 3200


def filled(path: Path, capacity: int, damaged_bytes: int) -> tuple[int, int]:
    """A ring with ``before``, so many bytes of records and ``behind``; where the former lie."""
    ring.create(path, capacity)
    writer = RingWriter(path)
    assert writer.append([b"before"], FRAME, 0, 1)
    begin = writer.committed
    while writer.committed < begin + damaged_bytes:
        assert writer.append([LARGE], FRAME, 0, 1)
    end = writer.committed
    assert writer.append([b"behind", b"and one more"], FRAME, 0, 1) == 2
    writer.close()
    return begin, end


def overwrite(path: Path, begin: int, end: int, kind: str) -> None:
    """Damages what lies there, in a ring that has not come round yet."""
    chance = random.Random(1)
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + begin)
        for at in range(begin, end, MIB):
            size = min(MIB, end - at)
            file.write(bytes(size) if kind == "zeroes" else chance.randbytes(size))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ring"


@pytest.mark.parametrize("kind", ["zeroes", "noise"])
def test_of_a_large_damaged_part_each_read_looks_at_a_slice_and_what_is_behind_comes(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring.reader, "_SEARCH_BYTES", MIB)
    begin, end = filled(path, 64 * MIB, 20 * MIB)
    overwrite(path, begin, end, kind)
    reader = RingReader(path)
    assert [r.payload for r in reader.read(10, MIB)] == [b"before"]
    searching = 0
    while not reader.damage:
        assert reader.read(10, MIB) == []
        assert reader.position in (begin, end), "it moves when all is known"
        searching += reader.searching
    assert 18 <= searching <= 25
    assert not reader.searching
    assert [r.payload for r in reader.read(10, MIB)] == [b"behind", b"and one more"]
    (damage,) = reader.damage
    assert (damage.position, damage.lost_bytes) == (begin, end - begin)
    assert damage.lost_records == (end - begin) // (RECORD_BYTES + len(LARGE))
    shown = HEADER_BYTES + begin
    assert damage.payload == path.read_bytes()[shown : shown + 64 * 1024]


def test_damaged_records_behind_one_another_are_work_as_well(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a header that may be one's, and a payload to be held against it."""
    monkeypatch.setattr(ring.reader, "_SEARCH_BYTES", 4 * len(LARGE))
    begin, end = filled(path, 4 * MIB, MIB)
    with path.open("r+b") as file:
        for at in range(begin, end, RECORD_BYTES + len(LARGE)):
            file.seek(HEADER_BYTES + at + RECORD_BYTES)
            file.write(b"?")
    reader = RingReader(path)
    reader.read(10, MIB)
    reads = 0
    while not reader.damage:
        assert reader.read(10, MIB) == []
        reads += 1
    assert reads > 4
    assert [r.payload for r in reader.read(10, MIB)] == [b"behind", b"and one more"]


def test_what_is_appended_while_it_searches_is_found_by_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring.reader, "_SEARCH_BYTES", MIB)
    begin, end = filled(path, 16 * MIB, 4 * MIB)
    overwrite(path, begin, end + 88, "zeroes")
    reader = RingReader(path)
    reader.read(10, MIB)
    wait_until(lambda: (reader.read(10, MIB), reader.searching), lambda found: found[1])
    writer = RingWriter(path)
    assert writer.append([b"new"], EVENT, 0, 1)
    found: list[Record] = []
    while not found:
        found = reader.read(10, MIB)
    assert [r.payload for r in found] == [b"new"]
    assert len(reader.damage) == 1


def test_a_seek_ends_a_search(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring.reader, "_SEARCH_BYTES", MIB)
    begin, end = filled(path, 16 * MIB, 4 * MIB)
    overwrite(path, begin, end, "zeroes")
    reader = RingReader(path)
    reader.read(10, MIB)
    wait_until(lambda: (reader.read(10, MIB), reader.searching), lambda found: found[1])
    assert reader.seek(end)
    assert not reader.searching
    assert [r.payload for r in reader.read(10, MIB)] == [b"behind", b"and one more"]


def test_what_does_not_fit_its_crc_counts_as_damaged_at_the_third_look(path: Path) -> None:
    """Where stores are seen late, it may only not be there yet."""
    ring.create(path, MIB)
    writer = RingWriter(path)
    writer.append([b"damaged", b"behind"], FRAME, 0, 1)
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + RECORD_BYTES)
        file.write(b"D")
    reader = RingReader(path)
    for _ in range(2):
        assert (reader.read(10, MIB), reader.damage) == ([], [])
    assert reader.read(10, MIB) == []
    assert [damage.lost_records for damage in reader.damage] == [None]
    assert [record.payload for record in reader.read(10, MIB)] == [b"behind"]


def test_damage_behind_which_nothing_was_committed_is_told_as_well(path: Path) -> None:
    ring.create(path, MIB)
    writer = RingWriter(path)
    writer.append([b"intact", b"damaged"], FRAME, 0, 1)
    reader = RingReader(path)
    (intact,) = reader.read(1, MIB)
    begin = intact.end
    for _ in range(2):
        with path.open("r+b") as file:
            file.seek(HEADER_BYTES + begin + RECORD_BYTES)
            file.write(b"?")
        for _ in range(2):
            assert (reader.read(10, MIB), reader.damage) == ([], [])
        assert reader.read(10, MIB) == []
        damage = reader.damage.pop()
        assert (damage.position, damage.lost_records) == (begin, None)
        assert damage.lost_bytes == writer.committed - begin
        assert (reader.drained, reader.searching) == (True, False)
        begin = writer.committed
        writer.append([b"damaged as well"], FRAME, 0, 1)


def test_a_record_that_stands_there_twice_is_read_once(path: Path) -> None:
    """Though it fits its crc: a block of the disk that went to two places."""
    ring.create(path, MIB)
    RingWriter(path).append([b"one", b"two", b"six"], FRAME, 0, 1)
    data = bytearray(path.read_bytes())
    size = record_bytes(3)
    data[HEADER_BYTES + size : HEADER_BYTES + 2 * size] = data[HEADER_BYTES : HEADER_BYTES + size]
    path.write_bytes(data)
    reader = RingReader(path)
    found: list[Record] = []
    while not reader.drained:
        found += reader.read(10, MIB)
    assert [record.payload for record in found] == [b"one", b"six"]
    assert [damage.lost_records for damage in reader.damage] == [1]


@pytest.mark.parametrize("chunk", [64, 4096, MIB])
@pytest.mark.parametrize("offset", [0, 8, 40, 64])
def test_a_header_on_the_border_of_two_chunks_is_found(
    path: Path, chunk: int, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards, backwards and by who reads a file that is no ring any more."""
    monkeypatch.setattr(ring.records, "CHUNK_BYTES", chunk)
    ring.create(path, MIB)
    writer = RingWriter(path)
    first = writer.next_sequence
    payloads = [b"a" * (4096 - 64 + offset), b"b" * 5000, b"c", b"d" * 70_000, b"e"]
    assert writer.append(payloads, FRAME, 0, 1) == 5
    assert writer._records.sequence_before(writer.committed) == first + 4
    writer.close()
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + RECORD_BYTES] ^= 1
    path.write_bytes(data)
    reader = RingReader(path)
    while not (found := reader.read(10, MIB)):
        pass
    assert [r.payload for r in found] == payloads[1:]
    data[0] ^= 1
    path.write_bytes(data)
    assert [r.payload for r in SalvagedReader(path).read(10, MIB)] == payloads[1:]


def test_a_writer_goes_on_above_the_last_intact_record_before_a_damaged_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the clock was set back, and what the header told is lost."""
    begin, end = filled(path, 16 * MIB, 4 * MIB)
    last = RingWriter(path).next_sequence - 1
    overwrite(path, begin, begin + 8, "zeroes")  # intact records follow
    overwrite(path, end - MIB, end + 88, "zeroes")
    with path.open("r+b") as file:
        file.seek(192)
        file.write(bytes(8))
    monkeypatch.setattr(time, "time_ns", lambda: 10**9)
    lost = MIB // (RECORD_BYTES + len(LARGE)) + 1 + 2
    assert RingWriter(path).next_sequence == last - lost + 1


@pytest.mark.timeout(300)
def test_a_serializer_gets_through_a_large_damaged_part_without_being_started_again(
    tmp_path: Path,
) -> None:
    with Sim("kraken", "--rate", "50", "--hold") as sim:
        feedmono = Instance(tmp_path, sim, RING_CAPACITY="256 MiB")
        with feedmono:
            feedmono.wait_trades("kraken", 50)
        (path,) = (tmp_path / "rings").glob("*.ring")
        writer = RingWriter(path)
        begin = writer.committed
        while writer.committed < begin + 150 * MIB:
            assert writer.append([LARGE], FRAME, 0, time.time_ns())
        end = writer.committed
        heartbeat = b'{"channel":"heartbeat"}'
        assert writer.append([heartbeat], FRAME, 0, time.time_ns())
        writer.close()
        assert end < 256 * MIB, "still the first lap"
        overwrite(path, begin, end, "zeroes")
        feedmono._process = None
        with feedmono:
            delivered = feedmono.of("kraken")["delivered"]
            feedmono.wait_trades("kraken", delivered + 100)
            wait_until(lambda: feedmono.of("kraken")["ring_used_bytes"], lambda used: used < MIB)
            assert not any(worker["restarts"] for worker in feedmono.of("kraken")["workers"])
            sim.fault("pause")
            wait_complete(feedmono, sim)
    assert os.path.getsize(path) == HEADER_BYTES + 256 * MIB
