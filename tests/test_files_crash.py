"""The files sink after kills and on failing disks: nothing acknowledged is ever lost."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files_rig import EXCHANGE, Rig, entries, incompressible, store

from feedmono.sinks import files
from feedmono.sinks.base import SinkFailed
from feedmono.sinks.container import BLOCK_BYTES, ContainerWriter
from feedmono.sinks.files import count_trades
from feedmono.sinks.files_source import read_records


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def leave_part_file(rig: Rig, tail: bytes) -> Path:
    """As a kill leaves it: trades 0 … 19 in two blocks, and *tail* behind."""
    sink = rig.opened()
    store(sink, entries(0, 10))
    store(sink, entries(10, 20))
    (part,) = (rig.folder / EXCHANGE).glob("trades-*.part")
    data = part.read_bytes()
    sink.close()
    for path in (rig.folder / EXCHANGE).iterdir():
        path.unlink()
    part.write_bytes(data + tail)
    return part


def test_a_torn_block_is_cut_and_the_file_finished_by_the_next_start(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    part = leave_part_file(rig, b"\x14\xe0\x02torn")
    rig.opened().close()
    assert rig.names() == [part.name.removesuffix(".part")]
    assert rig.finished_ids() == list(range(20))
    told = "".join(capfd.readouterr())
    assert "finished a file that a crash left" in told
    assert "cut_bytes" in told


@pytest.mark.parametrize("length", [0, 3, 100])
def test_a_file_without_a_whole_block_is_removed(rig: Rig, length: int) -> None:
    part = leave_part_file(rig, b"")
    os.truncate(part, length)
    rig.opened().close()
    assert rig.names() == []


def test_what_is_no_container_is_set_aside_and_never_deleted(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    part = leave_part_file(rig, b"")
    stem = part.name.removesuffix(".part")
    for text in (b"first", b"second"):
        part.write_bytes(b"garbage, the " + text)
        rig.opened().close()
    assert rig.names() == [f"{stem}.damaged-1", f"{stem}.damaged-2"]
    assert (part.parent / f"{stem}.damaged-1").read_bytes() == b"garbage, the first"
    assert "set a damaged file aside" in "".join(capfd.readouterr())


def test_of_a_file_damaged_in_its_middle_the_whole_is_kept_and_the_beginning_published(
    rig: Rig,
) -> None:
    part = leave_part_file(rig, b"")
    data = bytearray(part.read_bytes())
    data[-60:-50] = bytes(10)  # in the second block, whose sync marker is still there
    part.write_bytes(data)
    rig.opened().close()
    stem = part.name.removesuffix(".part")
    assert rig.names() == [stem, f"{stem}.damaged-1"]
    assert rig.finished_ids() == list(range(10))
    assert (part.parent / f"{stem}.damaged-1").read_bytes() == bytes(data)


@pytest.mark.parametrize("original_is_there", [True, False])
def test_a_repair_that_was_interrupted_is_done_again_or_finished(
    rig: Rig, original_is_there: bool
) -> None:
    part = leave_part_file(rig, b"")
    copy = part.with_name(part.name + ".copy")
    if original_is_there:
        copy.write_bytes(part.read_bytes()[:200])
    else:
        part.rename(copy)
    rig.opened().close()
    assert rig.names() == [part.name.removesuffix(".part")]
    assert rig.finished_ids() == list(range(20))


def test_a_publication_that_was_interrupted_between_its_two_names_is_finished(rig: Rig) -> None:
    part = leave_part_file(rig, b"")
    final = part.with_name(part.name.removesuffix(".part"))
    os.link(part, final)
    assert rig.ids() == list(range(20))  # counted once, though both names are there
    rig.opened().close()
    assert rig.names() == [final.name]
    assert rig.finished_ids() == list(range(20))


def test_publishing_never_overwrites(rig: Rig) -> None:
    part = leave_part_file(rig, b"")
    final = part.with_name(part.name.removesuffix(".part"))
    final.write_bytes(b"precious")
    rig.opened().close()
    assert final.read_bytes() == b"precious"
    later = final.name.replace("T000441Z", "T000442Z")
    assert rig.names() == sorted([final.name, later])


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_file_system_without_hard_links_publishes_as_well(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    part = leave_part_file(rig, b"")
    final = part.with_name(part.name.removesuffix(".part"))
    if interrupted:
        final.touch()
    rig.opened().close()
    assert rig.names() == [final.name]
    assert rig.finished_ids() == list(range(20))


# --- disks that fail -----------------------------------------------------------------------


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
    assert store(sink, entries(0, 2)) == 2
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
    assert sink.poll(0) == 500
    sink.close()
    assert rig.finished_ids() == list(range(500))


def test_a_stop_while_the_disk_is_full_leaves_what_was_acknowledged(
    rig: Rig, file_size_limit: int
) -> None:
    sink = rig.opened()
    assert store(sink, incompressible(0, 10)) == 10
    assert store(sink, incompressible(10, 200)) == 10
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
        assert store(sink, entries(0, 10)) == 10
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
    assert store(successor, entries(acknowledged, 30)) == 30
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


# --- kill -9 -------------------------------------------------------------------------------

NURSERY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from files_rig import entries
from feedmono.config import FilesConfig
from feedmono.sinks.files import FilesSink

def write_under_load(folder):
    sink = FilesSink(FilesConfig(folder, 3600.0, 30_000, 0.005), "binance")
    assert sink.open()
    told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT)
    batch, number = [], 0
    while True:
        if number % 400 == 0:
            batch = entries(number, number + 400)
        number += sink.write(batch[number % 400:][:40])
        if (end := sink.poll(0)) is not None:
            os.pwrite(told, b"%020d" % end, 0)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        write_under_load(Path(line.strip()))
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("reaped", flush=True)
"""


