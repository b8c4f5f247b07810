"""The supervisor with real processes: start, restart, stop, one instance per state_dir."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from delivery import independent, wait_complete
from instance import Instance, assert_complete, by_symbol, read_avro
from sim import Sim, wait_until

from feedmono import workers


def command(feedmono: Instance, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Another ``feedmono`` command with the same configuration."""
    return subprocess.run(
        [sys.executable, "-m", "feedmono", *arguments],
        env=dict(feedmono.environ),
        cwd=feedmono.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_processes_carry_titles_that_say_what_they_are(tmp_path: Path) -> None:
    with Sim("kraken") as sim, Instance(tmp_path, sim) as feedmono:
        state = feedmono.of("kraken")
        pids = (feedmono.pid, state["reader_pid"], state["serializer_pid"])
        wait_until(
            lambda: [" ".join(psutil.Process(pid).cmdline()).strip() for pid in pids],
            lambda titles: (
                titles
                == [
                    "feedmono: supervisor",
                    "feedmono: reader kraken",
                    "feedmono: serializer kraken",
                ]
            ),
        )


# Notes in a file what a process imports after its fork.
NOTES_LATE_IMPORTS = """
import os, sys
class Note:
    def find_spec(self, name, path=None, target=None):
        with open("/proc/self/cmdline") as title, open("late", "a") as late:
            late.write(title.read().partition(chr(0))[0] + ": " + name + chr(10))
os.register_at_fork(after_in_child=lambda: sys.meta_path.insert(0, Note()))
from feedmono.cli import main
sys.exit(main())
"""


def test_the_workers_import_nothing_after_their_fork(tmp_path: Path) -> None:
    """Each such import would copy pages that all of them share."""
    with Sim("binance", "--rate", "100") as sim:
        feedmono = Instance(tmp_path, sim)
        feedmono.program = ("-c", NOTES_LATE_IMPORTS)
        with feedmono:
            feedmono.wait_trades("binance", 100)
            url = json.loads((feedmono.state / "status.json").read_text())["http"]
            with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
                assert answer.status == 200
            assert feedmono.stop() == 0
    late = (tmp_path / "late").read_text().splitlines()
    assert any("pyhocon" in line for line in late), "the configuration is loaded in a fork"
    assert not [line for line in late if not line.startswith("feedmono: configuration")]


def test_systemd_is_told_that_it_runs_lives_and_stops(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
        Sim("kraken") as sim,
    ):
        address = str(tmp_path / "notify")
        told.bind(address)
        told.settimeout(30)
        feedmono = Instance(tmp_path / "x", sim)
        feedmono.environ = {**feedmono.environ, "NOTIFY_SOCKET": address}
        with feedmono:
            assert [told.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            assert feedmono.stop() == 0
        while (state := told.recv(100)) == b"WATCHDOG=1":
            pass
        assert state == b"STOPPING=1"


def test_a_second_start_says_which_process_holds_the_state(tmp_path: Path) -> None:
    with Sim("kraken") as sim, Instance(tmp_path, sim) as feedmono:
        second = command(feedmono, "run")
        assert second.returncode == 1
        assert f"in use by process {feedmono.pid}" in second.stderr
        assert feedmono.of("kraken")["reader_pid"]


def test_a_start_right_after_a_kill_waits_until_the_old_workers_are_gone(tmp_path: Path) -> None:
    with Sim("kraken", "--rate", "100") as sim, Instance(tmp_path, sim) as feedmono:
        for _ in range(3):
            feedmono.wait(lambda s: s[0]["trades"] > 0)
            # A stopped worker can't act on any signal but SIGKILL.
            os.kill(feedmono.of("kraken")["serializer_pid"], signal.SIGSTOP)
            os.kill(feedmono.pid, signal.SIGKILL)
            feedmono.start()
        feedmono.wait(lambda s: s[0]["trades"] > 0)
        assert feedmono.stop() == 0


def test_a_worker_that_keeps_dying_is_retried_with_growing_waits_and_the_other_exchange_goes_on(
    tmp_path: Path,
) -> None:
    with (
        Sim("binance", "--rate", "500") as binance,
        Sim("kraken", "--rate", "100") as kraken,
        Instance(tmp_path, binance, kraken) as feedmono,
    ):
        feedmono.wait(lambda s: all(e["trades"] > 0 for e in s))
        before = feedmono.of("binance")
        (counters,) = (tmp_path / "rings").glob("*-kraken.counters")
        kept = counters.rename(counters.with_name("kept"))
        os.kill(feedmono.of("kraken")["reader_pid"], signal.SIGKILL)  # no new one can start
        feedmono.wait_event("worker ended", restart_in_s=2.0)
        kept.rename(counters)
        seen = feedmono.of("kraken")["counts"]["frames"]
        feedmono.wait(lambda s: all(e["state"] == "flowing" for e in s))
        feedmono.wait(lambda s: s[1]["counts"]["frames"] > seen)
        ended = [e for e in feedmono.events() if e["event"] == "worker ended"]
        assert [e["restart_in_s"] for e in ended] == [0.25, 0.5, 1.0, 2.0]
        assert {(e["exchange"], e["worker"]) for e in ended} == {("kraken", "reader")}
        assert [e["how"] for e in ended] == ["killed by SIGKILL"] + 3 * ["exit status 1"]
        after = feedmono.of("binance")
        assert after["delivered"] > before["delivered"]
        assert [after[k] for k in ("reader_pid", "serializer_pid", "reconnects", "restarts")] == [
            before[k] for k in ("reader_pid", "serializer_pid", "reconnects", "restarts")
        ]
        assert feedmono.stop() == 0
        trades = by_symbol(read_avro(feedmono.data / "binance", "trades"))
        assert_complete(trades, binance)


def test_a_ring_that_is_damaged_while_in_use_is_replaced_and_what_it_holds_delivered(
    tmp_path: Path,
) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold") as sim,
        Instance(tmp_path, sim, BACKFILL_CONFIRM_AFTER="200 ms") as feedmono,
    ):
        feedmono.wait_trades("binance", 200)
        (ring,) = (tmp_path / "rings").glob("*.ring")
        for role in ("reader", "serializer"):
            with ring.open("r+b") as file:
                file.write(b"no ring!")
            os.kill(feedmono.of("binance")[f"{role}_pid"], signal.SIGKILL)
            made = feedmono.of("binance")["trades"]
            feedmono.wait(lambda s, n=made: s[0]["trades"] > n + 500)  # type: ignore[misc]
        assert len([e for e in feedmono.events() if e["event"] == "ring set aside"]) == 2
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)


