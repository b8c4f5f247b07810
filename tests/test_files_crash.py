"""The files sink after kills: what a start makes of what is left; nothing acknowledged is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from files_rig import EXCHANGE, STEPS, Rig, entries, leave_part_file, rig

from feedmono.sinks.files import count_trades
from feedmono.sinks.files_source import read_records

__all__ = ["rig"]


# --- what a kill leaves


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


# --- kill -9


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
