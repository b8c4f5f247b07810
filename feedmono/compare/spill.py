"""Rows set aside on disk by bucket, so that as many as there are need a bounded room in memory.

A spill is one file without a name: whatever ends the process, the disk's room is free again.
"""

from __future__ import annotations

import errno
import marshal
import os
import shutil
import tempfile
from array import array
from pathlib import Path
from typing import Any

from feedmono.config.values import format_size

Row = tuple[Any, ...]

RESERVE_BYTES = 256 << 20
"""What is left free on the disk: it may be the one that feedmono captures to."""

_BUFFERED_ROWS = 1 << 16
_MAX_PIECE_ROWS = 512
_LOOK_EVERY_BYTES = 64 << 20
# Without references between equal texts: twice as fast, and hardly longer.
_FORMAT = 2
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class SpillFull(Exception):
    """There is no more room; the text says where and what to do."""


class Spill:
    """Takes rows of plain values (text, whole numbers, None) and gives them back by bucket, in
    the order in which they came. Use as a context manager.

    :raises OSError: the folder can't be written to.
    """

    def __init__(self, buckets: int, folder: Path, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.buckets = buckets
        self.length = 0
        """Bytes in the file."""
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._piece_rows = min(max(_BUFFERED_ROWS // buckets, 1), _MAX_PIECE_ROWS)
        self._buffers: list[list[Row]] = [[] for _ in range(buckets)]
        self.pieces = [array("Q") for _ in range(buckets)]
        """Offset and size of each piece, one behind the other. Whoever shares the open file, as a
        process that was forked does, needs no more to read what was written and flushed."""
        self._look_at = 0
        # Closed by `__exit__`.
        self._file = tempfile.TemporaryFile(  # noqa: SIM115
            buffering=0, prefix="feedmono-compare-", dir=folder
        )

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, bucket: int, row: Row) -> None:
        """Sets a row aside.

        :raises SpillFull: the disk has no more room.
        :raises OSError: it can't be written.
        """
        buffer = self._buffers[bucket]
        buffer.append(row)
        if len(buffer) >= self._piece_rows:
            self._write(bucket)

    def flush(self) -> None:
        """Writes what still waits in memory. Raises what `add` does."""
        for bucket, waiting in enumerate(self._buffers):
            if waiting:
                self._write(bucket)

    def rows(self, bucket: int) -> list[Row]:
        """All rows of a bucket. :raises OSError: they can't be read."""
        found: list[Row] = []
        pieces = iter(self.pieces[bucket])
        for offset, size in zip(pieces, pieces, strict=True):
            data = os.pread(self._file.fileno(), size, offset)
            if len(data) != size:
                raise OSError(errno.EIO, f"the temporary file in {self._folder} was cut")
            # Nobody else can reach a file without a name.
            found += marshal.loads(data)  # noqa: S302
        return found + self._buffers[bucket]

    def _write(self, bucket: int) -> None:
        data = marshal.dumps(self._buffers[bucket], _FORMAT)
        if self.length >= self._look_at:
            self._look_at = self.length + _LOOK_EVERY_BYTES
            if shutil.disk_usage(self._folder).free < self._reserve_bytes + _LOOK_EVERY_BYTES:
                raise SpillFull(self._full())
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno in _FULL:
                raise SpillFull(self._full()) from error
            raise
        self.pieces[bucket].extend((self.length, len(data)))
        self.length += len(data)
        self._buffers[bucket].clear()

    def _full(self) -> str:
        room = format_size(self._reserve_bytes >> 20 << 20)
        return (
            f"the disk of {self._folder} is full but for {room} that are left to others, with "
            f"{self.length >> 20:,} MiB of trades set aside there: name a folder with more room "
            "by --spill; a million trades take about 120 MiB"
        )
