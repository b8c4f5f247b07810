"""Rings that are read a second time: the ledger knows what of them is done."""

from __future__ import annotations

import json

from delivery_rig import SYMBOL, Rig, frame, rig, store

from feedmono.delivery import ledger_file
from feedmono.delivery.loop import Delivery
from feedmono.ring import RingReader, SalvagedReader
from feedmono.ring_layout import HEADER_BYTES

__all__ = ["rig"]


def test_what_the_ledger_knows_to_be_done_is_left_out_of_a_salvaged_ring(rig: Rig) -> None:
    rig.append(frame(1), frame(2))
    store(rig)
    rig.append(frame(3), frame(4))
    data = rig.path.read_bytes()
    # Neither its header nor its cursors can be believed any more.
    rig.path.write_bytes(bytes(HEADER_BYTES) + data[HEADER_BYTES:])
    rig.sink.taken.clear()
    delivery = Delivery(SalvagedReader(rig.path), rig.parts, rig.counters, 100, 1000)
    rig.sink.end = None
    delivery.step(hurry=True)
    done, third, fourth = rig.sink.taken
    assert (done.end, done.symbol, done.trades, done.dead) == (1002, None, (), None)
    assert [json.loads(e.frame.payload)["data"]["t"] for e in (third, fourth)] == [3, 4]
    assert [third.end, fourth.end] == [1003, 1004]
    rig.sink.acknowledge(3)
    delivery.step(hurry=True)
    assert delivery.idle
    assert delivery.base == 1004
    content = ledger_file.read(rig.ledger_path)
    assert content is not None
    assert (content.symbols[SYMBOL].last_id, len(content.rings)) == (4, 1)
    again = Delivery(SalvagedReader(rig.path), rig.parts, rig.counters, 100, 2000)
    rig.sink.taken.clear()
    again.step(hurry=True)
    (all_done,) = rig.sink.taken
    assert (all_done.end, all_done.symbol) == (2004, None)
    rig.sink.acknowledge(1)
    again.step(hurry=True)
    assert again.idle


def test_a_ring_whose_position_the_ledger_knows_is_gone_on_with_there(rig: Rig) -> None:
    rig.append(frame(1), frame(2), frame(3))
    rig.step()
    rig.sink.acknowledge(2)
    rig.step()
    behind = rig.reader.acknowledged
    reader = RingReader(rig.path)
    assert reader.seek(0)
    assert rig.reader.acknowledged == 0, "as if the cursor's store had been lost"
    Delivery(reader, rig.parts, rig.counters, 100)
    assert (reader.acknowledged, reader.position) == (behind, behind)
