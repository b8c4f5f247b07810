"""``feedmono verify``: what is planted in a sink is found, and nothing else."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from broker import Kafka, MockKafka, MockRegistry, Registry, eventually
from hypothesis import given
from hypothesis import strategies as st
from instance import only
from nobody import as_nobody

from feedmono import cli, config, log, workers
from feedmono.avro import generate_encoder, load_schema
from feedmono.commands.ledger_table import Look, look
from feedmono.config import Config
from feedmono.delivery import ids
from feedmono.delivery.ledger import Ledger
from feedmono.exchanges import load
from feedmono.sinks.base import DeadLetter, Entry, Frame, Source, StoredRecord
from feedmono.sinks.files import FilesSink
from feedmono.sinks.kafka import KafkaSink
from feedmono.supervision import statelock
from feedmono.trade import BACKFILL, ORIGINS, SIDES, SNAPSHOT, STREAM, EncodedTrade, Trade, multiply
from feedmono.verify import table as verify_table
from feedmono.verify import verify
from feedmono.verify.bitmap import Bitmap
from feedmono.verify.findings import (
    BEYOND,
    DOUBLED,
    INVALID,
    MAX_NAMED,
    MISSING,
    RAW_DOUBLED,
    RAW_INVALID,
    RAW_MISSING,
    UNKNOWN,
    Result,
    SymbolCount,
)
from feedmono.verify.verify import Verifier

EXCHANGE = "binance"
BTC, ETH = "BTCUSDT", "ETHUSDT"
FIRST_SEQUENCE = 1_795_392_281_000_000
TIME_US = 1_795_392_281_000_000
MAX_TRADES = 10**9
ENCODE = generate_encoder(load_schema("trade"))


def configured(folder: Path, **variables: str) -> Config:
    environ = {
        "FEEDMONO_STATE_DIR": str(folder / "state"),
        "FEEDMONO_FILES_DIR": str(folder / "data"),
        **only("binance"),
        **variables,
    }
    return config.load(None, environ, cwd=folder).config


def trade(trade_id: int, symbol: str = BTC, time_us: int = 0) -> Trade:
    time_us = time_us or TIME_US + trade_id * 1000
    return Trade(symbol, trade_id, f"{trade_id % 97 + 1}.50", "0.02", trade_id % 2, time_us, True)


def record(made: Trade, sequence: int, origin: int, **changes: object) -> dict[str, object]:
    return {
        "schema_version": "1.1.0",
        "exchange": EXCHANGE,
        "symbol": made.symbol,
        "canonical_symbol": "BASE/USDT",
        "trade_id": str(made.trade_id),
        "price": made.price,
        "quantity": made.quantity,
        "quote_volume": multiply(made.price, made.quantity),
        "side": SIDES[made.side],
        "timestamp": made.time_us // 1000 + 7,
        "exchange_timestamp": made.time_us // 1000,
        "metadata": None,
        "exchange_timestamp_us": made.time_us,
        "received_timestamp_us": made.time_us + 500,
        "origin": ORIGINS[origin],
        "frame_sequence": sequence,
        **changes,
    }


def payload(trades: Sequence[Trade], origin: int) -> bytes:
    if origin == BACKFILL:
        page = [
            {
                "id": t.trade_id,
                "price": t.price,
                "qty": t.quantity,
                "quoteQty": multiply(t.price, t.quantity),
                "time": t.time_us,
                "isBuyerMaker": bool(t.side),
                "isBestMatch": True,
            }
            for t in trades
        ]
        return json.dumps(page).encode()
    (t,) = trades
    event = {
        "e": "trade",
        "E": t.time_us + 1,
        "s": t.symbol,
        "t": t.trade_id,
        "p": t.price,
        "q": t.quantity,
        "T": t.time_us,
        "m": bool(t.side),
        "M": True,
    }
    stream = f"{t.symbol.lower()}@trade"
    return json.dumps({"stream": stream, "data": event}, separators=(",", ":")).encode()


class World:
    """A real sink and a real ledger, filled frame by frame as the serializer does it, unless the
    test wants something else."""

    def __init__(self, folder: Path) -> None:
        self.config = configured(folder)
        self.folder = self.config.files.dir / EXCHANGE
        self.ledger = Ledger(workers.Shared.of(self.config, EXCHANGE).ledger, log.get())
        self.sequence = FIRST_SEQUENCE - 1
        self.write: Callable[[Entry], None] = self._write
        self._open()

    def _open(self) -> None:
        self.sink = FilesSink(self.config.files, EXCHANGE, mark=self.ledger.mark)
        assert self.sink.open(), self.sink.trouble

    def frame(
        self,
        *trades: Trade,
        origin: int = STREAM,
        to_sink: bool = True,
        to_ledger: bool = True,
        raw: bool = True,
        dead: DeadLetter | None = None,
        body: bytes | None = None,
        sequence: int | None = None,
        **changes: object,
    ) -> None:
        """One ring record; *changes* to the fields of its trades."""
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        if to_sink:
            content = payload(trades, origin) if body is None else body
            frame = Frame(content, 1, sequence, sequence * 1000, origin)
            encoded = [
                EncodedTrade(t.symbol, ENCODE(record(t, sequence, origin, **changes)))
                for t in trades
            ]
            symbol = trades[0].symbol if trades and raw else None
            self.write(Entry(sequence, frame, symbol, encoded, dead))
        if to_ledger:
            self.ledger.deliver(trades, origin, "down", TIME_US, MAX_TRADES, sequence)

    def _write(self, entry: Entry) -> None:
        assert self.sink.write([entry]) == 1

    def frames(self, trade_ids: Sequence[int], symbol: str = BTC, **how: Any) -> None:
        for trade_id in trade_ids:
            self.frame(trade(trade_id, symbol), **how)

    def store(self) -> None:
        """The sink stores what it has, without the ledger's knowledge."""
        self.sink.flush()
        self.sink.poll(0)

    def commit(self) -> None:
        self.store()
        self.ledger.commit(0, self.sequence, self.sequence, self.sink.mark())
        self.sink.settle()

    def roll(self) -> None:
        """Everything so far into finished files."""
        self.commit()
        self.sink.close()
        self._open()

    def end(self) -> None:
        self.roll()
        self.sink.close()
        self.ledger.close()

    def verify(self, *, symbol: str | None = None, retained: bool = False) -> Result:
        return verify.prepare(self.config, EXCHANGE, symbol, retained).run()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def counts(result: Result) -> dict[tuple[str, str], int]:
    return {(found.kind, found.symbol): found.count for found in result.found}


