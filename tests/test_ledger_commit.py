"""A commit that fails, and files that somebody else changes: the next commit writes all of it."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from ledger_rig import (
    GARBAGE,
    NOW_US,
    RING,
    START_US,
    SYMBOLS,
    Heard,
    commit,
    content,
    deliver,
    kept,
    ledger_path,
    opened,
    trade,
)

from feedmono import log
from feedmono.delivery import ledger_file
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.ledger_file import LedgerError, read, read_epochs, read_fills
from feedmono.trade import BACKFILL, STREAM

__all__ = ["ledger_path"]


# --- commits that fail


class Failing:
    """A connection that fails at one of its statements."""

    def __init__(self, real: sqlite3.Connection, at: int) -> None:
        self._real = real
        self._left = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _count(self, statement: str) -> None:
        if statement != "ROLLBACK":
            self._left -= 1
            if self._left == -1:
                raise sqlite3.OperationalError("disk I/O error")

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        self._count(statement)
        return self._real.execute(statement, *values)

    def executemany(self, statement: str, values: Any) -> sqlite3.Cursor:
        self._count(statement)
        return self._real.executemany(statement, values)


def _eventful(ledger: Ledger) -> None:
    """Something of everything that a commit writes."""
    deliver(ledger, 5, 9, 12, 14, 20)
    deliver(ledger, 5, 9, symbol="ETH/USD")
    commit(ledger, 0)
    deliver(ledger, 10, 13, origin=BACKFILL)
    deliver(ledger, 21, 25, GARBAGE)
    ledger.miss("BTC/USD", 21, "dead", NOW_US)
    for _ in range(2):
        ledger.prove("BTC/USD", 15, 17, NOW_US, 0)
    ledger.give_up("BTC/USD", 18, 18)
    anew = [trade(number, "ETH/USD", START_US + 10**9) for number in (5, 6)]
    ledger.deliver(anew, STREAM, "", NOW_US, 10, 0)
    deliver(ledger, 1, 3, symbol="XRP/USD")


def test_a_commit_that_fails_anywhere_loses_nothing(tmp_path: Path) -> None:
    for at in range(100):
        path = tmp_path / f"{at}.ledger"
        ledger = opened(path)
        _eventful(ledger)
        before, committed = kept(ledger.symbols), kept(content(path).symbols)
        real = ledger._connection
        ledger._connection = cast(sqlite3.Connection, Failing(real, at))
        failed = ""
        try:
            commit(ledger, 1)
        except LedgerError as error:
            failed = str(error)
        if not failed:
            assert at > 20, "every statement failed once"
            break
        assert failed == f"{path} can't be written: disk I/O error"
        assert kept(ledger.symbols) == before
        assert (ledger.sequence, ledger.mark, ledger.dirty) == (0, {"records": 0}, True)
        assert ledger.position(RING) == 0
        found = content(path)
        assert (kept(found.symbols), found.sequence, found.rings) == (committed, 0, {RING: 0})
        ledger._connection = real
        deliver(ledger, 26)
        assert commit(ledger, 1) == set(SYMBOLS)
        found = content(path)
        assert (kept(found.symbols), found.sequence) == (kept(ledger.symbols), 1)
        fills = sorted(f[1:4] for f in read_fills(path))
        assert fills == [(10, 10, "gap"), (13, 13, "gap")], "once, not twice"
        assert len(read_epochs(path, "ETH/USD")) == 1
        ledger.close()
    else:
        raise AssertionError("it never came to its end")


def test_a_full_disk_loses_nothing(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    commit(ledger, 0)
    committed = kept(content(path).symbols)
    ledger._connection.execute("PRAGMA max_page_count = 1")
    deliver(ledger, *range(7, 2000, 2))
    for _ in range(3):
        with pytest.raises(LedgerError, match="full"):
            commit(ledger, 1)
        assert kept(content(path).symbols) == committed
    deliver(ledger, *range(2001, 3000, 2))
    ledger._connection.execute("PRAGMA max_page_count = 1000000")
    commit(ledger, 1)
    assert kept(content(path).symbols) == kept(ledger.symbols)
    assert len(content(path).symbols["BTC/USD"].holes) == 1497


def test_a_write_that_the_system_refuses_loses_nothing(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    commit(ledger, 0)
    committed = kept(content(path).symbols)
    deliver(ledger, *range(7, 2000, 2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(LedgerError):
            commit(ledger, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept(content(path).symbols) == committed
    commit(ledger, 1)
    assert kept(content(path).symbols) == kept(ledger.symbols)
    ledger.close()
    assert kept(opened(path).symbols) == kept(ledger.symbols)


def test_a_ledger_that_became_read_only_loses_nothing(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    ledger._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(LedgerError, match="readonly"):
        commit(ledger, 0)
    ledger._connection.execute("PRAGMA query_only = 0")
    commit(ledger, 0)
    assert kept(content(path).symbols) == kept(ledger.symbols)


def test_another_writer_makes_it_wait_then_fail(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "_BUSY_S", 0.05)
    ledger = opened(path)
    deliver(ledger, 5)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            commit(ledger, 0)
        other.execute("ROLLBACK")
    commit(ledger, 0)
    assert kept(content(path).symbols) == kept(ledger.symbols)


def test_where_no_file_can_be_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.ledger").mkdir()
    for path in (tmp_path / "file" / "x.ledger", tmp_path / "folder.ledger"):
        with pytest.raises(LedgerError):
            Ledger(path, log.Log(Heard()))
    with pytest.raises(LedgerError):
        read(tmp_path / "folder.ledger")
    with pytest.raises(LedgerError):
        read_fills(tmp_path / "none.ledger")
    with pytest.raises(LedgerError):
        read_epochs(tmp_path / "none.ledger", "BTC/USD")


def test_a_ledger_that_can_be_read_only_is_not_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself opens it without a word."""
    ledger = opened(path)
    deliver(ledger, 5)
    commit(ledger, 0)
    committed = kept(ledger.symbols)
    ledger.close()
    connect = sqlite3.connect

    def read_only(path: Path, **how: Any) -> sqlite3.Connection:
        return cast(sqlite3.Connection, connect(f"file:{path}?mode=ro", uri=True, **how))

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", read_only)
        with pytest.raises(LedgerError, match=r"can't be opened: .*readonly"):
            Ledger(path, log.Log(Heard()))
    assert kept(opened(path).symbols) == committed


