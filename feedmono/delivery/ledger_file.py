"""The ledger's file: an SQLite database that its writer opens, and anyone may read at any time.

What is damaged or of another version is set aside by who writes, and refused to who only looks.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

from feedmono.delivery.holes import Edge, Hole, State
from feedmono.delivery.ids import Epoch, Ids
from feedmono.log import Log

VERSION = 1
MAX_FILLS = 10_000
"""How many fills are remembered."""
MAX_EPOCHS = 1000
"""How many ended epochs are remembered."""
UNKNOWN_PLACE = "?"
"""Where the mark of a ledger belongs that does not tell."""

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
PUT_SYMBOL = "INSERT OR REPLACE INTO symbols VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
PUT_HOLE = "INSERT OR REPLACE INTO holes VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
PUT_FILL = "INSERT INTO fills VALUES (?,?,?,?,?,?,?)"
TRIM = (
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


def open_file(path: Path, log: Log) -> tuple[sqlite3.Connection, Content]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(path)
    except (sqlite3.OperationalError, OSError) as error:
        raise LedgerError(f"{path} can't be opened: {error}") from error
    except (sqlite3.Error, ValueError, TypeError) as error:
        aside = set_aside(path)
        log.error(
            "set a ledger aside that can't be read",
            path=str(aside),
            error=str(error),
            consequence="what was delivered before is not known; a repeat of it is stored again",
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
        version = version_of(connection)
        check(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if not version:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        content = load(connection)
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


def check(connection: sqlite3.Connection) -> None:
    """:raises ValueError: it is damaged."""
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise ValueError(f"it is damaged: {verdict}")


def version_of(connection: sqlite3.Connection) -> int:
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


def set_aside(path: Path) -> Path:
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


def load(connection: sqlite3.Connection) -> Content:
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


def hole_row(symbol: str, hole: Hole) -> tuple[object, ...]:
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


def _int(value: object) -> int:
    """:raises ValueError: a damaged row."""
    if not isinstance(value, int):
        raise ValueError(f"{value!r} stands where a number belongs")  # noqa: TRY004
    return value


def look(path: Path) -> sqlite3.Connection:
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
        with contextlib.closing(look(path)) as connection:
            connection.isolation_level = None
            return load(connection) if version_of(connection) else None
    except (sqlite3.Error, OSError, ValueError, TypeError) as error:
        raise LedgerError(f"{path} can't be read: {error}") from error


def read_fills(path: Path, symbol: str | None = None, count: int = 20) -> list[FillRow]:
    """The newest fills, of one symbol or of all, the newest first.

    :raises LedgerError: it can't be read.
    """
    query = "SELECT * FROM fills WHERE ? IN ('', symbol) ORDER BY rowid DESC LIMIT ?"
    try:
        with contextlib.closing(look(path)) as connection:
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
        with contextlib.closing(look(path)) as connection:
            return [Epoch(*row) for row in connection.execute(query, (symbol,))]
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"{path} can't be read: {error}") from error
