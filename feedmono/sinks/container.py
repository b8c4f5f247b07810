"""Avro object container files: blocks are appended, and a torn end is found again.

    header ─┬─ "Obj\\x01", metadata (schema, codec), 16 bytes sync marker
    block ──┼─ count (varint) · size (varint) · size bytes of raw deflate · sync marker
    block ──┴─ …

A file that grows has `PART` behind its name; the block is what is whole or torn. Source: Apache
Avro 1.11 specification, "Object Container Files".
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from feedmono.avro import Schema, SchemaError, container_header, decode_records, parse_schema

PART = ".part"
"""Stands behind the name of a file that is not finished."""

BLOCK_BYTES = 256 << 10
"""A block is written when its records are so long, before compression."""

MAX_UNSYNCED_BYTES = 2 << 20
"""Writers sync at the latest after so many bytes of a file: recovery looks closely at so many."""

# A block holds BLOCK_BYTES and one entry more, whose frame the configuration limits: far less.
_MAX_BLOCK_BYTES = 256 << 20
_MAX_DEFLATE_RATIO = 1032
_MAX_HEADER_BYTES = 1 << 20
_MAGIC = b"Obj\x01"
_SYNC_BYTES = 16
_MAX_VARINT_BYTES = 10
# Recorded trades: level 1 takes 1.0 µs and 29 bytes a trade, level 6 3.3 µs and 25 bytes; their
# frames 0.9 µs and 22 bytes against 3.0 µs and 18.
_DEFLATE_LEVEL = 1


class NotAContainer(Exception):
    """The file is no Avro object container file of deflated blocks, or damaged."""


class _Torn(Exception):
    """The bytes end before what they begin."""


class Header(NamedTuple):
    schema: Schema
    sync_marker: bytes
    length: int
    """Bytes of the file before its first block."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block, whole as far as its frame shows; its data has not been looked at."""

    count: int
    offset: int
    """Where in the file the compressed data begins."""
    size: int
    """Bytes of the compressed data."""
    end: int
    """Where in the file the next block begins."""


class Recovered(NamedTuple):
    """What `recover` found whole in a file."""

    records: int
    length: int
    """Where the last whole block ends; 0: not even the header is whole."""
    torn_bytes: int
    """What comes behind it."""
    damaged: bool
    """More than a torn end: whole blocks follow behind the broken place."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block that waits to be written."""

    count: int
    data: bytes
    """As it stands in the file, without the sync marker."""


