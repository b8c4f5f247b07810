"""The files sink and the ledger: what was committed is published, and what was not is cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from files_rig import EXCHANGE, Rig, coverage, crashed, entries, entry, leave_part_file, rig

from feedmono.sinks.base import DeadLetter

__all__ = ["rig"]


def test_a_crash_before_any_call_to_the_kernel_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several segments, with a ledger that now and then lags behind."""
    rig = Rig(tmp_path / "files")
    rig.mark = {}
    batch = entries(0, 120)
    for number in range(0, 120, 7):
        batch[number] = entry(number, dead=DeadLetter("normalize", f"odd {number}"))
    crashes: list[str] = []

    def crash(place: str) -> None:
        with monkeypatch.context() as patch:
            for name, call in kernel.items():
                patch.setattr(os, name, call if "sync" not in name else lambda fd: None)
            crashed(rig, tmp_path / f"{len(crashes)}", batch)
        crashes.append(place)

    kernel = {name: getattr(os, name) for name in ("pwrite", "fdatasync", "fsync", "link")}
    sink = rig.opened(roll_size_bytes=2500)
    for name, call in kernel.items():

        def with_crash(*given: Any, name: str = name, call: Any = call, **named: Any) -> Any:
            crash(name)
            return call(*given, **named)

        monkeypatch.setattr(os, name, with_crash)
    taken = 0
    for round_ in range(34):
        taken += sink.write(batch[taken : taken + 20])
        crash("written")
        sink.flush()
        end = sink.poll(0)
        crash("synced")
        mark = sink.mark()
        if round_ % 5 in (1, 2):
            continue  # not committed, and so nothing is settled
        if end is not None:
            rig.committed, rig.mark = end, mark
        crash("committed")
        sink.settle()
        crash("settled")
        sink.cover([coverage(rig.committed - 1)])
    assert taken == 120
    assert len(rig.names("trades-*")) >= 3
    assert len(rig.names("coverage-*")) >= 2
    assert {*crashes} == {*kernel, "written", "synced", "committed", "settled"}
    sink.close()
    assert rig.finished_ids() == list(range(120))


def test_a_segment_is_published_when_it_is_settled_and_the_next_begins_then(rig: Rig) -> None:
    sink = rig.opened(roll_size_bytes=3000)
    taken, batch = 0, entries(0, 1000)
    while more := sink.write(batch[taken : taken + 20]):
        taken += more
        sink.flush()
        end = sink.poll(0)
    assert end == taken
    for _ in range(5):
        assert 0 < sink.wait_s() < 0.1
        assert sink.write(batch[taken:]) == 0
        assert sink.poll(0) == taken
        assert rig.names("*.avro") == []
    rig.mark = sink.mark()
    assert sorted(rig.mark) == rig.names("*.part")
    sink.settle()
    assert rig.finished_ids() == list(range(taken))
    assert sink.poll(0) == taken
    assert sink.mark() == {}
    assert sink.write(batch[taken : taken + 20]) == 20
    sink.close()


def test_what_comes_between_the_mark_and_its_commit_is_not_settled_by_it(rig: Rig) -> None:
    sink = rig.opened(roll_interval_s=100.0)
    sink.write(entries(0, 10))
    sink.flush()
    sink.poll(0)
    sink.mark()
    sink.write(entries(10, 20))
    rig.clock.now_s += 100
    assert sink.poll(0) == 20
    sink.settle()
    assert rig.names("*.avro") == []
    rig.commit(sink)
    assert rig.finished_ids() == list(range(20))
    sink.close()


def test_the_mark_belongs_to_the_position_that_the_last_poll_told(rig: Rig) -> None:
    sink = rig.opened()
    assert rig.store(sink, entries(0, 10)) == 10
    before = sink.mark()
    sink.write(entries(10, 20))
    sink.flush()
    assert sink.mark() == before
    sink.poll(0)
    assert all(length > before[name] for name, length in sink.mark().items())
    sink.close()


@pytest.mark.parametrize("left", ["not acknowledged", "not settled"])
def test_a_close_leaves_files_that_are_not_settled_to_the_successor(rig: Rig, left: str) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    sink.write(entries(10, 20))
    if left == "not settled":
        sink.flush()
        assert sink.poll(0) == 20
    sink.close()
    assert rig.names("*.avro") == []
    successor = rig.opened()
    assert rig.finished_ids() == list(range(10))
    rig.store(successor, entries(10, 20))
    successor.close()
    assert rig.finished_ids() == list(range(20))


def test_files_that_no_mark_names_are_removed_and_others_are_not_touched(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    part = leave_part_file(rig, b"torn")
    rig.mark = {}
    empty = part.with_name(part.name.replace("trades", "raw"))
    garbage = part.with_name(part.name.replace("trades", "dead"))
    others = [part.with_name("notes.avro.part"), part.with_name("trades.txt.part")]
    empty.touch()
    garbage.write_bytes(b"garbage")
    for other in others:
        other.write_bytes(b"Obj")
    rig.opened().close()
    aside = garbage.name.replace(".part", ".damaged-1")
    assert rig.names() == sorted([aside, *(other.name for other in others)])
    assert "removed a file that was never committed" in "".join(capfd.readouterr())


def test_a_mark_may_name_files_that_are_published_or_gone(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = rig.opened()
    rig.store(sink, entries(0, 10))
    mark = rig.mark
    assert mark is not None
    sink.close()
    rig.mark = {**mark, "trades-20261123T000441Z-7.avro.part": 5000}
    before = {name: (rig.folder / EXCHANGE / name).stat() for name in rig.names()}
    rig.opened().close()
    assert {name: (rig.folder / EXCHANGE / name).stat() for name in rig.names()} == before
    told = "".join(capfd.readouterr())
    assert told.count("a committed file is not here any more") == 1
    assert "trades-20261123T000441Z-7.avro.part" in told


def test_a_publication_interrupted_between_its_two_names_is_finished_by_the_mark(
    rig: Rig,
) -> None:
    part = leave_part_file(rig, b"")
    final = part.with_name(part.name.removesuffix(".part"))
    os.link(part, final)
    rig.mark = {part.name: part.stat().st_size}
    rig.opened().close()
    assert rig.names() == [final.name]
    assert rig.finished_ids() == list(range(20))


@pytest.mark.parametrize("damage", ["cut", "cut to nothing", "flipped", "not a block's end"])
def test_a_file_that_lacks_committed_bytes_is_told_and_what_is_whole_is_kept(
    rig: Rig, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    part = leave_part_file(rig, b"")
    data = part.read_bytes()
    committed = len(data)
    if damage == "cut":
        part.write_bytes(data[:-5])
    elif damage == "cut to nothing":
        part.write_bytes(b"")
    elif damage == "flipped":
        part.write_bytes(data[:-60] + bytes(10) + data[-50:])
    else:
        committed -= 5
    rig.mark = {part.name: committed}
    rig.opened().close()
    told = "".join(capfd.readouterr())
    assert "a file lacks bytes that were committed" in told
    assert f"committed_bytes={committed}" in told
    stem = part.name.removesuffix(".part")
    nothing = damage == "cut to nothing"
    assert rig.names() == ([] if nothing else [stem]) + [f"{stem}.damaged-1"]
    assert rig.finished_ids() == ([] if nothing else list(range(10)))
