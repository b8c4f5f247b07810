"""The files sink after kills and on failing disks: nothing acknowledged is ever lost."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from files_rig import EXCHANGE, STEPS, Rig, coverage, entries, entry, incompressible

from feedmono.sinks import files
from feedmono.sinks.base import DeadLetter, Entry, SinkFailed
from feedmono.sinks.container import BLOCK_BYTES, ContainerWriter
from feedmono.sinks.files import count_trades
from feedmono.sinks.files_source import read_records


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def leave_part_file(rig: Rig, tail: bytes) -> Path:
    """As a kill leaves it: trades 0 … 19 in two blocks, and *tail* behind. No mark tells of it."""
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    rig.store(sink, entries(10, 20))
    (part,) = (rig.folder / EXCHANGE).glob("trades-*.part")
    data = part.read_bytes()
    sink.close()
    for path in (rig.folder / EXCHANGE).iterdir():
        path.unlink()
    part.write_bytes(data + tail)
    rig.mark = None
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


def broken_disk(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


# --- what is committed, and what is not ------------------------------------------------------


def crashed(rig: Rig, folder: Path, batch: Sequence[Entry]) -> None:
    """As if the process ended now: in a copy of the folder, a successor that knows what was
    committed delivers the rest of *batch*; then all of it is there once and in order."""
    shutil.copytree(rig.folder, folder)
    successor = Rig(folder)
    successor.mark, successor.wall.now_s = rig.mark, rig.wall.now_s
    sink = successor.opened()
    assert successor.finished_ids() == list(range(rig.committed))
    assert successor.names("*.part") == []
    # No coverage promises more than what was committed.
    covered = [record["to_id"] for record in read_records(folder, EXCHANGE, "coverage")]
    assert covered == sorted(covered)
    assert all(to_id < rig.committed for to_id in covered)
    successor.store(sink, batch[rig.committed :])
    sink.close()
    assert successor.finished_ids() == [item.end - 1 for item in batch]
    raw = [frame["payload"] for frame in read_records(folder, EXCHANGE, "raw")]
    assert raw == [item.frame.payload for item in batch]
    dead = [letter["reason"] for letter in read_records(folder, EXCHANGE, "dead")]
    assert dead == [item.dead.reason for item in batch if item.dead]
    assert successor.names("*.part") == successor.names("*.damaged*") == []
    shutil.rmtree(folder)


def test_a_crash_before_any_call_to_the_kernel_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several segments, with a ledger that now and then lags behind."""
    rig = Rig(tmp_path / "files")
    rig.mark = {}
    batch = entries(0, 120)
    for number in range(0, 120, 7):
        batch[number] = entry(number, dead=DeadLetter("normalize", f"odd {number}"))
    crashes: list[str] = []

    def crash(place: str) -> None:
        with monkeypatch.context() as patch:
            for name, call in kernel.items():
                patch.setattr(os, name, call if "sync" not in name else lambda fd: None)
            crashed(rig, tmp_path / f"{len(crashes)}", batch)
        crashes.append(place)

    kernel = {name: getattr(os, name) for name in ("pwrite", "fdatasync", "fsync", "link")}
    sink = rig.opened(roll_size_bytes=2500)
    for name, call in kernel.items():

        def with_crash(*given: Any, name: str = name, call: Any = call, **named: Any) -> Any:
            crash(name)
            return call(*given, **named)

        monkeypatch.setattr(os, name, with_crash)
    taken = 0
    for round_ in range(34):
        taken += sink.write(batch[taken : taken + 20])
        crash("written")
        sink.flush()
        end = sink.poll(0)
        crash("synced")
        mark = sink.mark()
        if round_ % 5 in (1, 2):
            continue  # not committed, and so nothing is settled
        if end is not None:
            rig.committed, rig.mark = end, mark
        crash("committed")
        sink.settle()
        crash("settled")
        sink.cover([coverage(rig.committed - 1)])
    assert taken == 120
    assert len(rig.names("trades-*")) >= 3
    assert len(rig.names("coverage-*")) >= 2
    assert {*crashes} == {*kernel, "written", "synced", "committed", "settled"}
    sink.close()
    assert rig.finished_ids() == list(range(120))


