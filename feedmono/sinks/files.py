"""The files sink: Avro object container files per exchange, acknowledged when synced.

Records gather into blocks, blocks are written as they fill, and every ``sync_interval`` what is
there is written and synced: then, and only then, the entries up to there are acknowledged. All
files of a segment begin and end with the same entries, and get their final names when their
whole length is committed (`FilesSink.settle`); until then no next segment begins. What goes wrong:

- A write fails (disk full, quota, a bad disk): the file ends where it did, the blocks stay in
  memory and are tried again. When the memory for that is used up, `FilesSink.write` takes no
  more.
- A sync fails: the kernel has dropped data that it could not store and won't say which. Every
  file is cut to what was acknowledged and the sink ends; its successor finishes these files and
  writes what was not acknowledged into new ones.
- The process is killed: the successor cuts every file to what was committed, or if nobody knows
  that, behind its last whole block (`feedmono.sinks.segment`).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feedmono import log
from feedmono.avro import generate_encoder, load_schema
from feedmono.config import FilesConfig
from feedmono.sinks.base import Coverage, DeadLetter, Entry, Frame, Sink, SinkFailed, SinkStats
from feedmono.sinks.container import BLOCK_BYTES, MAX_UNSYNCED_BYTES, PART, ContainerWriter
from feedmono.sinks.coverage import CoverageEncoder
from feedmono.sinks.files_source import FilesSource, count_trades, read_trades
from feedmono.sinks.files_stream import Stream
from feedmono.sinks.segment import (
    finish_leftovers,
    mark_of_moved,
    new_name,
    publish,
    sync_folder,
)

__all__ = ["FilesSink", "FilesSource", "count_trades", "read_trades"]

MAX_BUFFERED_BYTES = 64 << 20
"""How much waits in memory for a disk that can't be written."""

_FIRST_RETRY_S = 1.0
_RETRY_CAP_S = 10.0
_IDLE_WAIT_S = 1.0
_SETTLE_WAIT_S = 0.005
_PROBE_BYTES = 4096


@dataclass(slots=True)
class _Segment:
    """What the current files have in common."""

    begun_s: float
    """By the clock that never steps."""
    number: int | None = None
    """The first ring sequence in it, once one is known: a damaged part of the ring has none."""
    name: str = ""
    """Chosen with the first file."""
    complete: bool = False
    """Everything is acknowledged; its files wait to be settled, and then for their publication."""


def place_of(config: FilesConfig, exchange: str) -> str:
    """`FilesSink.place`: the folder's absolute path, whatever name it is configured by."""
    return os.path.realpath(config.dir / exchange)