def named(result: Result, kind: str) -> list[tuple[int | None, int | None]]:
    (found,) = [found for found in result.found if found.kind == kind]
    return [(n.first_id, n.last_id) for n in found.named]


def only_symbol(result: Result) -> SymbolCount:
    (count,) = result.symbols
    return count


# --- the set of numbers


@given(
    st.lists(st.integers(0, 5000) | st.integers(0, 2**63 - 1), max_size=200),
    st.integers(0, 5000),
    st.integers(0, 6000),
)
def test_a_set_of_numbers_is_a_set(numbers: list[int], first: int, size: int) -> None:
    ours, plain = Bitmap(), set[int]()
    for number in numbers:
        assert ours.add(number) == (number not in plain)
        plain.add(number)
        assert number in ours
    assert ours.ends() == ((min(plain), max(plain)) if plain else None)
    absent = [n for low, high in ours.absent(first, first + size) for n in range(low, high + 1)]
    assert absent == [n for n in range(first, first + size + 1) if n not in plain]
    ranges = list(ours.absent(0, 2**63 - 1))
    assert sum(high - low + 1 for low, high in ranges) == 2**63 - len(plain)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(ranges))


# --- nothing to find


def test_what_is_complete_is_verified(world: World) -> None:
    """Two symbols mixed, a snapshot, holes filled late and by REST, holes left, an island."""
    world.frame(trade(100), origin=SNAPSHOT)
    for number in range(101, 200):
        world.frames([number], BTC)
        world.frames([number * 3], ETH)
    world.frames([210, 220, 205], BTC)
    world.frame(*(trade(number) for number in range(200, 205)), origin=BACKFILL)
    world.frames([5_000_000])
    world.commit()
    world.ledger.give_up(BTC, 206, 207)
    world.ledger.prove(BTC, 208, 209, TIME_US, 0)
    world.ledger.prove(BTC, 208, 209, TIME_US, 0)
    world.end()
    result = world.verify()
    assert counts(result) == {}
    assert [(c.symbol, c.trades) for c in result.symbols] == [(BTC, 109), (ETH, 99)]
    assert result.frames == 204
    assert verify_table.summary([result]).startswith(
        "verified: 208 trades of 2 symbols, nothing missing"
    )