@pytest.mark.parametrize("what", ["ring", "ring, reader killed", "folder"])
def test_a_ring_that_is_removed_while_in_use_is_replaced_and_what_it_held_fetched(
    tmp_path: Path, what: str
) -> None:
    rings = tmp_path / "rings"
    with (
        Sim("binance", "--rate", "500", "--hold") as sim,
        Instance(tmp_path, sim, BACKFILL_CONFIRM_AFTER="200 ms") as feedmono,
    ):
        feedmono.wait_trades("binance", 200)
        before = feedmono.of("binance")
        if what == "folder":
            shutil.rmtree(rings)
        else:
            next(rings.glob("*.ring")).unlink()
        if what == "ring, reader killed":
            os.kill(before["reader_pid"], signal.SIGKILL)
        feedmono.wait_event("ring replaced", exchange="binance")
        for role in ("reader", "serializer"):
            feedmono.wait_replaced("binance", role, before[f"{role}_pid"])
        made = feedmono.of("binance")["trades"]
        feedmono.wait(lambda s: s[0]["trades"] > made + 500)
        deleted = [
            link
            for pid in (feedmono.pid, *feedmono.workers())
            for link in map(os.readlink, Path(f"/proc/{pid}/fd").iterdir())
            if link.startswith(str(rings)) and link.endswith("(deleted)")
        ]
        assert deleted == []
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        assert len([e for e in feedmono.events() if e["event"] == "ring replaced"]) == 1
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("harm", ["damaged", "removed"])
def test_a_ring_for_whose_successor_there_is_no_room_is_replaced_when_there_is(
    tmp_path: Path, harm: str
) -> None:
    disk = tmp_path / "rings"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", disk], check=True)
    try:
        with (
            Sim("binance", "--rate", "500", "--hold") as sim,
            Instance(tmp_path, sim, BACKFILL_CONFIRM_AFTER="200 ms") as feedmono,
        ):
            feedmono.wait_trades("binance", 200)
            (ring,) = disk.glob("*.ring")
            if harm == "damaged":
                with ring.open("r+b") as file:
                    file.write(b"no ring!")
                os.kill(feedmono.of("binance")["reader_pid"], signal.SIGKILL)
                feedmono.wait_event("the ring can't be replaced")
                feedmono.wait(lambda s: "can't reserve" in s[0]["detail"])
                (disk / "ballast").write_bytes(bytes(1 << 20))
                assert feedmono.of("binance")["state"] == "restarting"
                assert feedmono.workers() == []
                # Beyond the next attempts, which fail for the same reason.
                time.sleep(2)
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            else:
                # Room for one there is, as nobody keeps that of the one that was removed.
                ring.unlink()
            feedmono.wait_event("ring replaced")
            made = feedmono.of("binance")["trades"]
            feedmono.wait(lambda s: s[0]["trades"] > made + 500)
            sim.fault("pause")
            wait_complete(feedmono, sim)
            assert feedmono.stop() == 0
            failed = [e for e in feedmono.events() if e["event"] == "the ring can't be replaced"]
            assert len(failed) == (harm == "damaged")
            outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
            assert (outcome.missing, outcome.doubled) == ([], 0)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_sigint_to_the_whole_group_stops_in_order(tmp_path: Path) -> None:
    """As Ctrl-C does: every process gets it, and the workers leave it to the supervisor."""
    with Sim("binance", "--rate", "1000") as sim, Instance(tmp_path, sim) as feedmono:
        feedmono.wait(lambda s: s[0]["trades"] > 500)
        state = feedmono.of("binance")
        for pid in (state["reader_pid"], state["serializer_pid"], feedmono.pid):
            os.kill(pid, signal.SIGINT)
        assert feedmono.wait_end() == 0
        assert not [e for e in feedmono.events() if e["event"] == "worker ended"]
        assert_complete(by_symbol(read_avro(feedmono.data / "binance", "trades")), sim)


