"""Segments in a folder: their files' names, their publication, and what a crash left of them.

A segment is the set of files (one a kind) that hold the same ring records:

    trades-20261123T000441Z-1795392281123456.avro        finished, never touched again
    raw-20261123T000441Z-1795392281123456.avro.part      grows, or waits for its publication
    trades-….avro.damaged-1                              set aside: not readable as a whole
    trades-….avro.part.copy                              a repair that was not finished

The number is the first ring sequence in it; it only rises, so it orders the segments.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from feedmono.log import Log
from feedmono.sinks.container import PART, ContainerReader, NotAContainer, Recovered, recover

_NAME = re.compile(r"([a-z]+)-(\d{8}T\d{6}Z)-(\d+)\.avro((?:\.part)?)")
_START = "%Y%m%dT%H%M%SZ"
_COPY = ".copy"
_MAX_NAMES = 10_000
# What link answers where a file system has no hard links, or a mount forbids them.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_COPY_CHUNK_BYTES = 1 << 20


class SegmentFile(NamedTuple):
    """One file of a segment, as its name tells."""

    number: int
    """The first ring sequence in it."""
    start: str
    """When it was begun, UTC."""
    finished: bool
    path: Path


def list_files(folder: Path, kind: str) -> list[SegmentFile]:
    """The files of that kind, finished or not, in the order of their records."""
    found: dict[tuple[int, str], SegmentFile] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None or match[1] != kind:
            continue
        file = SegmentFile(int(match[3]), match[2], not match[4], path)
        # In the moment of its publication a file has both names.
        if file.finished or (file.number, file.start) not in found:
            found[file.number, file.start] = file
    return sorted(found.values())


def new_name(folder: Path, start_s: float, number: int) -> str:
    """A segment's name without its kind, ``20261123T000441Z-1795392281123456``, that no file
    has: where a successor begins with the very record that its predecessor began with, within
    the same second, a later second is taken."""
    taken = {path.name.partition(".")[0].partition("-")[2] for path in folder.iterdir()}
    for later_s in range(_MAX_NAMES):
        start = datetime.fromtimestamp(start_s + later_s, tz=timezone.utc)
        name = f"{start.strftime(_START)}-{number}"
        if name not in taken:
            return name
    raise FileExistsError(errno.EEXIST, "every name for a new file is taken", str(folder))


def sync_folder(folder: Path) -> None:
    """Has the disk store the folder's names."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that can't sync a folder say this
            raise
    finally:
        os.close(fd)


def publish(part: Path) -> Path:
    """Gives a synced ``.part`` its final name, which it returns. Never overwrites: where that
    name is taken by another file, the start in it is a second later.

    :raises OSError: not now; calling again goes on where it stopped.
    """
    final = _final(part)
    try:
        _give_name(part, final)
    except FileExistsError:
        kind, start, number = final.name.removesuffix(".avro").split("-")
        begun = datetime.strptime(start, _START).replace(tzinfo=timezone.utc)
        name = new_name(part.parent, begun.timestamp(), int(number))
        final = part.with_name(f"{kind}-{name}.avro")
        _give_name(part, final)
    sync_folder(part.parent)
    return final


def _final(part: Path) -> Path:
    return part.with_name(part.name.removesuffix(PART))


