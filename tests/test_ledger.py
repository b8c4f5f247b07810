"""The ledger: what was committed is there again after any crash, all of it from one commit."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from feedmono import log
from feedmono.delivery import ids as ids_module
from feedmono.delivery import ledger as ledger_module
from feedmono.delivery.ids import Edge, Epoch, Hole, Ids, State
from feedmono.delivery.ledger import Content, Ledger, LedgerError, read, read_epochs, read_fills
from feedmono.delivery.seen import Seen
from feedmono.trade import BACKFILL, BUY, MAX_TRADE_ID, SNAPSHOT, STREAM, Trade

START_US = 1_700_000_000_000_000
NOW_US = 1_800_000_000_000_000
SECOND_US = 1_000_000
SYMBOLS = ("BTC/USD", "ETH/USD", "XRP/USD")
RING = 1_799_999_999_000_000
GARBAGE = 9 * 10**18

SEEDS = 60
KILLS = 25
FLIPS = 700
LENGTHS = 150
IDS = 1_000_000


class Heard:
    """Takes what is logged."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, object]]] = []

    def error(self, event: str, **fields: object) -> None:
        self.errors.append((event, fields))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "testex.ledger"


def trade(number: int, symbol: str = "BTC/USD", start_us: int = START_US) -> Trade:
    return Trade(symbol, number, f"{number}.50", "1.0", BUY, start_us + number % 10**9)


def opened(path: Path) -> Ledger:
    """One that nothing is wrong with."""
    heard = Heard()
    ledger = Ledger(path, log.Log(heard))
    assert heard.errors == []
    return ledger


def deliver(ledger: Ledger, *numbers: int, symbol: str = "BTC/USD", origin: int = STREAM) -> None:
    """Each in a frame of its own."""
    for number in numbers:
        ledger.deliver([trade(number, symbol)], origin, "gap", NOW_US, 10**6, number)


def commit(ledger: Ledger, number: int) -> set[str]:
    """The commit with that number: all it holds tells it."""
    return ledger.commit(RING, 10 * number, number, {"records": number})


def told(hole: Hole) -> tuple[object, ...]:
    """All that is kept of a hole."""
    return tuple(getattr(hole, name) for name in Hole.__slots__ if name != "due_s")


def kept(symbols: Mapping[str, Ids]) -> dict[str, dict[str, object]]:
    """All that is kept of each symbol."""
    passing = {"changes", "fills", "ended", "holes", "islands", "last", "anew"}
    names = [n for n in Ids.__slots__ if n not in passing and not n.startswith("_")]
    return {
        symbol: {
            **{name: getattr(ids, name) for name in names},
            "last": ids.last_edge,
            "islands": list(ids.islands),
            "anew": list(ids.anew.items()),
            "holes": [told(hole) for hole in ids.holes],
        }
        for symbol, ids in symbols.items()
    }


def content(path: Path) -> Content:
    found = read(path)
    assert found is not None
    return found


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


# --- what is there again


def test_a_new_ledger_knows_nothing(path: Path) -> None:
    assert read(path) is None
    ledger = opened(path)
    assert (ledger.symbols, ledger.sequence, ledger.mark) == ({}, -1, None)
    assert (ledger.position(RING), ledger.dirty) == (None, False)
    assert content(path) == Content({}, {}, -1, None, 0)
    ledger.close()
    assert opened(path).symbols == {}


def test_what_was_committed_is_there_again(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5, 6, 10)
    deliver(ledger, 70, symbol="ETH/USD")
    before_us = time.time_ns() // 1000
    assert commit(ledger, 3) == {"BTC/USD", "ETH/USD"}
    committed = kept(ledger.symbols)
    ledger.close()
    again = opened(path)
    assert kept(again.symbols) == committed
    assert (again.position(RING), again.sequence, again.mark) == (30, 3, {"records": 3})
    (hole,) = again.symbols["BTC/USD"].holes
    assert (hole.first_id, hole.last_id, hole.state) == (7, 9, State.OPEN)
    assert hole.before == Edge(6, START_US + 6, ids_module.mark_of(trade(6)))
    found = content(path)
    assert kept(found.symbols) == committed
    assert (found.rings, found.sequence, found.mark) == ({RING: 30}, 3, {"records": 3})
    assert before_us <= found.committed_us <= time.time_ns() // 1000