def test_the_same_id_in_two_epochs_is_not_doubled(world: World) -> None:
    world.frames([*range(1000, 1100), *range(1105, 1110)])
    world.frame(trade(1001, time_us=TIME_US + 100_000_000))
    # A trade may be a little older than the first one of its epoch.
    world.frame(trade(1002, time_us=TIME_US + 99_999_000))
    world.frame(trade(1003, time_us=TIME_US + 100_000_001))
    world.end()
    assert counts(world.verify()) == {}
    assert only_symbol(world.verify()).last_id == 1003


def test_dead_letters_are_told_and_are_no_finding(world: World) -> None:
    world.frames([1, 2])
    world.frame(dead=DeadLetter("decode", "not JSON"), body=b"garbage")
    world.end()
    result = world.verify()
    assert counts(result) == {}
    assert result.dead_letters == 1
    assert "1 dead letter" in verify_table.render([result])


def test_ids_that_the_ledger_folded_may_be_missing_up_to_their_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ids, "MAX_HOLES", 3)
    world.frames(range(0, 20, 2))
    world.end()
    result = world.verify()
    assert counts(result) == {}
    assert only_symbol(result).folded == 6


def test_a_missing_id_more_than_were_folded_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ids, "MAX_HOLES", 3)
    for number in range(0, 20, 2):
        world.frames([number], to_sink=number != 4)
    world.end()
    assert counts(world.verify()) == {(MISSING, BTC): 1}


def test_who_may_only_read_can_verify_what_a_stopped_instance_stored() -> None:
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        world.frames([1, 2, 3])
        world.end()
        Path(name).chmod(0o755)
        assert as_nobody(lambda: counts(world.verify()) == {})
        assert [path.name for path in world.config.state_dir.iterdir()] == [f"{EXCHANGE}.ledger"]


# --- missing


def test_ids_that_are_delivered_and_not_stored_are_missing(world: World) -> None:
    world.frames([1, 2, 3])
    world.frames([4, 5, 6, 9], to_sink=False)
    world.frames([10, 11], ETH, to_sink=False)
    world.frames([12], ETH)
    world.end()
    result = world.verify()
    assert counts(result) == {(MISSING, BTC): 4, (MISSING, ETH): 2}
    assert [(n.first_id, n.last_id) for f in result.found for n in f.named] == [
        (4, 6),
        (9, 9),
        (10, 11),
    ]


def test_an_island_that_is_not_stored_is_missing(world: World) -> None:
    world.frames([1, 2])
    world.frames([9_000_000], to_sink=False)
    world.end()
    assert named(world.verify(), MISSING) == [(9_000_000, 9_000_000)]


def test_ids_of_a_former_epoch_are_missing_beyond_those_that_were_then(world: World) -> None:
    world.frames([1, 2, 3, 10])
    world.frames([11, 12], to_sink=False)
    for trade_id in (2, 3):
        world.frame(trade(trade_id, time_us=TIME_US + 100_000_000))
    world.end()
    result = world.verify()
    assert counts(result) == {(MISSING, BTC): 2}
    assert "epoch 0" in result.found[0].named[0].reason


def test_only_the_first_findings_are_named_and_all_are_counted(world: World) -> None:
    for number in range(0, 100, 2):
        world.frames([number])
        world.frames([number + 1], to_sink=False)
    world.end()
    result = world.verify()
    assert counts(result) == {(MISSING, BTC): 50}
    assert len(named(result, MISSING)) == MAX_NAMED


@pytest.mark.parametrize("retained", [False, True])
def test_what_was_removed_from_the_beginning_is_missing_unless_it_may_be(
    world: World, retained: bool
) -> None:
    world.frames(range(100, 150))
    world.roll()
    world.frames(range(150, 200))
    world.frame(trade(70_000), to_sink=False)
    world.end()
    for kind in ("trades", "raw"):
        min(world.folder.glob(f"{kind}-*.avro"), key=str).unlink()
    result = world.verify(retained=retained)
    if retained:
        assert counts(result) == {(MISSING, BTC): 1}
        assert only_symbol(result).removed == 50
        assert "50 ids of 1 symbol removed" in verify_table.render([result])
    else:
        assert counts(result) == {(MISSING, BTC): 51}


