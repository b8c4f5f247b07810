"""Nothing lost, nothing doubled: with real processes, into files."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from delivery import feedmono as command
from delivery import ids_of, independent, parts, wait_complete
from instance import Instance, read_avro
from sim import Sim

from feedmono.delivery.holes import State
from feedmono.delivery.ledger_file import read_fills

# Time to heal is what these tests wait for; a second look at what REST lacks need not wait.
SOON = {"BACKFILL_CONFIRM_AFTER": "200 ms", "COVERAGE_INTERVAL": "200 ms"}


def test_cut_connections_leave_no_hole(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "1000", "--hold", "--faults", "cut=1s") as binance,
        Sim("kraken", "--rate", "60", "--batch", "3", "--hold", "--faults", "cut=4s") as kraken,
        Instance(tmp_path, binance, kraken, **SOON) as feedmono,
    ):
        binance.wait(lambda s: s["faults"].get("cut", 0) >= 8)
        kraken.wait(lambda s: s["faults"].get("cut", 0) >= 2)
        for sim in (binance, kraken):
            sim.fault("cut", False)
            sim.fault("pause")
            wait_complete(feedmono, sim)
        assert feedmono.of("binance")["counts"]["backfilled"] > 0
        assert feedmono.stop() == 0
        for sim in (binance, kraken):
            outcome = independent(read_avro(feedmono.data / sim.exchange, "trades"), sim)
            assert (outcome.missing, outcome.doubled) == ([], 0)
            assert outcome.trades == sum(t["made"] for t in sim.state()["symbols"].values())
        assert not parts(feedmono.data)
        assert command(feedmono, "verify")[0] == 0


def test_a_quiet_symbols_trade_that_passed_while_disconnected_is_found(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "200", "--hold", "--symbols", "BTCUSDT") as sim,
        Instance(tmp_path, sim, BINANCE_SYMBOLS="BTCUSDT", **SOON) as feedmono,
    ):
        feedmono.wait_trades("binance", 100)
        sim.fault("refuse-connections", True)
        sim.fault("cut")
        sim.wait(lambda s: s["symbols"]["BTCUSDT"]["unheard"] > 20)
        # No later trade will come to reveal the hole.
        sim.fault("pause")
        sim.fault("refuse-connections", False)
        wait_complete(feedmono, sim)
        outcome_ids = ids_of(feedmono, "binance")["BTCUSDT"]
        assert outcome_ids.last_id == sim.state()["symbols"]["BTCUSDT"]["last_id"]
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)
        assert outcome.origins["BACKFILL"] > 20


def test_a_serializer_that_dies_before_it_looked_at_a_quiet_symbols_tail_looks_later(
    tmp_path: Path,
) -> None:
    with (
        Sim("binance", "--rate", "200", "--hold", "--symbols", "BTCUSDT") as sim,
        Instance(tmp_path, sim, BINANCE_SYMBOLS="BTCUSDT", **SOON) as feedmono,
    ):
        feedmono.wait_trades("binance", 100)
        sim.fault("refuse-connections", True)
        sim.fault("cut")
        sim.wait(lambda s: s["symbols"]["BTCUSDT"]["unheard"] > 20)
        sim.fault("pause")
        # What the first one asks for is refused; the second one has to know that it must ask.
        sim.fault("rest-5xx", 1.0)
        sim.fault("refuse-connections", False)
        feedmono.wait(lambda s: s[0]["ring_used_bytes"] == 0 and s[0]["subscribed"] == 1)
        feedmono.kill_worker("binance", "serializer")
        sim.fault("rest-5xx", False)
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)


def test_what_passed_while_feedmono_was_down_is_fetched(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold") as binance,
        Sim("kraken", "--rate", "20", "--hold") as kraken,
        Instance(tmp_path, binance, kraken, **SOON) as feedmono,
    ):
        for kill in (False, True):
            feedmono.wait_trades("binance", 500)
            feedmono.wait_trades("kraken", 20)
            feedmono.kill() if kill else feedmono.stop()
            for sim in (binance, kraken):
                _wait_more(sim, 20)
            feedmono.start()
        for sim in (binance, kraken):
            feedmono.wait_trades(sim.exchange, 20)
            sim.fault("pause")
            wait_complete(feedmono, sim)
        causes = {fill.cause for fill in read_fills(feedmono.state / "binance.ledger")}
        assert causes == {"restart"}
        assert feedmono.stop() == 0
        for sim in (binance, kraken):
            outcome = independent(read_avro(feedmono.data / sim.exchange, "trades"), sim)
            assert (outcome.missing, outcome.doubled) == ([], 0), sim.exchange
        assert command(feedmono, "verify")[0] == 0


def _cut(times: int, state: Mapping[str, Any]) -> bool:
    return bool(state["faults"].get("cut", 0) >= times)


def _traded(trades: int, status: Sequence[Mapping[str, Any]]) -> bool:
    return bool(status[0]["trades"] >= trades)


def _wait_more(sim: Sim, trades: int) -> None:
    """Waits until the simulator has made so many more."""

    def made(state: Mapping[str, Any]) -> int:
        return sum(t["made"] for t in state["symbols"].values())

    enough = made(sim.state()) + trades
    sim.wait(lambda state: made(state) >= enough)


@pytest.mark.timeout(900)
def test_kills_of_every_process_leave_no_hole_and_double_nothing(
    tmp_path: Path, full: bool
) -> None:
    kills = 100 if full else 10
    with (
        Sim("binance", "--rate", "1000", "--hold", "--faults", "cut=3s") as sim,
        Instance(tmp_path, sim, FILES_ROLL_INTERVAL="1 s", **SOON) as feedmono,
    ):
        for n in range(kills):
            before = feedmono.of("binance")
            feedmono.wait_trades("binance", before["delivered"] + 200)
            if n % 5 == 4:
                feedmono.kill()
                feedmono.start()
                continue
            role = ("reader", "serializer")[n % 2]
            feedmono.kill_worker("binance", role)
        sim.fault("cut", False)
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)
        assert not parts(feedmono.data)
        status, output = command(feedmono, "verify")
        assert status == 0, output


def test_trades_that_the_exchange_loses_repeats_and_reorders_are_found_filled_and_dropped(
    tmp_path: Path,
) -> None:
    with (
        Sim(
            "binance", "--rate", "1000", "--limit", "10000", "--hold",
            "--faults", "lose=0.002,repeat=0.01,reorder=0.01",
        ) as sim,
        Instance(tmp_path, sim, **SOON) as feedmono,
    ):  # fmt: skip
        sim.wait(lambda s: s["finished"])
        wait_complete(feedmono, sim)
        totals = sim.state()["symbols"].values()
        lost = sum(t["lost"] for t in totals)
        feedmono.wait(lambda s: s[0]["counts"]["backfilled"] >= lost)
        counts = feedmono.of("binance")["counts"]
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled, outcome.trades) == ([], 0, 10_000)
        assert outcome.origins["BACKFILL"] >= lost
        assert lost > 0
        assert counts["duplicates"] >= sum(t["repeated"] for t in totals) > 0
        assert counts["late"] > 0
        assert counts["holes"] > 0
        assert command(feedmono, "verify")[0] == 0


@pytest.mark.parametrize(
    "faults",
    ["rest-429=0.3", "rest-418=0.1", "rest-5xx=0.4", "rest-none=0.4", "rest-wrong=0.5"],
)
def test_whatever_rest_answers_the_hole_is_filled_in_the_end_with_the_right_trades(
    tmp_path: Path, faults: str
) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold") as sim,
        Instance(tmp_path, sim, **SOON) as feedmono,
    ):
        feedmono.wait_trades("binance", 200)
        kind, _, value = faults.partition("=")
        sim.fault(kind, float(value))
        for cuts in range(1, 4):
            sim.fault("cut")
            sim.wait(partial(_cut, cuts))
            made = feedmono.of("binance")["trades"]
            feedmono.wait(partial(_traded, made + 200))
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert not sim.state()["faults"].get("retry-after ignored")
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)


def test_the_stream_does_not_wait_for_rest(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold", "--faults", "rest-slow=2s") as sim,
        Instance(tmp_path, sim, BINANCE_CANONICAL_SYMBOLS=_names(), **SOON) as feedmono,
    ):
        feedmono.wait_trades("binance", 200)
        sim.fault("cut")
        made = feedmono.of("binance")["trades"]
        feedmono.wait(lambda s: s[0]["counts"]["holes_open"] > 0)
        feedmono.wait(lambda s: s[0]["trades"] > made + 300)
        assert feedmono.of("binance")["counts"]["backfilled"] == 0
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0


def _names() -> str:
    symbols = ("BTC", "ETH", "BNB", "SOL", "XRP")
    return ",".join(f"{s}USDT={s}/USDT" for s in symbols)


def test_an_id_that_the_exchange_does_not_have_is_settled_as_absent(tmp_path: Path) -> None:
    with (
        Sim("kraken", "--rate", "50", "--hold", "--symbols", "BTC/USD") as sim,
        Instance(tmp_path, sim, KRAKEN_SYMBOLS="BTC/USD", **SOON) as feedmono,
    ):
        feedmono.wait_trades("kraken", 50)
        # A garbage id far ahead: neither believed nor asked for without end.
        sim.send(
            '{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"buy",'
            '"price":1.5,"qty":2.0,"ord_type":"limit","trade_id":9000000000000000000,'
            '"timestamp":"2026-01-01T00:00:00.000000Z"}]}'
        )
        before = feedmono.of("kraken")["delivered"]
        feedmono.wait_trades("kraken", before + 50)
        sim.fault("cut")
        feedmono.wait_trades("kraken", before + 100)
        sim.fault("pause")
        wait_complete(feedmono, sim)
        ids = ids_of(feedmono, "kraken")["BTC/USD"]
        assert list(ids.islands) == [9 * 10**18]
        assert not [h for h in ids.holes if h.state is not State.ABSENT]
        assert feedmono.stop() == 0


def test_a_full_ring_stops_reading_and_what_passed_is_fetched(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "2000", "--hold", "--send-buffer", "1") as sim,
        Instance(tmp_path, sim, RING_CAPACITY="512 KiB", **SOON) as feedmono,
    ):
        feedmono.wait_trades("binance", 1000)
        serializer = feedmono.of("binance")["serializer_pid"]
        os.kill(serializer, signal.SIGSTOP)
        feedmono.wait(lambda s: s[0]["counts"]["ring_full"] > 0)
        # What the kernels' buffers could still hold of it is gone as well.
        sim.fault("cut")
        _wait_more(sim, 4_000)
        with contextlib.suppress(ProcessLookupError):  # it is replaced when it hangs for too long
            os.kill(serializer, signal.SIGCONT)
        feedmono.wait(lambda s: s[0]["ring_used_bytes"] < 100_000)
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)


@pytest.mark.timeout(900)
def test_rotation_under_load_loses_and_doubles_nothing(tmp_path: Path, full: bool) -> None:
    rotations = 50 if full else 8
    with (
        Sim("binance", "--rate", "1000", "--hold") as sim,
        Instance(tmp_path / "without", sim, **SOON) as feedmono,
    ):
        feedmono.wait_trades("binance", 600 * rotations)
        assert feedmono.stop() == 0
        without_s = _longest_pause_s(feedmono)
    with (
        Sim("binance", "--rate", "1000", "--hold") as sim,
        Instance(tmp_path / "with", sim, CONNECTIONS_MAX_AGE="700 ms", **SOON) as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["counts"]["rotations"] >= rotations, limit_s=300)
        sim.fault("pause")
        wait_complete(feedmono, sim)
        status = feedmono.of("binance")
        assert status["reconnects"] == 0
        assert status["counts"]["backfilled"] == 0, "nothing had to be fetched"
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)
        with_s = _longest_pause_s(feedmono)
        print(
            f"longest pause between two trades, {rotations} rotations: {with_s * 1000:.0f} ms, "
            f"without any: {without_s * 1000:.0f} ms"
        )


def _longest_pause_s(feedmono: Instance) -> float:
    """Between two trades off the sockets, whatever their symbols."""
    trades = read_avro(feedmono.data / "binance", "trades")
    moments: list[float] = sorted(t["received_timestamp_us"].timestamp() for t in trades)
    return max(later - earlier for earlier, later in pairwise(moments))


def test_with_two_connections_a_cut_of_one_loses_nothing_for_a_moment(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold") as sim,
        Instance(tmp_path, sim, CONNECTIONS_REDUNDANCY=2, **SOON) as feedmono,
    ):
        sim.wait(lambda s: s["connections_open"] == 2)
        feedmono.wait_trades("binance", 300)
        sim.fault("cut", "300ms")
        sim.wait(lambda s: s["faults"].get("cut", 0) >= 5)
        sim.fault("cut", False)
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.of("binance")["duplicates"] > 0
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)
