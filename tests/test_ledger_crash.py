"""A writer of the ledger that is killed or at work: what is there is one whole commit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_rig import RING, Heard, Story, commit, content, kept, ledger_path, opened

from feedmono import log
from feedmono.delivery import ledger_file
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.ledger_file import read, read_fills

__all__ = ["ledger_path"]

KILLS = 25


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[int]:
    """A process that goes on with the story, a commit each chapter, until it is killed."""
    pid = os.fork()
    if not pid:
        try:
            story, ledger = Story(), Ledger(path, log.Log(Heard()))
            for number in range(ledger.sequence + 1, 10**9):
                story.tell(ledger, number)
                commit(ledger, number)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _until_committed(path: Path, number: int) -> None:
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        found = read(path)
        if found is not None and found.sequence >= number:
            return
        time.sleep(0.001)
    raise AssertionError(f"commit {number} never came")


@pytest.mark.timeout(600)
def test_a_killed_writer_leaves_one_whole_commit(path: Path, full: bool) -> None:
    chance = random.Random(9)
    story = Story()
    last = -1
    for _ in range(KILLS * 10 if full else KILLS):
        with _writer(path):
            _until_committed(path, last + 1)
            time.sleep(chance.random() * 0.02)
        ledger = opened(path)
        story.check(content(path))
        assert ledger.sequence > last
        assert kept(ledger.symbols) == story.until(ledger.sequence)
        assert ledger.position(RING) == 10 * ledger.sequence
        last = ledger.sequence
        ledger.close()
    assert last > KILLS


@pytest.mark.timeout(300)
def test_a_reader_sees_one_whole_commit_while_the_writer_is_at_work(path: Path, full: bool) -> None:
    story = Story()
    seen = set()
    with _writer(path):
        _until_committed(path, 0)
        for _ in range(3000 if full else 300):
            found = content(path)
            story.check(found)
            seen.add(found.sequence)
            assert len(read_fills(path, "BTC/USD", 3)) <= 3
    assert len(seen) > 20, "they ran at the same time"


def test_a_reader_may_come_while_the_ledger_is_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(sqlite3.Connection):
        """While it looks, the ledger is made."""

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            cursor = super().execute(statement, *values)
            if "user_version" in statement:
                opened(path).close()
            return cursor

    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with monkeypatch.context() as patch:
        patch.setattr(ledger_file, "look", lambda path: sqlite3.connect(path, factory=Interrupted))
        assert read(path) is None
    assert content(path).symbols == {}
