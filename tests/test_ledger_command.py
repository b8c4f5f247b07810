"""``feedmono ledger``: coverage, gaps and fills as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from instance import only
from nobody import as_nobody

from feedmono import cli, config, log, workers
from feedmono.commands.columns import Column, columns_fit
from feedmono.commands.ledger_table import look
from feedmono.config import Config
from feedmono.delivery.ledger import Ledger
from feedmono.delivery.ledger_file import LedgerError
from feedmono.trade import BACKFILL, STREAM, Trade

TIME_US = 1_795_392_281_000_000
BTC, ETH = "BTCUSDT", "ETHUSDT"
FIRST_ID = 5_600_000_000


def trade(trade_id: int, symbol: str = BTC, time_us: int = 0) -> Trade:
    return Trade(symbol, trade_id, "61837.63", "0.02", 0, time_us or TIME_US + trade_id % 10**6)


class Bench:
    """A ledger of each exchange in a folder, and the command on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.capsys = capsys
        self.ledgers: dict[str, Ledger] = {}

    def ledger(self, exchange: str = "binance") -> Ledger:
        if exchange not in self.ledgers:
            path = workers.Shared.of(self.config(), exchange).ledger
            self.ledgers[exchange] = Ledger(path, log.get())
        return self.ledgers[exchange]

    def deliver(
        self, *trades: Trade, exchange: str = "binance", origin: int = STREAM, most: int = 10**9
    ) -> None:
        for each in trades:
            self.ledger(exchange).deliver([each], origin, "disconnect", TIME_US, most, 7)

    def commit(self) -> None:
        for ledger in self.ledgers.values():
            ledger.commit(0, 100, 7, {})

    def close(self) -> None:
        self.commit()
        while self.ledgers:
            self.ledgers.popitem()[1].close()

    def config(self) -> Config:
        return config.load(None, {"FEEDMONO_STATE_DIR": str(self.state)}, cwd=self.folder).config

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("FEEDMONO_STATE_DIR", str(self.state))
            for name, value in only("binance", "kraken").items():
                patch.setenv(name, value)
            status = cli.main(["ledger", *arguments])
        out, err = self.capsys.readouterr()
        return status, out, err

    def json(self, *arguments: str) -> dict[str, Any]:
        status, out, _ = self.run("--format", "json", *arguments)
        assert status == 0
        told: dict[str, Any] = json.loads(out)
        return told


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    bench = Bench(tmp_path, capsys)
    yield bench
    bench.close()


def with_holes(bench: Bench) -> None:
    """5 trades, of 3 holes one is filled in part, one is absent, one is beyond."""
    first = FIRST_ID
    bench.deliver(*map(trade, (first, first + 10, first + 20)))
    bench.deliver(trade(first + 40), most=5)
    bench.deliver(trade(first + 5), origin=BACKFILL)
    bench.deliver(trade(first + 7))
    for now_us in (TIME_US, TIME_US + 1):
        bench.ledger().prove(BTC, first + 11, first + 19, now_us, 0)
    bench.commit()


def test_a_complete_ledger_says_so(bench: Bench) -> None:
    bench.deliver(*(trade(FIRST_ID + n) for n in range(1500)))
    bench.deliver(*(trade(n, "BTC/USD") for n in range(3)), exchange="kraken")
    bench.commit()
    status, out, err = bench.run()
    assert (status, err) == (0, "")
    head, binance, kraken, empty, verdict = out.splitlines()
    assert head.split()[:2] == ["exchange", "symbol"]
    assert binance.split()[:5] == [
        "binance",
        BTC,
        "5,600,000,000",
        "5,600,001,499",
        "1,500",
    ]
    assert kraken.split()[:5] == ["kraken", "BTC/USD", "0", "2", "3"]
    assert empty == ""
    assert verdict == "complete: no hole open"


