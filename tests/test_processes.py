"""What is seen of processes: a thread that waits for a disk, and a watcher without free files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sim import wait_until
from toy import Events, events

from feedmono import log
from feedmono.heartbeat import LOOKS
from feedmono.supervision.children import HUNG, Child
from feedmono.supervision.processes import Processes, Usage, thread_states
from feedmono.supervision.served import check_heart

__all__ = ["events"]

# Between its fork and its exec, who spawns waits as for a disk: here until the pipe has a writer.
# The thread's name is none that a careless look would read right.
WAITING = """
import os, sys, threading
def wait():
    with open("/proc/thread-self/comm", "w") as file:
        file.write("a) S (b")
    actions = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions), 0)
thread = threading.Thread(target=wait)
thread.start()
thread.join()
sys.stdin.read()
"""


class Waiting:
    """A process of whose threads one waits without end, the main one not."""

    def __init__(self, folder: Path) -> None:
        self._pipe = folder / "pipe"
        os.mkfifo(self._pipe)
        self._process = subprocess.Popen(
            [sys.executable, "-c", WAITING, str(self._pipe)], stdin=subprocess.PIPE
        )
        self.pid = self._process.pid
        wait_until(self.states, lambda states: "D" in states)

    def states(self) -> list[str]:
        return list(thread_states(self.pid))

    def look(self) -> Usage:
        return Processes().look([self.pid])[self.pid]

    def recover(self) -> None:
        with self._pipe.open("wb"):
            wait_until(self.states, lambda states: states == ["S"])

    def end(self) -> int:
        self._process.kill()
        if "D" in self.states():
            # The one that it would spawn holds it, and hears of no signal of ours.
            with self._pipe.open("wb"):
                return self._process.wait(20)
        return self._process.wait(20)


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    process = Waiting(tmp_path)
    yield process
    process.end()


def test_a_thread_that_waits_for_the_disk_is_seen_beside_a_main_thread_that_does_not(
    waiting: Waiting,
) -> None:
    # It waits for the other one's lock, and looks now and then whether it is free.
    stat = Path(f"/proc/{waiting.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(") ")[2][0], lambda state: state == "S")
    usage = waiting.look()
    assert usage.waits_for_disk()
    waiting.recover()
    assert not usage.waits_for_disk()
    waiting.end()
    assert not usage.waits_for_disk()


def test_a_worker_that_waits_for_the_disk_is_told_of_for_as_long_as_it_does(
    waiting: Waiting, events: Events
) -> None:
    child = Child("reader", "binance", lambda _: 0, pid=waiting.pid)

    def look(beats: int) -> str:
        found = check_heart(child, beats, 0.0, waiting.look(), log.get())
        return "" if found is None else found.text

    assert [look(0) for _ in range(LOOKS - 1)] == [""] * (LOOKS - 1)
    for silent_s in range(LOOKS, 5 * LOOKS):
        assert look(0) == f"the reader has waited for the disk for {silent_s} s"
    waiting.recover()
    # It has the time to beat again; no more than the others have.
    assert all(look(0) for _ in range(LOOKS - 1))
    assert (child.reason, events.named("a worker hangs: killed")) == ("", [])
    assert look(1) == ""
    assert [look(1) for _ in range(LOOKS - 1)] == [""] * (LOOKS - 1)
    look(1)
    assert child.reason == HUNG
    (told,) = events.named("a worker hangs: killed")
    assert (told["pid"], told["silent_s"]) == (waiting.pid, LOOKS)


def test_a_worker_that_does_not_beat_again_after_its_disk_did_is_killed(
    waiting: Waiting, events: Events
) -> None:
    child = Child("reader", "binance", lambda _: 0, pid=waiting.pid)
    for _ in range(LOOKS):
        check_heart(child, 0, 0.0, waiting.look(), log.get())
    waiting.recover()
    for _ in range(LOOKS):
        assert child.reason == ""
        check_heart(child, 0, 0.0, waiting.look(), log.get())
    assert child.reason == HUNG
    assert events.named("a worker hangs: killed")[0]["silent_s"] == 2 * LOOKS


def test_who_has_no_free_file_sees_nothing_and_goes_on() -> None:
    processes = Processes()
    assert processes.look([os.getpid()])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        assert processes.look([os.getpid(), os.getppid()]) == {}
        assert list(thread_states(os.getpid())) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert processes.look([os.getpid()])[os.getpid()].open_files > 0
