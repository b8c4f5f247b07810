"""The ledger: what was delivered of each symbol, what is missing, and how far the ring is done.

One SQLite file per exchange in ``state_dir``, written by the serializer alone, readable by anyone
at any time (WAL). The order of truth is: the sink acknowledges, then one transaction here
(``synchronous=FULL``), then the ring's cursor. The transaction holds the ids, the position in the
ring and the sink's mark together, so a crash between any two steps leaves neither a lie nor a
hole.

It stays small however long it runs: a row per symbol and a row per hole. Of holes that were
filled the last `MAX_FILLS` are kept as history.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

from feedmono.delivery.ids import Edge, Epoch, Fill, Hole, Ids, State
from feedmono.log import Log
from feedmono.trade import ORIGINS, Trade

VERSION = 1
MAX_FILLS = 10_000
"""How many fills are remembered."""
MAX_EPOCHS = 1000
"""How many ended epochs are remembered."""
MAX_PLACES = 16
"""Of how many places the sink's mark is remembered, those used last."""
UNKNOWN_PLACE = "?"
"""Where the mark of a ledger belongs that does not tell."""

_TRIM_EVERY = 500
_BUSY_S = 5.0
_MAX_ASIDE = 1000

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE rings (first_sequence INTEGER PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE symbols (
    symbol TEXT PRIMARY KEY, epoch INTEGER, epoch_us INTEGER, first_id INTEGER, last_id INTEGER,
    last_us INTEGER, last_mark INTEGER, newest_us INTEGER, sequence INTEGER, folded INTEGER,
    folded_until INTEGER, islands TEXT, anew TEXT, anew_last_id INTEGER, backfilled INTEGER,
    late INTEGER, found INTEGER, found_trades INTEGER
) WITHOUT ROWID;
CREATE TABLE holes (
    symbol TEXT, first_id INTEGER, last_id INTEGER, state INTEGER, cause TEXT, opened_us INTEGER,
    before_id INTEGER, before_us INTEGER, before_mark INTEGER,
    after_id INTEGER, after_us INTEGER, after_mark INTEGER,
    tries INTEGER, proofs INTEGER, proved_us INTEGER, PRIMARY KEY (symbol, first_id)
) WITHOUT ROWID;
CREATE TABLE fills (
    symbol TEXT, first_id INTEGER, last_id INTEGER, cause TEXT, opened_us INTEGER,
    filled_us INTEGER, origin TEXT
);
CREATE TABLE epochs (
    symbol TEXT, epoch INTEGER, epoch_us INTEGER, first_id INTEGER, last_id INTEGER,
    missing INTEGER, ended_us INTEGER
);
"""
_TABLES = {statement.strip() for statement in _SCHEMA.split(";")} - {""}
_SYMBOL = "INSERT OR REPLACE INTO symbols VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_HOLE = "INSERT OR REPLACE INTO holes VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_FILL = "INSERT INTO fills VALUES (?,?,?,?,?,?,?)"
_TRIM = (
    "DELETE FROM fills WHERE rowid <= (SELECT max(rowid) FROM fills) - ?",
    "DELETE FROM epochs WHERE rowid <= (SELECT max(rowid) FROM epochs) - ?",
)


class LedgerError(Exception):
    """The ledger can't be written or read now; its text says which, and why."""


class FillRow(NamedTuple):
    """Missing ids that came, as the history has them."""

    symbol: str
    first_id: int
    last_id: int
    cause: str
    opened_us: int
    filled_us: int
    origin: str


class Content(NamedTuple):
    """All that a ledger holds."""

    symbols: Mapping[str, Ids]
    rings: Mapping[int, int]
    """Position by the ring's first sequence."""
    sequence: int
    """The ring sequence of the newest record that is done; -1 if there is none."""
    mark: Mapping[str, int] | None
    """The sink's; None before the first commit."""
    committed_us: int
    """When it was written last, Unix time in microseconds; 0: never."""
    place: str = ""
    """What `mark` belongs to (`feedmono.sinks.base.Sink.place`)."""
    elsewhere: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    """The last marks of other places, the one used last at the end."""


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
        self._connection, content = _open(path, log)
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
        self._dirty: set[str] = set()
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
        return bool(self._dirty)

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
        symbols, dirty = self.symbols, self._dirty
        for trade in sorted(trades, key=_trade_id) if len(trades) > 1 else trades:
            symbol = trade.symbol
            ids = symbols.get(symbol)
            dirty.add(symbol)
            # Nearly every trade has the next id.
            if (
                ids is not None
                and trade.trade_id == ids.last_id + 1
                and trade.time_us >= ids.epoch_us
                and not ids.islands
            ):
                ids.last_id += 1
                ids.last = trade
                ids.sequence = sequence
                if trade.time_us > ids.newest_us:  # noqa: PLR1730  max() would cost more
                    ids.newest_us = trade.time_us
            elif ids is None:
                symbols[symbol] = ids = Ids(trade)
                ids.changes = None
                ids.sequence = sequence
            else:
                ids.add(trade, origin, cause, now_us, max_trades, sequence)

    def miss(self, symbol: str, trade_id: int, cause: str, now_us: int, time_us: int = 0) -> None:
        """A trade's delivery has failed for good. Arguments as of `Ids.miss`."""
        if (ids := self.symbols.get(symbol)) is not None:
            ids.miss(trade_id, cause, now_us, time_us)
            self._dirty.add(symbol)

    def prove(
        self, symbol: str, first_id: int, last_id: int, now_us: int, confirm_after_us: int
    ) -> None:
        """As `Ids.prove`."""
        if (ids := self.symbols.get(symbol)) is not None:
            ids.prove(first_id, last_id, now_us, confirm_after_us)
            self._dirty.add(symbol)

    def tried(self, symbol: str, first_id: int, last_id: int, tries: int) -> None:
        """As `Ids.tried`."""
        if (ids := self.symbols.get(symbol)) is not None:
            ids.tried(first_id, last_id, tries)
            self._dirty.add(symbol)

    def give_up(self, symbol: str, first_id: int, last_id: int) -> None:
        """As `Ids.give_up`."""
        if (ids := self.symbols.get(symbol)) is not None:
            ids.give_up(first_id, last_id)
            self._dirty.add(symbol)

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
        connection = self._connection
        elsewhere = self._elsewhere
        if place != self._place:
            elsewhere = self._marks_left_behind(place)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for symbol in self._dirty:
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
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            if type(error) is sqlite3.DatabaseError:
                self._write_anew(str(error))
            raise LedgerError(f"{self._path} can't be written: {error}") from error
        changed, self._dirty = self._dirty, set()
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
            with contextlib.closing(_look(self._path)) as connection:
                connection.isolation_level = None
                _check(connection)
                return bool(_version(connection)) and (
                    _load(connection).committed_us == self._committed_us
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
        self._dirty = set(self.symbols)
        for ids in self.symbols.values():
            ids.changes = None
        if self._look_at_files().ledger.number is not None:
            _set_aside(self._path)
        self._connection, _ = _open(self._path, self._log)
        self._files = self._look_at_files()
        self._committed_us = 0
        self._log.error("the ledger is written anew", path=str(self._path), reason=reason)

    def _write(self, symbol: str, ids: Ids, now_us: int) -> None:
        execute = self._connection.execute
        last = ids.last_edge
        execute(
            _SYMBOL,
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
                execute(_HOLE, _hole_row(symbol, hole))
        for fill in _merged(ids.fills):
            execute(_FILL, (symbol, *fill[:4], now_us, fill[4]))
            self._inserted += 1
        for epoch in ids.ended:
            execute("INSERT INTO epochs VALUES (?, ?, ?, ?, ?, ?, ?)", (symbol, *epoch, now_us))
            self._inserted += 1

    def _trim(self) -> None:
        for statement, kept in zip(_TRIM, (MAX_FILLS, MAX_EPOCHS), strict=True):
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


def _hole_row(symbol: str, hole: Hole) -> tuple[object, ...]:
    nothing = (None, None, None)
    return (
        symbol,
        hole.first_id,
        hole.last_id,
        int(hole.state),
        hole.cause,
        hole.opened_us,
        *(hole.before or nothing),
        *(hole.after or nothing),
        hole.tries,
        hole.proofs,
        hole.proved_us,
    )


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


def _open(path: Path, log: Log) -> tuple[sqlite3.Connection, Content]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(path)
    except (sqlite3.OperationalError, OSError) as error:
        raise LedgerError(f"{path} can't be opened: {error}") from error
    except (sqlite3.Error, ValueError, TypeError) as error:
        aside = _set_aside(path)
        log.error(
            "set a ledger aside that can't be read",
            path=str(aside),
            reason=str(error),
            what="what was delivered before is not known any more; a repeat of it is stored again",
        )
    try:
        return _connect(path)
    except (sqlite3.Error, OSError, ValueError, TypeError) as error:
        raise LedgerError(f"{path} can't be made: {error}") from error


def _connect(path: Path) -> tuple[sqlite3.Connection, Content]:
    """:raises ValueError: it is damaged, or of another version."""
    _check_header(path)
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    # By itself sqlite3 tells a text that is no UTF-8 as it tells a database that is away.
    connection.text_factory = bytes.decode
    try:
        version = _version(connection)
        _check(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if not version:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        content = _load(connection)
        # SQLite opens what it can't write as well, and tells so only at the first write.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("ROLLBACK")
        return connection, content
    except BaseException:
        connection.close()
        raise


def _check_header(path: Path) -> None:
    """:raises ValueError: SQLite would take it for a later format's, which it can't write."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        header = file.read(48)
        if len(header) == 48 and (max(header[18:20]) > 2 or header[44:48] > b"\0\0\0\4"):
            raise ValueError("it is damaged: its header names an unknown format")


def _check(connection: sqlite3.Connection) -> None:
    """:raises ValueError: it is damaged."""
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise ValueError(f"it is damaged: {verdict}")


def _version(connection: sqlite3.Connection) -> int:
    """0: it is new.

    :raises ValueError: it is another one than this code's.
    """
    with _one_view(connection):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}
    if version not in (0, VERSION) or (not version and tables):
        raise ValueError(f"its version is {version}, known is {VERSION}")
    if version and tables != _TABLES:
        raise ValueError("it is damaged: its tables are not those of its version")
    return int(version)


@contextlib.contextmanager
def _one_view(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read within is of the same commit."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()


def _set_aside(path: Path) -> Path:
    try:
        for n in range(1, _MAX_ASIDE):
            aside = path.with_name(f"{path.name}.damaged-{n}")
            if not aside.exists():
                path.rename(aside)
                for end in ("-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
                return aside
    except OSError as error:
        raise LedgerError(f"{path} is damaged and can't be set aside: {error}") from error
    raise LedgerError(f"{path.parent}: too many damaged ledgers: look at them, then move them away")


def _load(connection: sqlite3.Connection) -> Content:
    symbols: dict[str, Ids] = {}
    with _one_view(connection):
        for row in connection.execute("SELECT * FROM symbols ORDER BY symbol"):
            if not isinstance(row[0], str):
                raise ValueError(f"{row[0]!r} stands where a symbol belongs")  # noqa: TRY004
            symbols[row[0]] = _ids(row)
        for row in connection.execute("SELECT * FROM holes ORDER BY symbol, first_id"):
            if row[0] in symbols:
                symbols[row[0]].holes.append(_hole(row))
        rings = {
            _int(ring): _int(position)
            for ring, position in connection.execute("SELECT first_sequence, position FROM rings")
        }
        meta = dict(connection.execute("SELECT key, value FROM meta"))
    for symbol, ids in symbols.items():
        _check_order(symbol, ids)
    mark = None
    if "mark" in meta:
        mark = {key: _int(value) for key, value in dict(json.loads(meta["mark"])).items()}
    sequence, committed_us = meta.get("sequence", -1), meta.get("committed_us", 0)
    place = "" if mark is None else UNKNOWN_PLACE
    if "place" in meta:
        place = str(json.loads(meta["place"]))
    elsewhere = {
        key: {name: _int(value) for name, value in dict(left).items()}
        for key, left in dict(json.loads(meta.get("elsewhere", "{}"))).items()
    }
    return Content(symbols, rings, _int(sequence), mark, _int(committed_us), place, elsewhere)


def _check_order(symbol: str, ids: Ids) -> None:
    """:raises ValueError: its holes can't be."""
    last_id = ids.first_id - 1
    for hole in ids.holes:
        if not last_id < hole.first_id <= hole.last_id:
            raise ValueError(f"{symbol}: its holes overlap at id {hole.first_id}")
        last_id = hole.last_id
    if max(last_id, ids.first_id) > ids.last_id:
        raise ValueError(f"{symbol}: its holes end at {last_id}, its ids at {ids.last_id}")


def _ids(row: Sequence[object]) -> Ids:
    _, epoch, epoch_us, first_id, last_id, last_us, last_mark, newest_us, sequence = row[:9]
    folded, folded_until, islands, anew, anew_last_id, backfilled, late, *found = row[9:]
    ids = Ids(Edge(_int(last_id), _int(last_us), _int(last_mark)), _int(epoch))
    ids.first_id = _int(first_id)
    ids.epoch_us = _int(epoch_us)
    ids.newest_us = _int(newest_us)
    ids.sequence = _int(sequence)
    ids.folded, ids.folded_until = _int(folded), _int(folded_until)
    ids.islands = dict.fromkeys(map(_int, json.loads(str(islands))))
    edges = (Edge(*map(_int, edge)) for edge in json.loads(str(anew)))
    ids.anew = {edge.trade_id: edge for edge in edges}
    ids.anew_last_id = _int(anew_last_id)
    ids.backfilled, ids.late = _int(backfilled), _int(late)
    ids.found, ids.found_trades = map(_int, found)
    return ids


def _hole(row: Sequence[Any]) -> Hole:
    _, first_id, last_id, state, cause, opened_us, *rest = row
    before, after, tried = rest[:3], rest[3:6], rest[6:]
    numbers = [first_id, last_id, state, opened_us, *tried]
    numbers += [
        *(before if before[0] is not None else ()),
        *(after if after[0] is not None else ()),
    ]
    if set(map(type, numbers)) != {int}:
        raise ValueError(f"{numbers!r} stand where numbers belong")
    hole = Hole(
        first_id,
        last_id,
        str(cause),
        opened_us,
        None if before[0] is None else Edge(*before),
        None if after[0] is None else Edge(*after),
        State(state),
    )
    hole.tries, hole.proofs, hole.proved_us = tried
    return hole


def _int(value: object) -> int:
    """:raises ValueError: a damaged row."""
    if not isinstance(value, int):
        raise ValueError(f"{value!r} stands where a number belongs")  # noqa: TRY004
    return value


# --- for those who only look


def _look(path: Path) -> sqlite3.Connection:
    # Without a -wal nobody has it open. By itself SQLite would make one: not everybody may, and it
    # would stay there, owned by whoever only looked.
    alone = not path.with_name(f"{path.name}-wal").exists()
    how = "mode=ro&immutable=1" if alone else "mode=ro"
    return sqlite3.connect(f"file:{quote(str(path))}?{how}", timeout=_BUSY_S, uri=True)


def read(path: Path) -> Content | None:
    """What a ledger holds now; None if there is none. Its writer may be at work.

    :raises LedgerError: it can't be read.
    """
    try:
        if not path.exists():
            return None
        with contextlib.closing(_look(path)) as connection:
            connection.isolation_level = None
            return _load(connection) if _version(connection) else None
    except (sqlite3.Error, OSError, ValueError, TypeError) as error:
        raise LedgerError(f"{path} can't be read: {error}") from error


def read_fills(path: Path, symbol: str | None = None, count: int = 20) -> list[FillRow]:
    """The newest fills, of one symbol or of all, the newest first.

    :raises LedgerError: it can't be read.
    """
    query = "SELECT * FROM fills WHERE ? IN ('', symbol) ORDER BY rowid DESC LIMIT ?"
    try:
        with contextlib.closing(_look(path)) as connection:
            return [FillRow(*row) for row in connection.execute(query, (symbol or "", count))]
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"{path} can't be read: {error}") from error


def read_epochs(path: Path, symbol: str) -> list[Epoch]:
    """The epochs of a symbol that have ended, in their order.

    :raises LedgerError: it can't be read.
    """
    query = (
        "SELECT epoch, epoch_us, first_id, last_id, missing FROM epochs WHERE symbol = ? "
        "ORDER BY epoch"
    )
    try:
        with contextlib.closing(_look(path)) as connection:
            return [Epoch(*row) for row in connection.execute(query, (symbol,))]
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"{path} can't be read: {error}") from error
