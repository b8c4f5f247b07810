"""The ledger: what was delivered of each symbol, what is missing, and how far the ring is done.

One SQLite file per exchange in ``state_dir``, written by the serializer alone, readable by anyone
at any time (WAL). The order of truth is: the sink acknowledges, then one transaction here
(``synchronous=FULL``), then the ring's cursor. The transaction holds the ids, the position in the
ring and the sink's mark together, so a crash between any two steps leaves neither a lie nor a
hole.

It stays small however long it runs: a row per symbol and a row per hole. Of holes that were
filled the last `feedmono.delivery.ledger_file.MAX_FILLS` are kept as history.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from feedmono.delivery import ledger_file
from feedmono.delivery.ids import Fill, Ids
from feedmono.delivery.ledger_file import LedgerError
from feedmono.log import Log
from feedmono.trade import ORIGINS, Trade

MAX_PLACES = 16
"""Of how many places the sink's mark is remembered, those used last."""
_TRIM_EVERY = 500


class _File(NamedTuple):
    """What tells whether a file is still the same."""

    number: tuple[int, int] | None
    """Of its device and its own; None: there is none."""
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> _File:
        try:
            there = path.stat()
        except OSError:
            return cls(None, 0, 0)
        return cls((there.st_dev, there.st_ino), there.st_size, there.st_mtime_ns)


class _Files(NamedTuple):
    """Those of a ledger."""

    ledger: _File
    wal: _File


