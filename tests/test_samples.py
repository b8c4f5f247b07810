"""The samples: what is kept of each second, thinned with age, within bounds, for whoever reads."""

from __future__ import annotations

import itertools
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nobody import as_nobody
from test_status import status

from feedmono import log
from feedmono.supervision import samples
from feedmono.supervision.samples import TIERS, Row, Store, in_steps, merge
from feedmono.supervision.samples_row import COUNTED, Deltas
from feedmono.supervision.snapshot import Snapshot, Tree, WorkerStatus

BEGIN_S = 1_795_392_000.0
DAY_S = 86_400.0


class Clocks:
    """Made time: Unix and monotonic."""

    def __init__(self) -> None:
        self.unix_s, self.steady_s = BEGIN_S, 5000.0

    def pass_(self, seconds: float) -> None:
        self.unix_s += seconds
        self.steady_s += seconds


class Heard(log.Log):
    """A log that remembers the names of its events."""

    def __init__(self) -> None:
        super().__init__(None)
        self.events: list[str] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append(event)

    def warning(self, event: str, **fields: object) -> None:
        assert fields["error"]
        assert str(fields["path"]).endswith(samples.FILE)
        self.events.append(event)


class Instance:
    """A supervisor of made snapshots: *rate* trades a second."""

    def __init__(self, folder: Path, keep_s: float = 400 * DAY_S, begin_s: float = BEGIN_S) -> None:
        self.folder, self.clocks = folder, Clocks()
        self.clocks.unix_s = begin_s
        self.trades, self.cpu_s, self.begun_s = 0, 0.0, self.clocks.unix_s
        self.heard = Heard()
        self.store = Store(folder, keep_s, self.heard, lambda: self.clocks.steady_s)
        self.store.add(self.snapshot())

    def snapshot(self) -> Snapshot:
        worker = WorkerStatus("reader", 7, 0.1, self.cpu_s, 30 << 20, 9)
        binance = status(
            trades=self.trades, delivered=self.trades, reconnects=0, duplicates=0,
            counts={"frames": 2 * self.trades, "bytes": 100 * self.trades}, workers=(worker,),
            receive_p50_s=0.01, receive_p99_s=0.05,
        )  # fmt: skip
        kraken = replace(binance, name="kraken", trades=0, counts={}, state="connecting")
        tree = Tree(0.5, 2 * self.cpu_s, 90 << 20, 9, 1024, 6)
        return Snapshot(1, self.begun_s, self.clocks.unix_s, "files", (binance, kraken), tree)

    def run(self, seconds: int, rate: int = 5) -> None:
        for _ in range(seconds):
            self.clocks.pass_(1)
            self.trades += rate
            self.cpu_s += 0.25
            self.store.add(self.snapshot())

    def rows(self, exchange: str | None = "binance", **options: float) -> list[Row]:
        return samples.read(self.folder, 0, 2e10, exchange, **options)


def row(at_s: float, **fields: object) -> Row:
    usual: dict[str, object] = {
        "exchange": "binance", "at_s": at_s, "span_s": 1.0, **dict.fromkeys(COUNTED, 1),
        "cpu_cores": 0.5, "cpu_cores_max": 0.5, "memory_bytes": 10, "ring_used_bytes": 20,
        "holes_open": 0, "open_trades": 0, "receive_p50_s": 0.01, "receive_p99_s": 0.02,
        "delivery_p50_s": 0.03, "delivery_p99_s": 0.04, "connected": 1.0,
    }  # fmt: skip
    return Row(**{**usual, **fields})  # type: ignore[arg-type]


def put(folder: Path, rows: list[tuple[int, Row]]) -> None:
    """Rows of a step into the file, as years of running would."""
    with samples._open(folder / samples.FILE) as connection:
        connection.execute("BEGIN")
        connection.executemany(samples._PUT, [samples._stored(r, step) for step, r in rows])
        connection.execute("COMMIT")
    connection.close()


def steps(folder: Path) -> dict[int, list[float]]:
    """Step → times of the exchange's rows."""
    found = defaultdict(list)
    with sqlite3.connect(folder / samples.FILE) as connection:
        query = "SELECT step, at / 1000.0 FROM samples WHERE exchange = 'binance' ORDER BY at"
        for step, at_s in connection.execute(query):
            found[step].append(at_s)
    connection.close()
    return found


