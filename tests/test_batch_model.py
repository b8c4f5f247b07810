"""What batches leave behind is what the way record by record leaves, whatever comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from batch_rig import NAMES, NOW_NS, Row, append, frame, rig
from delivery_rig import Rig
from frame_twins import NEEDS_NATIVE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedmono import messages, native
from feedmono.counters import Field, Histogram
from feedmono.delivery.ids import Ids
from feedmono.ring_layout import BINARY, EVENT
from feedmono.sinks.base import Entry

__all__ = ["rig"]

pytestmark = NEEDS_NATIVE

_TIMES = ["2024-08-08T23:54:15.342000Z"] * 6 + [
    "2024-08-08T23:54:15.341000Z",
    "2024-08-08T23:54:19.000000Z",
    "2023-08-08T23:54:15.342000Z",
]
_STEPS = [1] * 12 + [0, -1, 2, 5]


class Action(NamedTuple):
    """Something that happens."""

    what: str
    symbols: Sequence[str] = ()
    steps: Sequence[int] = ()
    times: Sequence[str] = ()
    number: int = 0


_SYMBOL = st.sampled_from(["BTC/USD"] * 4 + ["ETH/USD"] * 2 + ["A/B"])
_ACTION = st.one_of(
    st.builds(
        Action,
        st.sampled_from(["frame"] * 12 + ["snapshot", "exponent", "binary"]),
        st.lists(_SYMBOL, min_size=1, max_size=4),
        st.lists(st.sampled_from(_STEPS), min_size=4, max_size=4),
        st.lists(st.sampled_from(_TIMES), min_size=4, max_size=4),
    ),
    st.builds(Action, st.just("run"), number=st.integers(1, 30)),
    st.builds(Action, st.sampled_from(["garbage", "event", "gone", "step", "restart"])),
    st.builds(Action, st.just("acknowledge"), number=st.integers(0, 40)),
    st.builds(Action, st.just("room"), number=st.integers(0, 20)),
)


def play(folder: Path, actions: Sequence[Action]) -> tuple[object, ...]:
    """What is left behind."""
    folder.mkdir()
    rig = Rig(folder, window=40, exchange="kraken", names=NAMES)
    last: dict[str, int] = {}

    def made(action: Action) -> bytes:
        rows = []
        for symbol, step, when in zip(action.symbols, action.steps, action.times, strict=False):
            last[symbol] = max(1, last.get(symbol, 10) + step)
            price = "1e5" if action.what == "exponent" else "1.50"
            rows.append(Row(last[symbol], symbol, price, when))
        return frame(*rows, kind="snapshot" if action.what == "snapshot" else "update")

    def act(action: Action) -> None:
        if action.symbols:
            append(rig, made(action), flags=BINARY if action.what == "binary" else 0)
        elif action.what == "run":
            run = Action("frame", ["BTC/USD"], [1], _TIMES)
            append(rig, *(made(run) for _ in range(action.number)))
        elif action.what == "garbage":
            append(rig, b"garbage")
        elif action.what == "event":
            append(rig, messages.event(messages.LOST, connection=3, reason="cut"), kind=EVENT)
        elif action.what == "gone":
            gone = messages.event(messages.UNSUBSCRIBED, connection=3, symbol="ETH/USD")
            append(rig, gone, kind=EVENT)
        elif action.what == "room":
            rig.sink.room = len(rig.sink.taken) + action.number
        elif action.what == "acknowledge" and rig.sink.taken:
            taken = rig.sink.taken
            done = sum(entry.end <= (rig.sink.end or 0) for entry in taken)
            rig.sink.acknowledge(max(1, min(len(taken), done + action.number)))
            rig.step()
        elif action.what == "restart" and not rig.sink.taken:
            rig.restart()
        elif action.what == "step":
            rig.step()

    for action in actions:
        act(action)
    rig.sink.room = 1_000_000
    deadline = time.monotonic() + 30
    while not rig.loop.idle or rig.reader.used_bytes:
        assert time.monotonic() < deadline
        if rig.sink.taken:
            rig.sink.acknowledge(len(rig.sink.taken))
        rig.step()
    assert rig.ledger is not None
    fields = [rig.counters[field] for field in _COUNTED]
    shown = [_shown(known) for known in (rig.seen.symbols, rig.ledger.symbols)]
    delivered = rig.counters.buckets(Histogram.DELIVERY)
    rig.writer.close()
    return rig.sink.taken, shown, fields, delivered, rig.reader.position


_COUNTED = (
    Field.TRADES, Field.DELIVERED_TRADES, Field.DUPLICATES, Field.DEAD_LETTERS,
    Field.LAST_TRADE_NS, Field.HOLES, Field.HOLE_TRADES, Field.LATE,
)  # fmt: skip


def _shown(known: dict[str, Ids]) -> dict[str, object]:
    return {
        symbol: (
            ids.first_id, ids.last_id, ids.last_edge, ids.newest_us, ids.epoch, ids.sequence,
            [(hole.first_id, hole.last_id, hole.cause) for hole in ids.holes], list(ids.islands),
            dict(ids._strays),
        )
        for symbol, ids in known.items()
    }  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions=st.lists(_ACTION, max_size=25))
def test_both_ways_leave_the_same_behind(
    actions: list[Action], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ways")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: NOW_NS)
        in_batches = play(folder / "batches", actions)
        patch.setattr(native, "trades", None)
        one_by_one = play(folder / "records", actions)
    for one, other in zip(in_batches, one_by_one, strict=True):
        assert one == other


def test_usual_trades_do_come_in_batches(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the law above would compare the same way with itself."""
    written: list[type] = []
    write = rig.sink.write

    def note(entries: Sequence[Entry]) -> int:
        written.append(type(entries))
        return write(entries)

    monkeypatch.setattr(rig.sink, "write", note)
    append(rig, frame(Row(1)))
    rig.step()
    append(rig, *(frame(Row(number)) for number in range(2, 50)))
    rig.step()
    assert len(rig.sink.taken) == 49
    assert native.trades is not None
    assert written == [list, native.trades.Batch], "the first trade of a symbol comes alone"