class Ledger:
    """The open ledger of one exchange. Used by one thread."""

    def __init__(self, path: Path, log: Log) -> None:
        """Opens it, or makes a new one. One that is damaged or of another version is set aside.

        :raises LedgerError: it can't be opened now (no room, no right, busy).
        """
        self._path = path
        self._log = log
        self._connection, content = ledger_file.open_file(path, log)
        self._files: _Files | None = self._look_at_files()
        """As this one left them; None: they are to be written anew."""
        self._committed_us = content.committed_us
        self.symbols = dict(content.symbols)
        """What is delivered, by symbol: committed, and what `deliver` and its kin have added."""
        self.sequence = content.sequence
        """See `Content.sequence`."""
        self.mark = content.mark
        """See `Content.mark`."""
        self._place = content.place
        self._elsewhere = content.elsewhere
        self._rings = dict(content.rings)
        self.changed: set[str] = set()
        """Symbols with changes since the last commit."""
        self._inserted = _TRIM_EVERY

    def position(self, ring: int) -> int | None:
        """How far the ring with that first sequence is done; None if it is not known."""
        return self._rings.get(ring)

    def mark_of(self, place: str) -> Mapping[str, int] | None:
        """The mark that a sink committed last at that place; None if it is not known."""
        return self.mark if place == self._place else self._elsewhere.get(place)

    def marks_besides(self, place: str) -> list[Mapping[str, int]]:
        """The marks of all other places, the one used last at the end."""
        others = [mark for key, mark in self._elsewhere.items() if key != place]
        return others if place == self._place or self.mark is None else [*others, self.mark]

    def _marks_left_behind(self, place: str) -> Mapping[str, Mapping[str, int]]:
        """What `Content.elsewhere` is once *place* is used."""
        marks = dict(self._elsewhere)
        if self._place and self.mark is not None:
            marks[self._place] = self.mark
        marks.pop(place, None)
        return dict([*marks.items()][1 - MAX_PLACES :])

    def copy(self) -> dict[str, Ids]:
        """What is delivered, to go on from."""
        return {symbol: ids.copy() for symbol, ids in self.symbols.items()}

    @property
    def dirty(self) -> bool:
        """Whether something changed since the last commit."""
        return bool(self.changed)

    # --- what was delivered, in memory until the next commit

    def deliver(
        self,
        trades: Sequence[Trade],
        origin: int,
        cause: str,
        now_us: int,
        max_trades: int,
        sequence: int,
    ) -> None:
        """The sink has acknowledged these trades of one frame. Arguments as of `Ids.add`."""
        symbols, changed = self.symbols, self.changed
        for trade in sorted(trades, key=_trade_id) if len(trades) > 1 else trades:
            symbol = trade.symbol
            ids = symbols.get(symbol)
            changed.add(symbol)
            if ids is None:
                symbols[symbol] = ids = Ids(trade)
                ids.changes = None
                ids.sequence = sequence
            elif ids.is_next(trade):
                ids.follow(trade, sequence)
            else:
                ids.add(trade, origin, cause, now_us, max_trades, sequence)

    def miss(self, symbol: str, trade_id: int, cause: str, now_us: int, time_us: int = 0) -> None:
        """A trade's delivery has failed for good. Arguments as of `Ids.miss`."""
        if (ids := self.symbols.get(symbol)) is not None:
            ids.miss(trade_id, cause, now_us, time_us)
            self.changed.add(symbol)

    def prove(
        self, symbol: str, first_id: int, last_id: int, now_us: int, confirm_after_us: int
    ) -> None:
        """As `Ids.prove`."""
        if (ids := self.symbols.get(symbol)) is not None:
            ids.prove(first_id, last_id, now_us, confirm_after_us)
            self.changed.add(symbol)

    def tried(self, symbol: str, first_id: int, last_id: int, tries: int) -> None:
        """As `Ids.tried`."""
        if (ids := self.symbols.get(symbol)) is not None:
            ids.tried(first_id, last_id, tries)
            self.changed.add(symbol)

    def give_up(self, symbol: str, first_id: int, last_id: int) -> None:
        """As `Ids.give_up`."""
        if (ids := self.symbols.get(symbol)) is not None:
            ids.give_up(first_id, last_id)
            self.changed.add(symbol)

    # --- the transaction

    def commit(
        self, ring: int, position: int, sequence: int, mark: Mapping[str, int], place: str = ""
    ) -> set[str]:
        """Writes everything that changed, the ring's position and the sink's mark, for good. A file
        that was removed or damaged meanwhile is written anew from memory, but for its history. The
        marks of the `MAX_PLACES` places used last stay.

        :param ring: the first sequence of the ring that *position* belongs to; -1 for none (the
            rest of a damaged one).
        :param place: what the mark belongs to.
        :returns: the symbols that changed.
        :raises LedgerError: nothing of it was written; calling again tries all of it again.
        """
        now_us = time.time_ns() // 1000
        sequence = max(self.sequence, sequence)
        if self._files is None or self._look_at_files() != self._files:
            self._check_files()
        elsewhere = self._elsewhere
        if place != self._place:
            elsewhere = self._marks_left_behind(place)
        with self._transaction() as connection:
            for symbol in self.changed:
                self._write(symbol, self.symbols[symbol], now_us)
            rings = {**self._rings, ring: position} if ring >= 0 else self._rings
            connection.executemany("INSERT OR REPLACE INTO rings VALUES (?, ?)", rings.items())
            values = {
                "sequence": sequence,
                "mark": json.dumps(mark),
                "committed_us": now_us,
                "place": json.dumps(place),
                "elsewhere": json.dumps(elsewhere),
            }
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())
            if self._inserted >= _TRIM_EVERY:
                self._trim()
        changed, self.changed = self.changed, set()
        for symbol in changed:
            ids = self.symbols[symbol]
            ids.changes = {}
            ids.fills.clear()
            ids.ended.clear()
        if self._inserted >= _TRIM_EVERY:
            self._inserted = 0
        self._files = self._look_at_files()
        self._committed_us = now_us
        self._rings = rings
        self.sequence = sequence
        self.mark = mark
        self._place = place
        self._elsewhere = elsewhere
        return changed

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """What the block writes is in the file for good after it, or none of it.

        :raises LedgerError: none of it is; a damaged file was replaced by one of what is known.
        """
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            if type(error) is sqlite3.DatabaseError:
                self._write_anew(str(error))
            raise LedgerError(f"{self._path} can't be written: {error}") from error

    def _look_at_files(self) -> _Files:
        wal = self._path.with_name(f"{self._path.name}-wal")
        return _Files(_File.of(self._path), _File.of(wal)._replace(changed_ns=0))

    def _check_files(self) -> None:
        """Somebody else has changed the files: writes them anew unless they are as good as before.

        :raises LedgerError: they can't be made anew.
        """
        before, now = self._files, self._look_at_files()
        if before is None:
            self._write_anew("it could not be before")
        elif [file.number for file in now] != [file.number for file in before]:
            self._write_anew("it was removed or replaced")
        elif now.ledger.size < before.ledger.size:
            # Who opened an empty one would remove its log of writes.
            self._write_anew("it was cut short")
        elif not self._is_whole():
            self._write_anew("it was overwritten")
        else:
            # What of it is still in the log of writes may be no more in the file itself.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint")

    def _is_whole(self) -> bool:
        """Whether others read the last commit from the files."""
        try:
            with contextlib.closing(ledger_file.look(self._path)) as connection:
                connection.isolation_level = None
                ledger_file.check(connection)
                return bool(ledger_file.version_of(connection)) and (
                    ledger_file.load(connection).committed_us == self._committed_us
                )
        except (sqlite3.Error, OSError, ValueError, TypeError):
            return False

    def _write_anew(self, reason: str) -> None:
        """Makes a new file, into which the next commit writes everything.

        :raises LedgerError: it can't be made.
        """
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        self._files = None
        self.changed = set(self.symbols)
        for ids in self.symbols.values():
            ids.changes = None
        if self._look_at_files().ledger.number is not None:
            ledger_file.set_aside(self._path)
        self._connection, _ = ledger_file.open_file(self._path, self._log)
        self._files = self._look_at_files()
        self._committed_us = 0
        self._log.error("the ledger is written anew", path=str(self._path), reason=reason)

    def _write(self, symbol: str, ids: Ids, now_us: int) -> None:
        execute = self._connection.execute
        last = ids.last_edge
        execute(
            ledger_file.PUT_SYMBOL,
            (
                symbol,
                ids.epoch,
                ids.epoch_us,
                ids.first_id,
                ids.last_id,
                last.time_us,
                last.mark,
                ids.newest_us,
                ids.sequence,
                ids.folded,
                ids.folded_until,
                json.dumps(list(ids.islands)),
                json.dumps(list(ids.anew.values())),
                ids.anew_last_id,
                ids.backfilled,
                ids.late,
                ids.found,
                ids.found_trades,
            ),
        )
        changes = ids.changes
        if changes is None:
            execute("DELETE FROM holes WHERE symbol = ?", (symbol,))
            changes = {hole.first_id: hole for hole in ids.holes}
        for first_id, hole in changes.items():
            if hole is None:
                execute("DELETE FROM holes WHERE symbol = ? AND first_id = ?", (symbol, first_id))
            else:
                execute(ledger_file.PUT_HOLE, ledger_file.hole_row(symbol, hole))
        for fill in _merged(ids.fills):
            execute(ledger_file.PUT_FILL, (symbol, *fill[:4], now_us, fill[4]))
            self._inserted += 1
        for epoch in ids.ended:
            execute("INSERT INTO epochs VALUES (?, ?, ?, ?, ?, ?, ?)", (symbol, *epoch, now_us))
            self._inserted += 1

    def _trim(self) -> None:
        limits = (ledger_file.MAX_FILLS, ledger_file.MAX_EPOCHS)
        for statement, kept in zip(ledger_file.TRIM, limits, strict=True):
            self._connection.execute(statement, (kept,))

    def begin(self, mark: Mapping[str, int], place: str = "") -> None:
        """The first commit of a new ledger or at a new place, before anything is delivered: from
        now on, what the sink holds there beyond its mark was never delivered.

        :raises LedgerError: as `commit`.
        """
        if self.mark_of(place) is None:
            self.commit(-1, 0, -1, mark, place)

    def keep_ring(self, ring: int) -> None:
        """The positions of all other rings are of no more use."""
        self._rings = {r: position for r, position in self._rings.items() if r == ring}
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("DELETE FROM rings WHERE first_sequence <> ?", (ring,))

    def close(self) -> None:
        """Writes nothing more."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


def _trade_id(trade: Trade) -> int:
    return trade.trade_id


def _merged(fills: Sequence[Fill]) -> list[tuple[int, int, str, int, str]]:
    """First and last id, cause, when it was opened, origin: neighbours as one."""
    rows: list[tuple[int, int, str, int, str]] = []
    for trade_id, hole, origin in sorted(fills, key=lambda fill: fill.trade_id):
        told = (hole.cause, hole.opened_us, ORIGINS[origin])
        if rows and rows[-1][1] == trade_id - 1 and rows[-1][2:] == told:
            rows[-1] = (rows[-1][0], trade_id, *told)
        else:
            rows.append((trade_id, trade_id, *told))
    return rows