def test_frames_that_were_removed_from_the_beginning_may_be_missing(world: World) -> None:
    world.frames(range(100, 110))
    world.roll()
    world.frames(range(110, 120))
    world.end()
    min(world.folder.glob("raw-*.avro"), key=str).unlink()
    assert counts(world.verify()) == {(RAW_MISSING, BTC): 10}
    result = world.verify(retained=True)
    assert counts(result) == {}
    assert only_symbol(result).raw_removed == 10


# --- doubled


def test_every_extra_copy_is_doubled(world: World) -> None:
    world.frames(range(1, 10))
    world.frames([5, 7, 7], to_ledger=False)
    world.end()
    result = world.verify()
    assert counts(result) == {(DOUBLED, BTC): 3}
    assert named(result, DOUBLED) == [(5, 5), (7, 7), (7, 7)]
    assert all("trades-" in n.place and "record" in n.place for n in result.found[0].named)


def test_a_frame_that_is_stored_twice_is_doubled_with_its_trade(world: World) -> None:
    world.frames([1, 2, 3])
    world.frames([2], to_ledger=False, sequence=FIRST_SEQUENCE + 1)
    world.end()
    result = world.verify()
    assert counts(result) == {(DOUBLED, BTC): 1, (RAW_DOUBLED, BTC): 1}
    assert named(result, RAW_DOUBLED) == [(FIRST_SEQUENCE + 1,) * 2]


# --- unknown


@pytest.mark.parametrize(
    ("trade_id", "symbol", "reason"),
    [
        (15, BTC, "OPEN"),
        (17, BTC, "BEYOND"),
        (9, BTC, "below the ledger's first id 10"),
        (31, BTC, "above the ledger's last id 30"),
        (15, "DOGEUSDT", "does not know the symbol"),
    ],
)
def test_an_id_that_is_not_delivered_is_unknown(
    world: World, trade_id: int, symbol: str, reason: str
) -> None:
    world.frames([*range(10, 15), *range(20, 25)])
    world.frames([trade_id], symbol, to_ledger=False)
    world.frames(range(25, 31))
    world.ledger.give_up(BTC, 16, 18)
    world.end()
    result = world.verify()
    assert counts(result) == {(UNKNOWN, symbol): 1}
    assert reason in result.found[0].named[0].reason


def test_an_unknown_id_of_a_former_epoch_is_found(world: World) -> None:
    world.frames([100, 101])
    world.frames([90], to_ledger=False)
    for trade_id in (100, 101):
        world.frame(trade(trade_id, time_us=TIME_US + 100_000_000))
    world.end()
    assert counts(world.verify()) == {(UNKNOWN, BTC): 1}


# --- newer than the ledger


def test_without_an_instance_what_is_newer_than_the_ledger_is_found(world: World) -> None:
    world.frames([1, 2, 3])
    world.commit()
    world.frames([4, 5])
    world.store()
    result = world.verify()
    assert counts(result) == {(BEYOND, BTC): 2}
    assert "the next start delivers these frames again" in verify_table.render([result]).replace(
        "\n", " "
    )


def test_with_an_instance_what_is_newer_than_the_ledger_is_in_flight(world: World) -> None:
    world.frames([1, 2, 3])
    world.commit()
    world.frames([4, 7, 5])
    world.frames([1], ETH)
    world.store()
    lock_fd = statelock.hold(world.config.state_dir)
    try:
        result = world.verify()
    finally:
        os.close(lock_fd)
    assert counts(result) == {}
    assert [(c.symbol, c.in_flight) for c in result.symbols] == [(BTC, 3), (ETH, 1)]
    assert "4 trades of 2 symbols in flight" in verify_table.render([result])


# --- invalid


@pytest.mark.parametrize(
    "changes",
    [
        {"quote_volume": "1"},
        {"price": "nothing"},
        {"exchange": "kraken"},
        {"timestamp": 0},
        {"exchange_timestamp": 0},
        {"frame_sequence": -1},
        {"received_timestamp_us": -5},
    ],
)
def test_a_trade_that_makes_no_sense_is_invalid(world: World, changes: dict[str, Any]) -> None:
    world.frames([1, 2])
    world.frame(trade(3), **changes)
    world.end()
    result = world.verify()
    assert counts(result) == {(INVALID, BTC): 1}
    assert named(result, INVALID) == [(3, 3)]


