"""What becomes of trades, holes and names of symbols that come and go: the serializer's side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from delivery_rig import Rig, frame
from test_backfill import Rig as Asking
from test_backfill import by_rest
from test_metadata import config

from feedmono import messages, workers
from feedmono.counters import Field
from feedmono.delivery.backfill import GRACE_S, TAIL_WAITS_S
from feedmono.network import metadata
from feedmono.network.metadata import CanonicalSymbols
from feedmono.ring_layout import EVENT, FRAME


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.canonical.names["ETHUSDT"] = "ETH/USDT"
    yield made
    made.writer.close()


def put(rig: Rig, *frames: bytes, connection: int = 0) -> None:
    assert rig.writer.append(frames, FRAME, connection, 10**18, 0) == len(frames)


def tell(rig: Rig, kind: str, symbol: str = "BTCUSDT", connection: int = 0) -> None:
    fields = {"symbol": symbol} if kind in (messages.SUBSCRIBED, messages.UNSUBSCRIBED) else {}
    payload = messages.event(kind, connection=connection, **fields)
    assert rig.writer.append((payload,), EVENT, connection, 10**18, 0) == 1


def stored(rig: Rig) -> list[tuple[str, int]]:
    """Symbols and ids that were handed to the sink."""
    rig.step()
    events = [json.loads(e.frame.payload)["data"] for e in rig.sink.taken if e.trades]
    return [(event["s"], event["t"]) for event in events]


# --- Trades.


def test_what_comes_behind_the_end_of_a_subscription_is_not_stored_and_no_hole(rig: Rig) -> None:
    put(rig, frame(1), frame(2))
    tell(rig, messages.UNSUBSCRIBED)
    put(rig, frame(3), frame(7), frame(1, symbol="ETHUSDT"))
    assert stored(rig) == [("BTCUSDT", 1), ("BTCUSDT", 2), ("ETHUSDT", 1)]
    assert rig.seen.symbols["BTCUSDT"].last_id == 2
    assert rig.seen.found == 0
    assert rig.counters[Field.DUPLICATES] == 0
    assert rig.counters[Field.DEAD_LETTERS] == 0
    rig.sink.acknowledge(len(rig.sink.taken))
    rig.step()
    assert rig.reader.used_bytes == 0, "what is not wanted does not stay in the ring"


def test_another_connection_that_still_serves_the_symbol_goes_on(rig: Rig) -> None:
    put(rig, frame(1))
    tell(rig, messages.UNSUBSCRIBED, connection=1)
    put(rig, frame(2), connection=1)
    put(rig, frame(2), frame(3))
    assert stored(rig) == [("BTCUSDT", 1), ("BTCUSDT", 2), ("BTCUSDT", 3)]


@pytest.mark.parametrize(
    "again", [messages.SUBSCRIBED, messages.CONNECTED, messages.READER], ids=str
)
def test_a_symbol_that_is_subscribed_again_is_stored_and_the_hole_tells_why(
    rig: Rig, again: str
) -> None:
    put(rig, frame(1), frame(1, symbol="ETHUSDT"))
    tell(rig, messages.UNSUBSCRIBED)
    tell(rig, again)
    put(rig, frame(5), frame(3, symbol="ETHUSDT"))
    assert stored(rig)[2:] == [("BTCUSDT", 5), ("ETHUSDT", 3)]
    (hole,) = rig.seen.symbols["BTCUSDT"].holes
    assert (hole.first_id, hole.last_id, hole.cause) == (2, 4, "unsubscribed")
    (other,) = rig.seen.symbols["ETHUSDT"].holes
    assert other.cause == ("restart" if again == messages.READER else "exchange")
    put(rig, frame(9))
    rig.step()
    assert rig.seen.symbols["BTCUSDT"].holes[-1].cause == "exchange", "it is long over"


# --- Tails and holes.


def test_the_tail_of_a_symbol_that_went_is_not_asked_for_but_its_holes_are() -> None:
    asking = Asking()
    asking.backfill.follow(("X", "Y"))
    asking.stream(1, 2, 5)
    asking.stream(1, symbol="Y")
    asking.backfill.subscribed("X")
    asking.backfill.subscribed("Y")
    asking.backfill.follow(("Y",))
    wishes = asking.tick(TAIL_WAITS_S[0] + GRACE_S)
    assert [(w.symbol, w.tail) for w in wishes] == [("X", False), ("Y", True)]
    assert asking.page(wishes[0], [by_rest(i) for i in range(2, 9)]) == ([3, 4], "")
    assert asking.holes() == []
    # The reader's word of a subscription before it obeyed.
    asking.backfill.subscribed("X")
    assert asking.tick(100) == [], "that of Y is under way"


def test_an_answer_about_the_tail_of_a_symbol_that_went_meanwhile_brings_nothing() -> None:
    asking = Asking()
    asking.backfill.follow(("X",))
    asking.stream(1, 2)
    asking.backfill.subscribed("X")
    asking.tick(0.0)
    (wish,) = asking.tick(TAIL_WAITS_S[0])
    asking.backfill.follow(())
    assert asking.page(wish, [by_rest(2), by_rest(3)]) == ([], "")
    assert asking.tick(1000) == []


def test_the_tail_of_a_symbol_that_comes_back_is_looked_at() -> None:
    asking = Asking()
    asking.backfill.follow(("X",))
    asking.stream(1, 2)
    asking.backfill.follow(())
    asking.tick(100)
    asking.backfill.follow(("X",))
    asking.tick(0.0)
    (wish,) = asking.tick(TAIL_WAITS_S[0])
    assert (wish.first_id, wish.tail) == (2, True)
    assert asking.page(wish, [by_rest(2), by_rest(3)]) == ([3], "")


# --- Names.


def test_names_follow_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    workers.publish(path, {"symbols": {"BTCUSDT": "BTC/USDT", "ETHUSDT": "ETH/USDT"}})
    canonical = CanonicalSymbols(config("BTCUSDT", BTCUSDT="XBT/USDT", OLD="old"), path)
    names = canonical.names
    assert names == {"BTCUSDT": "XBT/USDT", "ETHUSDT": "ETH/USDT", "OLD": "old"}
    canonical.follow(config("BTCUSDT", "NEWUSDT", NEWUSDT="new"))
    assert names == {"BTCUSDT": "BTC/USDT", "ETHUSDT": "ETH/USDT", "NEWUSDT": "new"}
    assert canonical.ready()
    canonical.follow(config("BTCUSDT", "NEWUSDT"))
    assert "NEWUSDT" in canonical.trouble
    assert not canonical.ready()


def test_symbols_that_nobody_has_named_are_told(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    wanted = config("A", "B", "C", "D", D="the/D")
    assert metadata.unnamed(wanted, path, asked=True) == {"A", "B", "C"}
    workers.publish(path, {"symbols": {"A": "a"}, "asked": ["A", "B"]})
    assert metadata.unnamed(wanted, path, asked=True) == {"C"}
    assert metadata.unnamed(wanted, path, asked=False) == {"B", "C"}
