"""A batch is the list of its entries, whole and in parts."""

from __future__ import annotations

import gc

import pytest
from batch_rig import Feed, feed
from frame_twins import NEEDS_NATIVE

__all__ = ["feed"]

pytestmark = NEEDS_NATIVE


def test_a_batch_is_the_list_of_the_entries_that_python_makes(feed: Feed) -> None:
    feed.add_all_kinds()
    entries = feed.entries()
    batches = list(feed.batches())
    assert len(batches) > 2
    assert [entry for batch in batches for entry in batch] == entries
    first = batches[0]
    own = entries[: len(first)]
    assert list(first) == own == list(reversed(list(reversed(first))))
    assert (first[0], first[-1], first[-len(first)]) == (own[0], own[-1], own[0])
    assert first[3:9] == own[3:9]
    assert first[::-2] == own[::-2]
    assert first[5:5] == []
    assert own[7] in first
    with pytest.raises(IndexError):
        first[len(first)]
    with pytest.raises(IndexError):
        first[-len(first) - 1]
    assert first.end == own[-1].end
    assert first.sequence == own[-1].frame.sequence
    assert first.trades == sum(len(entry.trades) for entry in own)


def test_the_parts_of_a_batch_hold_what_it_held(feed: Feed) -> None:
    feed.add_all_kinds()
    entries = feed.entries()
    batch = next(feed.batches())
    own = entries[: len(batch)]
    rest = batch.split(10)
    last = rest.split(1)
    assert (list(batch), list(rest), list(last)) == (own[:10], own[10:11], own[11:])
    assert (batch.end, rest.end, last.end) == (own[9].end, own[10].end, own[-1].end)
    assert rest.trades == len(own[10].trades)
    assert last.until(own[11].end - 1) == 0
    assert last.until(own[11].end) == 1
    assert last.until(own[-1].end + 1) == len(last)
    del batch, rest
    gc.collect()
    assert list(last) == own[11:]
    for count in (0, len(last), -1):
        with pytest.raises(ValueError, match="both parts"):
            last.split(count)
