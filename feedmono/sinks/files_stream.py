"""One kind of record in the files sink: what waits for its file, and the file itself."""

from __future__ import annotations

from collections import deque

from feedmono.avro import Schema
from feedmono.sinks.container import BLOCK_BYTES, ContainerWriter, Encoded, encode_block


class Stream:
    """What waits of a kind, and its file in the current segment."""

    def __init__(self, kind: str, schema: Schema) -> None:
        self.kind = kind
        self.schema = schema
        self.records: list[bytes] = []
        self.records_bytes = 0
        self.blocks: deque[Encoded] = deque()
        self.blocks_bytes = 0
        self.writer: ContainerWriter | None = None
        self.acknowledged_length = 0
        """The file up to there holds acknowledged entries only."""

    def add(self, record: bytes) -> bool:
        """Lets a record wait; whether there are enough for a block."""
        self.records.append(record)
        self.records_bytes += len(record)
        return self.records_bytes >= BLOCK_BYTES

    def cut_block(self) -> None:
        """Turns the records that wait into a block that waits."""
        if self.records:
            block = encode_block(self.records)
            self.blocks.append(block)
            self.blocks_bytes += len(block.data)
            self.records = []
            self.records_bytes = 0

    def write_block(self, writer: ContainerWriter) -> None:
        """Writes the first block that waits. :raises OSError: it goes on waiting."""
        writer.append(self.blocks[0])
        self.blocks_bytes -= len(self.blocks.popleft().data)

    @property
    def buffered_bytes(self) -> int:
        return self.records_bytes + self.blocks_bytes

    @property
    def file_bytes(self) -> int:
        """How long the file is, or will be with what waits."""
        return self.buffered_bytes + (self.writer.length if self.writer else 0)

    @property
    def unsynced_bytes(self) -> int:
        return self.writer.length - self.writer.synced_length if self.writer else 0

    def abandon(self) -> None:
        """Gives up what is not acknowledged; the rest stays as a ``.part`` file."""
        writer, self.writer = self.writer, None
        if writer is None:
            return
        try:
            if self.acknowledged_length:
                writer.cut(self.acknowledged_length)
            else:
                writer.path.unlink()
        finally:
            writer.close()