def test_open_holes_are_told_by_symbol_and_those_given_up_apart(bench: Bench) -> None:
    with_holes(bench)
    bench.deliver(trade(1, ETH))
    bench.commit()
    status, out, _ = bench.run("binance")
    assert status == 0
    # 1 to 4, 6, 8 to 9, and the newest five of the last jump.
    assert f"binance {BTC}: 4 holes open, 12 ids" in out
    assert "not complete: 1 of 2 symbols" in out
    assert f"absent (the exchange does not have them):\n  binance {BTC}: 9 ids" in out
    assert f"  binance {BTC}: 14 ids" in out.split("beyond (")[1]
    assert out.splitlines()[1].split()[4] == "6"


def test_the_table_fits_80_columns_however_long_the_ids_are(bench: Bench) -> None:
    bench.deliver(trade(1), trade(9_999_999_999))
    bench.deliver(trade(9_999_999_999 + 1_000_000))
    bench.commit()
    bench.ledger().symbols[BTC].last_id = 10**12 + 9
    bench.ledger().deliver([trade(10**12 + 10)], STREAM, "down", TIME_US, 10, 8)
    bench.commit()
    _, out, _ = bench.run()
    assert max(map(len, out.splitlines())) <= 80
    assert "1,000,000,000,010" in out


def test_columns_are_left_out_by_rank_until_the_rest_fits() -> None:
    columns = [
        Column("a", ["1,234"]),
        Column("bb", ["7"], rank=2),
        Column("c", ["x"], left=True, rank=1),
    ]
    assert columns_fit(columns, 10) == "    a bb c\n1,234  7 x"
    assert columns_fit(columns, 9) == "    a c\n1,234 x"
    assert columns_fit(columns, 3) == "    a\n1,234"


def test_a_symbol_shows_its_holes_and_fills(bench: Bench) -> None:
    with_holes(bench)
    bench.deliver(trade(9_000_000_000))
    bench.commit()
    status, out, _ = bench.run("binance", BTC)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for title in ("open holes", "absent holes", "beyond holes", "newest fills", "far from"):
        assert title in out
    assert "5,600,000,001 to 5,600,000,004   4 disconnect 2026-11-23" in out
    assert "5,600,000,005" in out.split("newest fills")[1]
    assert "BACKFILL" in out
    assert "9,000,000,000" in out.split("far from")[1]


def test_of_many_ranges_the_newest_are_shown_and_the_rest_is_counted(bench: Bench) -> None:
    bench.deliver(*(trade(n) for n in range(0, 600, 2)))
    bench.ledger().give_up(BTC, 0, 250)
    bench.commit()
    _, out, _ = bench.run("binance", BTC)
    opened, beyond = out.split("\nopen holes")[1].split("beyond holes")
    assert opened.split("\n")[1].split()[0] == "597"
    assert "and 74 older, 74 ids: all with --format json" in opened
    assert "and 105 older, 105 ids" in beyond


def test_former_epochs_are_shown(bench: Bench) -> None:
    bench.deliver(trade(1000), trade(1005))
    bench.deliver(*(trade(n, time_us=TIME_US + 10**9) for n in (3, 4)))
    bench.commit()
    _, out, _ = bench.run("binance", BTC)
    (line,) = out.split("former epochs")[1].splitlines()[1:2]
    assert line.split()[:4] == ["0", "1,000", "1,005", "4"]
    (told,) = bench.json()["exchanges"][0]["symbols"]
    assert told["epoch"] == 1
    assert told["epochs"][0]["missing"] == 4


def test_json_has_everything_with_iso_times_and_numbers(bench: Bench) -> None:
    with_holes(bench)
    told = bench.json()
    assert told["complete"] is False
    (exchange,) = told["exchanges"]
    assert exchange["name"] == "binance"
    assert datetime.fromisoformat(exchange["committed"]).utcoffset() is not None
    (symbol,) = exchange["symbols"]
    assert (symbol["first_id"], symbol["last_id"]) == (FIRST_ID, FIRST_ID + 40)
    assert symbol["trades"] == 6
    assert symbol["open"] == {"holes": 4, "ids": 12}
    assert symbol["absent"] == {"holes": 1, "ids": 9}
    assert symbol["beyond"] == {"holes": 1, "ids": 14}
    assert (symbol["backfilled"], symbol["late"]) == (1, 1)
    assert symbol["found"] == {"holes": 3, "ids": 37}
    assert len(symbol["holes"]) == 6
    assert symbol["holes"][0] == {
        "first_id": FIRST_ID + 1,
        "last_id": FIRST_ID + 4,
        "ids": 4,
        "state": "open",
        "cause": "disconnect",
        "opened": "2026-11-23T00:04:41+00:00",
        "tries": 0,
    }
    assert {fill["origin"] for fill in symbol["fills"]} == {"STREAM", "BACKFILL"}


