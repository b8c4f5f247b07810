"""``feedmono verify``: what is planted in a sink is found, and nothing else."""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nobody import as_nobody
from verify_rig import (
    BTC,
    ETH,
    EXCHANGE,
    FIRST_SEQUENCE,
    TIME_US,
    World,
    counts,
    named,
    only_symbol,
    trade,
    world,
)

from feedmono.delivery import ids
from feedmono.sinks.base import DeadLetter
from feedmono.supervision import statelock
from feedmono.trade import BACKFILL, SNAPSHOT
from feedmono.verify import table as verify_table
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
)

__all__ = ["world"]


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
