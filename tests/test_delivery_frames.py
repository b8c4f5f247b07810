"""Frames that are seldom: trades without a number, of an odd time or id, and snapshots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from delivery_rig import SYMBOL, T0_US, Rig, asked, delivered_holes, frame, rig, store, tell
from toy import Events, events

from feedmono import messages, workers
from feedmono.counters import Field
from feedmono.delivery import ids as arithmetic
from feedmono.delivery import ledger_file
from feedmono.delivery.backfill import DEAD
from feedmono.delivery.holes import State
from feedmono.delivery.ids import EPOCH_US, FAR
from feedmono.exchanges.base import Decoded
from feedmono.exchanges.binance import Binance
from feedmono.trade import Trade

__all__ = ["events", "rig"]


def test_an_exchange_that_takes_no_number_for_one_costs_that_trade_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trades in a frame, of which one has a price that is none."""

    def decode(_: Binance, payload: bytes) -> Decoded:
        good = Trade(SYMBOL, 1, "1.50", "2.0", 0, T0_US)
        return Decoded((good, good._replace(trade_id=2, price="none")))

    monkeypatch.setattr(Binance, "decode", decode)
    rig.restart()
    rig.append(b"two trades")
    rig.step()
    (entry,) = rig.sink.taken
    assert len(entry.trades) == 1
    assert entry.dead is not None
    assert (entry.dead.stage, "none" in entry.dead.reason) == ("normalize", True)
    store(rig)
    assert delivered_holes(rig) == [(2, 2, DEAD, State.OPEN)]
    assert rig.counters[Field.DELIVERED_TRADES] == 1


def test_a_trade_whose_order_id_can_not_be_read_is_delivered_with_a_dead_letter(rig: Rig) -> None:
    rig.append(frame(1), frame(2, b="none"), frame(3))
    rig.step()
    assert rig.ids == ["1", "2", "3"]
    dead = rig.sink.taken[1].dead
    assert dead is not None
    assert dead.stage == "decode"
    assert rig.counters[Field.DEAD_LETTERS] == 1


def test_a_next_trade_with_an_older_time_leaves_the_newest_time(rig: Rig) -> None:
    rig.append(frame(1, T0_US), frame(2, T0_US - 10), frame(3, T0_US + 10), frame(4, T0_US + 5))
    rig.step()
    assert rig.seen.symbols[SYMBOL].newest_us == T0_US + 10
    assert [len(entry.trades) for entry in rig.sink.taken] == [1, 1, 1, 1]
    store(rig)
    content = ledger_file.read(rig.ledger_path)
    assert content is not None
    assert content.symbols[SYMBOL].newest_us == T0_US + 10


def test_what_does_not_fit_the_ids_is_delivered_and_told(
    rig: Rig, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "MAX_HOLES", 2)
    far = 10 + FAR + 1
    rig.append(frame(10), frame(far), *(frame(number) for number in (12, 14, 16)))
    rig.step()
    assert [entry["trade_id"] for entry in events.named(_FAR)] == [far]
    assert len(events.named("too many holes: the oldest are forgotten")) == 1
    newer = T0_US + 2 * EPOCH_US
    rig.append(frame(1, newer), frame(2, newer + 1))
    rig.step()
    assert [entry["trade_id"] for entry in events.named(_FAR)] == [far, 1]
    assert [entry["symbol"] for entry in events.named("trade ids began anew")] == [SYMBOL]
    assert rig.ids == [str(number) for number in (10, far, 12, 14, 16, 1, 2)]


_FAR = "a trade does not fit the ids of its symbol: delivered, not counted on"


def test_a_snapshot_shows_what_came_last_of_a_quiet_symbol(tmp_path: Path) -> None:
    """So that it is not asked for."""
    rig = Rig(tmp_path, exchange="kraken")
    names = {name: name for name in ("BTC/USD", "ETH/USD")}
    workers.publish(rig.metadata, {"symbols": names})

    def kraken(kind: str, *numbers: int) -> bytes:
        return json.dumps(
            {
                "channel": "trade",
                "type": kind,
                "data": [
                    {
                        "symbol": symbol, "side": "buy", "price": 1.5, "qty": 2.0,
                        "ord_type": "limit", "trade_id": number,
                        "timestamp": f"2024-05-27T12:33:10.{number:06}Z",
                    }
                    for symbol in names for number in numbers
                ],
            }, separators=(",", ":"),
        ).encode()  # fmt: skip

    rig.append(kraken("update", 7, 8))
    rig.step()
    for symbol in names:
        tell(rig, messages.SUBSCRIBED, connection=0, symbol=symbol)
    rig.append(kraken("snapshot", 6, 7, 8).replace(b"ETH/USD", b"XRP/USD"))
    wishes = asked(rig, 2.0)
    assert [(wish.symbol, wish.tail) for wish in wishes] == [("ETH/USD", True)]
    assert rig.counters[Field.DUPLICATES] == 3
    rig.writer.close()
