"""The file of recent events: many write it, one rotates it, anyone reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from instance import Instance
from sim import Sim, wait_until

from feedmono import events

TIMESTAMP = "2026-03-01T12:00:00.250000Z"
# Begins when standard input is closed.
WRITER = """
import sys
from pathlib import Path
from feedmono import events
folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.stdin.read()
for number in range(count):
    padding = name * (number % 300)
    events.append(folder, (
        f'{{"timestamp": "2026-03-01T12:00:00.000000Z", "level": "info", "event": "line",'
        f' "worker": "{name}", "number": {number}, "padding": "{padding}"}}'
    ).encode())
"""


def line(event: str, level: str = "info", **fields: object) -> bytes:
    return json.dumps({"timestamp": TIMESTAMP, "level": level, "event": event, **fields}).encode()


def names(found: list[events.Event]) -> list[str]:
    return [event.event for event in found]


def test_an_event_is_read_back_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    events.append(tmp_path, line("connected", exchange="binance", worker="reader", connection=3))
    events.append(tmp_path, line("started", "warning", pid=5))
    connected, started = events.recent(tmp_path, 10)
    assert connected == events.Event(
        1772366400.25, "info", "binance", "reader", "connected", {"connection": 3}
    )
    assert (started.exchange, started.worker, started.fields) == ("", "", {"pid": 5})


def test_the_newest_of_both_files_are_given_and_only_those_asked_for(tmp_path: Path) -> None:
    for number in range(4):
        level = "error" if number % 2 else "info"
        events.append(tmp_path, line(f"old {number}", level, exchange="kraken"))
    (tmp_path / events.FILE).rename(tmp_path / events.OLD_FILE)
    for number in range(4):
        events.append(tmp_path, line(f"new {number}", exchange="binance"))
    assert names(events.recent(tmp_path, 2)) == ["new 2", "new 3"]
    assert names(events.recent(tmp_path, 5)) == ["old 3", "new 0", "new 1", "new 2", "new 3"]
    assert len(events.recent(tmp_path, 100)) == 8
    assert events.recent(tmp_path, 0) == []
    assert names(events.recent(tmp_path, 100, levels=("error",))) == ["old 1", "old 3"]
    assert names(events.recent(tmp_path, 2, exchange="kraken")) == ["old 2", "old 3"]


def test_without_a_file_or_a_folder_there_are_no_events(tmp_path: Path) -> None:
    assert events.recent(tmp_path, 10) == []
    assert events.recent(tmp_path / "nowhere", 10) == []


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"no JSON",
        b"\xff\xfe",
        b"5",
        b"null",
        b'["timestamp"]',
        b'"timestamp"',
        b"[" * 100_000,
        b'{"timestamp": "2026-03-01T12:00:00Z", "level": "info"}',
        b'{"timestamp": "yesterday", "level": "info", "event": "x"}',
        b'{"timestamp": 5, "level": "info", "event": "x"}',
        b'{"timestamp": "2026-03-01T12:00:00Z", "level": "info", "event": 5}',
        b'{"timestamp": "2026-03-01T12:00:00Z", "level": "info", "event": "x", "worker": []}',
        b'{"timestamp": "2026-03-01T12:00:00Z", "level": "in',
    ],
)
def test_a_line_of_another_kind_is_left_out(tmp_path: Path, foreign: bytes) -> None:
    events.append(tmp_path, line("before"))
    events.append(tmp_path, foreign)
    events.append(tmp_path, line("after"))
    assert names(events.recent(tmp_path, 10)) == ["before", "after"]


def test_a_line_behind_one_that_a_full_disk_cut_off_is_found(tmp_path: Path) -> None:
    events.append(tmp_path, line("before"))
    path = tmp_path / events.FILE
    # A limit on the size of files stands for the disk's end, in the middle of the next line.
    script = (
        "import resource, sys; from pathlib import Path; from feedmono import events\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 40},) * 2)\n"
        f"events.append(Path({str(tmp_path)!r}), {line('cut')!r})\n"
        f"events.append(Path({str(tmp_path)!r}), {line('no room at all')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    assert not path.read_bytes().endswith(b"\n"), "the disk was not full"
    events.append(tmp_path, line("after"))
    assert names(events.recent(tmp_path, 10)) == ["before", "after"]


def test_what_can_not_be_appended_is_dropped_and_the_next_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    events.append(folder, line("no folder"))
    folder.mkdir()
    events.append(folder, line("first"))
    (folder / events.FILE).unlink()
    folder.rmdir()
    events.append(folder, line("removed"))
    events.rotate(folder)
    assert not folder.exists(), "a folder that an operator removed is not for the log to make"
    folder.mkdir()
    events.append(folder, line("second"))
    assert names(events.recent(folder, 10)) == ["second"]


def test_a_pipe_in_the_files_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / events.FILE)
    events.append(tmp_path, line("nobody reads it"))
    assert events.recent(tmp_path, 10) == []
    read_fd = os.open(tmp_path / events.FILE, os.O_RDONLY | os.O_NONBLOCK)
    events.append(tmp_path, line("it is no file"))
    with os.fdopen(read_fd, "rb") as pipe:
        assert pipe.read() == b""


def test_only_a_large_file_is_rotated_over_the_one_before(tmp_path: Path) -> None:
    events.append(tmp_path, line("small"))
    events.rotate(tmp_path)
    assert os.listdir(tmp_path) == [events.FILE]
    (tmp_path / events.OLD_FILE).write_bytes(line("of long ago") + b"\n")
    while (tmp_path / events.FILE).stat().st_size <= 256 * 1024:
        events.append(tmp_path, line("large", text="x" * 3000))
    events.rotate(tmp_path)
    events.append(tmp_path, line("fresh"))
    assert sorted(os.listdir(tmp_path)) == sorted(events.FILES)
    found = names(events.recent(tmp_path, 1000))
    assert (found[0], found[-2:]) == ("small", ["large", "fresh"])


def test_a_file_that_nobody_rotates_does_not_grow_for_ever(tmp_path: Path) -> None:
    for _ in range(700):
        events.append(tmp_path, line("large", text="x" * 3000))
    assert (tmp_path / events.FILE).stat().st_size < (1 << 20) + 4096
    assert len(events.recent(tmp_path, 1000)) > 300


def test_a_file_renamed_while_it_is_read_is_not_told_twice(tmp_path: Path) -> None:
    events.append(tmp_path, line("once"))
    # What the reader meets if the rename comes between its looks at the two names.
    os.link(tmp_path / events.FILE, tmp_path / events.OLD_FILE)
    assert names(events.recent(tmp_path, 10)) == ["once"]


def test_many_processes_append_while_one_rotates_and_no_line_is_lost_or_torn(
    tmp_path: Path,
) -> None:
    folder, kept = tmp_path / "state", tmp_path / "kept"
    folder.mkdir()
    kept.mkdir()
    count = 2000
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), name, str(count)], stdin=subprocess.PIPE
        )
        for name in "abcd"
    ]
    try:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        while any(writer.poll() is None for writer in writers):
            events.rotate(folder)
            _keep(folder / events.OLD_FILE, kept)
        assert [writer.returncode for writer in writers] == [0] * 4
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    # After a rotation that nobody wrote behind there is no new file.
    files = [*kept.iterdir(), *folder.glob(events.FILE)]
    assert len(files) > 3, "it was not rotated while they wrote"
    lines = [json.loads(text) for file in files for text in file.read_bytes().splitlines()]
    assert sorted((entry["worker"], entry["number"]) for entry in lines) == [
        (name, number) for name in "abcd" for number in range(count)
    ]


def _keep(old: Path, folder: Path) -> None:
    """Another name for it, which stays when the next rotation replaces the file."""
    if old.exists():
        name = folder / str(old.stat().st_ino)
        if not name.exists():
            os.link(old, name)


def test_a_running_instance_keeps_what_happened_though_its_log_shows_warnings_only(
    tmp_path: Path,
) -> None:
    with (
        Sim("kraken", "--rate", "20") as sim,
        Instance(tmp_path, sim, LOG_LEVEL="warning") as feedmono,
    ):
        found = wait_until(
            lambda: events.recent(feedmono.state, 100, exchange="kraken"),
            lambda seen: "subscribed" in names(seen),
        )
        connected = next(event for event in found if event.event == "connected")
        assert (connected.level, connected.worker) == ("info", "reader")
        assert "connection" in connected.fields
        assert "started" in names(events.recent(feedmono.state, 100))
        assert feedmono.stop() == 0
        assert names(events.recent(feedmono.state, 1)) == ["stopped"]
        assert not [entry for entry in feedmono.events() if entry["level"] == "info"]
