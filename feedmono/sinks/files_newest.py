"""The newest records of the files sink: its files and their blocks from the last one backwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from feedmono.avro import Schema, load_schema, parse_schema
from feedmono.config import FilesConfig
from feedmono.sinks.base import StoredRecord
from feedmono.sinks.container import PART, Block, ContainerReader, Header, NotAContainer
from feedmono.sinks.newest import Newest
from feedmono.sinks.plain import plain
from feedmono.sinks.segment import SegmentFile, list_files
from feedmono.trade import ORIGINS


class FilesNewest(Newest):
    """See `Newest`. A file's own schema, the one in its header, is what it is decoded with."""

    def __init__(self, config: FilesConfig, exchange: str) -> None:
        self._folder = config.dir / exchange

    def schemas(self) -> Mapping[str, Schema]:
        """See `Newest.schemas`: the one that comes with feedmono."""
        return {"schemas/trade.avsc": plain(parse_schema(json.dumps(load_schema("trade"))))}

    def read(self, kind: str, since_s: float, until_s: float, limit: int) -> Iterator[StoredRecord]:
        """See `Newest.read`."""
        left = limit
        for file in reversed(list_files(self._folder, kind)):
            for stored in _read_backwards(kind, file):
                at_s = _stored_at_s(kind, stored)
                if at_s is not None and at_s < since_s:
                    return
                if at_s is None or at_s <= until_s:
                    yield stored
                    left -= 1
                if not left:
                    return


class _Part(NamedTuple):
    """A block of a file, or a place where none can be read."""

    offset: int
    block: Block | None
    problem: str = ""


def _read_backwards(kind: str, file: SegmentFile) -> Iterator[StoredRecord]:
    name = file.path.name
    try:
        with _open(file) as reader:
            header = reader.header()
            if header is None:
                return
            header = header._replace(schema=plain(header.schema))
            for part in reversed(_parts(file, reader, header)):
                yield from _read_part(kind, name, reader, header, part)
    except FileNotFoundError:
        return  # a growing one may be removed by a successor
    except (OSError, NotAContainer) as error:
        yield StoredRecord(name, None, str(error))


def _parts(file: SegmentFile, reader: ContainerReader, header: Header) -> list[_Part]:
    """Everything that the file has, from its beginning to its present end."""
    parts: list[_Part] = []
    offset, limit = header.length, reader.size()
    while offset < limit:
        block, problem = None, f"{file.path}: the block at byte {offset} does not end"
        try:
            block = reader.block(header, offset)
        except NotAContainer as error:
            problem = str(error)
        if block is not None:
            parts.append(_Part(offset, block))
            offset = block.end
            continue
        behind = reader.behind_marker(header, offset, limit)
        # A file that grows may end anywhere.
        if behind is not None or file.finished:
            parts.append(_Part(offset, None, problem))
        if behind is None:
            break
        offset = behind
    return parts


def _read_part(
    kind: str, name: str, reader: ContainerReader, header: Header, part: _Part
) -> Iterator[StoredRecord]:
    place = f"{name} byte {part.offset}"
    if part.block is None:
        yield StoredRecord(place, None, part.problem)
        return
    try:
        records = reader.records(header, part.block)
    except NotAContainer as error:
        yield StoredRecord(place, None, str(error))
        return
    for number in range(len(records), 0, -1):
        record: dict[str, Any] = records[number - 1]
        if kind == "raw":
            record["origin"] = ORIGINS.index(record["origin"])
        yield StoredRecord(f"{place} record {number}", record, value=record.get("payload", b""))


def _stored_at_s(kind: str, stored: StoredRecord) -> float | None:
    """About when a record was stored; None: it does not tell."""
    name, per_s = ("received_ns", 1e9) if kind == "raw" else ("timestamp", 1e3)
    moment = stored.record.get(name) if stored.record is not None else None
    return moment / per_s if isinstance(moment, int) else None


def _open(file: SegmentFile) -> ContainerReader:
    """Opens it under whichever of its two names it has at this moment."""
    path: Path = file.path
    try:
        return ContainerReader(path)
    except FileNotFoundError:
        if file.finished:
            raise
        return ContainerReader(path.with_name(path.name.removesuffix(PART)))