def _give_name(part: Path, final: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if final.samefile(part):  # whoever published it before did not come to the second step
            part.unlink()
            return
        if final.stat().st_size == 0:  # the placeholder below: no finished file is empty
            final.unlink()
    try:
        os.link(part, final)
        part.unlink()
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Only the one who has made the placeholder may rename over it.
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        part.rename(final)


def finish_leftovers(folder: Path, log: Log, mark: Mapping[str, int] | None = None) -> None:
    """Publishes the ``.part`` files of a killed predecessor. What can't be read is set aside and
    reported. The caller sees to it that nobody else writes there.

    :param mark: which of them were committed, and up to which byte: there they are cut, and what
        it does not name is removed, since it is delivered again. None: nobody knows; they are
        cut behind their last whole block, and nothing but torn bytes and empty files is deleted.
    :raises OSError: not now; calling again goes on where it stopped.
    """
    for copy in sorted(folder.glob(f"*.avro{PART}{_COPY}")):
        part = copy.with_name(copy.name.removesuffix(_COPY))
        # Before the original was set aside the copy may be incomplete, afterwards it is whole.
        if part.exists():
            copy.unlink()
        else:
            copy.rename(part)
    if mark is not None:
        _look_for(folder, mark, log)
    for part in sorted(folder.glob(f"*.avro{PART}")):
        if mark is None:
            log.info(
                "nobody knows how much of a file was committed: all of it is kept",
                path=str(part),
                consequence="trades at its end may be stored twice",
            )
            _finish(part, log)
        elif _NAME.fullmatch(part.name) is None:
            continue
        elif _is_published(part):
            publish(part)
        elif committed := mark.get(part.name, 0):
            _finish(part, log, committed)
        else:
            _remove_uncommitted(part, log)


def mark_of_moved(folder: Path, marks: Sequence[Mapping[str, int]]) -> Mapping[str, int] | None:
    """The newest of those *marks*, oldest first, that names a file in *folder*, under either of
    its names; None if there is none."""
    for mark in reversed(marks):
        if any((folder / n).exists() or _final(folder / n).exists() for n in mark):
            return mark
    return None


def _look_for(folder: Path, mark: Mapping[str, int], log: Log) -> None:
    """Says which committed files are not there under either of their names."""
    for name in mark:
        part = folder / name
        if not part.exists() and not _final(part).exists():
            # As a rule it was finished at the last stop, and then archived by someone.
            log.info("a committed file is not here any more", path=str(part))


def _is_published(part: Path) -> bool:
    """Whether only the second step of its publication is missing."""
    try:
        return _final(part).samefile(part)
    except FileNotFoundError:
        return False


def _remove_uncommitted(part: Path, log: Log) -> None:
    with ContainerReader(part) as reader:
        size_bytes = reader.size()
        try:
            reader.header()
        except NotAContainer as error:
            _report(log, _set_aside(part), str(error), 0)
            return
    part.unlink()
    log.info("removed a file that was never committed", path=str(part), size_bytes=size_bytes)


def _finish(part: Path, log: Log, committed: int | None = None) -> None:
    """Publishes what is whole in *part*, of its first *committed* bytes if that is known."""
    try:
        found = recover(part, committed)
    except NotAContainer as error:
        _report(log, _set_aside(part), str(error), 0)
        return
    lacking = committed is not None and found.length < committed
    if lacking:
        log.error(
            "a file lacks bytes that were committed",
            path=str(part),
            committed_bytes=committed,
            whole_bytes=found.length,
        )
    if not found.records:
        if found.damaged or lacking:
            _report(log, _set_aside(part), "its first block is not whole", 0)
        else:
            part.unlink()
            log.info(
                "removed an empty file that a crash left",
                path=str(part),
                cut_bytes=found.torn_bytes,
            )
        return
    if found.damaged or (lacking and found.torn_bytes):
        reason = f"a damaged block at byte {found.length}"
        _report(log, _salvage(part, found), reason, found.records)
    else:
        try:
            _cut(part, found)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            # The kernel has forgotten what it failed to write: only a copy can be trusted.
            _report(log, _salvage(part, found), f"it could not be synced: {error}", found.records)
    log.info(
        "finished a file that a crash left",
        path=str(publish(part)),
        records=found.records,
        cut_bytes=found.torn_bytes,
    )


def _cut(part: Path, found: Recovered) -> None:
    fd = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, found.length)
        os.fsync(fd)
    finally:
        os.close(fd)


def _salvage(part: Path, found: Recovered) -> Path:
    """Puts a synced copy of what is whole in the place of *part*; where the original is now."""
    copy = part.with_name(part.name + _COPY)
    left = found.length
    with part.open("rb") as source, copy.open("wb") as target:
        while left and (chunk := source.read(min(left, _COPY_CHUNK_BYTES))):
            left -= target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    aside = _set_aside(part)
    copy.rename(part)
    return aside


def _set_aside(path: Path) -> Path:
    name = path.name.removesuffix(PART)
    for n in range(1, _MAX_NAMES):
        aside = path.with_name(f"{name}.damaged-{n}")
        if not aside.exists():
            path.rename(aside)
            sync_folder(path.parent)
            return aside
    raise FileExistsError(errno.EEXIST, "too many damaged files: look at them", str(path.parent))


def _report(log: Log, aside: Path, reason: str, saved: int) -> None:
    log.error(
        "set a damaged file aside",
        path=str(aside),
        reason=reason,
        saved_records=saved,
        action="look at it, then move it away; it is never deleted",
    )