def test_a_second_signal_hurries_a_stop_that_waits_for_the_broker(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "500") as sim,
        Instance(tmp_path, sim, STOP_LIMIT="10 m") as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["trades"] > 100)
        serializer = feedmono.of("binance")["serializer_pid"]
        os.kill(serializer, signal.SIGSTOP)
        os.kill(feedmono.pid, signal.SIGTERM)
        feedmono.wait_event("stopping")
        os.kill(feedmono.pid, signal.SIGTERM)
        assert feedmono.wait_end() == 1
        feedmono.wait_event("worker killed", reason="hurried by a second signal")
        # What the killed serializer had not delivered waits in the ring; what the killed reader
        # had not read is fetched.
        feedmono.start()
        feedmono.wait_trades("binance", 100)
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        held = feedmono.wait_event("not delivered yet", exchange="binance")
        assert held["size_bytes"] > 0
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)


def test_a_stop_kills_what_does_not_end_within_the_limit(tmp_path: Path) -> None:
    with Sim("kraken") as sim, Instance(tmp_path, sim, STOP_LIMIT="1 s") as feedmono:
        os.kill(feedmono.of("kraken")["serializer_pid"], signal.SIGSTOP)
        os.kill(feedmono.pid, signal.SIGTERM)
        assert feedmono.wait_end() == 1
        assert feedmono.wait_event("worker killed")["reason"] == "stop_limit"


def test_status_does_not_believe_an_old_file(tmp_path: Path) -> None:
    with Sim("kraken") as sim, Instance(tmp_path, sim) as feedmono:
        os.kill(feedmono.pid, signal.SIGSTOP)
        path = feedmono.state / "status.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "taken_at_s": content["taken_at_s"] - 60}))
        result = command(feedmono, "status")
        assert result.returncode == 1
        assert f"process {feedmono.pid} has not told how it does" in result.stderr
        os.kill(feedmono.pid, signal.SIGCONT)


def test_a_ring_is_never_shared_by_two_instances_even_when_the_state_was_removed(
    tmp_path: Path,
) -> None:
    with Sim("kraken") as sim, Instance(tmp_path, sim) as feedmono:
        shutil.rmtree(feedmono.state)
        second = command(feedmono, "run")
        assert second.returncode == 1
        assert "in use by another process" in second.stderr


