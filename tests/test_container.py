"""Container files: any Avro reader opens them, and whatever a crash leaves is found again."""

from __future__ import annotations

import itertools
import os
import random
import resource
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest

from feedmono.avro import generate_encoder
from feedmono.sinks import container
from feedmono.sinks.container import (
    ContainerReader,
    ContainerWriter,
    Encoded,
    NotAContainer,
    encode_block,
    recover,
)

SCHEMA = {
    "type": "record",
    "name": "Line",
    "fields": [{"name": "id", "type": "long"}, {"name": "text", "type": "string"}],
}
ENCODE = generate_encoder(SCHEMA)


def line(number: int) -> dict[str, Any]:
    return {"id": number, "text": f"line {number} " + "x" * (number % 7)}


def write(path: Path, block_sizes: list[int]) -> list[int]:
    """Writes lines 0, 1, … in blocks of those sizes; where the header and each block end."""
    writer = ContainerWriter(path, SCHEMA)
    ends, number = [writer.length], 0
    for size in block_sizes:
        writer.append(encode_block([ENCODE(line(i)) for i in range(number, number + size)]))
        number += size
        ends.append(writer.length)
    writer.sync()
    writer.close()
    return ends


def read(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return list(fastavro.reader(file))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.avro.part"


def test_fastavro_reads_what_was_written(path: Path) -> None:
    write(path, [3, 1, 200])
    assert read(path) == [line(i) for i in range(204)]
    found = recover(path)
    assert (found.records, found.length, found.torn_bytes) == (204, path.stat().st_size, 0)
    assert not found.damaged


def test_a_writer_never_takes_over_a_file_that_exists(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        ContainerWriter(path, SCHEMA)
    assert path.read_bytes() == b"precious"


def test_a_file_cut_at_any_length_recovers_exactly_its_whole_blocks(path: Path) -> None:
    sizes = [2, 3, 1, 4]
    ends = write(path, sizes)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        found = recover(path)
        blocks = sum(end <= length for end in ends[1:])
        assert found.records == sum(sizes[:blocks])
        assert found.length == (ends[blocks] if length >= ends[0] else 0)
        assert found.length + found.torn_bytes == length
        assert not found.damaged
        if found.length:
            path.write_bytes(whole[: found.length])
            assert read(path) == [line(i) for i in range(found.records)]


def test_any_flipped_bit_in_the_last_block_leaves_a_file_that_opens(path: Path) -> None:
    sizes = [5, 6]
    ends = write(path, sizes)
    whole = path.read_bytes()
    for offset in range(ends[1], len(whole)):
        for bit in range(8):
            broken = bytearray(whole)
            broken[offset] ^= 1 << bit
            path.write_bytes(broken)
            found = recover(path)
            # Text that changed within its length is beyond what the format can show.
            assert (found.records, found.length) in {(5, ends[1]), (11, ends[2])}
            path.write_bytes(broken[: found.length])
            assert len(read(path)) == found.records
            if offset < ends[1] + 2 or offset >= len(whole) - 16:
                assert found.records == 5


def test_any_byte_replaced_anywhere_never_makes_recovery_fail(path: Path) -> None:
    ends = write(path, [3, 3, 3])
    whole = path.read_bytes()
    chance = random.Random(7)
    for offset in range(len(whole)):
        broken = bytearray(whole)
        broken[offset] = chance.choice([0, 255, broken[offset] ^ 128])
        path.write_bytes(broken)
        try:
            found = recover(path)
        except NotAContainer:
            assert offset < ends[0]
        else:
            before = sum(end <= offset for end in ends[1:])
            assert found.records in {0, 3 * before, 9}


def test_zeros_that_a_crashed_host_left_behind_the_blocks_are_cut(path: Path) -> None:
    ends = write(path, [2, 2])
    with path.open("ab") as file:
        file.write(bytes(5000))
    found = recover(path)
    assert (found.records, found.length, found.torn_bytes) == (4, ends[-1], 5000)
    assert not found.damaged


def test_a_broken_block_before_whole_ones_is_damage_and_not_a_torn_end(path: Path) -> None:
    ends = write(path, [2, 2, 2])
    broken = bytearray(path.read_bytes())
    broken[ends[1] + 2 : ends[2] - 16] = bytes(ends[2] - 16 - ends[1] - 2)
    path.write_bytes(broken)
    found = recover(path)
    assert (found.records, found.length) == (2, ends[1])
    assert found.damaged


@pytest.mark.parametrize(
    "data", [b"not avro at all", b"\x00" * 4096, b"Obj\x02" + bytes(99), b"Obj\x01" + b"\xff" * 99]
)
def test_what_is_no_container_is_told_apart_from_a_torn_one(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(NotAContainer, match=r"lines\.avro\.part"):
        recover(path)


def test_a_container_of_another_codec_is_refused(path: Path) -> None:
    with path.open("wb") as file:
        fastavro.writer(file, SCHEMA, [line(0)], codec="null")
    with pytest.raises(NotAContainer, match="codec"):
        recover(path)


def test_a_reader_sees_a_growing_file_block_by_block(path: Path) -> None:
    writer = ContainerWriter(path, SCHEMA)
    with ContainerReader(path) as reader:
        header = reader.header()
        assert header is not None
        assert list(reader.blocks(header)) == []
        writer.append(encode_block([ENCODE(line(0))]))
        (first,) = reader.blocks(header)
        assert reader.records(header, first) == [line(0)]
        writer.append(encode_block([ENCODE(line(1)), ENCODE(line(2))]))
        (second,) = reader.blocks(header, first.end)
        assert reader.records(header, second) == [line(1), line(2)]
    writer.close()


@pytest.fixture
def file_size_limit() -> Iterator[int]:
    """The kernel refuses to let any file of this process grow beyond it (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield 2000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_half_way_leaves_the_file_as_it_was(
    path: Path, file_size_limit: int
) -> None:
    writer = ContainerWriter(path, SCHEMA)
    small = encode_block([ENCODE(line(0))])
    large = encode_block([ENCODE({"id": 1, "text": os.urandom(file_size_limit).hex()})])
    writer.append(small)
    length = writer.length
    with pytest.raises(OSError, match="File too large"):
        writer.append(large)
    assert writer.length == path.stat().st_size == length
    writer.append(small)
    writer.close()
    assert read(path) == [line(0), line(0)]


def test_torn_bytes_that_could_not_be_removed_at_once_are_removed_later(
    path: Path, file_size_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    writer = ContainerWriter(path, SCHEMA)
    with monkeypatch.context() as patch:
        patch.setattr("feedmono.sinks.container.os.ftruncate", broken)
        with pytest.raises(OSError, match="File too large"):
            writer.append(encode_block([os.urandom(2 * file_size_limit)]))
    assert path.stat().st_size == file_size_limit
    writer.append(encode_block([ENCODE(line(0))]))
    writer.close()
    assert path.stat().st_size == writer.length
    assert read(path) == [line(0)]


def test_a_block_whose_compressed_data_does_not_end_is_torn(path: Path) -> None:
    writer = ContainerWriter(path, SCHEMA)
    whole = writer.length
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = deflate.compress(ENCODE(line(0))) + deflate.flush(zlib.Z_FULL_FLUSH)
    writer.append(Encoded(1, bytes((2, 2 * len(data))) + data))
    writer.close()
    with pytest.raises(zlib.error):  # so readers that inflate in one go would fail
        zlib.decompress(data, -zlib.MAX_WBITS)
    assert recover(path)[:2] == (0, whole)


def test_a_header_that_can_not_be_written_leaves_no_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("feedmono.sinks.container.os.pwrite", full)
        with pytest.raises(OSError, match="No space"):
            ContainerWriter(path, SCHEMA)
    assert not path.exists()


def test_blocks_that_were_synced_long_ago_are_not_decoded_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = write(path, [2, 2, 2])
    monkeypatch.setattr(container, "MAX_UNSYNCED_BYTES", ends[3] - ends[2])
    looked_at: list[int] = []
    records = ContainerReader.records

    def spy(reader: ContainerReader, header: Any, block: Any) -> Any:
        looked_at.append(block.end)
        return records(reader, header, block)

    monkeypatch.setattr(ContainerReader, "records", spy)
    assert recover(path).records == 6
    assert looked_at == [ends[3]]


def test_recovery_up_to_a_byte_takes_no_block_behind_it_for_damage(path: Path) -> None:
    sizes = [2, 3, 1]
    ends = write(path, sizes)
    for upto in range(ends[-1] + 10):
        found = recover(path, upto)
        blocks = sum(end <= upto for end in ends[1:])
        assert (found.records, found.length) == (sum(sizes[:blocks]), ends[blocks])
        assert found.torn_bytes == ends[-1] - ends[blocks]
        assert not found.damaged
    broken = bytearray(path.read_bytes())
    broken[ends[0] + 3] ^= 255
    path.write_bytes(broken)
    assert recover(path, ends[2])[:2] == (0, ends[0])
    assert recover(path, ends[2]).damaged


def test_a_sync_marker_is_found_across_the_steps_of_the_search(path: Path) -> None:
    writer = ContainerWriter(path, SCHEMA)
    chance = random.Random(3)
    starts = [writer.length]
    for size in (1 << 20, (1 << 20) - 20, 300):
        writer.append(Encoded(1, chance.randbytes(size)))
        starts.append(writer.length)
    writer.close()
    with ContainerReader(path) as reader:
        header = reader.header()
        assert header is not None
        for begin, end in itertools.pairwise(starts):
            assert reader.behind_marker(header, begin, starts[-1]) == end
            assert reader.behind_marker(header, begin, end) == end
            assert reader.behind_marker(header, begin, end - 1) is None
        assert reader.behind_marker(header, starts[-1], starts[-1]) is None
