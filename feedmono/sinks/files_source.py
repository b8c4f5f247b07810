"""Reads back what the files sink stores: finished files, and whole blocks of growing ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from feedmono import log
from feedmono.config import FilesConfig
from feedmono.sinks.base import KINDS, Source, StoredRecord
from feedmono.sinks.container import PART, ContainerReader, Header, NotAContainer
from feedmono.sinks.plain import plain
from feedmono.sinks.segment import SegmentFile, list_files
from feedmono.trade import ORIGINS

_LOOK_AGAIN_S = 0.2
_BEFORE_ALL = (-1, "")


def read_trades(folder: Path, exchange: str) -> Iterator[dict[str, Any]]:
    """Every normalized trade below ``files.dir`` = *folder*, in the order of the ring; of a file
    that still grows, what its whole blocks hold.

    :raises NotAContainer: a file is damaged; its text says which and where.
    """
    return read_records(folder, exchange, "trades")


def read_records(folder: Path, exchange: str, kind: str) -> Iterator[dict[str, Any]]:
    """As `read_trades`, for any kind: ``trades``, ``raw``, ``dead``, ``coverage``."""
    for file in list_files(folder / exchange, kind):
        with _open(file) as reader:
            if (header := reader.header()) is None:
                continue
            for block in reader.blocks(header):
                yield from reader.records(header, block)


def count_trades(folder: Path, exchange: str) -> int:
    """How many trades `read_trades` gives; it looks at the blocks' heads only."""
    count = 0
    for file in list_files(folder / exchange, "trades"):
        with _open(file) as reader:
            if (header := reader.header()) is not None:
                count += sum(block.count for block in reader.blocks(header))
    return count


class FilesSource(Source):
    """The records of an exchange's files: follows the trades across rolls, reads any kind."""

    def __init__(self, config: FilesConfig, exchange: str) -> None:
        self._folder = config.dir / exchange
        self._log = log.get(exchange=exchange)

    def read(self, kind: str) -> Iterator[StoredRecord]:
        """See `Source.read`. A damaged part of a file is one record with an error, which names
        file and byte."""
        assert kind in KINDS
        files = [(file, _size(file)) for file in list_files(self._folder, kind)]
        return self._read_files(kind, files)

    def total(self, kind: str) -> int:
        """See `Source.total`. It looks at the blocks' heads, of a damaged file up to the damage."""
        count = 0
        for file in list_files(self._folder, kind):
            with contextlib.suppress(OSError, NotAContainer), _open(file) as reader:
                if (header := reader.header()) is not None:
                    for block in reader.blocks(header):
                        count += block.count
        return count

    def complete_from_start(self, kind: str) -> bool:
        """See `Source.complete_from_start`. feedmono removes no finished file."""
        return True

    def _read_files(
        self, kind: str, files: list[tuple[SegmentFile, int]]
    ) -> Iterator[StoredRecord]:
        for file, limit in files:
            try:
                with _open(file) as reader:
                    yield from _read_file(kind, file, reader, limit)
            except FileNotFoundError as error:
                # A growing one may have been uncommitted, and removed by a successor.
                if file.finished:
                    yield StoredRecord(file.path.name, None, f"it was removed: {error}")
            except OSError as error:
                yield StoredRecord(file.path.name, None, f"{file.path} can't be read: {error}")

    def follow(self) -> Iterator[Mapping[str, object] | None]:
        files = list_files(self._folder, "trades")
        last = _BEFORE_ALL
        if files:
            last = _place(files[-1])
            yield from self._follow_file(files[-1], from_end=True)
        while True:
            newer = [f for f in list_files(self._folder, "trades") if _place(f) > last]
            if newer:
                last = _place(newer[0])
                yield from self._follow_file(newer[0], from_end=False)
            else:
                time.sleep(_LOOK_AGAIN_S)
                yield None

    def _follow_file(
        self, file: SegmentFile, *, from_end: bool
    ) -> Iterator[Mapping[str, object] | None]:
        """Its trades, until there is a newer file and this one is read to its end."""
        try:
            with _open(file) as reader:
                header = yield from self._header(file, reader)
                if header is None:
                    return
                offset = header.length
                if from_end:
                    for block in reader.blocks(header):
                        offset = block.end
                while True:
                    # Asked before reading: what comes into this file comes before the next.
                    over = self._is_over(file)
                    for block in reader.blocks(header, offset):
                        yield from reader.records(header, block)
                        offset = block.end
                    if over:
                        return
                    time.sleep(_LOOK_AGAIN_S)
                    yield None
        except FileNotFoundError:
            return
        except NotAContainer as error:
            self._log.error("left a damaged file", path=str(file.path), error=str(error))

    def _header(
        self, file: SegmentFile, reader: ContainerReader
    ) -> Generator[None, None, Header | None]:
        """Waits for the file's header; None: it never came."""
        while (header := reader.header()) is None:
            if self._is_over(file):
                return None
            time.sleep(_LOOK_AGAIN_S)
            yield None
        return header

    def _is_over(self, file: SegmentFile) -> bool:
        files = list_files(self._folder, "trades")
        return bool(files) and _place(files[-1]) > _place(file)


def _read_file(
    kind: str, file: SegmentFile, reader: ContainerReader, limit: int
) -> Iterator[StoredRecord]:
    """The records of the blocks that end before byte *limit*, and what is damaged in between."""
    name = file.path.name
    try:
        header = reader.header()
    except NotAContainer as error:
        yield StoredRecord(f"{name} byte 0", None, str(error))
        return
    if header is None:
        if file.finished:
            yield StoredRecord(f"{name} byte 0", None, f"{file.path} ends within its header")
        return
    header = header._replace(schema=plain(header.schema))
    offset = header.length
    while offset < limit:
        place = f"{name} byte {offset}"
        records: list[dict[str, Any]] = []
        behind: int | None = None
        problem = ""
        try:
            block = reader.block(header, offset)
            if block is None or block.end > limit:
                problem = f"{file.path}: the block at byte {offset} does not end"
            else:
                behind = block.end
                records = reader.records(header, block)
        except NotAContainer as error:
            problem = str(error)
        for number, record in enumerate(records, 1):
            yield _stored(kind, f"{place} record {number}", record)
        if problem:
            behind = behind or reader.behind_marker(header, offset, limit)
            # A file that grows, or whose writer was killed, may end anywhere.
            if behind is not None or file.finished:
                yield StoredRecord(place, None, problem)
        if behind is None:
            return
        offset = behind


def _stored(kind: str, place: str, record: dict[str, Any]) -> StoredRecord:
    if kind == "raw":
        record["origin"] = ORIGINS.index(record["origin"])
    return StoredRecord(place, record, value=record.get("payload", b""))


def _place(file: SegmentFile) -> tuple[int, str]:
    return file.number, file.start


def _size(file: SegmentFile) -> int:
    """Its length in bytes now; 0: it is gone."""
    try:
        with _open(file) as reader:
            return reader.size()
    except OSError:
        return 0


def _open(file: SegmentFile) -> ContainerReader:
    """Opens it under whichever of its two names it has at this moment."""
    try:
        return ContainerReader(file.path)
    except FileNotFoundError:
        if file.finished:
            raise
        return ContainerReader(file.path.with_name(file.path.name.removesuffix(PART)))