@pytest.fixture
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A process that forks a writing child for each folder it is told, so that a child begins
    at once, and tells its pid."""
    command = [sys.executable, "-c", NURSERY, str(Path(__file__).parent)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        yield process
        process.kill()


def acknowledged_by_a_killed_child(
    nursery: subprocess.Popen[str], folder: Path, delay_s: float
) -> int:
    """Lets a child write under load, kills it *delay_s* after its first acknowledgement, and
    returns the last one that it told."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    folder.mkdir()
    told = folder / "told"
    nursery.stdin.write(f"{folder}\n")
    pid = int(nursery.stdout.readline())
    try:
        deadline_s = time.monotonic() + 20
        while not (told.exists() and told.stat().st_size) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        time.sleep(delay_s)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert nursery.stdout.readline() == "reaped\n"
    return int(told.read_text())


def test_after_kill_9_at_any_moment_everything_acknowledged_is_there_once_and_in_order(
    tmp_path: Path, nursery: subprocess.Popen[str]
) -> None:
    chance = random.Random(42)
    rolled = torn = 0
    for attempt in range(20):
        rig = Rig(tmp_path / str(attempt))
        acknowledged = acknowledged_by_a_killed_child(nursery, rig.folder, chance.uniform(0, 0.15))
        parts = rig.names("*.part")
        before = rig.ids() if attempt % 2 else None  # a reader copes with a torn end as well
        successor = rig.opened()
        assert rig.names("*.part") == []
        ids = rig.finished_ids()
        assert ids == list(range(len(ids)))
        assert len(ids) >= acknowledged
        assert before is None or before == ids
        assert count_trades(rig.folder, EXCHANGE) == len(ids)
        frames = [raw["payload"] for raw in read_records(rig.folder, EXCHANGE, "raw")]
        assert len(frames) >= acknowledged
        assert frames == [b'{"t":%d}' % number for number in range(len(frames))]
        store(successor, entries(acknowledged, acknowledged + 5))
        successor.close()
        rolled += len(rig.names("trades-*.avro")) > 2
        torn += bool(parts)
    assert rolled >= 5
    assert torn >= 5