@pytest.mark.parametrize("trade_id", ["03", "-3", str(2**63), "x" * 500])
def test_a_trade_of_which_nobody_can_tell_which_it_is_leaves_one_missing(
    world: World, trade_id: str
) -> None:
    world.frames([1, 2])
    world.frame(trade(3), trade_id=trade_id)
    world.end()
    assert counts(world.verify()) == {(INVALID, BTC): 1, (MISSING, BTC): 1}


def test_a_symbol_that_is_none_is_invalid(world: World) -> None:
    world.frames([1, 2])
    world.frame(trade(3), to_ledger=False, symbol="\x1b[2J")
    world.end()
    result = world.verify()
    assert counts(result) == {(INVALID, ""): 1}
    assert "\x1b" not in verify_table.render([result])


def test_a_damaged_block_is_invalid_and_its_trades_are_missing(world: World) -> None:
    world.frames([1, 2, 3])
    world.roll()
    world.frames([4, 5, 6])
    world.roll()
    world.frames([7, 8, 9])
    world.end()
    path = sorted(world.folder.glob("trades-*.avro"))[1]
    data = bytearray(path.read_bytes())
    data[-40] ^= 255
    path.write_bytes(data)
    result = world.verify()
    assert counts(result) == {(INVALID, ""): 1, (MISSING, BTC): 3}
    assert path.name in result.found[1].named[0].place


# --- frames


def test_a_trade_without_its_frame_is_found(world: World) -> None:
    world.frames([1, 2])
    world.frames([3], raw=False)
    world.end()
    result = world.verify()
    assert counts(result) == {(RAW_MISSING, BTC): 1}
    assert named(result, RAW_MISSING) == [(3, 3)]


def test_frames_that_cannot_be_decoded_are_found(world: World) -> None:
    """A page among them is read as a page, and not as a frame of the stream."""
    world.frames([1, 2, 9])
    world.frame(trade(3), body=b'{"stream":"btcusdt@trade","data":{}}')
    world.frame(trade(4), trade(5), origin=BACKFILL)
    world.frame(trade(6), origin=BACKFILL, body=b"<html>")
    world.end()
    result = world.verify()
    assert counts(result) == {(RAW_INVALID, ""): 2}
    assert named(result, RAW_INVALID) == [(FIRST_SEQUENCE + 3,) * 2, (FIRST_SEQUENCE + 5,) * 2]


# --- one symbol


def test_one_symbol_is_verified_without_the_others(world: World) -> None:
    world.frames([1, 2], BTC)
    world.frames([1, 2], ETH)
    world.frames([3], ETH, to_sink=False)
    world.frames([2], ETH, to_ledger=False)
    world.end()
    assert counts(world.verify(symbol=BTC)) == {}
    assert only_symbol(world.verify(symbol=BTC)).trades == 2
    assert counts(world.verify(symbol=ETH)) == {(MISSING, ETH): 1, (DOUBLED, ETH): 1}


# --- sources that no files sink is


class Stored(Source):
    """A sink as a list of records, such as a topic is."""

    def __init__(self, raw: Sequence[StoredRecord], trades: Sequence[StoredRecord]) -> None:
        self.records = {"raw": raw, "trades": trades, "dead": ()}
        self.complete = True
        self.before: dict[str, Callable[[], None]] = {}

    def follow(self) -> Iterator[Mapping[str, object] | None]:
        raise NotImplementedError

    def read(self, kind: str) -> Iterator[StoredRecord]:
        self.before.get(kind, lambda: None)()
        return iter(self.records[kind])

    def total(self, kind: str) -> int | None:
        return len(self.records[kind])

    def complete_from_start(self, kind: str) -> bool:
        return self.complete


def topics(trades: Sequence[Trade]) -> Stored:
    raw, normalized = [], []
    for number, t in enumerate(trades):
        sequence, body = FIRST_SEQUENCE + number, payload([t], STREAM)
        frame = {"connection": 1, "sequence": sequence, "received_ns": 5, "origin": STREAM}
        raw.append(StoredRecord(f"raw {number}", {**frame, "payload": body}, "", t.symbol, body))
        content = record(t, sequence, STREAM)
        normalized.append(StoredRecord(f"trades {number}", content, "", t.symbol, b""))
    return Stored(raw, normalized)


