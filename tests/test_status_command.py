"""``feedmono status``: one look at a running instance, from any terminal."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from instance import Instance
from nobody import as_nobody
from report_rig import ALARM, feedmono, running, snapshot
from sim import Sim, wait_until
from test_status import shown

from feedmono.commands import table
from feedmono.supervision import statelock
from feedmono.supervision.snapshot import Alarm, Disk, Snapshot, state_of


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("status")
    with Sim("binance", "--rate", "50") as sim, Instance(folder, sim) as one:
        one.wait_trades("binance", 50)
        wait_until(lambda: state_of(one.state), lambda s: s is not None and s.http != "")
        yield one


def test_it_tells_of_the_exchanges_their_budgets_all_processes_and_the_address(
    instance: Instance, tmp_path: Path
) -> None:
    done = feedmono(instance.environ, tmp_path, "status")
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("binance  flowing", "binance memory", "total CPU", "processes:", "http://127.0."):
        assert part in done.stdout, part
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_is_the_snapshot(instance: Instance, tmp_path: Path) -> None:
    done = feedmono(instance.environ, tmp_path, "status", "--format", "json")
    state = Snapshot.from_json(done.stdout)
    assert state.pid == instance.pid
    assert [e.name for e in state.exchanges] == ["binance"]
    assert json.loads(done.stdout)["tree"]["processes"] >= 3


def test_nothing_that_runs_is_an_error_that_says_where(tmp_path: Path) -> None:
    done = feedmono({"FEEDMONO_STATE_DIR": str(tmp_path)}, tmp_path, "status")
    assert done.returncode == 1
    assert f"nothing runs on state_dir {tmp_path}" in done.stderr


def test_another_user_is_told_the_state_or_that_it_may_not_be_read(instance: Instance) -> None:
    for folder in (instance.state, *instance.state.parents):
        with contextlib.suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o055)

    def sees() -> bool:
        state = state_of(instance.state)
        return state is not None and state.pid == instance.pid

    def may_not() -> bool:
        with pytest.raises(PermissionError):
            statelock.holder(instance.state)
        return True

    assert sees()
    assert as_nobody(sees)
    if os.geteuid() == 0:
        instance.state.chmod(0o700)
        try:
            assert as_nobody(may_not)
        finally:
            instance.state.chmod(0o755)


def test_alarms_and_disks_and_the_total_are_told() -> None:
    full = Alarm("disk", "", "files.dir /data: 12 MiB free", ALARM.since_s)
    disks = (
        Disk("state_dir", "/var/lib/feedmono", 40 << 30, 250 << 30),
        Disk("files.dir", "/data", 12 << 20, 2 << 40),
    )
    state = snapshot(running(), alarms=(ALARM, full), disks=disks)
    assert shown(table.alarms(state)).splitlines() == [
        "alarm kraken 600 MiB of 512 MiB (for 10 min)",
        "alarm files.dir /data: 12 MiB free (for 10 min)",
    ]
    assert shown(table.disks(state)).splitlines() == [
        "state_dir /var/lib/feedmono: 40.0 GiB of 250.0 GiB free",
        "files.dir /data: 12.0 MiB of 2.0 TiB free",
    ]
    styles = [text.style for text in table.disks(state).renderables]  # type: ignore[union-attr]
    assert styles == ["", "red"]
    total = shown(table.total(state), 200)
    for part in ("6 processes", "0.350 cores", "211 MiB", "28 of 20000 files", "127.0.0.1:9464"):
        assert part in total
    quiet = replace(state, alarms=())
    assert shown(table.alarms(quiet)).strip() == ""


def test_the_total_of_the_budgets_is_that_of_all_processes() -> None:
    text = shown(table.budgets(snapshot()))
    line = next(line for line in text.splitlines() if line.startswith("total CPU"))
    assert line.split()[2:] == ["1.00", "0.350", "ok"]
    assert "total" not in shown(table.budgets(replace(snapshot(), exchanges=())))
