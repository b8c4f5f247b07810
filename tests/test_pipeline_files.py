"""The whole way of a trade with real processes: simulator → reader → ring → serializer → files."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from instance import Instance, assert_complete, by_symbol, read_avro
from sim import Sim, wait_until

RECORDED = Path(__file__).parents[2] / "shared" / "frames"


def test_every_trade_of_both_exchanges_is_stored_once_with_its_exact_decimals(
    tmp_path: Path,
) -> None:
    with (
        Sim("binance", "--rate", "2000", "--limit", "10000", "--hold") as binance,
        Sim("kraken", "--rate", "200", "--limit", "1000", "--batch", "4", "--hold") as kraken,
        Instance(tmp_path, binance, kraken) as feedmono,
    ):
        feedmono.wait(lambda s: all(e["subscribed"] == e["symbols"] for e in s))
        feedmono.wait_trades("binance", 10_000)
        feedmono.wait_trades("kraken", 1_000)
        assert feedmono.stop() == 0
        for sim, total in ((binance, 10_000), (kraken, 1_000)):
            trades = by_symbol(read_avro(feedmono.data / sim.exchange, "trades"))
            assert_complete(trades, sim)
            assert sum(map(len, trades.values())) == total
        assert not list(feedmono.data.rglob("*.part"))
        assert not list((tmp_path / "rings").iterdir()), "an empty ring is removed at the end"


def test_the_raw_frame_of_each_trade_is_found_by_its_sequence(tmp_path: Path) -> None:
    with (
        Sim("kraken", "--rate", "300", "--limit", "600", "--batch", "5", "--hold") as sim,
        Instance(tmp_path, sim) as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["subscribed"] == s[0]["symbols"])
        feedmono.wait_trades("kraken", 600)
        assert feedmono.stop() == 0
        raw = {r["sequence"]: r for r in read_avro(feedmono.data / "kraken", "raw")}
        found = 0
        for trade in read_avro(feedmono.data / "kraken", "trades"):
            frame = raw[trade["frame_sequence"]]
            rows = json.loads(frame["payload"], parse_float=str, parse_int=str)["data"]
            row = next(r for r in rows if r["trade_id"] == trade["trade_id"])
            assert (row["price"], row["qty"]) == (trade["price"], trade["quantity"])
            assert trade["origin"] == frame["origin"]
            found += 1
        assert found == 600


def test_a_reader_schema_of_the_first_twelve_fields_reads_every_record(tmp_path: Path) -> None:
    schema = json.loads((Path(__file__).parents[1] / "schemas" / "trade.avsc").read_text())
    schema["fields"] = schema["fields"][:12]
    with (
        Sim("binance", "--rate", "500", "--limit", "500", "--hold") as sim,
        Instance(tmp_path, sim) as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["subscribed"] == s[0]["symbols"])
        feedmono.wait_trades("binance", 500)
        assert feedmono.stop() == 0
        records: list[Any] = []
        for path in (feedmono.data / "binance").glob("trades-*.avro"):
            with path.open("rb") as file:
                records += fastavro.reader(file, reader_schema=schema)
        assert len(records) == 500
        assert {len(r) for r in records} == {12}


@pytest.mark.timeout(900)
def test_ten_kills_of_the_serializer_lose_nothing_and_double_at_most_the_window(
    tmp_path: Path, full: bool
) -> None:
    window = 500
    kills = 100 if full else 10
    with (
        Sim("binance", "--rate", "2000", "--hold") as sim,
        Instance(tmp_path, sim, WINDOW=window) as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["subscribed"] == s[0]["symbols"])
        for _ in range(kills):
            before = feedmono.of("binance")
            feedmono.wait_trades("binance", before["delivered"] + 500)
            feedmono.kill_worker("binance", "serializer")
        sim.fault("pause", True)
        feedmono.wait(lambda s: s[0]["ring_used_bytes"] == 0)
        assert feedmono.stop() == 0
        trades = by_symbol(read_avro(feedmono.data / "binance", "trades"))
        assert_complete(trades, sim, doubled=kills * window)
        sent = {s: t["last_id"] for s, t in sim.state()["symbols"].items()}
        assert {s: max(int(t["trade_id"]) for t in ts) for s, ts in trades.items()} == sent


def test_a_new_start_after_a_kill_of_the_supervisor_goes_on_from_the_ring(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "1000", "--hold") as sim,
        Instance(tmp_path, sim, FILES_SYNC_INTERVAL="1 m", WINDOW=1_000_000) as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["subscribed"] == s[0]["symbols"])
        feedmono.wait(lambda s: s[0]["trades"] >= 1000)
        sim.fault("pause", True)
        sent = sum(t["sent"] for t in sim.state()["symbols"].values())
        feedmono.wait(lambda s: s[0]["trades"] == sent)
        assert feedmono.of("binance")["delivered"] == 0
        workers = feedmono.of("binance")
        os.kill(feedmono.pid, signal.SIGKILL)
        pids = [workers["reader_pid"], workers["serializer_pid"]]
        wait_until(lambda: all(map(_is_gone, pids)), bool, limit_s=1.0)
        assert feedmono.wait_end() == -signal.SIGKILL
        feedmono.start()
        feedmono.wait(lambda s: s[0]["trades"] == sent)
        assert feedmono.stop() == 0
        trades = by_symbol(read_avro(feedmono.data / "binance", "trades"))
        assert_complete(trades, sim, doubled=sent)
        assert sum(len({t["trade_id"] for t in ts}) for ts in trades.values()) == sent


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A killed orphan may wait for the machine's init to reap it; it runs no more.
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


@contextlib.contextmanager
def _paused(sim: Sim) -> Iterator[None]:
    """The simulator makes no trades of its own."""
    sim.fault("pause", True)
    yield
    sim.fault("pause", False)


needs_recordings = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="the recorded frames are not beside the checkout"
)


@needs_recordings
def test_the_recorded_frames_of_binance_become_the_trades_of_the_file(tmp_path: Path) -> None:
    path = RECORDED / "binance-btcusdt-2024-08.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    with (
        Sim("binance", "--rate", "1", "--symbols", "BTCUSDT", "--first-id", "1") as sim,
        _paused(sim),
        Instance(tmp_path, sim, BINANCE_SYMBOLS="BTCUSDT") as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["subscribed"] == 1)
        for line in lines:
            sim.send(line)
        feedmono.wait_trades("binance", len(lines))
        assert feedmono.stop() == 0
        raw = [r["payload"].decode() for r in read_avro(feedmono.data / "binance", "raw")]
        assert raw == lines
        stored = list(read_avro(feedmono.data / "binance", "trades"))
    for line, trade in zip(lines, stored, strict=True):
        event = json.loads(line)["data"]
        assert trade["trade_id"] == str(event["t"])
        assert (trade["price"], trade["quantity"]) == (event["p"], event["q"])
        assert trade["side"] == ("SELL" if event["m"] else "BUY")
        assert trade["exchange_timestamp"].timestamp() * 1000 == pytest.approx(event["T"])
        assert trade["canonical_symbol"] == "BTC/USDT"


def test_what_can_not_be_decoded_goes_to_the_dead_letters_and_the_rest_flows_on(
    tmp_path: Path,
) -> None:
    with (
        Sim("kraken", "--rate", "200", "--limit", "200", "--hold") as sim,
        Instance(tmp_path, sim) as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["trades"] > 0)
        weird = ['{"channel":"trade","type":"update","data":[{"symbol":', "[" * 5000, '{"new":1}']
        for text in weird:
            sim.send(text)
        sim.send_bytes(b"\x00\x01binary")
        sim.send_bytes(b'{"channel":"trade","bad":"\xff\xfe"}', opcode=1)
        feedmono.wait_trades("kraken", 200)
        feedmono.wait(lambda s: s[0]["dead_letters"] == 5)
        assert feedmono.stop() == 0
        letters = list(read_avro(feedmono.data / "kraken", "dead"))
        assert {bytes(text, "utf-8") for text in weird} < {d["payload"] for d in letters}
        assert b"\x00\x01binary" in {d["payload"] for d in letters}
        assert all(d["reason"] and d["stage"] == "decode" for d in letters)
        assert_complete(by_symbol(read_avro(feedmono.data / "kraken", "trades")), sim)


def test_a_symbol_that_the_exchange_refuses_is_reported_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    with (
        Sim("kraken", "--rate", "100") as sim,
        Instance(tmp_path, sim, KRAKEN_SYMBOLS="BTC/USD,XBT/USDT,ETH/USD") as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["trades"] > 50)
        feedmono.wait(lambda s: "XBT/USDT" in s[0]["refused"])
        assert "not supported" in feedmono.of("kraken")["refused"]["XBT/USDT"]
        assert feedmono.stop() == 0


def test_without_rest_the_capture_goes_on_and_delivery_begins_once_it_answers(
    tmp_path: Path,
) -> None:
    with Sim("binance", "--rate", "500", "--limit", "500", "--hold") as sim:
        sim.fault("rest-5xx", 1.0)
        with Instance(tmp_path, sim) as feedmono:
            sim.wait(lambda s: sum(t["sent"] for t in s["symbols"].values()) == 500)
            feedmono.wait(lambda s: s[0]["ring_used_bytes"] > 500 * 100)
            feedmono.wait(lambda s: s[0]["state"] == "waiting" and "metadata" in s[0]["detail"])
            assert feedmono.of("binance")["delivered"] == 0
            sim.fault("rest-5xx", 0.0)
            feedmono.wait_trades("binance", 500)
            assert feedmono.stop() == 0
        # The metadata is cached by now: no REST is needed any more.
        with Instance(tmp_path, sim, BINANCE_REST_URL="http://127.0.0.1:9") as cached:
            cached.wait(lambda s: s[0]["subscribed"] == s[0]["symbols"])
            cached.wait_event("no metadata", cached=True)
            cached.wait(lambda s: s[0]["state"] != "waiting")
            assert cached.stop() == 0
        assert_complete(by_symbol(read_avro(cached.data / "binance", "trades")), sim)


def test_a_symbol_that_metadata_does_not_list_is_refused_though_the_exchange_accepts_it(
    tmp_path: Path,
) -> None:
    with (
        Sim("binance", "--rate", "100") as sim,
        Instance(tmp_path, sim, BINANCE_SYMBOLS="BTCUSDT,NOSUCHUSDT") as feedmono,
    ):
        feedmono.wait(lambda s: "NOSUCHUSDT" in s[0]["refused"] and s[0]["delivered"] > 0)
        state = feedmono.of("binance")
        assert (state["state"], state["subscribed"]) == ("partial", 1)
        assert "does not list" in state["refused"]["NOSUCHUSDT"]
        assert feedmono.stop() == 0


def test_a_full_ring_stops_the_reading_and_loses_nothing_of_a_live_connection(
    tmp_path: Path,
) -> None:
    with (
        Sim("binance", "--rate", "3000", "--limit", "12000", "--hold") as sim,
        Instance(tmp_path, sim, RING_CAPACITY="128 KiB") as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["trades"] > 100)
        serializer = feedmono.worker("serializer binance")
        os.kill(serializer, signal.SIGSTOP)
        feedmono.wait_event("the ring is full: not reading")
        os.kill(serializer, signal.SIGCONT)
        feedmono.wait_trades("binance", 12_000)
        state = feedmono.of("binance")
        assert state["counts"]["ring_full"] > 0
        assert (state["reconnects"], state["counts"]["lost_frames"]) == (0, 0)
        assert feedmono.stop() == 0
        assert_complete(by_symbol(read_avro(feedmono.data / "binance", "trades")), sim)


def test_repeated_reordered_and_fragmented_trades_amid_garbage_are_stored_once(
    tmp_path: Path,
) -> None:
    faults = "repeat=0.05,reorder=0.05,fragmented=0.05,garbage=0.01"
    with (
        Sim("binance", "--rate", "1500", "--limit", "6000", "--hold", "--faults", faults) as sim,
        Instance(tmp_path, sim) as feedmono,
    ):
        feedmono.wait_trades("binance", 6000)
        state = feedmono.of("binance")
        assert state["duplicates"] > 100
        assert state["dead_letters"] > 10
        assert feedmono.stop() == 0
        trades = by_symbol(read_avro(feedmono.data / "binance", "trades"))
        for symbol, totals in sim.state()["symbols"].items():
            ids = [int(t["trade_id"]) for t in trades[symbol]]
            assert sorted(ids) == list(range(totals["first_id"], totals["last_id"] + 1))
            for trade in trades[symbol]:
                expected = sim.figures(symbol, int(trade["trade_id"]))
                assert (trade["price"], trade["quantity"]) == (expected.price, expected.quantity)


@needs_recordings
def test_the_recorded_frames_of_kraken_become_the_trades_of_the_file(tmp_path: Path) -> None:
    frames = (RECORDED / "kraken-v2-trade.jsonl").read_text().splitlines()
    with Sim("kraken", "--rate", "1", "--symbols", "BTC/USD") as sim, _paused(sim):
        with Instance(tmp_path, sim, KRAKEN_SYMBOLS="BTC/USD") as feedmono:
            feedmono.wait(lambda s: s[0]["subscribed"] == 1)
            for frame in frames:
                sim.send(frame)
            last = json.loads(frames[-1])["data"][-1]["trade_id"]
            feedmono.wait_trades("kraken", 4)
            assert feedmono.stop() == 0
        # Before them the simulator's own snapshot may stand.
        stored = list(read_avro(feedmono.data / "kraken", "trades"))[-4:]
        raw = [r["payload"].decode() for r in read_avro(feedmono.data / "kraken", "raw")][-2:]
    assert stored[-1]["trade_id"] == str(last)
    assert raw == frames
    rows = [row for frame in frames for row in json.loads(frame, parse_float=str)["data"]]
    assert len(rows) == 4
    for row, trade in zip(rows, stored, strict=True):
        assert trade["trade_id"] == str(row["trade_id"])
        assert (trade["price"], trade["quantity"]) == (row["price"], row["qty"])
        assert trade["side"] == row["side"].upper()
        time = trade["exchange_timestamp_us"].isoformat(timespec="microseconds")
        assert time.replace("+00:00", "Z") == row["timestamp"]
    assert [t["origin"] for t in stored] == ["SNAPSHOT", "SNAPSHOT", "STREAM", "STREAM"]


def test_a_symbol_named_in_the_configuration_needs_no_metadata(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "200", "--symbols", "BTCUSDT") as sim,
        Instance(
            tmp_path,
            sim,
            BINANCE_REST_URL="http://127.0.0.1:9",
            BINANCE_SYMBOLS="BTCUSDT",
            BINANCE_CANONICAL_SYMBOLS="BTCUSDT=XBT/Tether",
        ) as feedmono,
    ):
        feedmono.wait_trades("binance", 50)
        assert feedmono.stop() == 0
        trades = read_avro(feedmono.data / "binance", "trades")
        assert {t["canonical_symbol"] for t in trades} == {"XBT/Tether"}