class FilesSink(Sink):
    """Stores an exchange's trades, frames, dead letters and coverage under
    ``<dir>/<exchange>/``.

    *mark* is the predecessor's in this folder, as it was committed: what that left is cut to it.
    None: nobody knows it, unless one of *others*, the marks of other folders and of unknown ones,
    names a file that is here (the folder was moved). *clock* measures intervals, *wall* gives the
    Unix time in a file's name, both in seconds.
    """

    def __init__(
        self,
        config: FilesConfig,
        exchange: str,
        *,
        mark: Mapping[str, int] | None = None,
        others: Sequence[Mapping[str, int]] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
    ) -> None:
        self.stats = SinkStats()
        self.refused: list[tuple[int, int]] = []
        self.stored: deque[tuple[int, int]] = deque()
        self._config = config
        self._folder = config.dir / exchange
        self.place = place_of(config, exchange)
        self._log = log.get(exchange=exchange, sink="files")
        self._clock = clock
        self._wall = wall
        self._max_buffered_bytes = max_buffered_bytes
        self._trades = Stream("trades", load_schema("trade"))
        self._raw = Stream("raw", load_schema("raw"))
        self._dead = Stream("dead", load_schema("dead"))
        self._encode_coverage = CoverageEncoder(exchange)
        self._coverage = Stream("coverage", self._encode_coverage.schema)
        self._streams = (self._trades, self._raw, self._dead, self._coverage)
        self._encode_raw = generate_encoder(self._raw.schema)
        self._encode_dead = generate_encoder(self._dead.schema)
        self._newest: dict[str, Coverage] = {}
        self._predecessor = mark
        self._others = others
        self._mark = dict(mark or {})
        self._marked: Mapping[str, int] = {}
        self._settled: Mapping[str, int] = {}
        self._lock_fd: int | None = None
        self._segment: _Segment | None = None
        self._new_files = False
        self._taken: int | None = None
        self._acknowledged: int | None = None
        self._oldest_s: float | None = None
        self._flush = False
        self._trouble = ""
        self._retry_at_s = 0.0
        self._pause_s = _FIRST_RETRY_S

    def open(self) -> bool:
        """Makes the folder ready and finishes what a killed predecessor left in it."""
        if self._lock_fd is not None:
            return True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
            self._lock_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._probe()
            mark = self._predecessor
            if mark is None:
                mark = mark_of_moved(self._folder, self._others)
            finish_leftovers(self._folder, self._log, mark)
        except BlockingIOError:
            self._not_open(f"another process writes into {self._folder}: give each its files.dir")
            return False
        except OSError as error:
            self._not_open(_describe(error, self._folder))
            return False
        self._trouble = ""
        return True

    def write(self, entries: Sequence[Entry]) -> int:
        self._check_open()
        now_s = self._clock()
        if not self._room(now_s):
            return 0
        for taken, entry in enumerate(entries, 1):
            # Between two blocks so little is added that there is still room.
            if self._take(entry, now_s) and not self._room(now_s):
                return taken
        return len(entries)

    def poll(self, timeout_s: float) -> int | None:
        if self._lock_fd is None:
            return self._acknowledged
        if timeout_s > 0 and self._oldest_s is not None:
            time.sleep(min(timeout_s, self.wait_s()))
        now_s = self._clock()
        is_due = self._is_due(now_s)
        if self._oldest_s is None:
            self._acknowledged, self._flush = self._taken, False
        elif self._flush or is_due or now_s - self._oldest_s >= self._config.sync_interval_s:
            self._commit()
        if is_due and self._oldest_s is None:
            self._finish_segment()
        # Only now: it belongs to the position that is told with it.
        self._mark = {
            stream.writer.path.name: stream.acknowledged_length
            for stream in self._streams
            if stream.writer is not None and stream.acknowledged_length
        }
        return self._acknowledged

    def flush(self) -> None:
        self._flush = True

    def cover(self, coverages: Sequence[Coverage]) -> None:
        """Keeps the newest of each symbol for the next commit of entries."""
        self._newest.update((coverage.symbol, coverage) for coverage in coverages)

    def mark(self) -> Mapping[str, int]:
        """The growing files, and how many bytes of each were acknowledged by the last `poll`."""
        self._marked = self._mark
        return self._marked

    def settle(self) -> None:
        self._settled = self._marked
        if self._segment is not None and self._segment.complete:
            self._finish_segment()

    def close(self) -> None:
        """Publishes the files if everything in them is settled. If not, they are left to the
        successor, who knows from the mark how much of them was committed."""
        if self._lock_fd is None:
            return
        if self._oldest_s is None and self._is_settled():
            self._retry_at_s = self._clock()
            try:
                self._store_last_coverage()
                self._publish()
            except SinkFailed as error:
                self._log.error("files not finished", error=str(error))
                return
        if self._trouble:
            self._log.warning("files not finished", error=self._trouble, path=str(self._folder))
        elif self._segment is not None:
            self._log.info("files are left to the successor", path=str(self._folder))
        self._abandon()

    def wait_s(self) -> float:
        if self._trouble:
            return min(max(self._retry_at_s - self._clock(), 0.01), _IDLE_WAIT_S)
        if self._flush or (self._oldest_s is None and self._taken != self._acknowledged):
            return 0.0
        if self._is_due(self._clock()):
            complete = self._segment is not None and self._segment.complete
            return _SETTLE_WAIT_S if complete else 0.0
        if self._oldest_s is None:
            return _IDLE_WAIT_S
        due_s = self._oldest_s + self._config.sync_interval_s - self._clock()
        return min(max(due_s, 0.0), _IDLE_WAIT_S)

    @property
    def trouble(self) -> str:
        return self._trouble

    def _not_open(self, trouble: str) -> None:
        self._trouble = trouble
        self.stats.failures["disk"] += 1
        self._unlock()

    def _unlock(self) -> None:
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            os.close(fd)

    def _probe(self) -> None:
        """Shows now, and not with the first trade, that nothing can be written."""
        probe = self._folder / ".probe"
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)

    def _check_open(self) -> None:
        if self._lock_fd is None:
            raise SinkFailed(f"the files in {self._folder} are closed")

    def _room(self, now_s: float) -> bool:
        """Whether one more entry can be taken."""
        if self._is_due(now_s):
            return False
        buffered = sum(stream.buffered_bytes for stream in self._streams)
        return buffered < self._max_buffered_bytes

    def _take(self, entry: Entry, now_s: float) -> bool:
        """Adds an entry to what waits; whether a block became full by it."""
        frame, trades, symbol, dead = entry.frame, entry.trades, entry.symbol, entry.dead
        self._taken = entry.end
        if not trades and symbol is None and dead is None:
            return False
        if self._oldest_s is None:
            self._oldest_s = now_s
        if self._segment is None:
            self._segment = _Segment(now_s)
        if self._segment.number is None and frame.sequence >= 0:
            self._segment.number = frame.sequence
        full = False
        for trade in trades:
            full |= self._trades.add(trade.body)
        if symbol is not None:
            full |= self._raw.add(self._encode_raw(_raw_record(frame)))
        if dead is not None:
            full |= self._dead.add(self._encode_dead(_dead_record(frame, dead)))
        if full:
            for stream in self._streams:
                if stream.records_bytes >= BLOCK_BYTES:
                    stream.cut_block()
            self._write_blocks()
        return full

    def _write_blocks(self) -> bool:
        """Writes the blocks that wait; False: not all of them, see `trouble`."""
        if self._trouble and self._clock() < self._retry_at_s:
            return False
        for stream in self._streams:
            while stream.blocks:
                try:
                    if stream.writer is None:
                        stream.writer = self._new_file(stream)
                    stream.write_block(stream.writer)
                except OSError as error:
                    self._check_folder(error)
                    path = stream.writer.path if stream.writer else self._folder
                    self._in_trouble(error, path)
                    return False
                if stream.unsynced_bytes >= MAX_UNSYNCED_BYTES:
                    self._sync()
        self._trouble = ""
        return True

    def _check_folder(self, error: OSError) -> None:
        """Makes sure that the locked folder is still found under its name.

        :raises SinkFailed: it was removed or renamed; a successor makes it anew.
        """
        assert self._lock_fd is not None
        ours = os.fstat(self._lock_fd)
        try:
            there = self._folder.stat()
        except FileNotFoundError:
            pass
        else:
            if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
                return
        self._abandon()
        raise SinkFailed(f"{self._folder} was removed or renamed") from error

    def _new_file(self, stream: Stream) -> ContainerWriter:
        assert self._segment is not None
        if not any(other.writer for other in self._streams):
            number = self._segment.number or 0
            self._segment.name = new_name(self._folder, self._wall(), number)
        path = self._folder / f"{stream.kind}-{self._segment.name}.avro{PART}"
        stream.acknowledged_length = 0
        self._new_files = True
        return ContainerWriter(path, stream.schema)

    def _sync(self) -> None:
        """Has the disk store all that is written, names included.

        :raises SinkFailed: it could not.
        """
        path = self._folder
        try:
            for stream in self._streams:
                if stream.writer is not None:
                    path = stream.writer.path
                    stream.writer.sync()
                    stream.writer.check_place()
            if self._new_files:
                path = self._folder
                sync_folder(path)
                self._new_files = False
        except OSError as error:
            self.stats.failures["disk"] += 1
            self._trouble = f"could not sync {path}: {error.strerror}"
            self._abandon()
            raise SinkFailed(
                f"{self._trouble}; what was not acknowledged goes to new files"
            ) from error

    def _commit(self) -> bool:
        """Writes and syncs everything that was taken and acknowledges it; False: it can't be
        written now.

        :raises SinkFailed: a sync failed.
        """
        if self._trouble and self._clock() < self._retry_at_s:
            return False
        if not self._coverage.buffered_bytes:
            self._add_coverage()
        for stream in self._streams:
            stream.cut_block()
        if not self._write_blocks():
            return False
        self._sync()
        for stream in self._streams:
            if stream.writer is not None:
                stream.acknowledged_length = stream.writer.length
        self._acknowledged = self._taken
        self._oldest_s = None
        self._flush = False
        return True

    def _add_coverage(self) -> None:
        for coverage in self._newest.values():
            self._coverage.add(self._encode_coverage.encode(coverage))
        self._newest.clear()

    def _store_last_coverage(self) -> None:
        """Writes the coverage that came behind the last entries, if there is a file for it yet or
        others to go with; if that fails, a successor's newer one makes up for it."""
        stream = self._coverage
        if self._segment is None or self._segment.complete or not self._newest:
            return
        self._add_coverage()
        stream.cut_block()
        try:
            if stream.writer is None:
                stream.writer = self._new_file(stream)
            while stream.blocks:
                stream.write_block(stream.writer)
            stream.writer.sync()
        except OSError as error:
            self._log.warning("the last coverage is not stored", error=str(error))
            self._abandon_stream(stream)

    def _is_due(self, now_s: float) -> bool:
        """Whether the segment ends here: it is old or large enough."""
        segment = self._segment
        if segment is None:
            return False
        if segment.complete or now_s - segment.begun_s >= self._config.roll_interval_s:
            return True
        return any(s.file_bytes >= self._config.roll_size_bytes for s in self._streams)

    def _is_settled(self) -> bool:
        """Whether everything acknowledged in the current files is committed."""
        return all(
            self._settled.get(stream.writer.path.name) == stream.acknowledged_length
            for stream in self._streams
            if stream.writer is not None
        )

    def _finish_segment(self) -> None:
        """Ends the segment, of which everything is acknowledged, as soon as it is settled."""
        assert self._segment is not None
        self._segment.complete = True
        if self._is_settled():
            self._publish()

    def _publish(self) -> None:
        """Gives the files of a segment that is settled as a whole their final names."""
        if self._segment is None or (self._trouble and self._clock() < self._retry_at_s):
            return
        for stream in self._streams:
            if stream.writer is None:
                continue
            path = stream.writer.path
            try:
                publish(path)
            except FileNotFoundError as error:
                self._abandon()
                raise SinkFailed(f"{path} was removed or renamed") from error
            except OSError as error:
                self._in_trouble(error, path)
                return
            stream.writer.close()
            stream.writer = None
        self._segment = None
        self._trouble = ""

    def _abandon(self) -> None:
        """Ends the sink: what is not acknowledged is given up, to be delivered by a successor."""
        for stream in self._streams:
            self._abandon_stream(stream)
        self._unlock()

    def _abandon_stream(self, stream: Stream) -> None:
        try:
            stream.abandon()
        except OSError as error:
            self._log.error("a file could not be cut", kind=stream.kind, error=str(error))

    def _in_trouble(self, error: OSError, path: Path) -> None:
        self.stats.failures["disk"] += 1
        self._pause_s = min(self._pause_s * 2, _RETRY_CAP_S) if self._trouble else _FIRST_RETRY_S
        self._trouble = _describe(error, path)
        self._retry_at_s = self._clock() + self._pause_s


def _describe(error: OSError, path: Path) -> str:
    return (
        f"can't write {error.filename or path}: {error.strerror} (errno {error.errno}); "
        "tried again until it works"
    )


def _raw_record(frame: Frame) -> dict[str, object]:
    payload, connection, sequence, received_ns, origin = frame
    return {
        "connection": connection,
        "sequence": sequence,
        "received_ns": received_ns,
        "origin": origin,
        "payload": payload,
    }


def _dead_record(frame: Frame, dead: DeadLetter) -> dict[str, object]:
    return {
        "connection": frame.connection,
        "sequence": frame.sequence,
        "received_ns": frame.received_ns,
        "symbol": None if dead.symbol is None else _storable(dead.symbol),
        "stage": dead.stage,
        "reason": _storable(dead.reason),
        "payload": frame.payload,
    }


def _storable(text: str) -> str:
    """What came from outside may hold halves of surrogate pairs, which UTF-8 can't."""
    return text.encode("utf-8", "backslashreplace").decode()
