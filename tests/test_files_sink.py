"""The files sink: what it acknowledges is in the files, once and in order."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import fastavro
import pytest
from files_rig import EXCHANGE, FIRST_SEQUENCE, Rig, coverage, entries, entry, rig

from feedmono.sinks.base import KINDS, DeadLetter, Entry, Frame
from feedmono.sinks.files import FilesSource, count_trades
from feedmono.sinks.files_source import read_records
from feedmono.sinks.segment import SegmentFile

__all__ = ["rig"]


def test_entries_are_acknowledged_when_the_sync_interval_is_over_and_not_before(rig: Rig) -> None:
    sink = rig.opened(sync_interval_s=1.0)
    assert sink.write(entries(0, 3)) == 3
    assert sink.poll(0) is None
    rig.clock.now_s += 0.99
    assert sink.poll(0) is None
    assert rig.ids() == []
    rig.clock.now_s += 0.02
    assert sink.poll(0) == 3
    assert rig.ids() == [0, 1, 2]
    sink.close()


def test_flush_stores_without_waiting_for_the_interval(rig: Rig) -> None:
    sink = rig.opened(sync_interval_s=60.0)
    assert rig.store(sink, entries(0, 2)) == 2
    assert rig.ids() == [0, 1]
    sink.close()


def test_acknowledged_means_synced_in_every_file_and_in_the_folder(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = rig.opened()
    synced: list[str] = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def spy(fd: int, real: Any = real) -> None:
            synced.append(Path(f"/proc/self/fd/{fd}").readlink().name.partition("-")[0])
            real(fd)

        monkeypatch.setattr(os, name, spy)
    assert rig.store(sink, [entry(0, dead=DeadLetter("decode", "odd"))]) == 1
    assert sorted(synced) == sorted(["trades", "raw", "dead", EXCHANGE])
    sink.close()


def test_files_are_named_by_start_and_first_sequence_and_part_until_finished(rig: Rig) -> None:
    sink = rig.opened()
    rig.store(sink, entries(7, 9))
    stem = f"20261123T000441Z-{FIRST_SEQUENCE + 7}.avro"
    assert rig.names() == [f"raw-{stem}.part", f"trades-{stem}.part"]
    sink.close()
    assert rig.names() == [f"raw-{stem}", f"trades-{stem}"]
    assert rig.finished_ids() == [7, 8]


def test_frames_and_dead_letters_are_stored_as_they_came(rig: Rig) -> None:
    sink = rig.opened()
    bad = Frame(b"\xff\x00garbage", 3, FIRST_SEQUENCE + 1, 17, 2)
    rig.store(
        sink,
        [
            entry(0),
            Entry(2, bad, dead=DeadLetter("decode", "half a pair: \ud800", "BTC\udfff")),
        ],
    )
    sink.close()
    (raw,) = read_records(rig.folder, EXCHANGE, "raw")
    assert raw == {
        "connection": 1,
        "sequence": FIRST_SEQUENCE,
        "received_ns": 0,
        "origin": "STREAM",
        "payload": b'{"t":0}',
    }
    (dead,) = read_records(rig.folder, EXCHANGE, "dead")
    assert dead == {
        "connection": 3,
        "sequence": FIRST_SEQUENCE + 1,
        "received_ns": 17,
        "symbol": "BTC\\udfff",
        "stage": "decode",
        "reason": "half a pair: \\ud800",
        "payload": b"\xff\x00garbage",
    }


def test_entries_without_anything_to_store_are_acknowledged_and_make_no_file(rig: Rig) -> None:
    sink = rig.opened()
    empty = Entry(5, Frame(b"", 1, FIRST_SEQUENCE, 1, 0))
    assert sink.write([empty]) == 1
    assert sink.poll(0) == 5
    rig.clock.now_s += 10_000
    assert sink.poll(0) == 5
    sink.close()
    assert rig.names() == []


def test_an_empty_entry_is_not_acknowledged_before_its_predecessors(rig: Rig) -> None:
    sink = rig.opened()
    sink.write([entry(0), Entry(9, Frame(b"", 1, FIRST_SEQUENCE + 1, 1, 0))])
    assert sink.poll(0) is None
    rig.clock.now_s += 1
    assert sink.poll(0) == 9
    sink.close()


def test_a_segment_past_its_interval_is_published_without_new_data(rig: Rig) -> None:
    sink = rig.opened(roll_interval_s=3600.0)
    rig.store(sink, entries(0, 2))
    rig.wall.now_s -= 86_400  # the wall clock steps back a day: nothing to the intervals
    rig.clock.now_s += 3599
    sink.poll(0)
    assert rig.finished_ids() == []
    rig.clock.now_s += 1
    sink.poll(0)
    assert rig.finished_ids() == [0, 1]
    assert rig.names("*.part") == []
    rig.store(sink, entries(2, 3))
    sink.close()
    assert rig.ids() == [0, 1, 2]  # in the order of the ring, not of the wall clock


def test_files_roll_by_size_between_entries_and_together(rig: Rig) -> None:
    sink = rig.opened(roll_size_bytes=100_000)
    chance = random.Random(1)
    batch = [entry(n, padding=chance.randbytes(3000)) for n in range(300)]
    for first in range(0, 300, 50):
        rig.store(sink, batch[first : first + 50])
    sink.close()
    trades, raw = rig.names("trades-*"), rig.names("raw-*")
    assert len(trades) > 3
    assert [name.partition("-")[2] for name in trades] == [name.partition("-")[2] for name in raw]
    assert rig.finished_ids() == list(range(300))
    for name in trades:
        number = int(name.removesuffix(".avro").rpartition("-")[2]) - FIRST_SEQUENCE
        with (rig.folder / EXCHANGE / name).open("rb") as file:
            first_trade: Any = next(fastavro.reader(file))
        assert int(first_trade["trade_id"]) == number


def test_a_damaged_part_of_the_ring_has_no_sequence_and_gives_no_name(rig: Rig) -> None:
    sink = rig.opened()
    damaged = Entry(1, Frame(b"?", 0, -1, 5, 0), dead=DeadLetter("ring", "40 B were damaged"))
    rig.store(sink, [damaged, entry(1)])
    sink.close()
    assert rig.names("trades-*") == [f"trades-20261123T000441Z-{FIRST_SEQUENCE + 1}.avro"]


def test_a_successor_that_begins_with_the_same_record_takes_another_name(rig: Rig) -> None:
    for _ in range(2):
        sink = rig.opened()
        rig.store(sink, entries(0, 2))
        sink.close()
    assert rig.names("trades-*") == [
        f"trades-20261123T000441Z-{FIRST_SEQUENCE}.avro",
        f"trades-20261123T000442Z-{FIRST_SEQUENCE}.avro",
    ]
    assert rig.ids() == [0, 1, 0, 1]


def test_the_files_of_two_sinks_never_meet(rig: Rig) -> None:
    first, second = rig.opened(), rig.sink()
    rig.store(first, entries(0, 2))
    assert not second.open()
    assert "another process writes into" in second.trouble
    first.close()
    assert second.open()
    assert second.trouble == ""
    second.close()
    assert rig.finished_ids() == [0, 1]


def test_a_folder_that_can_not_be_made_is_trouble_until_it_can(rig: Rig) -> None:
    obstacle = rig.folder / EXCHANGE
    obstacle.write_text("a file where a folder belongs")
    sink = rig.sink()
    assert not sink.open()
    assert str(obstacle) in sink.trouble
    assert sink.stats.errors == 1
    obstacle.unlink()
    assert sink.open()
    assert sink.trouble == ""
    sink.close()


def test_what_is_counted_is_what_is_read(rig: Rig) -> None:
    assert count_trades(rig.folder, EXCHANGE) == 0
    assert rig.ids() == []
    sink = rig.opened(roll_interval_s=100.0)
    for first in range(0, 60, 20):
        rig.store(sink, entries(first, first + 20))
        rig.clock.now_s += 60
    assert len(rig.names("trades-*")) == 2
    assert rig.names("trades-*.part") != []
    assert rig.ids() == list(range(60))
    assert count_trades(rig.folder, EXCHANGE) == 60
    sink.close()


def test_a_follower_gets_what_is_stored_from_now_on_across_rolls(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedmono.sinks.files_source._LOOK_AGAIN_S", 0.001)
    sink = rig.opened(roll_interval_s=100.0)
    rig.store(sink, entries(0, 10))
    follower = FilesSource(rig.config(), EXCHANGE).follow()
    assert next(follower) is None  # at the present end
    seen: list[int] = []
    for first in range(10, 70, 10):
        rig.store(sink, entries(first, first + 10))
        rig.clock.now_s += 60
        sink.poll(0)
        deadline_s = time.monotonic() + 5
        while len(seen) < first and time.monotonic() < deadline_s:
            trade: Any = next(follower)
            if trade is not None:
                seen.append(int(trade["trade_id"]))
    assert seen == list(range(10, 70))
    sink.close()


def test_a_follower_misses_nothing_that_comes_while_it_asks_for_a_newer_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedmono.sinks.files_source._LOOK_AGAIN_S", 0.001)
    sink = rig.opened(roll_interval_s=100.0)
    rig.store(sink, entries(0, 1))
    follower = FilesSource(rig.config(), EXCHANGE).follow()
    assert next(follower) is None
    asked = FilesSource._is_over
    batches = [entries(1, 2), entries(2, 3), entries(3, 4)]

    def meanwhile(source: FilesSource, file: SegmentFile) -> bool:
        while batches:
            rig.store(sink, batches.pop(0))
            rig.clock.now_s += 60
            sink.poll(0)
        return asked(source, file)

    monkeypatch.setattr(FilesSource, "_is_over", meanwhile)
    trades: Any = [trade for _, trade in zip(range(20), follower, strict=False) if trade]
    assert [trade["trade_id"] for trade in trades] == ["1", "2", "3"]
    sink.close()


def test_a_follower_waits_for_an_exchange_that_has_no_file_yet(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedmono.sinks.files_source._LOOK_AGAIN_S", 0.001)
    follower = FilesSource(rig.config(), EXCHANGE).follow()
    assert next(follower) is None
    sink = rig.opened()
    rig.store(sink, entries(0, 2))
    trades = [next(follower), next(follower)]
    assert [trade and trade["trade_id"] for trade in trades] == ["0", "1"]
    sink.close()


def test_the_caller_is_told_how_long_it_may_wait(rig: Rig) -> None:
    sink = rig.opened(sync_interval_s=0.5)
    assert sink.wait_s() == 1.0
    sink.write(entries(0, 1))
    assert sink.wait_s() == 0.5
    rig.clock.now_s += 0.3
    assert sink.wait_s() == pytest.approx(0.2)
    sink.flush()
    assert sink.wait_s() == 0
    sink.poll(0)
    assert sink.wait_s() == 1.0
    sink.close()


# --- reading back ----------------------------------------------------------------------------


def test_every_kind_is_read_up_to_the_moment_of_the_call(rig: Rig) -> None:
    sink = rig.opened(roll_interval_s=100.0)
    source = FilesSource(rig.config(), EXCHANGE)
    assert [list(source.read(kind)) for kind in KINDS] == [[], [], [], []]
    letter = DeadLetter("normalize", "odd", "BTCUSDT")
    for first in range(0, 60, 20):
        rig.store(sink, [entry(first, dead=letter), *entries(first + 1, first + 20)])
        sink.cover([coverage(first + 19)])
        rig.clock.now_s += 60
    assert len(rig.names("*.part")) == 4
    reading = source.read("trades")
    assert [source.total(kind) for kind in KINDS] == [60, 60, 3, 2]
    assert all(source.complete_from_start(kind) for kind in KINDS)
    rig.store(sink, entries(60, 70))
    sink.close()  # what grew has another name by now
    found = list(reading)
    assert [record and record["trade_id"] for _, record, *_ in found] == [
        str(number) for number in range(60)
    ]
    assert len({place for place, *_ in found}) == 60
    assert [(error, key, value) for *_, error, key, value in found] == [("", None, b"")] * 60
    raw = list(source.read("raw"))
    assert [value for *_, value in raw] == [item.frame.payload for item in entries(0, 70)]
    assert raw[5].record == {
        "connection": 1,
        "sequence": FIRST_SEQUENCE + 5,
        "received_ns": 5000,
        "origin": 0,
        "payload": b'{"t":5}',
    }
    dead = [record and record["sequence"] for _, record, *_ in source.read("dead")]
    assert dead == [FIRST_SEQUENCE, FIRST_SEQUENCE + 20, FIRST_SEQUENCE + 40]
    covered = [record and record["to_id"] for _, record, *_ in source.read("coverage")]
    assert covered == [19, 39, 59]


@pytest.mark.parametrize("kind_of_damage", ["frame", "content", "size"])
def test_a_damaged_block_is_told_with_its_place_and_reading_goes_on_behind_it(
    rig: Rig, kind_of_damage: str
) -> None:
    sink = rig.opened()
    ends = []
    for first in range(0, 30, 10):
        rig.store(sink, entries(first, first + 10))
        (part,) = (rig.folder / EXCHANGE).glob("trades-*")
        ends.append(part.stat().st_size)
    data = bytearray(part.read_bytes())
    if kind_of_damage == "frame":
        data[ends[0]] = 255
    elif kind_of_damage == "content":
        data[ends[0] + 40 : ends[0] + 80] = bytes(40)
    else:
        data[ends[0] + 1 : ends[0] + 4] = b"\xff\xff\x0f"
    source = FilesSource(rig.config(), EXCHANGE)
    for finished in (False, True):
        if finished:
            sink.close()
            (part,) = (rig.folder / EXCHANGE).glob("trades-*")
        part.write_bytes(data)
        found = list(source.read("trades"))
        ids = [int(str(record["trade_id"])) for _, record, *_ in found if record is not None]
        assert ids == [*range(10), *range(20, 30)]
        (broken,) = [item for item in found if item.record is None]
        assert broken.place == f"{part.name} byte {ends[0]}"
        assert str(part) in broken.error
    whole = source.total("trades")
    assert whole in (10, 30)


def test_a_torn_end_is_an_error_in_a_finished_file_only(rig: Rig) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    rig.store(sink, entries(10, 20))
    (part,) = (rig.folder / EXCHANGE).glob("trades-*")
    source = FilesSource(rig.config(), EXCHANGE)
    whole = part.read_bytes()
    part.write_bytes(whole[:-5])
    assert len(list(source.read("trades"))) == 10
    part.write_bytes(whole)
    sink.close()
    final = part.with_name(part.name.removesuffix(".part"))
    final.write_bytes(whole[:-5])
    *records, torn = source.read("trades")
    assert len(records) == 10
    assert torn.record is None
    assert "does not end" in torn.error
    final.write_bytes(whole[:50])
    assert [item.error for item in source.read("trades")] == [f"{final} ends within its header"]


def test_of_a_file_that_is_no_container_or_can_not_be_read_the_others_are_read(rig: Rig) -> None:
    sink = rig.opened(roll_interval_s=50.0)
    for first in range(0, 30, 10):
        rig.store(sink, entries(first, first + 10))
        rig.clock.now_s += 50
        rig.commit(sink)
    sink.close()
    names = rig.names("trades-*")
    garbage, missing = (rig.folder / EXCHANGE / name for name in names[:2])
    garbage.write_bytes(b"garbage")
    source = FilesSource(rig.config(), EXCHANGE)
    reading = source.read("trades")
    missing.unlink()
    broken, gone, *records = reading
    assert str(garbage) in broken.error
    assert "it was removed" in gone.error
    assert [record and record["trade_id"] for _, record, *_ in records] == [
        str(number) for number in range(20, 30)
    ]
