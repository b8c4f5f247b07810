"""Reads the records of files that any program wrote: Avro object containers, lines of JSON.

Nothing is known of the records' fields here. What can't be decoded is told in its place, and what
follows it is read on, as far as the file's frame shows where.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import fastavro
import msgspec

from feedmono.avro import Schema, generate_encoder
from feedmono.sinks.container import PART, ContainerReader, Header, NotAContainer
from feedmono.sinks.segment import list_files

AVRO = "avro"
JSON = "json"

CHUNK_RECORDS = 1000
"""About how many a chunk holds."""

_MAX_LINE_BYTES = 1 << 20
_MAX_BLOCK_BYTES = 256 << 20
_MAX_FILES = 100_000
_JSON_NAME = re.compile(r".+\.(?:json|jsonl|ndjson)(?:\.gz)?", re.IGNORECASE)
_AVRO_NAME = re.compile(r".+\.avro(?:\.part)?", re.IGNORECASE)
_AVRO_MAGIC = b"Obj\x01"
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Decimals and UUIDs mean something only as what they are; datetimes take longer than the rest.
_KEPT_TYPES = ("decimal", "uuid")


class Unreadable(NamedTuple):
    """Stands in the place of what could not be decoded."""

    reason: str
    torn: bool = False
    """It is the end of a file that may still be written to."""


class Chunk(NamedTuple):
    """Records that were read together."""

    where: str
    """What they were read from: a record's place is this and its number."""
    numbers: Sequence[int]
    records: Sequence[object]
    """Decoded values, numbers with a fraction as their text; or `Unreadable`."""
    done: int
    """How much has been read by them, of `Records.total`."""
    lane: int = 0
    """Within one lane, and only there, the order of the records tells something."""
    stamps_ns: Sequence[int | None] | None = None
    """When each was stored, Unix time, where that is known."""


class Records(ABC):
    """All that a place holds."""

    name: str

    @abstractmethod
    def total(self) -> int:
        """How much there is to read."""

    @abstractmethod
    def read(self) -> Iterator[Chunk]:
        """All records that were there when this began, in the order they are stored."""


def light(schema: Schema) -> Schema:
    """A parsed schema whose times are read as the numbers that they are."""
    if isinstance(schema, dict):
        return {
            key: light(value)
            for key, value in schema.items()
            if key != "logicalType" or value in _KEPT_TYPES
        }
    return [light(each) for each in schema] if isinstance(schema, list) else schema


decode_json = msgspec.json.Decoder(float_hook=str).decode
"""A value from its text; numbers with a fraction stay the text that they are."""


class FileRecords(Records):
    """A file, or all files below a folder, in the order of their names; of feedmono's own, the
    trades in the order of the ring.

    :raises OSError: there is no such file, or it can't be read.
    """

    def __init__(self, path: Path, form: str = "") -> None:
        """:param form: ``avro`` or ``json``; empty: each as it is."""
        self.name = str(path)
        self._root = path
        self._form = form
        self._files = [path] if not path.is_dir() else list(_find(path, form))
        self._sizes = [file.stat().st_size if _is_there(file) else 0 for file in self._files]
        if not self._files:
            raise FileNotFoundError(f"{path} holds no {form or 'Avro or JSON'} file")
        if not os.access(self._files[0], os.R_OK):
            raise PermissionError(f"{self._files[0]} can't be read: permission denied")

    def total(self) -> int:
        return sum(self._sizes)

    def read(self) -> Iterator[Chunk]:
        """See `Records.read`.

        :raises OSError: a file can't be read.
        """
        for listed in self._files:
            file = listed if _is_there(listed) else _finished(listed)
            try:
                if self._kind(file) == AVRO:
                    yield from _read_avro(self._label(file), file)
                else:
                    yield from _read_json(self._label(file), file)
            except FileNotFoundError:
                if listed.suffix != PART:
                    raise
                # It was uncommitted, and removed by a successor.

    def _label(self, file: Path) -> str:
        return str(file if file == self._root else file.relative_to(self._root))

    def _kind(self, file: Path) -> str:
        if self._form or _AVRO_NAME.fullmatch(file.name):
            return self._form or AVRO
        if not _JSON_NAME.fullmatch(file.name) and _is_there(file):
            with file.open("rb") as stream:
                return AVRO if stream.read(len(_AVRO_MAGIC)) == _AVRO_MAGIC else JSON
        return JSON


def _is_there(file: Path) -> bool:
    """Whether it still has that name: a growing one gets another when it is finished."""
    return file.suffix != PART or file.exists()


def _finished(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(PART))


def _find(folder: Path, form: str) -> Iterator[Path]:
    """The files below *folder* that hold trades, if it is feedmono's; else those of the form."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    count = 0
    for each in sorted(folders, key=_natural):
        for file in _find_in(each, form):
            count += 1
            if count > _MAX_FILES:
                raise OSError(f"{folder} holds more than {_MAX_FILES:,} files")
            yield file


def _find_in(folder: Path, form: str) -> Iterator[Path]:
    names = sorted((path for path in folder.iterdir() if path.is_file()), key=_natural)
    if form != JSON:
        trades = [file.path for file in list_files(folder, "trades")]
        # Beside its trades feedmono keeps frames and dead letters.
        yield from trades or (path for path in names if _AVRO_NAME.fullmatch(path.name))
    if form != AVRO:
        yield from (path for path in names if _JSON_NAME.fullmatch(path.name))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts ``part-10`` behind ``part-9``."""
    return [
        (int(piece), "") if piece.isdecimal() else (-1, piece)
        for piece in re.split(r"(\d{1,30})", str(path))
        if piece
    ]


