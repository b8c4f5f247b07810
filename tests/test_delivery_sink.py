"""What the serializer makes of what its sink tells: counts, times, refused trades."""

from __future__ import annotations

from pathlib import Path

import pytest
from delivery_rig import Rig, asked, delivered_holes, frame, rig, seen_causes, store

from feedmono.counters import SINK_ERROR_KINDS, Counters, Field, Histogram
from feedmono.delivery.backfill import DEAD
from feedmono.delivery.holes import State
from feedmono.delivery.loop import SinkCounts
from feedmono.sinks.base import SinkStats

__all__ = ["rig"]


def test_what_a_sink_counts_is_told_once_and_by_kind(tmp_path: Path) -> None:
    counters = Counters.create(tmp_path / "counters")
    stats = SinkStats(dead_letters=5)
    stats.failures["disk"] = 7
    counts = SinkCounts(counters, stats)
    counts.publish()
    assert not any(counters[field] for field in (Field.SINK_ERRORS, Field.DEAD_LETTERS))
    stats.failures["broker"] += 2
    stats.failures["disk"] += 1
    stats.dead_letters += 3
    for _ in range(2):
        counts.publish()
        told = {kind: counters[field] for kind, field in SINK_ERROR_KINDS.items()}
        assert told == {"disk": 1, "broker": 2, "message": 0, "coverage": 0, "fatal": 0}
        assert (counters[Field.SINK_ERRORS], counters[Field.DEAD_LETTERS]) == (3, 3)


def test_a_sink_that_tells_when_it_stored_is_believed(rig: Rig) -> None:
    rig.append(*(frame(number) for number in range(1, 5)))
    rig.step()
    received_ns = 10**18
    ends = [entry.end for entry in rig.sink.taken]
    rig.sink.stored += [(ends[0], received_ns + 10**6), (ends[2], received_ns + 5 * 10**6)]
    rig.sink.end = ends[2]
    rig.step()
    assert not rig.sink.stored
    assert rig.counters[Field.DELIVERED_TRADES] == 3
    assert rig.counters.sum_s(Histogram.DELIVERY) == pytest.approx(0.001 + 2 * 0.005)
    assert rig.reader.acknowledged == ends[2]


def test_a_trade_that_the_sink_refused_is_missing_again(rig: Rig) -> None:
    rig.append(frame(1), frame(2), frame(3))
    rig.step()
    rig.sink.refused.append((rig.sink.taken[1].end, 0))
    store(rig)
    assert delivered_holes(rig) == [(2, 2, DEAD, State.OPEN)]
    assert seen_causes(rig) == [DEAD]
    assert rig.sink.refused == []
    assert rig.counters[Field.HOLES] == 1
    assert [wish.first_id for wish in asked(rig, 61.0)] == [1]