def test_a_segment_is_published_when_it_is_settled_and_the_next_begins_then(rig: Rig) -> None:
    sink = rig.opened(roll_size_bytes=3000)
    taken, batch = 0, entries(0, 1000)
    while more := sink.write(batch[taken : taken + 20]):
        taken += more
        sink.flush()
        end = sink.poll(0)
    assert end == taken
    for _ in range(5):
        assert 0 < sink.wait_s() < 0.1
        assert sink.write(batch[taken:]) == 0
        assert sink.poll(0) == taken
        assert rig.names("*.avro") == []
    rig.mark = sink.mark()
    assert sorted(rig.mark) == rig.names("*.part")
    sink.settle()
    assert rig.finished_ids() == list(range(taken))
    assert sink.poll(0) == taken
    assert sink.mark() == {}
    assert sink.write(batch[taken : taken + 20]) == 20
    sink.close()


def test_what_comes_between_the_mark_and_its_commit_is_not_settled_by_it(rig: Rig) -> None:
    sink = rig.opened(roll_interval_s=100.0)
    sink.write(entries(0, 10))
    sink.flush()
    sink.poll(0)
    sink.mark()
    sink.write(entries(10, 20))
    rig.clock.now_s += 100
    assert sink.poll(0) == 20
    sink.settle()
    assert rig.names("*.avro") == []
    rig.commit(sink)
    assert rig.finished_ids() == list(range(20))
    sink.close()


def test_the_mark_belongs_to_the_position_that_the_last_poll_told(rig: Rig) -> None:
    sink = rig.opened()
    assert rig.store(sink, entries(0, 10)) == 10
    before = sink.mark()
    sink.write(entries(10, 20))
    sink.flush()
    assert sink.mark() == before
    sink.poll(0)
    assert all(length > before[name] for name, length in sink.mark().items())
    sink.close()


@pytest.mark.parametrize("left", ["not acknowledged", "not settled"])
def test_a_close_leaves_files_that_are_not_settled_to_the_successor(rig: Rig, left: str) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    sink.write(entries(10, 20))
    if left == "not settled":
        sink.flush()
        assert sink.poll(0) == 20
    sink.close()
    assert rig.names("*.avro") == []
    successor = rig.opened()
    assert rig.finished_ids() == list(range(10))
    rig.store(successor, entries(10, 20))
    successor.close()
    assert rig.finished_ids() == list(range(20))


