"""The files sink on disks that fail or are full: nothing acknowledged is ever lost."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files_rig import EXCHANGE, Rig, crashed, entries, incompressible, leave_part_file, rig

from feedmono.sinks import files
from feedmono.sinks.base import SinkFailed
from feedmono.sinks.container import BLOCK_BYTES, ContainerWriter
from feedmono.sinks.files_source import read_records

__all__ = ["rig"]


def broken_disk(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount is not installed: no real disk can be filled here")
    if done.returncode:
        pytest.skip("mounting a tmpfs takes root: no real disk can be filled here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_the_sink_until_there_is_room_again(tiny_disk: Path) -> None:
    rig = Rig(tiny_disk)
    sink = rig.opened(max_buffered_bytes=1 << 20)
    (tiny_disk / "ballast").write_bytes(bytes(400_000))
    taken, acknowledged, batch = 0, None, incompressible(0, 2000)
    while sink.trouble == "":
        taken += sink.write(batch[taken : taken + 20])
        sink.flush()
        acknowledged = sink.poll(0)
    assert "No space left on device (errno 28)" in sink.trouble
    assert str(tiny_disk) in sink.trouble
    assert acknowledged is not None
    assert rig.ids()[:acknowledged] == list(range(acknowledged))
    while more := sink.write(batch[taken : taken + 20]):  # into memory, up to the limit
        taken += more
    assert taken < len(batch)
    assert sink.write(batch[taken:]) == 0
    errors = sink.stats.errors
    for _ in range(8):
        rig.clock.now_s += 10
        assert sink.poll(0) == acknowledged
    assert sink.stats.errors == errors + 8
    (tiny_disk / "ballast").unlink()
    for _ in range(5):
        rig.clock.now_s += 10
        sink.flush()
        acknowledged = sink.poll(0)
    assert sink.trouble != ""  # 400 kB of room and more than that in memory: full again
    for name in rig.names("*.avro"):
        (tiny_disk / EXCHANGE / name).unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(tiny_disk)], check=True)
    rig.clock.now_s += 10
    assert sink.poll(0) == taken
    assert sink.trouble == ""
    assert sink.write(batch[taken:]) == len(batch) - taken
    sink.flush()
    assert rig.commit(sink) == len(batch)
    sink.close()
    assert rig.finished_ids() == list(range(len(batch)))
    raw = [frame["payload"] for frame in read_records(tiny_disk, EXCHANGE, "raw")]
    assert raw == [item.frame.payload for item in batch]


def test_a_disk_that_is_full_at_the_start_is_trouble_and_heals(tiny_disk: Path) -> None:
    rig = Rig(tiny_disk)
    (tiny_disk / EXCHANGE).mkdir()
    with pytest.raises(OSError, match="No space"):
        (tiny_disk / "ballast").write_bytes(bytes(2_000_000))
    sink = rig.sink()
    assert not sink.open()
    assert "No space left on device (errno 28)" in sink.trouble
    (tiny_disk / "ballast").unlink()
    assert sink.open()
    assert rig.store(sink, entries(0, 2)) == 2
    sink.close()
    assert rig.finished_ids() == [0, 1]


@pytest.fixture
def file_size_limit() -> Iterator[int]:
    """The kernel refuses to let any file of this process grow beyond it (EFBIG)."""
    limit, before = 150_000, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_writes_that_fail_are_repeated_with_growing_pauses(rig: Rig, file_size_limit: int) -> None:
    sink = rig.opened()
    batch = incompressible(0, 200)
    assert sink.write(batch) == 200
    sink.flush()
    assert sink.poll(0) is None
    assert "File too large" in sink.trouble
    errors = sink.stats.errors
    assert sink.write(incompressible(200, 500)) == 300
    assert sink.stats.errors == errors  # full blocks wait for the next try
    pauses = []
    for _ in range(6):
        before, errors = rig.clock.now_s, sink.stats.errors
        while sink.stats.errors == errors:
            rig.clock.now_s += 0.25
            sink.poll(0)
        pauses.append(rig.clock.now_s - before)
    assert pauses == [1, 2, 4, 8, 10, 10]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    rig.clock.now_s += 10
    assert rig.commit(sink) == 500
    sink.close()
    assert rig.finished_ids() == list(range(500))


def test_a_stop_while_the_disk_is_full_leaves_what_was_acknowledged(
    rig: Rig, file_size_limit: int
) -> None:
    sink = rig.opened()
    assert rig.store(sink, incompressible(0, 10)) == 10
    assert rig.store(sink, incompressible(10, 200)) == 10
    sink.close()
    assert sink.poll(0) == 10
    assert rig.names("*.avro") == []
    rig.opened().close()
    assert rig.finished_ids() == list(range(10))


@pytest.mark.parametrize("victim", ["trades", "raw", EXCHANGE])
def test_after_a_failed_sync_only_acknowledged_entries_are_left_and_a_successor_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    sink = rig.opened()
    acknowledged = 0
    if victim != EXCHANGE:  # the folder is only synced with the first entries
        assert rig.store(sink, entries(0, 10)) == 10
        acknowledged = 10
    sink.write(entries(acknowledged, 20))
    with monkeypatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            real = getattr(os, name)

            def fail(fd: int, real: Any = real) -> None:
                if Path(f"/proc/self/fd/{fd}").readlink().name.startswith(victim):
                    raise OSError(errno.EIO, "Input/output error")
                real(fd)

            patch.setattr(os, name, fail)
        sink.flush()
        with pytest.raises(SinkFailed, match=r"could not sync .*Input/output error"):
            sink.poll(0)
    assert sink.poll(0) == (acknowledged or None)
    with pytest.raises(SinkFailed):
        sink.write(entries(20, 21))
    sink.close()
    assert rig.ids() == list(range(acknowledged))
    successor = rig.opened()
    assert rig.store(successor, entries(acknowledged, 30)) == 30
    successor.close()
    assert rig.finished_ids() == list(range(30))
    frames = [raw["payload"] for raw in read_records(rig.folder, EXCHANGE, "raw")]
    assert frames == [item.frame.payload for item in entries(0, 30)]


def test_a_leftover_that_can_not_be_synced_is_copied(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = leave_part_file(rig, b"torn")
    real = os.fsync

    def fail(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name == part.name:
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fail)
    rig.opened().close()
    stem = part.name.removesuffix(".part")
    assert rig.names() == [stem, f"{stem}.damaged-1"]
    assert rig.finished_ids() == list(range(20))


def test_a_file_never_holds_more_unsynced_bytes_than_recovery_looks_at(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 20
    monkeypatch.setattr(files, "MAX_UNSYNCED_BYTES", limit)
    unsynced: list[int] = []
    append = ContainerWriter.append

    def spy(writer: ContainerWriter, block: Any) -> None:
        append(writer, block)
        unsynced.append(writer.length - writer.synced_length)

    monkeypatch.setattr(ContainerWriter, "append", spy)
    sink = rig.opened(sync_interval_s=3600.0)
    sink.write(incompressible(0, 2000))
    assert len(unsynced) * BLOCK_BYTES > 3 * limit
    assert max(unsynced) <= limit + 2 * BLOCK_BYTES
    assert sink.poll(0) is None  # synced, but not acknowledged before all of it is
    sink.close()


def test_after_a_failed_sync_the_successor_cuts_what_was_acknowledged_and_not_committed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = rig.opened()
    assert rig.store(sink, entries(0, 10)) == 10
    sink.write(entries(10, 20))
    sink.flush()
    assert sink.poll(0) == 20
    sink.write(entries(20, 30))
    sink.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken_disk)
        with pytest.raises(SinkFailed, match="could not sync"):
            sink.poll(0)
    assert rig.ids() == list(range(20))
    assert sink.mark() != rig.mark  # whoever commits this after all is right as well
    successor = rig.opened()
    assert rig.finished_ids() == list(range(10))
    assert rig.store(successor, entries(10, 40)) == 40
    successor.close()
    assert rig.finished_ids() == list(range(40))


def test_a_publication_that_fails_is_repeated_and_holds_up_what_comes_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path / "files")
    sink = rig.opened(roll_interval_s=100.0)
    rig.store(sink, entries(0, 10))
    rig.clock.now_s += 100
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", broken_disk)
            rig.commit(sink)
        assert "Input/output error" in sink.trouble
        assert sink.write(entries(10, 20)) == 0
        assert len(rig.mark or ()) == 2
        crashed(rig, tmp_path / "copy", entries(0, 20))
        rig.clock.now_s += 10
    assert rig.store(sink, entries(10, 20)) == 20
    assert sink.trouble == ""
    assert rig.finished_ids() == list(range(10))
    sink.close()
    assert rig.finished_ids() == list(range(20))
