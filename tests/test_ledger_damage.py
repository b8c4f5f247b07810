"""A damaged ledger: what can't be read is set aside and told, and a new one begun."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from ledger_rig import Heard, Story, commit, content, deliver, kept, ledger_path, opened

from feedmono import log
from feedmono.delivery import ledger_file
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.ledger_file import Content, LedgerError, read

__all__ = ["ledger_path"]

FLIPS = 700
LENGTHS = 150


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def _base(path: Path) -> Story:
    """A ledger with something of everything, closed."""
    ledger, story = opened(path), Story()
    for number in range(40):
        story.tell(ledger, number)
        commit(ledger, number)
    ledger.close()
    return story


def _survives(path: Path, damaged: bytes, wal: bytes | None = None) -> tuple[Ledger, bool]:
    """Opens it and writes to it; whether it was set aside."""
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    path.write_bytes(damaged)
    if wal is not None:
        path.with_name(path.name + "-wal").write_bytes(wal)
    heard = Heard()
    begun_s = time.monotonic()
    with contextlib.suppress(LedgerError):
        read(path)
    ledger = Ledger(path, log.Log(heard))
    aside = path.with_name(path.name + ".damaged-1")
    assert bool(heard.errors) == aside.exists()
    for event, fields in heard.errors:
        assert event == "set a ledger aside that can't be read"
        assert fields["path"] == str(aside)
        assert fields["error"]
        assert (ledger.symbols, ledger.sequence, ledger.mark) == ({}, -1, None)
    found = Content(dict(ledger.symbols), {}, ledger.sequence, ledger.mark, 0)
    deliver(ledger, 5, 7, symbol="NEW")
    commit(ledger, ledger.sequence + 1)
    assert kept(content(path).symbols) == kept(ledger.symbols)
    assert time.monotonic() - begun_s < 20
    ledger.symbols = dict(found.symbols)
    return ledger, aside.exists()


def test_garbage_is_set_aside_and_a_new_ledger_begun(path: Path) -> None:
    chance = random.Random(4)
    for size in (2, 15, 16, 99, 100, 511, 512, 4096, 10_000, *chance.sample(range(20_000), 30)):
        garbage = chance.randbytes(size)
        ledger, aside = _survives(path, garbage)
        assert aside
        assert files(path)["testex.ledger.damaged-1"] == garbage
        ledger.close()


def test_a_ledger_cut_short_anywhere_is_set_aside(path: Path, full: bool) -> None:
    _base(path)
    data = path.read_bytes()
    chance = random.Random(5)
    sizes = chance.sample(range(2, len(data)), LENGTHS * 10 if full else LENGTHS)
    for size in (2, 3, 99, 100, 4095, 4096, 4097, len(data) - 1, *sizes):
        ledger, aside = _survives(path, data[:size])
        # Of the last page SQLite takes what is not there for zeros.
        assert aside or size > len(data) - 4096
        assert not aside or files(path)["testex.ledger.damaged-1"] == data[:size]
        ledger.close()


def test_an_empty_file_is_a_new_ledger(path: Path) -> None:
    """Who is killed while making one leaves that."""
    for nearly in (b"", b"x"):
        ledger, aside = _survives(path, nearly)
        assert not aside
        ledger.close()


@pytest.mark.timeout(600)
def test_flipped_bits_are_found_or_harmless(path: Path, full: bool) -> None:
    """A number that became another can't be told from a right one; but never does it fail."""
    _base(path)
    data = path.read_bytes()
    chance = random.Random(6)
    flips = FLIPS * 10 if full else FLIPS
    places = [chance.randrange(100) for _ in range(flips // 4)]
    places += [chance.randrange(len(data)) for _ in range(flips)]
    set_aside = 0
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        try:
            ledger, aside = _survives(path, bytes(damaged))
        except Exception as error:
            raise AssertionError(f"byte {place} is {damaged[place]}: {error}") from error
        set_aside += aside
        ledger.close()
    assert set_aside > len(places) // 20


def test_overwritten_pages_are_found_or_harmless(path: Path) -> None:
    _base(path)
    data = path.read_bytes()
    chance = random.Random(7)
    for begin in range(0, len(data), 4096):
        for fill in (bytes(4096), b"\xff" * 4096, chance.randbytes(4096)):
            damaged = data[:begin] + fill + data[begin + 4096 :]
            ledger, _ = _survives(path, damaged)
            ledger.close()


def test_a_damaged_log_of_writes_gives_an_older_commit(path: Path, full: bool) -> None:
    ledger, story = opened(path), Story()
    states = {-1: kept({})}
    for number in range(40):
        story.tell(ledger, number)
        commit(ledger, number)
        states[number] = kept(ledger.symbols)
    data, wal = path.read_bytes(), path.with_name(path.name + "-wal").read_bytes()
    ledger.close()
    chance = random.Random(8)
    sequences = set()
    for _ in range(LENGTHS * 10 if full else LENGTHS):
        damaged = bytearray(wal)
        place = chance.randrange(len(wal))
        if chance.random() < 0.5:
            damaged[place] ^= 1 << chance.randrange(8)
        else:
            del damaged[place:]
        again, aside = _survives(path, data, bytes(damaged))
        assert not aside
        sequences.add(again.sequence - 1)
        assert kept(again.symbols) == states[again.sequence - 1]
        again.close()
    assert len(sequences) > 20


def _altered(path: Path, *statements: str) -> bytes:
    _base(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path.read_bytes()


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 0",
        "PRAGMA user_version = 2",
        "DROP TABLE rings",
        "ALTER TABLE symbols RENAME COLUMN epoch TO era",
        "ALTER TABLE holes ADD COLUMN more INTEGER",
        "UPDATE symbols SET last_id = NULL",
        "UPDATE symbols SET last_id = 'x'",
        "UPDATE symbols SET last_id = first_id - 1",
        "UPDATE symbols SET epoch = 1.5",
        "UPDATE symbols SET islands = '[1'",
        "UPDATE symbols SET islands = '7'",
        "UPDATE symbols SET islands = '[\"x\"]'",
        "UPDATE symbols SET islands = '[[]]'",
        "UPDATE symbols SET islands = x'ff'",
        "UPDATE symbols SET anew = '[1'",
        "UPDATE symbols SET anew = '[[1, 2]]'",
        "UPDATE symbols SET anew = '[[1, 2, null]]'",
        "UPDATE symbols SET anew_last_id = NULL",
        "UPDATE symbols SET symbol = x'41' WHERE symbol = 'BTC/USD'",
        "UPDATE symbols SET symbol = CAST(x'ff41' AS TEXT) WHERE symbol = 'BTC/USD'",
        "UPDATE holes SET last_id = first_id - 1",
        "UPDATE holes SET last_id = last_id + 10",
        "UPDATE holes SET last_id = 1000000",
        "UPDATE holes SET state = 9",
        "UPDATE holes SET before_us = NULL",
        "UPDATE holes SET before_us = 'x'",
        "UPDATE holes SET tries = NULL",
        "UPDATE rings SET position = 'x'",
        "UPDATE meta SET value = NULL",
        "UPDATE meta SET value = 'x'",
        "UPDATE meta SET value = '[1, 2]' WHERE key = 'mark'",
        "UPDATE meta SET value = '{\"records\": \"x\"}' WHERE key = 'mark'",
        "UPDATE meta SET value = x'ff' WHERE key = 'mark'",
    ],
)
def test_what_this_code_can_not_have_written_is_set_aside(path: Path, statement: str) -> None:
    altered = _altered(path, statement)
    with pytest.raises(LedgerError):
        read(path)
    ledger, aside = _survives(path, altered)
    assert aside
    ledger.close()


def test_another_program_s_database_is_set_aside(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
    ledger, aside = _survives(path, path.read_bytes())
    assert aside
    ledger.close()


def test_each_damaged_ledger_has_a_name_of_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "_MAX_ASIDE", 4)
    path.parent.mkdir()
    for number in range(1, 4):
        path.write_bytes(b"damaged %d" % number)
        Ledger(path, log.Log(Heard())).close()
        assert files(path)[f"{path.name}.damaged-{number}"] == b"damaged %d" % number
    path.write_bytes(b"damaged 4")
    with pytest.raises(LedgerError, match="too many damaged ledgers"):
        Ledger(path, log.Log(Heard()))
    assert path.read_bytes() == b"damaged 4"


def test_a_damaged_ledger_that_can_not_be_moved_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"damaged")

    def refuse(*_: object) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(LedgerError, match=r"can't be set aside: .*Permission denied"):
        Ledger(path, log.Log(Heard()))
    assert path.read_bytes() == b"damaged"