def test_a_second_is_a_row_with_what_happened_in_it(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.run(20)
    instance.store.close()
    rows = instance.rows()[1:]
    assert [r.at_s for r in rows] == [BEGIN_S + n for n in range(1, 21)]
    assert {(r.trades, r.frames, r.bytes, r.span_s) for r in rows} == {(5, 10, 500, 1.0)}
    assert all(r.cpu_cores == pytest.approx(0.25) for r in rows)
    assert (rows[0].receive_p99_s, rows[0].connected) == (0.05, 1.0)
    kraken = instance.rows("kraken")[-1]
    assert (kraken.trades, kraken.receive_p50_s, kraken.connected) == (0, None, 0.0)
    together = instance.rows("")[-1]
    assert (together.trades, together.memory_bytes, together.connected) == (5, 90 << 20, 0.0)
    assert together.cpu_cores == pytest.approx(0.5)


def test_commits_come_about_every_ten_seconds_and_the_rest_at_the_end(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.run(9)
    assert instance.rows() == []
    instance.run(10)
    assert samples.newest_s(tmp_path) == BEGIN_S + 10
    instance.store.close()
    assert samples.newest_s(tmp_path) == BEGIN_S + 19


def test_counters_that_begin_anew_are_never_a_negative_count() -> None:
    clocks = Clocks()
    deltas = Deltas(lambda: clocks.steady_s)

    def take(trades: int, cpu_s: float, *, kraken: bool = True) -> list[Row]:
        worker = WorkerStatus("reader", 7, 0.1, cpu_s, 1, 1)
        binance = status(trades=trades, reconnects=0, workers=(worker,))
        others = (replace(binance, name="kraken"),) if kraken else ()
        clocks.pass_(1)
        return deltas.take(
            Snapshot(1, BEGIN_S, clocks.unix_s, "files", (binance, *others), Tree(cpu_s=cpu_s))
        )

    assert take(100, 5.0)[0].trades == 100
    assert take(130, 5.5)[0].trades == 30
    after = take(4, 0.1)
    assert (after[0].trades, after[0].cpu_cores, after[-1].cpu_cores) == (4, 0.1, 0.1)
    assert [r.exchange for r in take(5, 0.2, kraken=False)] == ["binance", ""]
    # What was served anew counts from nothing.
    assert [r.trades for r in take(6, 0.3)] == [1, 6, 7]


def test_two_snapshots_at_once_are_one_row_and_a_late_first_one_is_only_compared_with() -> None:
    clocks = Clocks()
    deltas = Deltas(lambda: clocks.steady_s)

    def take(trades: int) -> list[Row]:
        exchange = status(trades=trades)
        return deltas.take(Snapshot(1, BEGIN_S - 3600, clocks.unix_s, "files", (exchange,)))

    assert take(1000) == []
    clocks.pass_(0.01)
    assert take(1003) == []
    clocks.pass_(0.99)
    assert take(1005)[0].trades == 5


@pytest.mark.parametrize("step_s", [-3600, 3600, -40 * DAY_S])
def test_a_clock_that_steps_costs_no_count_and_no_order(tmp_path: Path, step_s: float) -> None:
    instance = Instance(tmp_path)
    instance.run(100)
    instance.clocks.unix_s += step_s
    instance.run(100)
    instance.store.close()
    rows = instance.rows()
    assert [r.at_s for r in rows] == sorted(r.at_s for r in rows)
    assert sum(r.trades for r in rows) == 1000
    assert sum(r.span_s != 1.0 for r in rows) == 1, "all but the one of the start"


def test_a_clock_set_ahead_for_a_moment_ages_nothing(tmp_path: Path) -> None:
    instance = Instance(tmp_path, keep_s=DAY_S)
    instance.run(60)
    instance.clocks.unix_s += 1000 * DAY_S
    instance.run(60)
    instance.clocks.unix_s -= 1000 * DAY_S
    instance.run(1200)
    instance.store.close()
    assert sum(r.trades for r in instance.rows() if r.at_s < BEGIN_S + DAY_S) == 5 * 1260


def test_rows_are_thinned_with_age_and_their_sum_stays(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.run(3600 + 300)
    instance.store.close()
    found = steps(tmp_path)
    assert set(found) == {1, 10}
    now_s = instance.clocks.unix_s
    assert min(found[1]) > now_s - 3600 - 90
    assert max(found[10]) <= now_s - 3600
    assert all(at_s % 10 == 0 for at_s in found[10])
    assert sum(r.trades for r in instance.rows()) == instance.trades
    assert sum(r.span_s for r in instance.rows()) == pytest.approx(3600 + 300 + 0.5)


def test_a_month_in_fast_motion_stays_small_and_complete(tmp_path: Path) -> None:
    # What lies before the last hours is put there as it would have been left by them.
    now_s = BEGIN_S + 40 * DAY_S
    old = [
        (step, row(at_s, exchange=name, span_s=float(step), **dict.fromkeys(COUNTED, step)))
        for name in ("binance", "kraken", "")
        for step, since_s, until_s in (
            (900, BEGIN_S, now_s - 30 * DAY_S),
            (60, now_s - 30 * DAY_S, now_s - DAY_S),
            (10, now_s - DAY_S, now_s - 3600),
            (1, now_s - 3600, now_s),
        )
        for at_s in range(int(since_s) + step, int(until_s) + 1, step)
    ]
    put(tmp_path, old)
    instance = Instance(tmp_path, begin_s=now_s + 1)
    instance.run(600, rate=1)
    instance.store.close()
    by_age = steps(tmp_path)
    now_s = instance.clocks.unix_s
    for tier, wider in itertools.pairwise(TIERS):
        assert min(by_age[tier.step_s]) >= now_s - tier.until_s - wider.step_s - 90, tier
    expected = 40 * DAY_S + 600
    assert sum(r.trades for r in instance.rows()) == expected
    size_bytes = (tmp_path / samples.FILE).stat().st_size
    count = 3 * sum(map(len, by_age.values()))
    assert size_bytes < 100 * count
    # Ten years more, a row each 15 minutes, fit as well.
    assert size_bytes / count * (count + 3 * 10 * 365 * 96) < samples.MAX_BYTES


def test_what_is_older_than_it_may_be_is_removed(tmp_path: Path) -> None:
    put(tmp_path, [(900, row(BEGIN_S - n * 900.0, span_s=900.0)) for n in range(5000)])
    instance = Instance(tmp_path, keep_s=7200)
    instance.run(240)
    assert min(r.at_s for r in instance.rows()) > BEGIN_S - 7200
    # The configuration may have been read again.
    instance.store.keep_s = 3600
    instance.run(70)
    assert min(r.at_s for r in instance.rows()) > BEGIN_S - 3600


def test_the_file_is_bounded_however_the_clock_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_BYTES", 200_000)
    rows = [(60, row(BEGIN_S + n * 60.0)) for n in range(2000)]
    rows += [(900, row(BEGIN_S + 2000 * DAY_S + n * 900.0)) for n in range(3000)]
    put(tmp_path, rows)
    instance = Instance(tmp_path)
    instance.run(60)
    found = steps(tmp_path)
    # Those of a wrong clock went first.
    assert len(found[60]) == 2000
    assert len(found[900]) < 3000
    assert max(found[1]) == BEGIN_S + 60
    connection = sqlite3.connect(tmp_path / samples.FILE)
    assert samples._used_bytes(connection) < 220_000
    connection.close()


@pytest.mark.parametrize(
    "content", [b"", b"no database" * 1000, b"SQLite format 3\0" + bytes(5000)]
)
def test_a_damaged_file_is_told_once_and_begun_anew(tmp_path: Path, content: bytes) -> None:
    instance = Instance(tmp_path)
    (tmp_path / samples.FILE).write_bytes(content)
    instance.run(30)
    assert len(instance.rows()) == 31
    # An empty file is a database that has nothing yet.
    told = ["samples begun anew", "samples are kept"] if content else []
    assert instance.heard.events == told


def test_a_file_of_another_version_is_begun_anew(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / samples.FILE) as connection:
        connection.execute("CREATE TABLE samples (at INTEGER)")
    connection.close()
    instance = Instance(tmp_path)
    instance.run(10)
    assert instance.heard.events == ["samples begun anew", "samples are kept"]
    assert len(instance.rows()) == 11


def test_a_removed_file_is_begun_anew(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.run(10)
    (tmp_path / samples.FILE).unlink()
    instance.run(10)
    assert [r.at_s for r in instance.rows()] == [BEGIN_S + n for n in range(11, 21)]


def test_a_damaged_page_within_the_file_is_found_and_the_file_begun_anew(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.run(2000)
    path = tmp_path / samples.FILE
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    assert samples.read(tmp_path, 0, 2e10) == []
    instance.run(10)
    assert instance.heard.events == ["samples begun anew", "samples are kept"]
    assert len(instance.rows()) == 10


def test_what_can_not_be_written_waits_and_is_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    instance = Instance(folder)
    folder.rmdir()
    instance.run(30)
    folder.mkdir()
    instance.run(10)
    assert instance.heard.events == ["samples are not kept", "samples are kept"]
    assert sum(r.trades for r in instance.rows()) == instance.trades


def test_a_full_disk_costs_samples_and_nothing_else(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_samples import Instance
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
instance = Instance(Path(sys.argv[1]))
instance.run(50)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
instance.run(200)
before = len(instance.rows())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
instance.run(10)
assert before < 251, before
assert len(instance.rows()) == 261, len(instance.rows())
assert instance.heard.events == ["samples are not kept", "samples are kept"], instance.heard.events
"""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), here], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_MAX_PENDING", 30)
    instance = Instance(tmp_path / "not there")
    instance.run(100)
    assert len(instance.store._pending) == 30


def test_a_reader_that_holds_the_file_delays_a_commit_and_loses_nothing(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.run(10)
    reader = sqlite3.connect(tmp_path / samples.FILE, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM samples").fetchone()
    instance.run(10)
    assert samples.newest_s(tmp_path) == BEGIN_S + 10
    reader.close()
    instance.run(10)
    assert len(instance.rows()) == 31


@pytest.mark.parametrize("closed", [False, True])
def test_another_user_reads_it_while_the_instance_runs_and_after(
    tmp_path: Path, closed: bool
) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == Path.home().owner() and folder.stat().st_mode & 0o5 != 0o5:
            folder.chmod(folder.stat().st_mode | 0o055)
    instance = Instance(tmp_path)
    instance.run(30)
    if closed:
        instance.store.close()
    mode = (tmp_path / samples.FILE).stat().st_mode
    assert mode & stat.S_IROTH
    assert as_nobody(lambda: len(samples.read(tmp_path, 0, 2e10, "binance")) == 31)
    # What a writer left that was killed within a commit can't be played back by a reader.
    left = subprocess.run(
        [sys.executable, "-c", _HALF_A_COMMIT, str(tmp_path / samples.FILE)], check=False
    )
    assert left.returncode == -9
    assert (tmp_path / (samples.FILE + "-journal")).stat().st_size > 0
    assert as_nobody(lambda: len(samples.read(tmp_path, 0, 2e10, "binance")) >= 1)


_HALF_A_COMMIT = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = TRUNCATE")
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE samples SET trades = 77")
connection.execute("PRAGMA cache_spill = 1")
connection.execute("CREATE TABLE more AS SELECT * FROM samples")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_samples_are_an_empty_list(tmp_path: Path) -> None:
    assert samples.read(tmp_path, 0, 2e10) == []
    assert samples.newest_s(tmp_path) is None
    (tmp_path / samples.FILE).write_text("something else")
    assert samples.read(tmp_path, 0, 2e10) == []
    assert samples.newest_s(tmp_path) is None


def test_rows_are_read_by_time_and_exchange_and_merged_to_steps(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.run(120)
    instance.store.close()
    found = samples.read(tmp_path, BEGIN_S + 10, BEGIN_S + 20, "binance")
    assert [r.at_s for r in found] == [BEGIN_S + n for n in range(11, 21)]
    minutes = instance.rows(step_s=60)
    assert [r.at_s for r in minutes] == [BEGIN_S, BEGIN_S + 60, BEGIN_S + 120]
    assert [r.trades for r in minutes] == [0, 300, 300]
    everyone = samples.read(tmp_path, BEGIN_S, BEGIN_S + 60, step_s=60)
    assert [r.exchange for r in everyone] == ["", "binance", "kraken"]


values = st.builds(
    lambda n, trades, cores, memory, p50, span_s: row(
        BEGIN_S + n, trades=trades, cpu_cores=cores, cpu_cores_max=cores, memory_bytes=memory,
        receive_p50_s=p50, receive_p99_s=p50, span_s=span_s,
    ),
    st.integers(0, 7200),
    st.integers(0, 10_000),
    st.floats(0, 4),
    st.integers(0, 1 << 40),
    st.none() | st.floats(0.0001, 10),
    st.floats(0.5, 1.5),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=50, unique_by=lambda r: r.at_s))
def test_a_merged_row_tells_what_its_parts_told(rows: list[Row]) -> None:
    merged = merge(rows, BEGIN_S + 7200)
    for name in COUNTED:
        assert getattr(merged, name) == sum(getattr(r, name) for r in rows)
    assert merged.memory_bytes == max(r.memory_bytes for r in rows)
    assert merged.span_s == pytest.approx(sum(r.span_s for r in rows))
    assert min(r.cpu_cores for r in rows) - 1e-9 <= merged.cpu_cores
    assert merged.cpu_cores <= merged.cpu_cores_max + 1e-9
    known = [r.receive_p50_s for r in rows if r.receive_p50_s is not None and r.trades]
    if known and merged.receive_p50_s is not None:
        assert min(known) * 0.999 <= merged.receive_p50_s <= max(known) * 1.001
    else:
        assert not known


@settings(deadline=None)
@given(st.lists(values, max_size=60, unique_by=lambda r: r.at_s), st.sampled_from([10, 60, 900]))
def test_merging_in_steps_at_once_or_by_and_by_is_the_same(rows: list[Row], step_s: int) -> None:
    at_once = in_steps(rows, 900)
    by_and_by = in_steps(in_steps(rows, step_s), 900)
    assert [(r.at_s, r.trades, r.memory_bytes) for r in at_once] == [
        (r.at_s, r.trades, r.memory_bytes) for r in by_and_by
    ]
    assert [r.cpu_cores for r in at_once] == pytest.approx([r.cpu_cores for r in by_and_by])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(-50, 40_000)), max_size=6))
def test_thinning_keeps_every_count_however_an_instance_ran(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]]
) -> None:
    """Runs of seconds, each followed by a pause; some begin before the last has ended."""
    folder = tmp_path_factory.mktemp("samples")
    instance = Instance(folder, keep_s=1e9)
    for seconds, pause_s in runs:
        instance.run(seconds)
        instance.clocks.pass_(max(pause_s, 0))
        if pause_s < 0:
            instance.clocks.unix_s += pause_s
            # Believed again before it is used to thin.
            instance.clocks.steady_s += 700
            instance.clocks.unix_s += 700
    instance.run(90)
    instance.store.close()
    rows = instance.rows()
    assert [r.at_s for r in rows] == sorted(r.at_s for r in rows)
    assert all(r.trades >= 0 for r in rows)
    overlaps = any(pause_s < 0 for _, pause_s in runs)
    total = sum(r.trades for r in rows)
    assert total == instance.trades or (overlaps and total <= instance.trades)
    for tier, until_s in ((1, 3600), (10, DAY_S)):
        oldest = min(steps(folder)[tier], default=instance.clocks.unix_s)
        assert oldest > instance.clocks.unix_s - until_s - 120 or len(rows) > 2000 or overlaps


@pytest.fixture(autouse=True)
def _plain_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_running_instance_keeps_samples_that_others_read(tmp_path: Path) -> None:
    from instance import Instance as Running  # noqa: PLC0415
    from sim import Sim, wait_until  # noqa: PLC0415

    with Sim("binance", "--rate", "50") as sim, Running(tmp_path, sim) as running:
        wait_until(
            lambda: samples.read(running.state, 0, time.time() + 1, "binance"),
            lambda rows: sum(r.trades for r in rows) > 100,
            40,
        )
        delivered = running.of("binance")["delivered"]
        assert running.stop() == 0
        rows = samples.read(running.state, 0, time.time() + 1, "binance")
        assert sum(r.delivered for r in rows) >= delivered
        assert {r.exchange for r in samples.read(running.state, 0, 2e10)} == {"", "binance"}