def encode_block(records: list[bytes]) -> Encoded:
    """A block of encoded records."""
    deflate = zlib.compressobj(_DEFLATE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = deflate.compress(b"".join(records)) + deflate.flush()
    return Encoded(len(records), _varint(len(records)) + _varint(len(data)) + data)


class ContainerWriter:
    """One file that grows block by block. A failed write changes nothing: it may be repeated.

    :raises FileExistsError: *path* is there already; nothing is ever overwritten.
    :raises OSError: the file can't be made.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._sync_marker = os.urandom(_SYNC_BYTES)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self.length = 0
        """Bytes of the header and the whole blocks."""
        self.synced_length = 0
        """Bytes that are known to be stored for good."""
        self._dirty_end = False
        try:
            self._append(container_header(schema, self._sync_marker))
        except BaseException:
            os.close(self._fd)
            path.unlink()
            raise

    def append(self, block: Encoded) -> None:
        """Writes one block behind the others.

        :raises OSError: it can't be written now; the file ends where it did.
        """
        self._append(block.data + self._sync_marker)

    def check_place(self) -> None:
        """Makes sure that what is written is still found under its name.

        :raises OSError: the file was removed or renamed.
        """
        ours = os.fstat(self._fd)
        there = self.path.stat()
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise FileNotFoundError(errno.ENOENT, "it was removed or renamed", str(self.path))

    def sync(self) -> None:
        """Has the disk store all blocks.

        :raises OSError: whether they are stored will never be known: the kernel forgets what
            it could not write (PostgreSQL's "fsyncgate"). Nothing but `cut` may follow.
        """
        if self.length != self.synced_length:
            os.fdatasync(self._fd)
            self.synced_length = self.length

    def cut(self, length: int) -> None:
        """Shortens the file to *length* bytes, the end of one of its blocks."""
        os.ftruncate(self._fd, length)
        self.length = length
        self.synced_length = min(self.synced_length, length)

    def close(self) -> None:
        """Gives the file back; what was not synced is in the kernel's hands."""
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        try:
            if self._dirty_end:
                os.ftruncate(self._fd, self.length)
                self._dirty_end = False
            view, offset = memoryview(data), self.length
            while view:
                written = os.pwrite(self._fd, view, offset)
                offset += written
                view = view[written:]
        except OSError:
            # Gives the space of the torn block back; if that fails too, it is tried again.
            self._dirty_end = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.length)
                self._dirty_end = False
            raise
        self.length = offset


class ContainerReader:
    """Reads a file that may still grow. Use as a context manager.

    :raises OSError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> ContainerReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def size(self) -> int:
        """The file's length in bytes at this moment."""
        return os.fstat(self._fd).st_size

    def header(self) -> Header | None:
        """The header; None if the file ends within it.

        :raises NotAContainer: the file begins with something else.
        """
        data = os.pread(self._fd, _MAX_HEADER_BYTES, 0)
        try:
            return _parse_header(data)
        except _Torn:
            if len(data) == _MAX_HEADER_BYTES:
                raise NotAContainer(f"{self.path}: its header does not end") from None
            return None
        except (SchemaError, UnicodeDecodeError) as error:
            raise NotAContainer(f"{self.path}: {error}") from error

    def block(self, header: Header, offset: int) -> Block | None:
        """The block that begins at *offset*; None if the file ends before it does.

        :raises NotAContainer: something else begins there.
        """
        head = os.pread(self._fd, 2 * _MAX_VARINT_BYTES, offset)
        try:
            count, place = _read_varint(head, 0)
            size, place = _read_varint(head, place)
        except _Torn:
            return None
        if not 0 < size <= _MAX_BLOCK_BYTES or not 0 < count <= size * _MAX_DEFLATE_RATIO:
            raise NotAContainer(f"{self.path}: no block of Avro records at byte {offset}")
        end = offset + place + size + _SYNC_BYTES
        marker = os.pread(self._fd, _SYNC_BYTES, end - _SYNC_BYTES)
        if len(marker) < _SYNC_BYTES:
            return None
        if marker != header.sync_marker:
            raise NotAContainer(f"{self.path}: the block at byte {offset} lacks its sync marker")
        return Block(count, offset + place, size, end)

    def blocks(self, header: Header, offset: int = 0) -> Iterator[Block]:
        """The whole blocks from *offset* on (0: all of them), as far as there are any now.

        :raises NotAContainer: something else follows.
        """
        offset = offset or header.length
        while (block := self.block(header, offset)) is not None:
            yield block
            offset = block.end

    def records(self, header: Header, block: Block) -> list[dict[str, Any]]:
        """The records of a block, logical types as fastavro gives them (datetime).

        :raises NotAContainer: the block holds something else.
        """
        data = os.pread(self._fd, block.size, block.offset)
        try:
            return decode_records(header.schema, _inflate(data), block.count)
        except (ValueError, zlib.error) as error:
            raise NotAContainer(
                f"{self.path}: the block at byte {block.offset} is damaged: {error}"
            ) from error

    def behind_marker(self, header: Header, offset: int, limit: int) -> int | None:
        """Where the next sync marker between *offset* and *limit* ends; None: there is none."""
        step, keep = 1 << 20, _SYNC_BYTES - 1
        while data := os.pread(self._fd, min(step + keep, max(limit - offset, 0)), offset):
            if (found := data.find(header.sync_marker)) >= 0:
                return offset + found + _SYNC_BYTES
            offset += step
        return None


def recover(path: Path, upto: int | None = None) -> Recovered:
    """Finds the end of the last whole block of a file whose writer was killed; what comes behind
    the byte *upto* counts for torn. Changes nothing.

    The frame of every block is checked, and the contents of those that may not have been synced
    (`MAX_UNSYNCED_BYTES`), down to each record.

    :raises NotAContainer: the file does not begin as a container does.
    :raises OSError: it can't be read.
    """
    with ContainerReader(path) as reader:
        size = reader.size()
        limit = size if upto is None else min(size, upto)
        header = reader.header()
        if header is None:
            return Recovered(0, 0, size, damaged=False)
        length, records = header.length, 0
        with contextlib.suppress(NotAContainer):
            for block in reader.blocks(header):
                if block.end > limit:
                    break
                if block.end > limit - MAX_UNSYNCED_BYTES:
                    reader.records(header, block)
                length, records = block.end, records + block.count
        damaged = reader.behind_marker(header, length, limit) is not None
        return Recovered(records, length, size - length, damaged)


def _inflate(data: bytes) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflate.decompress(data, _MAX_BLOCK_BYTES)
    if not inflate.eof:  # other readers refuse it then, though all records may be there
        raise ValueError("its compressed data does not end")
    return body


def _parse_header(data: bytes) -> Header:
    if not data.startswith(_MAGIC):
        if _MAGIC.startswith(data):
            raise _Torn
        raise SchemaError(f"begins with {data[:4]!r}, not as an Avro container file")
    meta: dict[bytes, bytes] = {}
    offset = len(_MAGIC)
    while True:
        count, offset = _read_varint(data, offset)
        if count == 0:
            break
        if count < 0:  # Avro's other form of a map: a size in bytes follows
            count = -count
            _, offset = _read_varint(data, offset)
        for _ in range(min(count, _MAX_HEADER_BYTES)):
            key, offset = _read_bytes(data, offset)
            meta[key], offset = _read_bytes(data, offset)
    marker = data[offset : offset + _SYNC_BYTES]
    if len(marker) < _SYNC_BYTES:
        raise _Torn
    if meta.get(b"avro.codec") != b"deflate":
        raise SchemaError(f"its codec is {meta.get(b'avro.codec')!r}, not deflate")
    schema = parse_schema(meta.get(b"avro.schema", b"").decode())
    return Header(schema, marker, offset + _SYNC_BYTES)


def _read_bytes(data: bytes, offset: int) -> tuple[bytes, int]:
    size, offset = _read_varint(data, offset)
    if size < 0:
        raise SchemaError("its header holds a negative length")
    if offset + size > len(data):
        raise _Torn
    return data[offset : offset + size], offset + size


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """A zigzag number at *offset*, and the offset behind it."""
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if offset >= len(data):
            raise _Torn
        value |= (data[offset] & 127) << shift
        offset += 1
        if data[offset - 1] < 128:
            break
    else:
        value = -1  # no number of 64 bits: no count and no size either
    return (value >> 1) ^ -(value & 1), offset


def _varint(value: int) -> bytes:
    """A number ≥ 0 as Avro's zigzag varint."""
    value <<= 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
