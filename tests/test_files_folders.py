"""The files sink in one folder after another: what was committed in each stays known."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from delivery import independent, wait_complete
from files_rig import EXCHANGE, entries
from instance import read_avro
from sim import Sim
from test_reload import Reloaded

from feedmono import config as configuration
from feedmono import log
from feedmono.config import FilesConfig
from feedmono.delivery import ledger_file
from feedmono.delivery.ledger import MAX_PLACES, Ledger
from feedmono.sinks import kinds
from feedmono.sinks.files import FilesSink, count_trades, read_trades
from feedmono.sinks.kafka import KafkaSink


def serve(state: Path, folder: Path, first: int, committed: int, beyond: int) -> None:
    """The serializer's part: stores trades from *first* to *committed*, and up to *beyond* what
    the ledger does not get to know; then it kills itself, or ends if there is nothing beyond."""
    made = configuration.load(None, {}, cwd=state).config
    files = FilesConfig(folder, 3600.0, 1 << 28, 0.005)
    config = replace(made, sink="files", files=files)
    book = Ledger(state / "ledger", log.get())
    sink = kinds.configured(config).sink(config, EXCHANGE, book, state / "dead", log.get())
    assert sink.open(), sink.trouble
    book.begin(sink.mark(), sink.place)
    for begin, end in ((first, committed), (committed, beyond)):
        assert sink.write(entries(begin, end)) == end - begin
        sink.flush()
        assert end in (sink.poll(0), begin)
        if end == committed:
            book.commit(-1, 0, end, sink.mark(), sink.place)
            sink.settle()
    if beyond > committed:
        os.kill(os.getpid(), signal.SIGKILL)
    sink.close()
    book.close()


def run(state: Path, folder: Path, first: int, committed: int, beyond: int = 0) -> None:
    """The same, in a process of its own."""
    numbers = (first, committed, max(beyond, committed))
    child = multiprocessing.get_context("fork").Process(
        target=serve, args=(state, folder, *numbers)
    )
    child.start()
    child.join(60)
    assert child.exitcode == (-signal.SIGKILL if beyond else 0)


def ids(*folders: Path) -> list[int]:
    """Those of all trades that are stored there."""
    return [int(t["trade_id"]) for f in folders for t in read_trades(f, EXCHANGE)]


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / EXCHANGE).glob("*.part"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.mark.parametrize("killed_in_b", [False, True])
def test_back_in_a_folder_it_goes_on_behind_what_was_committed_there(
    state: Path, tmp_path: Path, killed_in_b: bool
) -> None:
    a, b = tmp_path / "A", tmp_path / "B"
    run(state, a, 0, 20, beyond=30)
    assert parts(a)
    run(state, b, 20, 40, beyond=50 if killed_in_b else 0)
    run(state, a, 40, 60, beyond=65)
    run(state, b, 60, 80)
    run(state, a, 80, 100)
    assert sorted(ids(a, b)) == list(range(100))
    assert ids(a) == [*range(20), *range(40, 60), *range(80, 100)]
    assert not parts(a)
    assert not parts(b)


def test_what_a_folder_never_committed_is_removed_though_another_was_used_since(
    state: Path, tmp_path: Path
) -> None:
    a, b = tmp_path / "A", tmp_path / "B"
    run(state, a, 0, 20)
    run(state, b, 20, 20, beyond=30)  # the first in that folder, and nothing of it was committed
    run(state, a, 20, 40)
    run(state, b, 40, 60)
    assert sorted(ids(a, b)) == list(range(60))


def test_while_kafka_is_used_the_marks_of_the_folders_stay(state: Path, tmp_path: Path) -> None:
    a = tmp_path / "A"
    run(state, a, 0, 20, beyond=30)
    with closing(Ledger(state / "ledger", log.get())) as book:
        book.begin({}, KafkaSink.place)
        for position in range(3):
            book.commit(-1, position, 0, {}, KafkaSink.place)
    run(state, a, 40, 60)
    assert ids(a) == [*range(20), *range(40, 60)]


def test_a_ledger_that_tells_no_folder_is_of_the_one_that_has_its_files(
    state: Path, tmp_path: Path
) -> None:
    a, b = tmp_path / "A", tmp_path / "B"
    run(state, a, 0, 20, beyond=30)
    with closing(sqlite3.connect(state / "ledger")) as connection:
        connection.execute("DELETE FROM meta WHERE key IN ('place', 'elsewhere')")
        connection.commit()
    content = ledger_file.read(state / "ledger")
    assert content is not None
    assert content.place == ledger_file.UNKNOWN_PLACE
    assert content.mark
    run(state, b, 20, 40)
    run(state, a, 40, 60)
    assert sorted(ids(a, b)) == list(range(60))


def test_a_folder_that_was_moved_is_known_by_its_files(state: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "A", tmp_path / "B"
    run(state, a, 0, 20, beyond=30)
    a.rename(b)
    run(state, b, 20, 40)
    assert ids(b) == list(range(40))


def test_in_a_folder_that_was_forgotten_all_is_kept_and_it_says_so(
    state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a = tmp_path / "A"
    run(state, a, 0, 20, beyond=30)
    with closing(Ledger(state / "ledger", log.get())) as book:
        for number in range(MAX_PLACES - 1):
            book.commit(-1, 0, 0, {"x.part": number}, f"/other-{number}")
        place = str(a.resolve() / EXCHANGE)
        assert book.mark_of(place) is not None
        book.commit(-1, 0, 0, {}, "/one-too-many")
        assert book.mark_of(place) is None
        assert book.mark_of("/other-0") == {"x.part": 0}
    capfd.readouterr()
    run(state, a, 40, 60)
    assert ids(a) == [*range(30), *range(40, 60)]
    assert "nobody knows how much of a file was committed" in "".join(capfd.readouterr())


def test_two_names_of_a_folder_are_one_place(state: Path, tmp_path: Path) -> None:
    a, link = tmp_path / "A", tmp_path / "link"
    run(state, a, 0, 20, beyond=30)
    link.symlink_to(a)
    run(state, link, 20, 40)
    assert ids(a) == list(range(40))
    assert count_trades(link, EXCHANGE) == 40


def test_marks_are_read_again_from_the_ledger_in_the_order_of_their_use(state: Path) -> None:
    path = state / "ledger"
    with closing(Ledger(path, log.get())) as book:
        for place, length in (("/a", 1), ("/b", 2), ("/a", 3), ("", 0), ("/c\udcff", 4)):
            book.commit(-1, 0, 0, {"x.part": length} if place else {}, place)
    with closing(Ledger(path, log.get())) as book:
        assert book.mark == book.mark_of("/c\udcff") == {"x.part": 4}
        assert book.marks_besides("/c\udcff") == [{"x.part": 2}, {"x.part": 3}]
        assert book.mark_of("/d") is None


def test_the_sinks_place_is_its_folder(tmp_path: Path) -> None:
    sink = FilesSink(FilesConfig(tmp_path / "x" / ".." / "A", 1.0, 1 << 20, 1.0), EXCHANGE)
    assert sink.place == str(tmp_path.resolve() / "A" / EXCHANGE)


@pytest.mark.timeout(300)
def test_reloads_to_another_folder_and_back_lose_and_double_nothing(tmp_path: Path) -> None:
    """Twice the serializer hangs meanwhile, so that it is killed with its files open."""
    a, b = tmp_path / "A", tmp_path / "B"
    with Sim("kraken", "--rate", "300", "--hold") as sim:
        feedmono = Reloaded(tmp_path, sim)
        feedmono.environ = {
            name: value for name, value in feedmono.environ.items() if name != "FEEDMONO_FILES_DIR"
        }
        feedmono.write(files__dir=f'"{a}"')
        with feedmono:
            feedmono.wait_trades("kraken", 1000)
            for folder, hangs in ((b, True), (a, True), (b, False)):
                _, serializer = feedmono.pids("kraken")
                if hangs:
                    os.kill(serializer, signal.SIGSTOP)
                feedmono.reload(files__dir=f'"{folder}"')
                feedmono.wait_replaced("kraken", "serializer", serializer)
                delivered = feedmono.of("kraken")["delivered"]
                feedmono.wait_trades("kraken", delivered + 300)
            sim.fault("pause")
            wait_complete(feedmono, sim)
            assert feedmono.stop() == 0
            stored = chain.from_iterable(read_avro(f / "kraken", "trades") for f in (a, b))
            outcome = independent(stored, sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)
