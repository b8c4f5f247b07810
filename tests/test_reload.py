"""A changed configuration is taken over by what runs; a broken one changes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from delivery import assert_nothing_lost, independent
from instance import Instance, only, read_avro
from sim import Sim, wait_until

from feedmono import config as configuration
from feedmono import exchanges
from feedmono.config import Config, ConfigError
from feedmono.supervision import reload
from feedmono.supervision.reload import Plan, plan

SOON = {"BACKFILL_CONFIRM_AFTER": "200 ms", "COVERAGE_INTERVAL": "200 ms"}


@pytest.fixture(scope="module")
def config() -> Config:
    return configuration.load(None, only("binance", "kraken"), cwd=Path("/nowhere")).config


def exchange(config: Config, name: str, **changes: Any) -> Config:
    changed = replace(config.exchanges[name], **changes)
    return replace(config, exchanges={**config.exchanges, name: changed})


PLANS: list[tuple[str, Callable[[Config], Config], dict[str, object]]] = [
    ("nothing", lambda c: c, {}),
    (
        "symbols",
        lambda c: exchange(c, "kraken", symbols=("BTC/USD",)),
        {"orders": ("kraken",)},
    ),
    (
        "canonical symbols",
        lambda c: exchange(c, "binance", canonical_symbols={"BTCUSDT": "BTC/USDT"}),
        {"orders": ("binance",)},
    ),
    (
        "logging",
        lambda c: replace(c, log=replace(c.log, level="debug")),
        {"orders": ("binance", "kraken")},
    ),
    (
        "address",
        lambda c: exchange(c, "kraken", ws_url="wss://other"),
        {"readers": ("kraken",)},
    ),
    (
        "connections",
        lambda c: replace(c, connections=replace(c.connections, redundancy=2)),
        {"readers": ("binance", "kraken")},
    ),
    ("window", lambda c: replace(c, window=5), {"serializers": ("binance", "kraken")}),
    (
        "the sink that is not used",
        lambda c: replace(c, kafka=replace(c.kafka, partitions=3)),
        {},
    ),
    (
        "files",
        lambda c: replace(c, files=replace(c.files, roll_size_bytes=1 << 20)),
        {"serializers": ("binance", "kraken")},
    ),
    (
        "ring",
        lambda c: exchange(replace(c, ring_capacity_bytes=1 << 20), "kraken", symbols=("BTC/USD",)),
        {"rings": ("binance", "kraken"), "orders": ("kraken",)},
    ),
    ("disabled", lambda c: exchange(c, "kraken", enabled=False), {"end": ("kraken",)}),
    ("budget", lambda c: exchange(c, "kraken", budget=c.exchanges["binance"].budget), {}),
    ("http", lambda c: replace(c, http=replace(c.http, port=1)), {"http": True}),
]


@pytest.mark.parametrize(("change", "expected"), [p[1:] for p in PLANS], ids=[p[0] for p in PLANS])
def test_what_changed_decides_who_is_started_again(
    config: Config, change: Callable[[Config], Config], expected: Mapping[str, Any]
) -> None:
    changed = change(config)
    assert plan(config, changed) == Plan(changed, **expected)


def test_an_exchange_that_is_enabled_begins(config: Config) -> None:
    off = exchange(config, "kraken", enabled=False)
    assert plan(off, config) == Plan(config, begin=("kraken",))


def test_what_can_not_change_while_it_runs_is_refused_by_name(config: Config) -> None:
    elsewhere = Path("/elsewhere")
    with pytest.raises(ConfigError, match=r"state_dir.*stop feedmono"):
        plan(config, replace(config, state_dir=elsewhere))
    with pytest.raises(ConfigError, match=r"ring_dir.*stop feedmono"):
        plan(config, replace(config, ring_dir=elsewhere))


# --- A running instance.


class Reloaded(Instance):
    """An instance with a configuration file that the test changes."""

    def __init__(self, folder: Path, *sims: Sim, **variables: object) -> None:
        super().__init__(folder, *sims, **{**SOON, **variables})
        self.environ = {
            name: value
            for name, value in self.environ.items()
            if not name.endswith(("_ENABLED", "_CAPACITY", "_FORMAT", "_HTTP_PORT"))
        }
        (folder / "etc").mkdir(exist_ok=True)
        self._lines = {
            "log.format": "json",
            "ring_capacity": "16 MiB",
            "http.port": "0",
            **{f"exchanges.{n}.enabled": "false" for n in exchanges.names()},
            **{f"exchanges.{sim.exchange}.enabled": "true" for sim in sims},
        }
        self.write()

    def __enter__(self) -> Reloaded:
        self.start()
        return self

    def write(self, **lines: str) -> None:
        """Writes the configuration file; a double underscore in a name is a dot."""
        self._lines |= {name.replace("__", "."): value for name, value in lines.items()}
        text = "\n".join(f"{name} = {value}" for name, value in self._lines.items())
        (self.folder / "etc" / "feedmono.conf").write_text(text)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "feedmono", *arguments],
            env=dict(self.environ),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def reload(self, **lines: str) -> str:
        """What ``feedmono reload`` prints after those lines changed."""
        self.write(**lines)
        done = self.command("reload")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pids(self, exchange: str) -> tuple[int, int]:
        status = self.of(exchange)
        return status["reader_pid"], status["serializer_pid"]

    def url(self) -> str:
        content = json.loads((self.state / "status.json").read_text())
        return str(content["http"])


def test_a_broken_configuration_changes_nothing_and_both_ends_say_why(tmp_path: Path) -> None:
    with Sim("kraken", "--rate", "100", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait_trades("kraken", 50)
        pids = feedmono.pids("kraken")
        feedmono.write(window="none")
        done = feedmono.command("reload")
        assert done.returncode == 2
        assert "not reloaded" in done.stderr
        assert "window" in done.stderr
        os.kill(feedmono.pid, signal.SIGHUP)
        told = feedmono.wait_event("not reloaded: nothing has changed")
        assert "window" in told["error"]
        assert feedmono.pids("kraken") == pids
        assert_nothing_lost(feedmono, sim)


def test_a_reload_without_an_instance_says_so(tmp_path: Path) -> None:
    with Sim("kraken") as sim:
        done = Reloaded(tmp_path, sim).command("reload")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing runs on state_dir" in done.stderr


def test_a_restart_of_one_kind_of_worker_leaves_the_others_alone_and_loses_nothing(
    tmp_path: Path,
) -> None:
    with (
        Sim("binance", "--rate", "1000", "--hold") as binance,
        Sim("kraken", "--rate", "50", "--hold") as kraken,
        Reloaded(tmp_path, binance, kraken) as feedmono,
    ):
        feedmono.wait_trades("binance", 1000)
        feedmono.wait_trades("kraken", 20)
        before = {name: feedmono.pids(name) for name in ("binance", "kraken")}
        told = feedmono.reload(window="500")
        assert "binance: the serializer is started again" in told
        for name, (reader, serializer) in before.items():
            feedmono.wait_replaced(name, "serializer", serializer)
            assert feedmono.pids(name)[0] == reader
        events = [e for e in feedmono.events() if e.get("worker") == "serializer"]
        ends = [e for e in events if e["event"] == "worker ended"]
        assert [(e["how"], e["reason"]) for e in ends] == [("exit status 0", "reload")] * 2
        assert feedmono.of("binance")["counts"]["holes"] == 0
        before = {name: feedmono.pids(name) for name in ("binance", "kraken")}
        feedmono.reload(connections__backoff_cap="20 s")
        for name, (reader, serializer) in before.items():
            feedmono.wait_replaced(name, "reader", reader)
            assert feedmono.pids(name)[1] == serializer
        assert_nothing_lost(feedmono, binance, kraken)


def test_exchanges_are_enabled_and_disabled_while_the_other_goes_on(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold") as binance,
        Sim("kraken", "--rate", "100", "--hold") as kraken,
        Reloaded(tmp_path, binance, kraken) as feedmono,
    ):
        feedmono.wait_trades("kraken", 50)
        pids = feedmono.pids("binance")
        assert "kraken: disabled" in feedmono.reload(exchanges__kraken__enabled="false")
        feedmono.wait_event("not served any more", exchange="kraken")
        feedmono.wait(lambda s: [e["name"] for e in s] == ["binance"])
        assert not list((tmp_path / "rings").glob("*kraken*"))
        assert "kraken: enabled" in feedmono.reload(exchanges__kraken__enabled="true")
        feedmono.wait(lambda s: any(e["name"] == "kraken" and e["delivered"] > 50 for e in s))
        assert feedmono.pids("binance") == pids
        assert feedmono.of("binance")["reconnects"] == 0
        assert_nothing_lost(feedmono, binance, kraken)


def test_another_ring_capacity_is_taken_over_while_trades_pass(tmp_path: Path) -> None:
    with Sim("binance", "--rate", "1000", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait_trades("binance", 1000)
        assert "the ring is replaced" in feedmono.reload(ring_capacity="8 MiB")
        feedmono.wait(lambda s: s[0]["ring_capacity_bytes"] == 8 << 20 and bool(s[0]["reader_pid"]))
        feedmono.wait(lambda s: s[0]["state"] == "flowing")
        assert_nothing_lost(feedmono, sim)


def test_budgets_log_level_and_address_change_without_a_new_worker(tmp_path: Path) -> None:
    with Sim("kraken", "--rate", "100", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait_trades("kraken", 50)
        pids, url = feedmono.pids("kraken"), feedmono.url()
        feedmono.reload(
            exchanges__kraken__budget__cpu="0.25", log__level="debug", http__host="localhost"
        )
        feedmono.wait(lambda s: s[0]["cpu_budget_cores"] == 0.25)
        wait_until(feedmono.url, lambda now: now not in ("", url))
        wait_until(lambda: _answers(feedmono.url()), bool)
        assert not _answers(url), "the old address is free"
        feedmono.reload(http__enabled="false")
        wait_until(feedmono.url, lambda now: now == "")
        assert feedmono.pids("kraken") == pids
        assert_nothing_lost(feedmono, sim)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_busy_address_is_a_warning_and_taken_when_it_is_free(tmp_path: Path) -> None:
    busy = socket.create_server(("127.0.0.1", 0))
    port = busy.getsockname()[1]
    with Sim("kraken", "--rate", "100", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait_trades("kraken", 20)
        feedmono.reload(http__port=str(port))
        told = feedmono.wait_event("no metrics: the address can't be had")
        assert told["port"] == port
        feedmono.wait_trades("kraken", 100)
        busy.close()
        wait_until(feedmono.url, lambda url: url.endswith(f":{port}"))
        wait_until(lambda: _answers(feedmono.url()), bool)
        assert_nothing_lost(feedmono, sim)


def test_symbols_and_ring_capacity_change_together(tmp_path: Path) -> None:
    with Sim("binance", "--rate", "300", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait_trades("binance", 100)
        feedmono.reload(exchanges__binance__symbols="[BTCUSDT, ETHUSDT]")
        feedmono.wait(lambda s: s[0]["subscribed"] == 2)
        feedmono.reload(
            exchanges__binance__symbols="[BTCUSDT, ETHUSDT, SOLUSDT, XRPUSDT]",
            ring_capacity="8 MiB",
        )
        feedmono.wait(lambda s: s[0]["ring_capacity_bytes"] == 8 << 20 and s[0]["subscribed"] == 4)
        assert feedmono.stop() == 0


def test_orders_that_can_not_be_written_are_tried_again(tmp_path: Path) -> None:
    with Sim("binance", "--rate", "300", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait(lambda s: s[0]["subscribed"] == 5)
        obstacle = feedmono.state / "binance.orders.json"
        obstacle.mkdir()
        feedmono.write(exchanges__binance__symbols="[BTCUSDT, ETHUSDT]")
        done = feedmono.command("reload")
        assert (done.returncode, "tried again" in done.stderr) == (2, True)
        obstacle.rmdir()
        feedmono.wait(lambda s: s[0]["subscribed"] == 2)
        assert feedmono.stop() == 0


def test_a_ring_without_room_is_refused_before_anything_ends(tmp_path: Path) -> None:
    with Sim("kraken", "--rate", "100", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait_trades("kraken", 50)
        pids = feedmono.pids("kraken")
        feedmono.write(ring_capacity="900 GiB")
        done = feedmono.command("reload")
        assert done.returncode == 2
        assert "ring_capacity" in done.stderr
        assert "are free" in done.stderr
        assert feedmono.pids("kraken") == pids
        assert_nothing_lost(feedmono, sim)


def test_a_file_that_is_gone_does_not_mean_the_default(tmp_path: Path) -> None:
    with Sim("kraken", "--rate", "100", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait_trades("kraken", 50)
        (tmp_path / "etc" / "feedmono.conf").unlink()
        os.kill(feedmono.pid, signal.SIGHUP)
        told = feedmono.wait_event("not reloaded: nothing has changed")
        assert "no such file" in told["error"]
        assert_nothing_lost(feedmono, sim)


def test_many_signals_at_once_are_few_reloads_and_a_stop_does_not_wait_for_them(
    tmp_path: Path,
) -> None:
    with Sim("kraken", "--rate", "100", "--hold") as sim, Reloaded(tmp_path, sim) as feedmono:
        feedmono.wait_trades("kraken", 50)
        os.kill(feedmono.pid, signal.SIGSTOP)
        for _ in range(100):
            os.kill(feedmono.pid, signal.SIGHUP)
        os.kill(feedmono.pid, signal.SIGCONT)
        feedmono.wait_event("reloaded")
        assert_nothing_lost(feedmono, sim)
        assert len([e for e in feedmono.events() if e["event"] == "reloaded"]) <= 3


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_disabled_exchange_is_drained_whatever_its_serializer_did(
    tmp_path: Path, how: str
) -> None:
    with (
        Sim("binance", "--rate", "100", "--hold") as binance,
        Sim("kraken", "--rate", "100", "--hold") as kraken,
        Reloaded(tmp_path, binance, kraken) as feedmono,
    ):
        feedmono.wait_trades("kraken", 50)
        victim = feedmono.pids("kraken")[1]
        os.kill(victim, signal.SIGSTOP)
        feedmono.wait(
            lambda s: any(e["name"] == "kraken" and e["ring_used_bytes"] > 10_000 for e in s)
        )
        feedmono.reload(exchanges__kraken__enabled="false")
        if how == "killed":
            os.kill(victim, signal.SIGKILL)
        feedmono.wait_event("not served any more", exchange="kraken")
        assert not list((tmp_path / "rings").glob("*kraken*"))
        feedmono.wait(lambda s: [e["name"] for e in s] == ["binance"])
        kraken.fault("pause")
        outcome = independent(read_avro(feedmono.data / "kraken", "trades"), kraken)
        assert outcome.doubled == 0
        assert_nothing_lost(feedmono, binance)


def test_an_exchange_that_can_not_begin_leaves_the_instance_alone(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "100", "--hold") as binance,
        Sim("kraken", "--rate", "100", "--hold") as kraken,
        Reloaded(tmp_path, binance, kraken) as feedmono,
    ):
        feedmono.wait_trades("binance", 50)
        (page,) = (tmp_path / "rings").glob("*-kraken.counters")
        feedmono.reload(exchanges__kraken__enabled="false")
        feedmono.wait_event("not served any more", exchange="kraken")
        page.mkdir()
        (page / "x").touch()
        feedmono.write(exchanges__kraken__enabled="true", exchanges__binance__enabled="false")
        done = feedmono.command("reload")
        assert (done.returncode, "kraken: not enabled" in done.stderr) == (2, True)
        feedmono.wait_event("not served any more", exchange="binance")
        (page / "x").unlink()
        page.rmdir()
        assert "kraken: enabled" in feedmono.reload()
        feedmono.wait(lambda s: any(e["name"] == "kraken" and e["subscribed"] == 4 for e in s))
        assert_nothing_lost(feedmono, kraken)


def test_symbols_change_on_the_live_connection(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold") as sim,
        Reloaded(tmp_path, sim) as feedmono,
    ):
        feedmono.wait(lambda s: s[0]["subscribed"] == 5)
        feedmono.wait_trades("binance", 200)
        pids = feedmono.pids("binance")
        told = feedmono.reload(exchanges__binance__symbols="[BTCUSDT, ETHUSDT]")
        assert "binance: taken over by the running workers" in told
        feedmono.wait(lambda s: s[0]["subscribed"] == 2 and s[0]["symbols"] == 2)
        feedmono.reload(exchanges__binance__symbols="[BTCUSDT, ETHUSDT, SOLUSDT]")
        feedmono.wait(lambda s: s[0]["subscribed"] == 3)
        status = feedmono.of("binance")
        assert (status["reconnects"], status["restarts"]) == (0, 0)
        assert feedmono.pids("binance") == pids
        assert feedmono.stop() == 0


def test_what_became_of_a_reload_is_only_believed_of_the_running_process(tmp_path: Path) -> None:
    (tmp_path / reload.FILE).write_text('{"pid": 1, "number": 7, "ok": true, "lines": []}')
    with pytest.raises(reload.NotReloadedError, match="nothing runs"):
        reload.request(tmp_path)