def test_what_was_not_committed_is_not_there(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    commit(ledger, 1)
    deliver(ledger, 6, 9)
    deliver(ledger, 5, symbol="ETH/USD")
    assert ledger.dirty
    ledger.close()
    again = opened(path)
    assert list(again.symbols) == ["BTC/USD"]
    assert again.symbols["BTC/USD"].last_id == 5
    assert again.sequence == 1


def test_a_commit_without_changes_moves_the_position(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5)
    commit(ledger, 1)
    assert not ledger.dirty
    assert commit(ledger, 2) == set()
    assert (ledger.position(RING), content(path).rings) == (20, {RING: 20})


def test_a_frame_is_taken_in_the_order_of_its_ids(path: Path) -> None:
    ledger = opened(path)
    frame = [trade(number) for number in (8, 6, 7, 5)]
    ledger.deliver(frame, STREAM, "gap", NOW_US, 10, 1)
    ids = ledger.symbols["BTC/USD"]
    assert (ids.first_id, ids.last_id, ids.holes, ids.found) == (5, 8, [], 0)


def test_the_sequence_is_never_lowered(path: Path) -> None:
    """The rest of a damaged ring is read after the ring that took its place was made."""
    ledger = opened(path)
    ledger.commit(RING, 5, 100, {})
    ledger.commit(-1, 7, 50, {})
    assert (ledger.sequence, content(path).sequence) == (100, 100)
    assert content(path).rings == {RING: 5}, "without a ring, no position"


def test_positions_are_kept_per_ring_until_one_is_kept(path: Path) -> None:
    ledger = opened(path)
    ledger.commit(RING, 5, 100, {})
    ledger.commit(RING + 1, 7, 200, {})
    ledger.commit(RING, 6, 101, {})
    assert content(path).rings == {RING: 6, RING + 1: 7}
    ledger.keep_ring(RING + 1)
    assert (ledger.position(RING), ledger.position(RING + 1)) == (None, 7)
    ledger.commit(RING + 1, 8, 201, {})
    assert content(path).rings == {RING + 1: 8}


def test_a_copy_goes_on_by_itself(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 5, 9)
    copy = ledger.copy()
    assert kept(copy) == kept(ledger.symbols)
    before = kept(ledger.symbols)
    copy["BTC/USD"].add(trade(7), STREAM, "gap", NOW_US, 10, 7)
    copy["BTC/USD"].add(trade(10), STREAM, "gap", NOW_US, 10, 7)
    assert kept(ledger.symbols) == before


def test_the_largest_numbers_fit(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 0, MAX_TRADE_ID - 5, MAX_TRADE_ID)
    ledger.commit(MAX_TRADE_ID, MAX_TRADE_ID, MAX_TRADE_ID, {"end": MAX_TRADE_ID})
    assert ledger.symbols["BTC/USD"].last_id == MAX_TRADE_ID
    assert kept(content(path).symbols) == kept(ledger.symbols)
    assert content(path).rings == {MAX_TRADE_ID: MAX_TRADE_ID}


def test_a_symbol_and_a_folder_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "50% of #1?" / "a b%20'.ledger"
    ledger = opened(path)
    for symbol in ("Ж/USD", "A'B", 'A"B', "%?_", "😀"):
        deliver(ledger, 5, 7, symbol=symbol)
    commit(ledger, 1)
    assert kept(content(path).symbols) == kept(ledger.symbols)
    assert read_fills(path) == []


class Run:
    """Random events, commits and crashes, beside `Ids` that are told the same."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.ledger = opened(path)
        self.ids: dict[str, Ids] = {}
        self.committed: dict[str, dict[str, object]] = {}
        self.number = -1
        self.now_us = NOW_US
        self.epochs = 0

    def step(self) -> None:
        operation = self.chance.choices(
            (self._deliver, self._miss, self._prove, self._give_up, self._commit, self._crash),
            (12, 1, 2, 1, 4, 1),
        )[0]
        operation()
        assert kept(self.ledger.symbols) == kept(self.ids)

    def _trade(self, symbol: str, newer_us: int) -> Trade:
        chance, ids = self.chance, self.ids.get(symbol)
        if ids is None:
            return trade(chance.randrange(100, 200), symbol)
        numbers = [ids.last_id + 1, ids.last_id + 1, ids.last_id + chance.randrange(1, 6)]
        numbers.append(max(0, chance.randrange(ids.first_id - 20, ids.last_id + 60)))
        if newer_us:
            numbers = [max(0, chance.randrange(ids.first_id - 20, ids.last_id + 1))]
        elif ids.holes:
            hole = chance.choice(ids.holes)
            numbers.append(chance.randint(hole.first_id, hole.last_id))
        start_us = ids.epoch_us - ids.epoch_us % SECOND_US
        return trade(chance.choice(numbers), symbol, start_us + newer_us)

    def _deliver(self) -> None:
        newer_us = self.chance.choice((0,) * 8 + (2 * SECOND_US,))
        symbols = (self.chance.choice(SYMBOLS),) if newer_us else SYMBOLS
        frame = [
            self._trade(self.chance.choice(symbols), newer_us)
            for _ in range(self.chance.randrange(1, 5))
        ]
        origin = self.chance.choice((STREAM, STREAM, SNAPSHOT, BACKFILL))
        max_trades, sequence = self.chance.choice((3, 100)), self.chance.randrange(10**6)
        self.ledger.deliver(frame, origin, "gap", self.now_us, max_trades, sequence)
        for told_trade in sorted(frame, key=lambda each: each.trade_id):
            ids = self.ids.get(told_trade.symbol)
            if ids is None:
                self.ids[told_trade.symbol] = ids = Ids(told_trade)
                ids.sequence = sequence
            else:
                ids.add(told_trade, origin, "gap", self.now_us, max_trades, sequence)
                self.epochs += len(ids.ended)
                ids.ended.clear()

    def _range(self) -> tuple[str, int, int]:
        symbol = self.chance.choice(SYMBOLS)
        ids = self.ids.get(symbol)
        if ids is None:
            return symbol, 0, 1000
        first = self.chance.randrange(ids.first_id, ids.last_id + 1)
        return symbol, first, first + self.chance.randrange(30)

    def _miss(self) -> None:
        symbol, number, time_us = self._range()
        self.ledger.miss(symbol, number, "dead", self.now_us, time_us)
        if symbol in self.ids:
            self.ids[symbol].miss(number, "dead", self.now_us, time_us)

    def _prove(self) -> None:
        symbol, first, last = self._range()
        self.now_us += self.chance.choice((0, SECOND_US))
        self.ledger.prove(symbol, first, last, self.now_us, SECOND_US)
        if symbol in self.ids:
            self.ids[symbol].prove(first, last, self.now_us, SECOND_US)

    def _give_up(self) -> None:
        symbol, first, last = self._range()
        self.ledger.give_up(symbol, first, last)
        if symbol in self.ids:
            self.ids[symbol].give_up(first, last)

    def _commit(self) -> None:
        self.number += 1
        commit(self.ledger, self.number)
        self.committed = kept(self.ids)
        found = content(self.path)
        assert kept(found.symbols) == self.committed
        self._check(found.rings.get(RING), found.sequence, found.mark)

    def _crash(self) -> None:
        self.ledger.close()
        self.ledger = opened(self.path)
        assert kept(self.ledger.symbols) == self.committed
        self._check(self.ledger.position(RING), self.ledger.sequence, self.ledger.mark)
        self.ids = self.ledger.copy()

    def _check(self, position: int | None, sequence: int, mark: Mapping[str, int] | None) -> None:
        if self.number < 0:
            assert (position, sequence, mark) == (None, -1, None)
        else:
            expected = (10 * self.number, self.number, {"records": self.number})
            assert (position, sequence, mark) == expected


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bounds", [(30, 5, 3, 10_000), (30, 5, 2, 4)], ids=["many", "few holes"])
def test_any_sequence_of_events_commits_and_crashes_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: tuple[int, ...], full: bool
) -> None:
    names = ("FAR", "NEAR", "MAX_ISLANDS", "MAX_HOLES")
    for name, bound in zip(names, bounds, strict=True):
        monkeypatch.setattr(ids_module, name, bound)
    epochs = 0
    for seed in range(SEEDS * 10 if full else SEEDS):
        run = Run(tmp_path / str(seed) / "x.ledger", seed)
        for step in range(60):
            try:
                run.step()
            except Exception as error:
                raise AssertionError(f"seed {seed}, step {step}: {error}") from error
        run.ledger.close()
        epochs += run.epochs
    assert epochs > SEEDS // 2


@pytest.mark.timeout(600)
def test_what_is_handed_on_leaves_the_ledger_with_what_was_seen(path: Path, full: bool) -> None:
    """The ledger is told of no repeat, and of all else later."""
    ledger = opened(path)
    epochs = 0
    for seed in range(SEEDS * 50 if full else SEEDS * 5):
        chance = random.Random(seed)
        ledger.symbols = {"BTC/USD": Ids(trade(100))}
        ids = ledger.symbols["BTC/USD"]
        ids.sequence = 0
        seen = Seen(ledger.copy(), 10)
        for sequence in range(1, 40):
            newer_us = chance.choice((0, 0, 0, 1, 2)) * SECOND_US
            start_us = ids.newest_us // SECOND_US * SECOND_US + newer_us
            numbers = chance.choices(range(90, 130), k=chance.randrange(1, 4))
            frame = [
                trade(chance.choice((number, ids.last_id + 1)), start_us=start_us)
                for number in numbers
            ]
            origin = chance.choice((STREAM, STREAM, SNAPSHOT, BACKFILL))
            seen.cause = ""
            admitted = seen.admit(frame, origin, sequence, NOW_US)
            if admitted:
                ledger.deliver(admitted, origin, seen.cause, NOW_US, 10, sequence)
            for dead in admitted:
                if chance.random() < 0.1:
                    seen.miss(dead, "dead", NOW_US)
                    ledger.miss(dead.symbol, dead.trade_id, "dead", NOW_US, dead.time_us)
            assert kept(ledger.symbols) == kept(seen.symbols), f"seed {seed}, frame {sequence}"
        epochs += ids.epoch
    assert epochs > SEEDS


def test_garbage_with_an_old_id_and_a_newer_time_makes_no_hole(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, *range(1000, 1100))
    ids = ledger.symbols["BTC/USD"]
    for number in range(1100, 1120):
        garbage = number - 60 * (number % 2) - 60 * (number % 3)
        late = trade(garbage - 50, start_us=START_US + 10 * SECOND_US)
        ledger.deliver([late], STREAM, "gap", NOW_US, 10, number)
        deliver(ledger, number)
    assert (ids.epoch, ids.first_id, ids.last_id, ids.holes) == (0, 1000, 1119, [])
    assert ids.islands


def test_an_epoch_that_was_not_confirmed_before_a_crash_begins_as_it_did(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, *range(1000, 1100))
    late = [trade(number, start_us=START_US + 10 * SECOND_US) for number in range(1050, 1054)]
    ledger.deliver(late[:1], STREAM, "gap", NOW_US, 10, 1)
    commit(ledger, 1)
    ledger.close()
    ledger = opened(path)
    for each in late[1:]:
        ledger.deliver([each], STREAM, "gap", NOW_US, 10, 2)
    commit(ledger, 2)
    ids = content(path).symbols["BTC/USD"]
    assert (ids.epoch, ids.first_id, ids.last_id, ids.holes) == (1, 1050, 1053, [])
    assert read_epochs(path, "BTC/USD") == [Epoch(0, START_US + 1000, 1000, 1099, 0)]


# --- kills


class Story:
    """What is delivered before each commit: a hole each, and what fills an older one."""

    def __init__(self) -> None:
        self.symbols: dict[str, Ids] = {}
        self.number = -1

    def frames(self, number: int) -> list[tuple[list[Trade], int]]:
        """Of that commit, with their origins."""
        frames = [([trade(1000 + 3 * number, symbol)], STREAM) for symbol in SYMBOLS]
        if number > 20:
            first = 1000 + 3 * (number - 20)
            frames += [([trade(first + n, symbol) for n in (1, 2)], BACKFILL) for symbol in SYMBOLS]
        if number == 20:
            frames.append(([trade(GARBAGE)], STREAM))
        return frames

    def tell(self, ledger: Ledger, number: int) -> None:
        for frame, origin in self.frames(number):
            ledger.deliver(frame, origin, "gap", NOW_US + number, 100, number)
        ledger.prove("ETH/USD", 0, 1000 + 3 * (number - 5), NOW_US + number, 3)

    def until(self, number: int) -> dict[str, dict[str, object]]:
        """What is kept with that commit; not asked for an older one than before."""
        assert number >= self.number
        while self.number < number:
            self.number += 1
            for frame, origin in self.frames(self.number):
                for each in frame:
                    self._add(each, origin)
            last = 1000 + 3 * (self.number - 5)
            self.symbols["ETH/USD"].prove(0, last, NOW_US + self.number, 3)
        return kept(self.symbols)

    def _add(self, each: Trade, origin: int) -> None:
        ids = self.symbols.get(each.symbol)
        if ids is None:
            self.symbols[each.symbol] = ids = Ids(each)
            ids.sequence = self.number
        else:
            ids.add(each, origin, "gap", NOW_US + self.number, 100, self.number)

    def check(self, found: Content) -> None:
        """All of it is from one commit."""
        number = found.sequence
        assert number >= 0
        assert found.rings == {RING: 10 * number}
        assert found.mark == {"records": number}
        assert kept(found.symbols) == self.until(number)


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
        patch.setattr(
            ledger_module, "_look", lambda path: sqlite3.connect(path, factory=Interrupted)
        )
        assert read(path) is None
    assert content(path).symbols == {}


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
    monkeypatch.setattr(ledger_module, "_BUSY_S", 0.05)
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


# --- damage


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
        assert fields["reason"]
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
    monkeypatch.setattr(ledger_module, "_MAX_ASIDE", 4)
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


# --- history


def test_fills_are_remembered_with_neighbours_as_one(path: Path) -> None:
    ledger = opened(path)
    deliver(ledger, 1, 100, 200)
    deliver(ledger, 1, 5, symbol="ETH/USD")
    commit(ledger, 0)
    deliver(ledger, *range(30, 60), *range(60, 30, -1), origin=BACKFILL)
    deliver(ledger, 70, 71, 150)
    deliver(ledger, 2, 3, 4, symbol="ETH/USD")
    commit(ledger, 1)
    deliver(ledger, 72)
    commit(ledger, 2)
    rows = [(f.symbol, f.first_id, f.last_id, f.origin) for f in read_fills(path)]
    assert rows[0] == ("BTC/USD", 72, 72, "STREAM"), "the newest first"
    assert sorted(rows[1:]) == [
        ("BTC/USD", 30, 60, "BACKFILL"),
        ("BTC/USD", 70, 71, "STREAM"),
        ("BTC/USD", 150, 150, "STREAM"),
        ("ETH/USD", 2, 4, "STREAM"),
    ]
    assert [f.first_id for f in read_fills(path, "ETH/USD")] == [2]
    assert [f.first_id for f in read_fills(path, count=1)] == [72]
    assert read_fills(path, "XRP/USD") == []
    fill = read_fills(path)[0]
    assert (fill.cause, fill.opened_us) == ("gap", NOW_US)
    assert abs(fill.filled_us - time.time_ns() // 1000) < 60 * SECOND_US


def test_the_history_of_fills_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_FILLS", 30)
    monkeypatch.setattr(ledger_module, "_TRIM_EVERY", 10)
    ledger = opened(path)
    deliver(ledger, *range(0, 1000, 2))
    for number in range(100):
        deliver(ledger, 4 * number + 1)
        commit(ledger, number)
        assert len(read_fills(path, count=1000)) <= 40
    newest = [f.first_id for f in read_fills(path, count=30)]
    assert newest == [4 * number + 1 for number in range(99, 69, -1)]


def test_the_history_is_bounded_over_many_short_lives(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_FILLS", 30)
    ledger = opened(path)
    deliver(ledger, *range(0, 1000, 2))
    commit(ledger, 0)
    ledger.close()
    for number in range(100):
        ledger = opened(path)
        deliver(ledger, 4 * number + 1)
        commit(ledger, number)
        ledger.close()
    assert len(read_fills(path, count=1000)) <= 31


def test_epochs_are_remembered_and_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_EPOCHS", 5)
    monkeypatch.setattr(ledger_module, "_TRIM_EVERY", 1)
    ledger = opened(path)
    deliver(ledger, 1, symbol="ETH/USD")
    for number in range(10):
        start_us = START_US + 10 * SECOND_US * number
        for each in (1, 5):
            ledger.deliver([trade(each, start_us=start_us)], STREAM, "gap", NOW_US, 10, each)
        commit(ledger, number)
    assert read_epochs(path, "BTC/USD") == [
        Epoch(number, START_US + 10 * SECOND_US * number + 1, 1, 5, 3) for number in range(4, 9)
    ]
    assert read_epochs(path, "ETH/USD") == []
    ids = content(path).symbols["BTC/USD"]
    assert (ids.epoch, ids.first_id, ids.last_id, ids.found) == (9, 1, 5, 10)


# --- size


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _disk_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.iterdir())


class Week:
    """Trades of five symbols; now and then some are missing, and most of those come later."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.chance = random.Random(11)
        self.symbols = [f"SYM{n}/USD" for n in range(5)]
        self.next_ids = dict.fromkeys(self.symbols, 1000)
        self.settled = dict.fromkeys(self.symbols, 0)
        self.delivered = 0

    def go_on(self, count: int) -> None:
        """So many ids, then something becomes of the newest holes."""
        deliver, chance = self.ledger.deliver, self.chance
        done = self.delivered + count
        while self.delivered < done:
            symbol = chance.choice(self.symbols)
            number = self.next_ids[symbol]
            run = min(int(chance.expovariate(1 / 200)) + 1, done - self.delivered)
            for each in range(number, number + run):
                told_trade = Trade(symbol, each, "2688.30", "0.1", BUY, START_US + each)
                deliver((told_trade,), STREAM, "gap", NOW_US, 10**5, each)
            self.next_ids[symbol] = number + run + min(int(chance.paretovariate(1)), 1000)
            self.delivered += run
        for symbol in self.symbols:
            self._settle(symbol)

    def _settle(self, symbol: str) -> None:
        ids = self.ledger.symbols[symbol]
        for hole in ids.holes_within(self.settled[symbol], ids.last_id):
            first, last = hole.first_id, hole.last_id
            fate = self.chance.random()
            if fate < 0.8:
                page = [
                    Trade(symbol, each, "1", "1", BUY, START_US + each)
                    for each in range(first, last + 1)
                ]
                self.ledger.deliver(page, BACKFILL, "gap", NOW_US, 10**5, 0)
            elif fate < 0.85:
                late = Trade(symbol, last, "1", "1", BUY, START_US + last)
                self.ledger.deliver([late], STREAM, "gap", NOW_US, 10**5, 0)
            elif fate < 0.9:
                for now_us in (NOW_US, NOW_US + SECOND_US):
                    self.ledger.prove(symbol, first, last, now_us, SECOND_US)
            elif fate < 0.95:
                self.ledger.give_up(symbol, first, last)
        self.settled[symbol] = ids.last_id


@pytest.mark.timeout(600)
def test_a_week_of_trades_leaves_a_small_ledger(path: Path, full: bool) -> None:
    ledger = opened(path)
    week = Week(ledger)
    begun_s = time.monotonic()
    total = IDS * 10 if full else IDS
    step = 20_000
    resident = 0
    commits_s = []
    for number in range(total // step):
        week.go_on(step)
        commit_s = time.monotonic()
        commit(ledger, number)
        commits_s.append(time.monotonic() - commit_s)
        if number == 10:
            resident = _resident_bytes()
    took_s = time.monotonic() - begun_s
    grown = _resident_bytes() - resident
    size = _disk_bytes(path)
    read_s = time.monotonic()
    found = content(path)
    read_s = time.monotonic() - read_s
    assert kept(found.symbols) == kept(ledger.symbols)
    holes = sum(len(ids.holes) for ids in found.symbols.values())
    ledger.close()
    closed = _disk_bytes(path)
    print(
        f"\n{total:,} ids in {took_s:.1f} s, {holes:,} holes left: {size / 1e6:.1f} MB, closed "
        f"{closed / 1e6:.1f} MB; read in {read_s * 1e3:.0f} ms; commits up to "
        f"{max(commits_s) * 1e3:.0f} ms; memory grew by {grown / 1e6:.1f} MB",
        file=sys.stderr,
    )
    assert {hole.state for ids in found.symbols.values() for hole in ids.holes} == set(State)
    assert sum(ids.backfilled for ids in found.symbols.values()) > total // 1000
    assert size < 20_000_000
    assert read_s < 1
    assert grown < 50_000_000


def test_as_many_holes_as_there_can_be_leave_a_small_ledger(path: Path) -> None:
    ledger = opened(path)
    for symbol in (f"SYM{n}/USD" for n in range(5)):
        deliver(ledger, *range(0, 3 * ids_module.MAX_HOLES, 2), symbol=symbol)
    begun_s = time.monotonic()
    commit(ledger, 0)
    commit_s = time.monotonic() - begun_s
    begun_s = time.monotonic()
    found = content(path)
    read_s = time.monotonic() - begun_s
    assert sum(len(ids.holes) for ids in found.symbols.values()) == 5 * ids_module.MAX_HOLES
    size = _disk_bytes(path)
    ledger.close()
    begun_s = time.monotonic()
    assert kept(opened(path).symbols) == kept(found.symbols)
    open_s = time.monotonic() - begun_s
    print(
        f"\n{5 * ids_module.MAX_HOLES:,} holes: {size / 1e6:.1f} MB; commit {commit_s * 1e3:.0f} "
        f"ms, read {read_s * 1e3:.0f} ms, open and compare {open_s * 1e3:.0f} ms",
        file=sys.stderr,
    )
    assert size < 20_000_000