def test_it_works_while_the_ledger_is_written_and_afterwards(bench: Bench) -> None:
    bench.deliver(trade(1))
    bench.commit()
    assert bench.json()["exchanges"][0]["symbols"][0]["last_id"] == 1
    bench.deliver(trade(2))
    bench.commit()
    assert bench.json()["exchanges"][0]["symbols"][0]["last_id"] == 2
    bench.close()
    assert bench.json()["exchanges"][0]["symbols"][0]["last_id"] == 2
    # Who looks leaves nothing there that the instance could not write to.
    assert [path.name for path in bench.state.iterdir()] == ["binance.ledger"]


@pytest.mark.parametrize("end", ["stopped", "killed", "at work"])
def test_who_may_only_read_can_look_at_the_ledger(
    capsys: pytest.CaptureFixture[str], end: str
) -> None:
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), capsys)
        loaded = bench.config()
        if end == "killed":
            child = os.fork()
            if not child:
                bench.deliver(trade(1))
                bench.commit()
                os._exit(0)
            os.waitpid(child, 0)
        else:
            bench.deliver(trade(1))
            bench.commit()
        if end == "stopped":
            bench.close()
        bench.folder.chmod(0o755)
        bench.state.chmod(0o555)
        before = sorted(bench.state.iterdir())

        def sees_it() -> bool:
            now = look(loaded, "binance")
            return now is not None and list(now.content.symbols) == [BTC]

        assert as_nobody(sees_it)
        bench.state.chmod(0o755)
        assert sorted(bench.state.iterdir()) == before
        bench.close()


def test_a_damaged_ledger_is_told_with_its_own_path(bench: Bench) -> None:
    bench.deliver(trade(1))
    bench.close()
    path = bench.state / "binance.ledger"
    path.write_bytes(b"no database, far from it" * 100)
    status, _, err = bench.run("binance")
    assert status == 1
    assert f"{path} can't be read" in err
    with pytest.raises(LedgerError):
        look(bench.config(), "binance")


def test_without_a_ledger_it_says_so_with_status_1(bench: Bench) -> None:
    status, out, err = bench.run()
    assert (status, out) == (1, "")
    assert f"no ledger of binance, kraken in {bench.state}" in err
    bench.deliver(trade(1))
    bench.commit()
    status, out, err = bench.run()
    assert status == 0
    assert "no ledger of kraken" in err
    assert "complete" in out
    status, _, err = bench.run("binance", ETH)
    assert status == 1
    assert f"no trade of binance {ETH}" in err


def test_a_wrong_exchange_or_symbol_names_those_there_are_with_status_2(bench: Bench) -> None:
    bench.deliver(trade(1, "OLDUSDT"))
    bench.commit()
    status, _, err = bench.run("coinbase")
    assert status == 2
    assert "binance, kraken" in err
    status, _, err = bench.run("binance", "BTC-USD")
    assert status == 2
    assert BTC in err
    # A symbol that is not configured any more still has its ledger.
    assert bench.run("binance", "OLDUSDT")[0] == 0


def test_an_empty_ledger_says_that_nothing_was_delivered(bench: Bench) -> None:
    bench.ledger()
    bench.commit()
    status, out, _ = bench.run("binance")
    assert status == 0
    assert "no trade was delivered yet" in out
    shutil.rmtree(bench.state)
    bench.ledgers.clear()