# --- files that somebody else changes


def _remove(path: Path) -> None:
    path.unlink()


def _remove_all(path: Path) -> None:
    shutil.rmtree(path.parent)


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def _cut(path: Path) -> None:
    os.truncate(path, 0)


def _cut_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _overwrite(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size + 5000))


def _remove_wal(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def _cut_wal(path: Path) -> None:
    os.truncate(path.with_name(f"{path.name}-wal"), 0)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    "change",
    [_remove, _remove_all, _replace, _cut, _cut_half, _overwrite, _remove_wal, _cut_wal],
)
def test_a_ledger_that_somebody_damaged_is_written_anew(
    path: Path, change: Callable[[Path], None], checkpointed: bool
) -> None:
    heard = Heard()
    ledger = Ledger(path, log.Log(heard))
    _eventful(ledger)
    commit(ledger, 1)
    ledger.commit(RING + 1, 7, 2, {"records": 2})
    if checkpointed:
        ledger._connection.execute("PRAGMA wal_checkpoint(FULL)")
        deliver(ledger, 26)
        commit(ledger, 3)
    change(path)
    deliver(ledger, 27, 30)
    ledger.commit(-1, 0, 4, {"records": 4})
    # As long as all of it is in the log of writes, that heals the file.
    healed = change is _overwrite and not checkpointed
    events = [] if healed else ["the ledger is written anew"]
    assert [event for event, _ in heard.errors] == events
    for _ in range(2):
        found = content(path)
        assert kept(found.symbols) == kept(ledger.symbols)
        assert found.rings == {RING: 30 if checkpointed else 10, RING + 1: 7}
        assert (found.sequence, found.mark) == (4, {"records": 4})
        deliver(ledger, 31)
        commit(ledger, 4)
        assert kept(content(path).symbols) == kept(ledger.symbols)
        ledger.close()
        ledger = opened(path)
        ledger.commit(RING, 30 if checkpointed else 10, 4, {"records": 4})
    assert len(heard.errors) == len(events)


def test_what_changes_nothing_in_a_ledger_does_not_matter(path: Path) -> None:
    ledger = opened(path)
    _eventful(ledger)
    commit(ledger, 1)
    os.utime(path, ns=(1, 1))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    deliver(ledger, 30)
    commit(ledger, 2)
    assert read_fills(path), "it is the same"
    assert kept(content(path).symbols) == kept(ledger.symbols)


def test_a_ledger_that_is_found_damaged_by_a_commit_is_written_anew_by_the_next(
    path: Path,
) -> None:
    heard = Heard()
    ledger = Ledger(path, log.Log(heard))
    _eventful(ledger)

    class Malformed(Failing):
        def _count(self, statement: str) -> None:
            if statement != "ROLLBACK":
                raise sqlite3.DatabaseError("database disk image is malformed")

    ledger._connection = cast(sqlite3.Connection, Malformed(ledger._connection, 0))
    with pytest.raises(LedgerError, match="malformed"):
        commit(ledger, 1)
    commit(ledger, 1)
    found = content(path)
    assert (kept(found.symbols), found.sequence) == (kept(ledger.symbols), 1)
    assert [event for event, _ in heard.errors] == ["the ledger is written anew"]


def test_a_ledger_that_can_not_be_written_anew_is_tried_again(path: Path) -> None:
    heard = Heard()
    ledger = Ledger(path, log.Log(heard))
    _eventful(ledger)
    shutil.rmtree(path.parent)
    path.parent.write_text("no folder")
    for _ in range(3):
        with pytest.raises(LedgerError):
            commit(ledger, 1)
    path.parent.unlink()
    commit(ledger, 1)
    found = content(path)
    assert (kept(found.symbols), found.sequence) == (kept(ledger.symbols), 1)
    assert len(heard.errors) == 1