def _read_avro(label: str, path: Path) -> Iterator[Chunk]:
    """The records of whole blocks; what is damaged in between is one that is `Unreadable`."""
    # A file whose writer is at work, or was killed, ends anywhere.
    growing = path.suffix == PART
    with ContainerReader(path) as reader:
        size = reader.size()
        try:
            header = reader.header()
        except NotAContainer:
            yield from _read_other_codec(label, path, growing=growing)
            return
        if header is None:
            torn = Unreadable("the file ends within its header", growing)
            yield Chunk(f"{label} byte", [0], [torn], size)
            return
        decode = _block_decoder(header.schema)
        offset = header.length
        with path.open("rb") as stream:
            while offset < size:
                chunk, offset = _block(
                    label, reader, header, offset, size, stream, decode, growing=growing
                )
                yield chunk


def _block_decoder(schema: Schema) -> Callable[[bytes, int], list[object]]:
    """What gives the records in a block's data. They are read as one array, which takes a sixth
    less time than one by one."""
    plain = light(schema)
    if isinstance(plain, dict):
        plain = {key: value for key, value in plain.items() if not key.startswith("__fastavro")}
    array = fastavro.parse_schema({"type": "array", "items": plain}, _force=True)
    write_count = generate_encoder("long")

    def decode(data: bytes, count: int) -> list[object]:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        body = inflate.decompress(data, _MAX_BLOCK_BYTES)
        stream = io.BytesIO(write_count(count) + body + b"\0")
        records = fastavro.schemaless_reader(stream, array, None)
        if not inflate.eof or stream.read(1):
            raise ValueError("it is longer or shorter than its records")
        assert isinstance(records, list)
        return records

    return decode


def _block(
    label: str,
    reader: ContainerReader,
    header: Header,
    offset: int,
    size: int,
    stream: IO[bytes],
    decode: Callable[[bytes, int], list[object]],
    *,
    growing: bool,
) -> tuple[Chunk, int]:
    """The records of the block at *offset*, and where to go on."""
    problem, behind = "", None
    try:
        block = reader.block(header, offset)
        if block is not None and block.end <= size:
            behind = block.end
            stream.seek(block.offset)
            records = decode(stream.read(block.size), block.count)
            numbers = range(1, len(records) + 1)
            return Chunk(f"{label} byte {offset} record", numbers, records, behind - offset), behind
        problem = "the file ends within a block"
    except Exception as error:  # on damaged bytes fastavro raises whatever it stumbles over
        problem = _words(error)
    behind = behind or reader.behind_marker(header, offset, size)
    torn = growing and behind is None
    behind = behind or size
    return Chunk(f"{label} byte", [offset], [Unreadable(problem, torn)], behind - offset), behind


def _read_other_codec(label: str, path: Path, *, growing: bool) -> Iterator[Chunk]:
    """What is no container of deflated blocks, by fastavro: a broken frame ends the file."""
    with path.open("rb") as stream:
        size, at = stream.seek(0, os.SEEK_END), 0
        stream.seek(0)
        try:
            for block in fastavro.block_reader(stream):
                begin, at = at, stream.tell()
                records = list(block)
                numbers = range(1, len(records) + 1)
                yield Chunk(f"{label} byte {begin} record", numbers, records, at - begin)
        except GeneratorExit:
            raise
        except Exception as error:  # on damaged bytes fastavro raises whatever it stumbles over
            torn = growing and stream.tell() >= size
            problem = Unreadable(f"the rest of the file can't be read: {_words(error)}", torn)
            yield Chunk(f"{label} byte", [at], [problem], size - at)


def _read_json(label: str, path: Path) -> Iterator[Chunk]:
    with path.open("rb") as stream:
        packed = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        stream.seek(0)
        lines = gzip.GzipFile(fileobj=stream) if packed else stream
        # A file may grow faster than it is read; of gzip, the end is read long before its lines.
        limit = None if packed else os.fstat(stream.fileno()).st_size
        yield from _read_lines(f"{label} line", lines, stream.tell, limit)


def _read_lines(
    where: str, lines: IO[bytes] | gzip.GzipFile, tell: Callable[[], int], limit: int | None
) -> Iterator[Chunk]:
    """:param tell: how many bytes of the file are read.
    :param limit: with the chunk that reaches it, it is read.
    """
    numbers: list[int] = []
    records: list[object] = []
    at = 0
    for number in itertools.count(1):
        try:
            line = _next_line(lines)
        except Exception as error:  # EOFError, BadGzipFile, zlib.error
            records.append(Unreadable(f"the rest of the file can't be read: {_words(error)}"))
            numbers.append(number)
            line = b""
        if not line or len(records) >= CHUNK_RECORDS:
            begin, at = at, tell()
            yield Chunk(where, numbers, records, at - begin)
            numbers, records = [], []
            if not line or (limit is not None and begin >= limit):
                return
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line.isspace():
            numbers.append(number)
            records.append(_parse(line))


def _next_line(lines: IO[bytes] | gzip.GzipFile) -> bytes:
    """A line; of one that is too long, the beginning. Empty at the end."""
    line = lines.readline(_MAX_LINE_BYTES)
    if len(line) == _MAX_LINE_BYTES:
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = lines.readline(_MAX_LINE_BYTES)
    return line


def _parse(line: bytes) -> object:
    whole = line.endswith(b"\n")
    if len(line) == _MAX_LINE_BYTES:
        return Unreadable(f"it is longer than {_MAX_LINE_BYTES:,} bytes")
    try:
        return decode_json(line)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        # Whoever appends lines may be in the middle of one.
        return Unreadable(f"it is no JSON: {_words(error)}", torn=not whole)


def _words(error: Exception) -> str:
    with contextlib.suppress(Exception):
        if text := str(error).strip():
            return text[:200]
    return type(error).__name__
