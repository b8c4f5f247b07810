"""What the reader tells the serializer of its connections and requests, and what is made of it."""

from __future__ import annotations

import pytest
from delivery_rig import SYMBOL, Rig, asked, frame, rig, seen_causes, tell

from feedmono import messages, workers
from feedmono.delivery.seen import UNSUBSCRIBED
from feedmono.ring_layout import FRAME, HEADER_BYTES, record_bytes

__all__ = ["rig"]


@pytest.mark.parametrize(
    ("kind", "fields", "cause"),
    [
        (messages.LOST, {"connection": 3, "reason": "silent"}, "disconnect: silent"),
        (messages.LOST, {"connection": 3, "reason": "x" * 99}, "disconnect: " + "x" * 68),
        (messages.FULL, {"connection": 3}, "ring full"),
        (messages.READER, {}, "restart"),
        (messages.ROOM, {"connection": 3, "seconds": 1}, "exchange"),
        ("of another version", {}, "exchange"),
        (messages.UNSUBSCRIBED, {"connection": 3, "symbol": SYMBOL}, UNSUBSCRIBED),
        (messages.UNSUBSCRIBED, {"connection": "3", "symbol": SYMBOL}, "exchange"),
    ],
)
def test_a_hole_is_laid_to_what_the_reader_told(
    rig: Rig, kind: str, fields: dict[str, object], cause: str
) -> None:
    rig.append(frame(1))
    tell(rig, kind, **fields)
    rig.append(frame(3))
    rig.step()
    assert seen_causes(rig) == [cause]


def test_a_damaged_part_is_the_cause_of_the_hole_over_it(rig: Rig) -> None:
    rig.append(frame(1), frame(2), frame(3))
    with rig.path.open("r+b") as file:
        file.seek(HEADER_BYTES + record_bytes(len(frame(1))) + 40)
        file.write(b"\xff\xff")
    while len(rig.sink.taken) < 3:
        rig.step()
    assert seen_causes(rig) == ["damage"]


def test_a_request_that_failed_is_sent_again_and_at_once_by_a_new_reader(rig: Rig) -> None:
    rig.append(frame(1), frame(5))
    (wish,) = asked(rig)
    assert asked(rig, 60.0) == [], "it is out"
    for wrong in ({"first_id": 99}, {"first_id": "1"}, {"first_id": 1, "symbol": 5}):
        tell(rig, messages.PAGE_FAILED, **{"symbol": SYMBOL, "reason": "timeout", **wrong})
    assert asked(rig, 30.0) == [], "another one failed"
    told = {"symbol": SYMBOL, "first_id": 1, "reason": "timeout"}
    tell(rig, messages.PAGE_FAILED, **told, passing=False)
    assert asked(rig, 30.0) == [wish]
    assert rig.seen.symbols[SYMBOL].holes[0].tries == 1
    tell(rig, messages.PAGE_FAILED, **told, passing=True)
    assert asked(rig, 30.0) == [wish]
    assert rig.seen.symbols[SYMBOL].holes[0].tries == 1, "it says nothing about the hole"
    assert asked(rig, 30.0) == []
    tell(rig, messages.READER)
    assert asked(rig, 30.0) == [wish]


def test_what_a_connection_brings_of_a_symbol_that_it_left_is_not_wanted(rig: Rig) -> None:
    def bring(number: int, connection: int) -> bool:
        """Whether it is handed on."""
        before = len(rig.ids)
        assert rig.writer.append([frame(number)], FRAME, connection, 10**18) == 1
        rig.step()
        return len(rig.ids) > before

    assert bring(1, 3)
    tell(rig, messages.UNSUBSCRIBED, connection=3, symbol=SYMBOL)
    assert not bring(2, 3)
    assert bring(2, 4), "another one may"
    tell(rig, messages.SUBSCRIBED, connection=4, symbol=SYMBOL)
    assert not bring(3, 3)
    tell(rig, messages.SUBSCRIBED, connection=3, symbol=SYMBOL)
    assert bring(3, 3)
    for number, connection in ((4, 3), (5, 4)):
        tell(rig, messages.UNSUBSCRIBED, connection=connection, symbol=SYMBOL)
        assert not bring(number, connection)
    tell(rig, messages.CONNECTED, connection=3)
    assert bring(4, 3), "it is another one by that number"
    assert not bring(5, 4)
    tell(rig, messages.READER)
    assert bring(5, 4)


def test_a_batch_with_trades_of_a_symbol_that_was_left_hands_the_others_on(rig: Rig) -> None:
    workers.publish(rig.metadata, {"symbols": {"ETHUSDT": "ETH/USDT"}})
    tell(rig, messages.UNSUBSCRIBED, connection=0, symbol="ETHUSDT")
    rig.append(frame(1), frame(1, symbol="ETHUSDT"), frame(2))
    rig.step()
    assert [entry.symbol for entry in rig.sink.taken] == [None, SYMBOL, None, SYMBOL]