@pytest.mark.parametrize("text", ["", "[]", '{"next": "abc"}', '{"next": 1e300}', '{"next": -5}'])
def test_a_damaged_sequence_file_is_no_reason_not_to_start(tmp_path: Path, text: str) -> None:
    with Sim("kraken", "--rate", "100") as sim:
        feedmono = Instance(tmp_path, sim)
        feedmono.state.mkdir()
        (feedmono.state / "kraken.sequence").write_text(text)
        with feedmono:
            feedmono.wait(lambda s: s[0]["delivered"] > 0)
            assert feedmono.stop() == 0


def test_files_go_to_new_folders_when_theirs_was_renamed_while_no_file_was_open(
    tmp_path: Path,
) -> None:
    with (
        Sim("kraken", "--rate", "200", "--hold") as sim,
        Instance(tmp_path, sim, FILES_ROLL_INTERVAL="1 s") as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["delivered"] > 100)
        sim.fault("pause", True)
        sent = sum(totals["sent"] for totals in sim.state()["symbols"].values())
        feedmono.wait_trades("kraken", sent)
        wait_until(lambda: list(feedmono.data.rglob("*.part")), lambda parts: not parts)
        feedmono.data.rename(tmp_path / "moved")
        sim.fault("pause", False)
        before = feedmono.of("kraken")["delivered"]
        feedmono.wait(lambda s: s[0]["delivered"] > before + 200)
        assert feedmono.stop() == 0
        stored = [
            *read_avro(tmp_path / "moved" / "kraken", "trades"),
            *read_avro(feedmono.data / "kraken", "trades"),
        ]
        assert_complete(by_symbol(iter(stored)), sim)


def test_workers_restart_after_the_state_was_removed(tmp_path: Path) -> None:
    with Sim("kraken", "--rate", "50") as sim, Instance(tmp_path, sim) as feedmono:
        feedmono.wait(lambda s: s[0]["delivered"] > 0)
        shutil.rmtree(feedmono.state)
        for role in ("reader_pid", "serializer_pid"):
            os.kill(feedmono.of("kraken")[role], signal.SIGKILL)
        before = feedmono.of("kraken")["delivered"]
        feedmono.wait(lambda s: s[0]["delivered"] > before + 50)
        assert feedmono.of("kraken")["restarts"] == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_under_state_and_files_stops_delivery_and_heals_without_a_restart(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    try:
        with (
            Sim("kraken", "--rate", "400", "--limit", "12000", "--hold") as sim,
            Instance(
                tmp_path,
                sim,
                STATE_DIR=disk / "state",
                FILES_DIR=disk / "data",
                KRAKEN_SYMBOLS="BTC/USD,ETH/USD,SOL/USD,XRP/USD,NO/SUCH",
            ) as feedmono,
        ):
            feedmono.wait(lambda s: s[0]["trades"] > 100)
            with (disk / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b"x" * 1024):
                    pass
            feedmono.wait_event("delivery waits", exchange="kraken")
            os.kill(feedmono.worker("reader kraken"), signal.SIGKILL)
            feedmono.wait_event("worker ended", worker="reader")
            feedmono.wait_event("connected", exchange="kraken")
            (disk / "ballast").unlink()
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            feedmono.wait_event("delivery goes on")
            assert feedmono.stop() == 0
            ended = [e["worker"] for e in feedmono.events() if e["event"] == "worker ended"]
            assert ended == ["reader"]
            stored = by_symbol(read_avro(feedmono.data / "kraken", "trades"))
            for symbol, trades in stored.items():
                ids = [int(t["trade_id"]) for t in trades]
                assert len(ids) == len(set(ids)), symbol
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_no_broker_at_start_is_said_and_the_capture_goes_on(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "300") as sim,
        Instance(
            tmp_path,
            sim,
            SINK="kafka",
            KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9",
            SCHEMA_REGISTRY_URL="http://127.0.0.1:9",
            STOP_LIMIT="2 s",
        ) as feedmono,
    ):
        feedmono.wait(lambda s: "127.0.0.1:9" in s[0]["detail"])
        assert feedmono.of("binance")["state"] == "waiting"
        used = feedmono.of("binance")["ring_used_bytes"]
        feedmono.wait(lambda s: s[0]["ring_used_bytes"] > used + 10_000)
        feedmono.stop()
        feedmono.wait_event("not delivered yet", exchange="binance")


