"""How rings are made, opened, set aside and closed; what can't be is told, and leaves nothing."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ring_rig import SMALL, path, payloads

from feedmono import ring, ring_layout
from feedmono.ring import RingError, RingReader, RingWriter, SalvagedReader, mapped
from feedmono.ring_layout import FRAME

__all__ = ["path"]


@pytest.mark.parametrize("capacity", [SMALL - 1, ring_layout.MAX_CAPACITY_BYTES + 1])
def test_a_capacity_out_of_range_is_refused_and_leaves_no_file(path: Path, capacity: int) -> None:
    with pytest.raises(RingError, match="out of range"):
        ring.create(path, capacity)
    assert not list(path.parent.iterdir())


def test_where_the_folder_is_a_file_the_error_says_what_it_must_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RingError, match=r"Not a directory; ring_dir must be a folder"):
        ring.create(tmp_path / "file" / "x.ring", SMALL)


def test_what_stands_in_the_way_of_a_new_ring_is_told(path: Path) -> None:
    (path.parent / "x.ring.new").mkdir()
    with pytest.raises(RingError, match=r"Is a directory$"):
        ring.create(path, SMALL)


def test_no_room_is_told_though_what_is_free_can_not_be_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder goes while the ring is made."""
    folder = tmp_path / "rings"
    folder.mkdir()
    look = os.fstatvfs

    def gone(fd: int) -> object:
        shutil.rmtree(folder)
        free = look(fd)
        return SimpleNamespace(f_bavail=0, f_frsize=free.f_frsize)

    monkeypatch.setattr(os, "fstatvfs", gone)
    with pytest.raises(RingError, match="No space left on device; make room, or set"):
        ring.create(folder / "x.ring", SMALL)


def test_a_ring_that_is_not_there_can_not_be_opened(path: Path) -> None:
    for opened in (RingReader, RingWriter):
        with pytest.raises(RingError, match="can't open it: No such file"):
            opened(path)
    with pytest.raises(RingError, match="can't read it: No such file"):
        SalvagedReader(path)


def test_rings_that_were_set_aside_are_named_oldest_first_and_kept_when_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        monkeypatch.setattr(time, "time_ns", lambda number=number: (10**12 + number) * 10**6)
        ring.prepare(path, SMALL)
        RingWriter(path).append([b"%d" % number], FRAME, 0, 1)
        path.write_bytes(b"foreign " + path.read_bytes()[8:])
        assert ring.prepare(path, SMALL).set_aside
    first, second = ring.set_aside_of(path)
    assert [SalvagedReader(each).read(9, 9)[0].payload for each in (first, second)] == [b"0", b"1"]
    ring.keep_damaged(first)
    assert ring.set_aside_of(path) == [second]
    (kept,) = path.parent.glob("x.ring.damaged-*")
    assert payloads(SalvagedReader(kept).read(9, 9)) == [b"0"]


def test_a_machine_that_tells_no_boot_id_has_one_of_zeroes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = path.with_name("boot_id")
    monkeypatch.setattr(mapped, "Path", lambda _: proc)
    assert mapped.boot_id() == bytes(16)
    proc.write_text("not hexadecimal")
    assert mapped.boot_id() == bytes(16)
    proc.write_text("12345678-9abc-def0-1234-56789abcdef0\n")
    assert mapped.boot_id().hex() == "123456789abcdef0123456789abcdef0"


def test_a_ring_that_was_closed_holds_nothing_of_the_process(path: Path) -> None:
    ring.create(path, SMALL)
    before = len(os.listdir("/proc/self/fd"))
    for opened in (RingReader, RingWriter):
        one = opened(path)
        one.close()
        assert one._map.closed
    assert len(os.listdir("/proc/self/fd")) == before