def test_files_that_no_mark_names_are_removed_and_others_are_not_touched(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    part = leave_part_file(rig, b"torn")
    rig.mark = {}
    empty = part.with_name(part.name.replace("trades", "raw"))
    garbage = part.with_name(part.name.replace("trades", "dead"))
    others = [part.with_name("notes.avro.part"), part.with_name("trades.txt.part")]
    empty.touch()
    garbage.write_bytes(b"garbage")
    for other in others:
        other.write_bytes(b"Obj")
    rig.opened().close()
    aside = garbage.name.replace(".part", ".damaged-1")
    assert rig.names() == sorted([aside, *(other.name for other in others)])
    assert "removed a file that was never committed" in "".join(capfd.readouterr())


def test_a_mark_may_name_files_that_are_published_or_gone(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    mark = rig.mark
    assert mark is not None
    sink.close()
    rig.mark = {**mark, "trades-20261123T000441Z-7.avro.part": 5000}
    before = {name: (rig.folder / EXCHANGE / name).stat() for name in rig.names()}
    rig.opened().close()
    assert {name: (rig.folder / EXCHANGE / name).stat() for name in rig.names()} == before
    told = "".join(capfd.readouterr())
    assert told.count("a committed file is not here any more") == 1
    assert "trades-20261123T000441Z-7.avro.part" in told


def test_a_publication_interrupted_between_its_two_names_is_finished_by_the_mark(
    rig: Rig,
) -> None:
    part = leave_part_file(rig, b"")
    final = part.with_name(part.name.removesuffix(".part"))
    os.link(part, final)
    rig.mark = {part.name: part.stat().st_size}
    rig.opened().close()
    assert rig.names() == [final.name]
    assert rig.finished_ids() == list(range(20))


@pytest.mark.parametrize("damage", ["cut", "cut to nothing", "flipped", "not a block's end"])
def test_a_file_that_lacks_committed_bytes_is_told_and_what_is_whole_is_kept(
    rig: Rig, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    part = leave_part_file(rig, b"")
    data = part.read_bytes()
    committed = len(data)
    if damage == "cut":
        part.write_bytes(data[:-5])
    elif damage == "cut to nothing":
        part.write_bytes(b"")
    elif damage == "flipped":
        part.write_bytes(data[:-60] + bytes(10) + data[-50:])
    else:
        committed -= 5
    rig.mark = {part.name: committed}
    rig.opened().close()
    told = "".join(capfd.readouterr())
    assert "a file lacks bytes that were committed" in told
    assert f"committed_bytes={committed}" in told
    stem = part.name.removesuffix(".part")
    nothing = damage == "cut to nothing"
    assert rig.names() == ([] if nothing else [stem]) + [f"{stem}.damaged-1"]
    assert rig.finished_ids() == ([] if nothing else list(range(10)))


# --- kill -9 -------------------------------------------------------------------------------

NURSERY = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from files_rig import deliver_and_die

for line in sys.stdin:
    folder, step, times = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        deliver_and_die(Path(folder), step, times)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("reaped", flush=True)
"""


@pytest.fixture
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A process that forks a delivering child for each line, so that a child begins at once, and
    tells its pid."""
    command = [sys.executable, "-c", NURSERY, str(Path(__file__).parent)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        yield process
        process.kill()


def kill_a_child(
    nursery: subprocess.Popen[str],
    folder: Path,
    *,
    step: str = "",
    times: int = 0,
    delay_s: float = 0,
) -> None:
    """Lets a child deliver until it comes to *step* for the *times*-th time; or else kills it
    *delay_s* after its first commit."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    folder.mkdir(exist_ok=True)
    ledger = folder / "ledger"
    before = ledger.read_text() if ledger.exists() else ""
    nursery.stdin.write(json.dumps([str(folder), step, times]) + "\n")
    pid = int(nursery.stdout.readline())
    try:
        if not step:
            deadline_s = time.monotonic() + 20
            while not ledger.exists() or ledger.read_text() == before:
                assert time.monotonic() < deadline_s
                time.sleep(0.001)
            time.sleep(delay_s)
            os.kill(pid, signal.SIGKILL)
    finally:
        assert nursery.stdout.readline() == "reaped\n"


def test_after_kill_9_at_any_step_or_moment_everything_is_there_once_and_in_order(
    tmp_path: Path, nursery: subprocess.Popen[str], full: bool
) -> None:
    """One successor after the other goes on in the same folder, and is killed as well."""
    rig = Rig(tmp_path)
    chance = random.Random(42)
    committed = torn = 0
    for step in (*STEPS, *STEPS, *[""] * (200 if full else 12)):
        times = chance.randrange(1, 15)
        kill_a_child(nursery, tmp_path, step=step, times=times, delay_s=chance.uniform(0, 0.1))
        torn += bool(rig.names("*.part"))
        held = json.loads((tmp_path / "ledger").read_text())
        assert held["end"] >= committed
        committed, rig.mark = held["end"], held["mark"]
        if chance.random() < 0.3:  # else the next child is the one to clean up
            rig.opened().close()
            assert rig.finished_ids() == list(range(committed))
    rig.wall.now_s = time.time()
    sink = rig.opened()
    rig.store(sink, entries(committed, committed + 20))
    sink.close()
    assert rig.finished_ids() == list(range(committed + 20))
    frames = [raw["payload"] for raw in read_records(tmp_path, EXCHANGE, "raw")]
    assert frames == [b'{"t":%d}' % number for number in range(committed + 20)]
    assert rig.names("*.part") == rig.names("*.damaged*") == []
    assert len(rig.names("trades-*")) > 20
    assert torn >= 10


def test_after_kill_9_without_a_ledger_nothing_acknowledged_is_missing(
    tmp_path: Path, nursery: subprocess.Popen[str]
) -> None:
    chance = random.Random(43)
    for attempt in range(10):
        rig = Rig(tmp_path / str(attempt))
        kill_a_child(nursery, rig.folder, delay_s=chance.uniform(0, 0.1))
        committed = json.loads((rig.folder / "ledger").read_text())["end"]
        before = rig.ids() if attempt % 2 else None  # a reader copes with a torn end as well
        rig.opened().close()
        ids = rig.finished_ids()
        assert ids == list(range(len(ids)))
        assert len(ids) >= committed
        assert before is None or before == ids
        assert count_trades(rig.folder, EXCHANGE) == len(ids)
        frames = [raw["payload"] for raw in read_records(rig.folder, EXCHANGE, "raw")]
        assert frames[:committed] == [b'{"t":%d}' % number for number in range(committed)]