def test_no_room_for_a_ring_is_a_clear_error(tmp_path: Path) -> None:
    with Sim("kraken") as sim:
        feedmono = Instance(tmp_path, sim, RING_CAPACITY="1 TiB")
        run = command(feedmono, "run")
        assert run.returncode == 1
        assert "can't reserve" in run.stderr
        assert "ring_capacity" in run.stderr
        assert not list((tmp_path / "rings").glob("*.ring"))


def test_another_ring_capacity_delivers_what_the_old_ring_held(tmp_path: Path) -> None:
    offline = {"BINANCE_REST_URL": "http://127.0.0.1:9"}
    with Sim("binance", "--rate", "500", "--limit", "400", "--hold") as sim:
        with Instance(tmp_path, sim, **offline) as feedmono:
            feedmono.wait(lambda s: s[0]["subscribed"] == s[0]["symbols"])
            sim.wait(lambda s: sum(t["sent"] for t in s["symbols"].values()) == 400)
            feedmono.wait(lambda s: s[0]["ring_used_bytes"] > 400 * 100)
            feedmono.stop()
        with Instance(tmp_path, sim, RING_CAPACITY="1 MiB") as feedmono:
            feedmono.wait_event("ring set aside")
            feedmono.wait_trades("binance", 400)
            assert feedmono.stop() == 0
            assert_complete(by_symbol(read_avro(feedmono.data / "binance", "trades")), sim)
            assert not list((tmp_path / "rings").iterdir())


def test_status_tells_another_terminal_how_it_does(tmp_path: Path) -> None:
    with Sim("kraken", "--rate", "100") as sim:
        idle = Instance(tmp_path, sim)
        nothing = command(idle, "status")
        assert nothing.returncode == 1
        assert "nothing runs" in nothing.stderr
        with idle as feedmono:
            feedmono.wait(lambda s: s[0]["delivered"] > 0)
            table = command(feedmono, "status")
            assert table.returncode == 0
            assert "kraken" in table.stdout
            assert "512 MiB" in table.stdout
            content = json.loads(command(feedmono, "status", "--format", "json").stdout)
            assert content["pid"] == feedmono.pid
            assert content["exchanges"][0]["delivered"] > 0


def test_tail_shows_trades_as_they_are_stored(tmp_path: Path) -> None:
    with Sim("kraken", "--rate", "100") as sim, Instance(tmp_path, sim) as feedmono:
        feedmono.wait(lambda s: s[0]["delivered"] > 0)
        tail = subprocess.Popen(
            [sys.executable, "-m", "feedmono", "tail", "kraken", "BTC/USD", "--format", "json"],
            env=dict(feedmono.environ),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert tail.stdout is not None
            trades = [json.loads(tail.stdout.readline()) for _ in range(5)]
        finally:
            tail.kill()
            tail.wait()
        assert {t["symbol"] for t in trades} == {"BTC/USD"}
        for trade in trades:
            expected = sim.figures("BTC/USD", int(trade["trade_id"]))
            assert (trade["price"], trade["quantity"]) == (expected.price, expected.quantity)


def test_a_worker_whose_parent_is_gone_ends_at_once() -> None:
    """The parent may die between the fork and the child's request to die with it."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            workers.settle("reader x", parent_pid=1 if os.getppid() != 1 else 2)
        except workers.OrphanedError:
            os.write(write_fd, b"orphaned")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write_fd)
    assert os.read(read_fd, 100) == b"orphaned"
    os.close(read_fd)


@pytest.mark.parametrize("role", ["reader", "serializer"])
def test_a_worker_dies_with_its_supervisor_even_when_it_is_stopped(
    tmp_path: Path, role: str
) -> None:
    with Sim("kraken") as sim, Instance(tmp_path, sim) as feedmono:
        # It has its title once it has said that it dies with its parent.
        victim = feedmono.worker(f"{role} kraken")
        os.kill(victim, signal.SIGSTOP)
        os.kill(feedmono.pid, signal.SIGKILL)
        feedmono.wait_end()
        wait_until(
            lambda: (
                not psutil.pid_exists(victim)
                or psutil.Process(victim).status() == psutil.STATUS_ZOMBIE
            ),
            bool,
        )