def told(world: World) -> Look:
    now = look(world.config, EXCHANGE)
    assert now is not None
    return now


def test_a_key_that_is_not_the_symbol_is_invalid(world: World) -> None:
    world.frames([1, 2, 3], to_sink=False)
    world.commit()
    source = topics([trade(n) for n in (1, 2, 3)])
    records = list(source.records["trades"])
    records[1] = records[1]._replace(key=ETH)
    source.records["trades"] = records
    result = Verifier(load(EXCHANGE), source, lambda: told(world), keyed=True).run()
    assert counts(result) == {(INVALID, BTC): 1}


def test_the_order_of_partitions_does_not_matter(world: World) -> None:
    world.frames(range(1, 300), to_sink=False)
    world.commit()
    source = topics([trade(n) for n in range(1, 300)])
    for kind in ("raw", "trades"):
        source.records[kind] = random.Random(1).sample(source.records[kind], 299)
    assert counts(Verifier(load(EXCHANGE), source, lambda: told(world), keyed=True).run()) == {}


def test_a_topic_whose_beginning_is_gone_tells_so_itself(world: World) -> None:
    world.frames(range(1, 11), to_sink=False)
    world.frames(range(1, 5), ETH, to_sink=False)
    world.commit()
    source = topics([trade(n) for n in range(1, 11)])
    source.complete = False
    source.records["trades"] = source.records["trades"][4:]
    source.records["raw"] = source.records["raw"][6:]
    result = Verifier(load(EXCHANGE), source, lambda: told(world), keyed=True).run()
    assert counts(result) == {}
    assert [(c.symbol, c.removed, c.raw_removed) for c in result.symbols] == [
        (BTC, 4, 2),
        (ETH, 4, 0),
    ]


