"""What the instance did, second by second, thinned with age: a SQLite file in ``state_dir``.

    age        up to 1 h    up to 1 day    up to 30 days    up to ``samples.keep``
    a row for  each 1 s     each 10 s      each minute      each 15 minutes

The file is opened for each commit, about every ten seconds: a fork never meets it open, and one
that was removed is begun anew without more ado. Its journal is a plain one, not a write-ahead
log, which users who may only read could not read once the instance has ended. Nothing waits for
the disk: a host that fails may cost the samples, and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from urllib.parse import quote

from feedmono.log import Log
from feedmono.supervision.samples_row import Deltas, Row, in_steps, merge
from feedmono.supervision.snapshot import Snapshot

__all__ = [
    "FILE",
    "MAX_BYTES",
    "TIERS",
    "Row",
    "Store",
    "Tier",
    "in_steps",
    "merge",
    "newest_s",
    "read",
]

FILE = "samples.db"
"""Its name in ``state_dir``."""

MAX_BYTES = 128 << 20
"""The file does not grow beyond: ten years of three series need less."""

_VERSION = 1
_COMMIT_S = 10.0
_THIN_S = 60.0
# Rows that wait for a commit that is not possible: an hour of three series.
_MAX_PENDING = 3 * 3600
# So many rows of a kind are thinned or removed at once at most; others follow the next time.
_CHUNK = 2000
# A step of the clock beyond this is one. A clock that was set is not believed at once: a wrong
# time that is soon mended shall not age the samples.
_CLOCK_STEP_S = 5.0
_CLOCK_TRUST_S = 600.0
_BUSY_S = 1.0


@dataclass(frozen=True, slots=True)
class Tier:
    """How closely samples of an age are kept."""

    step_s: int
    """A row each."""
    until_s: float
    """Up to this age."""


TIERS = (
    Tier(1, 3600.0),
    Tier(10, 86_400.0),
    Tier(60, 30 * 86_400.0),
    Tier(900, math.inf),
)

_COLUMNS = tuple(f.name for f in fields(Row)[2:])
_values = attrgetter(*_COLUMNS)
# SQLite stores small whole numbers in a byte or two, fractions always in eight.
_IN_MILLIONTHS = tuple(
    name in ("span_s", "cpu_cores", "cpu_cores_max", "connected")
    or name.endswith(("p50_s", "p99_s"))
    for name in _COLUMNS
)
_SCHEMA = f"""
CREATE TABLE samples (
    step INTEGER, -- seconds
    at INTEGER,   -- the interval's end, Unix time in milliseconds
    exchange TEXT,
    {", ".join(f"{name} INTEGER" for name in _COLUMNS)}, -- fractions in millionths
    PRIMARY KEY (step, at, exchange)
) WITHOUT ROWID;
"""
# A time that comes twice, because the clock was set back, is told as it was the second time.
_PUT = f"INSERT OR REPLACE INTO samples VALUES (?, ?, ?{', ?' * len(_COLUMNS)})"  # noqa: S608

_Stored = tuple[object, ...]


class Store:
    """Keeps the samples; the supervisor's. It never raises: what it can't do is told once through
    the log and costs samples only. A file that is damaged or was removed is begun anew."""

    def __init__(
        self,
        state_dir: Path,
        keep_s: float,
        log: Log,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param keep_s: how old a sample gets; the attribute may be changed at any time."""
        self._path = state_dir / FILE
        self.keep_s = keep_s
        self._log = log
        self._monotonic = monotonic
        self._deltas = Deltas(monotonic)
        self._held: Snapshot | None = None
        """One that waits for the next, because it came close behind the one before."""
        self._pending: list[_Stored] = []
        self._commit_at = monotonic() + _COMMIT_S
        self._thin_at = -math.inf
        self._clock: float | None = None
        """How far Unix time is ahead of monotonic time."""
        self._trust_at = -math.inf
        self._told = ""

    def add(self, state: Snapshot) -> None:
        """Takes what the supervisor sampled, once a second; commits about every ten."""
        now = self._monotonic()
        clock, self._clock = self._clock, state.taken_at_s - now
        if clock is not None and abs(self._clock - clock) > _CLOCK_STEP_S:
            self._trust_at = now + _CLOCK_TRUST_S
        rows = self._deltas.take(state)
        self._held = None if rows else state
        self._take(rows)
        if now >= self._commit_at:
            self._commit_at = now + _COMMIT_S
            thins = now >= max(self._thin_at, self._trust_at)
            self._thin_at = now + _THIN_S if thins else self._thin_at
            self._commit(state.taken_at_s if thins else None)

    def close(self) -> None:
        """Stores what is not stored yet."""
        if self._held is not None:
            self._take(self._deltas.take(self._held, last=True))
        self._commit(None)

    def _take(self, rows: Sequence[Row]) -> None:
        self._pending += [_stored(row, TIERS[0].step_s) for row in rows]
        del self._pending[:-_MAX_PENDING]

    def _commit(self, now_s: float | None) -> None:
        """:param now_s: what is too old by then is thinned; None: nothing is."""
        try:
            try:
                self._write(now_s)
            except sqlite3.DatabaseError as error:
                if not _is_for_good(error):
                    raise
                self._tell("samples begun anew", error)
                _remove(self._path)
                self._write(now_s)
        except (sqlite3.Error, OSError) as error:
            self._tell("samples are not kept", error)
            return
        self._pending.clear()
        if self._told:
            self._told = ""
            self._log.info("samples are kept")

    def _tell(self, event: str, error: Exception) -> None:
        if self._told != event:
            self._told = event
            self._log.warning(event, path=str(self._path), error=str(error))

    def _write(self, now_s: float | None) -> None:
        with contextlib.closing(_open(self._path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_PUT, self._pending)
            if now_s is not None:
                for tier, wider in itertools.pairwise(TIERS):
                    _thin(connection, tier, wider, now_s)
                _remove_old(connection, now_s - self.keep_s)
            if self._pending and _used_bytes(connection) > MAX_BYTES:
                _make_room(connection, int(self._pending[-1][1]))  # type: ignore[call-overload]
            connection.execute("COMMIT")


def _open(path: Path) -> sqlite3.Connection:
    """The file to write to, made if it is not there."""
    # It waits for nobody: a reader that takes long delays the commit to the next.
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            # In a file of another version the table is there already, or its like.
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_for_good(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is of no use any more; what else fails may pass."""
    # Damage comes as the plain class; a full disk, a lock, a missing folder as an
    # OperationalError, and so does the table of another version.
    text = str(error)
    return type(error) is sqlite3.DatabaseError or "already exists" in text or "no such" in text


def _remove(path: Path) -> None:
    for name in (path, path.with_name(path.name + "-journal")):
        name.unlink(missing_ok=True)


def _used_bytes(connection: sqlite3.Connection) -> int:
    size, pages, free = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_size", "page_count", "freelist_count")
    )
    return (pages - free) * size


def _thin(connection: sqlite3.Connection, tier: Tier, wider: Tier, now_s: float) -> None:
    """Merges rows that are too old for their step into those of the next."""
    width_ms = wider.step_s * 1000
    # Whole intervals only.
    until = int((now_s - tier.until_s) * 1000) // width_ms * width_ms
    old = connection.execute(
        "SELECT * FROM samples WHERE step = ? AND at <= ? ORDER BY at LIMIT ?",
        (tier.step_s, until, _CHUNK),
    ).fetchall()
    if not old:
        return
    # What these intervals have already: a chunk has cut one, or the clock was set back.
    merged = connection.execute(
        "SELECT * FROM samples WHERE step = ? AND at > ? AND at < ?",
        (wider.step_s, old[0][1] - width_ms, old[-1][1] + width_ms),
    ).fetchall()
    rows = in_steps(map(_loaded, [*old, *merged]), wider.step_s)
    connection.executemany(
        "DELETE FROM samples WHERE step = ? AND at = ? AND exchange = ?", [row[:3] for row in old]
    )
    connection.executemany(_PUT, [_stored(row, wider.step_s) for row in rows])


def _remove_old(connection: sqlite3.Connection, until_s: float) -> None:
    for tier in TIERS:
        connection.execute(
            "DELETE FROM samples WHERE (step, at, exchange) IN (SELECT step, at, exchange "
            "FROM samples WHERE step = ? AND at <= ? ORDER BY at LIMIT ?)",
            (tier.step_s, int(until_s * 1000), _CHUNK),
        )


def _make_room(connection: sqlite3.Connection, now_ms: int) -> None:
    """Removes the rows that are farthest from now: the oldest, or those of a clock that went
    wrong; of the widest step that there is."""
    for tier in reversed(TIERS):
        first, last = connection.execute(
            "SELECT min(at), max(at) FROM samples WHERE step = ?", (tier.step_s,)
        ).fetchone()
        if first is None:
            continue
        farthest = "ASC" if now_ms - first >= last - now_ms else "DESC"
        connection.execute(
            "DELETE FROM samples WHERE (step, at, exchange) IN (SELECT step, at, exchange "  # noqa: S608
            f"FROM samples WHERE step = ? ORDER BY at {farthest} LIMIT ?)",
            (tier.step_s, _CHUNK),
        )
        return


def _stored(row: Row, step_s: int) -> _Stored:
    values = [
        round(value * 1e6) if scaled and value is not None else value
        for scaled, value in zip(_IN_MILLIONTHS, _values(row), strict=True)
    ]
    return (step_s, round(row.at_s * 1000), row.exchange, *values)


def _loaded(stored: Sequence[int | None]) -> Row:
    _, at_ms, exchange, *content = stored
    values = [
        value / 1e6 if scaled and value is not None else value
        for scaled, value in zip(_IN_MILLIONTHS, content, strict=True)
    ]
    return Row(str(exchange), (at_ms or 0) / 1000, *values)  # type: ignore[arg-type]


def newest_s(state_dir: Path) -> float | None:
    """When the newest row ends, Unix time; None when there is none. Never raises."""
    newest: float | None = None
    for how in _HOW_TO_READ:
        with contextlib.suppress(sqlite3.Error, OSError), _reading(state_dir, how) as connection:
            ends = [
                connection.execute("SELECT max(at) FROM samples WHERE step = ?", (tier.step_s,))
                for tier in TIERS
            ]
            known = [end for (end,) in map(sqlite3.Cursor.fetchone, ends) if end is not None]
            newest = max(known) / 1000 if known else None
            break
    return newest


def read(
    state_dir: Path,
    since_s: float,
    until_s: float,
    exchange: str | None = None,
    step_s: float | None = None,
) -> list[Row]:
    """The rows whose intervals end after *since_s* and by *until_s*, in order of time, and of
    exchanges; [] when there are none, or none that this process may read. Never raises.

    What is not committed yet, the last ten seconds or so, is not among them.

    :param exchange: only this one's; "": only those of all together.
    :param step_s: merged to intervals that end at its multiples; None: as they are stored.
    """
    rows: list[Row] = []
    for how in _HOW_TO_READ:
        with (
            contextlib.suppress(sqlite3.Error, OSError, ValueError, TypeError),
            _reading(state_dir, how) as connection,
        ):
            rows = _read(connection, since_s, until_s, exchange)
            break
    if step_s is not None:
        return in_steps(rows, step_s)
    return sorted(rows, key=lambda row: (row.at_s, row.exchange))


# A writer that died within a commit leaves a journal that only a writer can play back; what the
# file itself has is the next best.
_HOW_TO_READ = ("mode=ro", "mode=ro&immutable=1")


@contextlib.contextmanager
def _reading(state_dir: Path, how: str) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(state_dir / FILE))}?{how}"
    with contextlib.closing(sqlite3.connect(uri, timeout=_BUSY_S, uri=True)) as connection:
        yield connection


def _read(
    connection: sqlite3.Connection, since_s: float, until_s: float, exchange: str | None
) -> list[Row]:
    rows: list[Row] = []
    for tier in TIERS:
        found = connection.execute(
            "SELECT * FROM samples WHERE step = ?1 AND at > ?2 AND at <= ?3 "
            "AND (?4 IS NULL OR exchange = ?4)",
            (tier.step_s, int(since_s * 1000), int(until_s * 1000), exchange),
        )
        rows += map(_loaded, found)
    return rows