def test_the_ledger_is_read_again_for_what_comes_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a hole that is filled and an epoch that begins while the sink is read."""
    monkeypatch.setattr(verify, "_REFRESH_S", 0.0)
    monkeypatch.setattr(verify, "_REFRESH_SHARE", 0)
    late = TIME_US + 100_000_000
    trades = [trade(n) for n in (1, 2, 5, 4, 6)] + [trade(n, time_us=late + n) for n in (1, 2)]
    source = topics(trades)
    for t in trades[:3]:
        world.frame(t, to_sink=False)
    world.commit()

    def meanwhile() -> None:
        for t in trades[3:]:
            world.frame(t, to_sink=False)
        world.commit()

    source.before["trades"] = meanwhile
    result = Verifier(
        load(EXCHANGE), source, lambda: told(world), keyed=True, running=lambda: True
    ).run()
    assert counts(result) == {}
    assert only_symbol(result).in_flight == 0
    assert only_symbol(result).trades == 7


def test_topics_are_verified_by_key_header_and_offset(
    kafka: Kafka | MockKafka,
    registry: Registry | MockRegistry,
    topic_prefix: str,
    tmp_path: Path,
) -> None:
    config = configured(
        tmp_path,
        FEEDMONO_SINK="kafka",
        FEEDMONO_KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
        FEEDMONO_SCHEMA_REGISTRY_URL=registry.url,
        FEEDMONO_TOPIC_PREFIX=topic_prefix,
    )
    topic = f"{topic_prefix}.{EXCHANGE}"
    kafka.create_topics((topic, f"{topic}.raw", f"{topic}.dead", f"{topic}.coverage"), 4)
    world = World(tmp_path)
    entries: list[Entry] = []
    world.write = entries.append
    for number in range(1, 200):
        world.frames([number], BTC)
        world.frames([number], ETH, raw=number != 50)
    world.frames([300], BTC)
    world.frame(trade(250), trade(251), origin=BACKFILL)
    world.frames([250], BTC, to_ledger=False)
    world.frames([301, 302], ETH, to_sink=False)
    world.frame(dead=DeadLetter("decode", "not JSON"), body=b"garbage")
    world.commit()
    sink = KafkaSink(
        config.kafka, EXCHANGE, linger_s=0.005, dead_dir=tmp_path / "dead", log=log.get()
    )
    eventually(sink.open, 60, "the sink is open")
    assert sink.write(entries) == len(entries)
    sink.flush()
    eventually(lambda: sink.poll(0.01) == entries[-1].end, 60, "all is acknowledged")
    sink.close()
    result = verify.prepare(config, EXCHANGE, None, False).run()
    assert counts(result) == {
        (MISSING, ETH): 2,
        (DOUBLED, BTC): 1,
        (RAW_MISSING, ETH): 1,
    }
    assert named(result, RAW_MISSING) == [(50, 50)]
    assert f"{topic} partition" in result.found[1].named[0].place
    assert result.dead_letters == 1


# --- the command


def command(
    world: World, *arguments: str, capsys: pytest.CaptureFixture[str], **variables: str
) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.config.state_dir.parent)
        patch.setenv("FEEDMONO_STATE_DIR", str(world.config.state_dir))
        patch.setenv("FEEDMONO_FILES_DIR", str(world.config.files.dir))
        for name, value in {**only("binance"), **variables}.items():
            patch.setenv(name, value)
        status = cli.main(["verify", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_status_is_0_without_a_finding_and_1_with_one(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.frames(range(1, 1001))
    world.commit()
    status, out, err = command(world, capsys=capsys)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == (
        "verified: 1,000 trades of 1 symbol, nothing missing, doubled, unknown or invalid, "
        "every frame there"
    )
    world.frames([1001], to_sink=False)
    world.frames([7], to_ledger=False)
    world.end()
    status, out, _ = command(world, EXCHANGE, BTC, capsys=capsys)
    assert status == 1
    assert out.splitlines()[-1] == "found in 1,001 trades of 1 symbol: 1 missing, 1 doubled"
    assert max(map(len, out.splitlines()[:2])) <= 80


def test_json_has_every_count_and_names_what_was_found(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.frames([1, 2, 2])
    world.frames([3], to_sink=False)
    world.end()
    status, out, _ = command(world, "--format", "json", capsys=capsys)
    assert status == 1
    told = json.loads(out)
    assert told["ok"] is False
    (exchange,) = told["exchanges"]
    assert (exchange["name"], exchange["trades"], exchange["frames"]) == (EXCHANGE, 3, 3)
    assert {f["kind"]: f["count"] for f in exchange["found"]} == {MISSING: 1, DOUBLED: 1}
    assert exchange["found"][0]["named"][0]["first_id"] == 3


def test_without_a_ledger_or_a_sink_it_says_so_with_status_1(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "nowhere")
    status, out, err = command(world, capsys=capsys, FEEDMONO_STATE_DIR=nowhere)
    assert (status, out) == (1, "")
    assert f"no ledger of {EXCHANGE} in {nowhere}" in err
    world.frames([1])
    world.end()
    status, out, err = command(world, capsys=capsys, FEEDMONO_FILES_DIR=nowhere)
    assert (status, out) == (1, "")
    assert f"there is no folder {nowhere}" in err
    (tmp_path / "empty" / EXCHANGE).mkdir(parents=True)
    empty = str(tmp_path / "empty")
    status, out, err = command(world, capsys=capsys, FEEDMONO_FILES_DIR=empty)
    assert (status, out) == (1, "")
    assert "holds nothing of" in err


def test_a_wrong_exchange_or_symbol_has_status_2(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = command(world, "coinbase", capsys=capsys)
    assert status == 2
    assert EXCHANGE in err
    status, _, err = command(world, EXCHANGE, "NOSUCH", capsys=capsys)
    assert status == 2
    assert f"{BTC}, {ETH}" in err


def test_a_bar_is_shown_on_a_terminal_only(world: World) -> None:
    world.frames(range(1, 3000))
    world.end()
    screen_fd, terminal_fd = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "feedmono", "verify"],
        cwd=world.config.state_dir.parent,
        env={
            **os.environ,
            "FEEDMONO_STATE_DIR": str(world.config.state_dir),
            "FEEDMONO_FILES_DIR": str(world.config.files.dir),
            **only("binance"),
            "TERM": "xterm",
        },
        stdout=subprocess.PIPE,
        stderr=terminal_fd,
        check=False,
        timeout=60,
    )
    os.close(terminal_fd)
    shown = os.read(screen_fd, 65536)
    os.close(screen_fd)
    assert process.returncode == 0
    assert EXCHANGE.encode() in shown
    assert b"\x1b" not in process.stdout
