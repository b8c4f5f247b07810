"""What /metrics tells: parsed by the library's own parser and held against what was counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from instance import Instance
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from promserver import promtool
from sim import Sim, wait_until
from status_rig import ask, both, config_of

from feedmono import log
from feedmono.counters import (
    NO_OFFSET,
    RECONNECT_REASONS,
    SINK_ERROR_KINDS,
    Counters,
    Field,
    Histogram,
)
from feedmono.delivery import ledger
from feedmono.supervision import snapshot
from feedmono.supervision.snapshot import Alarm, Disk, Snapshot, Tree, WorkerStatus
from feedmono.trade import STREAM, Trade
from feedmono.web.health import Judge
from feedmono.web.metrics import Exporter
from feedmono.web.observer import Observer
from feedmono.workers import Shared

DOCS = Path(__file__).parents[1] / "docs" / "METRICS.md"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Value by name and labels; no series may stand there twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"feedmono_{name}", frozenset(labels.items())]


class Rig:
    """Two exchanges' pages, ledgers and a snapshot, and the metrics made from them."""

    def __init__(self, folder: Path) -> None:
        self.config = config_of(folder)
        self.config.ring_dir.mkdir(parents=True)
        self.shared = {name: Shared.of(self.config, name) for name in ("binance", "kraken")}
        self.counters = {name: Counters.create(s.counters) for name, s in self.shared.items()}
        self._observer = Observer(self.config)
        self._judge = Judge(self.config)
        self._exporter = Exporter()

    def publish(self, state: Snapshot) -> None:
        snapshot.publish(state, self.config.state_dir)

    def text(self, accept: str = "") -> str:
        view = self._observer.look()
        return self._exporter.page(view, self._judge.judge(view), accept).body.decode()

    def samples(self) -> Samples:
        return parsed(self.text())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    found = Rig(tmp_path)
    found.publish(both())
    return found


def test_each_counter_of_the_page_is_told(rig: Rig) -> None:
    for n, field in enumerate(Field):
        rig.counters["binance"][field] = 1000 + n
    samples = rig.samples()
    told = {v for (_, labels), v in samples.items() if ("exchange", "binance") in labels}
    untold = {f for n, f in enumerate(Field) if 1000 + n not in told}
    # These are told in another form, or as the sum of their kinds, or are the supervisor's own.
    assert untold == {
        Field.RECONNECTS,
        Field.SINK_ERRORS,
        Field.LAST_TRADE_NS,
        Field.CLOCK_OFFSET_NS,
        Field.SERIALIZER_ALLOWANCE_S,
        Field.THROTTLE,
    }
    for reason, field in RECONNECT_REASONS.items():
        told_value = value(samples, "reconnects_total", exchange="binance", reason=reason)
        assert told_value == rig.counters["binance"][field]
    for kind, field in SINK_ERROR_KINDS.items():
        told_value = value(samples, "sink_errors_total", exchange="binance", kind=kind)
        assert told_value == rig.counters["binance"][field]


def test_a_histogram_adds_up_and_its_sum_is_in_seconds(rig: Rig) -> None:
    counters = rig.counters["kraken"]
    for duration_s, times in ((0.0004, 3), (0.0112, 5), (7200.0, 1)):
        counters.observe(Histogram.DELIVERY, duration_s, times)
    samples = rig.samples()

    def below(bound: str) -> float:
        return value(samples, "delivery_latency_seconds_bucket", exchange="kraken", le=bound)

    assert (below("0.0005"), below("0.01"), below("0.015"), below("3600.0")) == (3, 3, 8, 8)
    assert below("+Inf") == 9
    assert value(samples, "delivery_latency_seconds_count", exchange="kraken") == 9
    total_s = value(samples, "delivery_latency_seconds_sum", exchange="kraken")
    assert total_s == pytest.approx(3 * 0.0004 + 5 * 0.0112 + 7200.0)


def test_what_the_supervisor_samples_is_told(rig: Rig) -> None:
    workers = (
        WorkerStatus("reader", 11, 0.1, 12.5, 40 << 20, 9, {"crashed": 2, "hung": 1}),
        WorkerStatus("serializer", None, 0.2, 30.0, 50 << 20, 12, {"memory": 3}),
    )
    state = replace(
        both(workers=workers, budget_exceeded={"cpu throttle": 4}, throttle=0.25),
        tree=Tree(0.5, 99.5, 200 << 20, 30, 1024, 6),
        disks=(Disk("files.dir", "/data", 5 << 30, 9 << 30),),
        alarms=(Alarm("cpu", "binance", "too much", 1.0), Alarm("disk", "", "full", 1.0)),
    )
    rig.publish(state)
    s = rig.samples()
    reader = {"exchange": "binance", "worker": "reader"}
    serializer = {"exchange": "binance", "worker": "serializer"}
    assert value(s, "worker_restarts_total", **reader, reason="crashed") == 2
    assert value(s, "worker_restarts_total", **reader, reason="memory") == 0
    assert value(s, "worker_restarts_total", **serializer, reason="memory") == 3
    assert (value(s, "worker_up", **reader), value(s, "worker_up", **serializer)) == (1, 0)
    assert value(s, "worker_cpu_seconds_total", **serializer) == 30.0
    assert value(s, "worker_memory_bytes", **reader) == 40 << 20
    assert value(s, "worker_open_files", **serializer) == 12
    exceeded = {"exchange": "binance", "resource": "cpu"}
    assert value(s, "budget_exceeded_total", **exceeded, action="throttle") == 4
    assert value(s, "budget_exceeded_total", **exceeded, action="warn") == 0
    assert value(s, "budget_cpu_cores", exchange="binance") == 0.5
    assert value(s, "budget_memory_bytes", exchange="kraken") == 512 << 20
    assert value(s, "throttle_ratio", exchange="binance") == 0.25
    assert (value(s, "cpu_seconds_total"), value(s, "memory_bytes")) == (99.5, 200 << 20)
    assert (value(s, "processes"), value(s, "open_files"), value(s, "open_files_limit")) == (
        6,
        30,
        1024,
    )
    assert value(s, "disk_free_bytes", folder="files.dir") == 5 << 30
    assert value(s, "disk_size_bytes", folder="files.dir") == 9 << 30
    assert value(s, "alarm_active", kind="cpu", exchange="binance") == 1
    assert value(s, "alarm_active", kind="cpu", exchange="kraken") == 0
    assert value(s, "alarm_active", kind="disk", exchange="") == 1
    assert value(s, "start_time_seconds") == state.started_at_s


@pytest.mark.parametrize(
    ("wanted", "flowing", "pid", "told"),
    [(2, 2, 1, 2), (2, 1, 1, 1), (2, 0, 1, 0), (2, 2, None, 0)],
)
def test_the_connections_state_is_none_some_or_all(
    rig: Rig, wanted: int, flowing: int, pid: int | None, told: int
) -> None:
    rig.counters["binance"][Field.CONNECTIONS] = wanted
    rig.counters["binance"][Field.CONNECTED] = flowing
    rig.publish(both(reader_pid=pid))
    assert value(rig.samples(), "connection_state", exchange="binance") == told


def test_what_is_not_known_is_left_out(rig: Rig) -> None:
    names = {name for name, _ in rig.samples()}
    assert "feedmono_last_trade_age_seconds" not in names
    assert "feedmono_clock_offset_seconds" not in names
    rig.counters["binance"].set_signed(Field.CLOCK_OFFSET_NS, NO_OFFSET)
    rig.counters["kraken"].set_signed(Field.CLOCK_OFFSET_NS, -2_500_000_000)
    samples = rig.samples()
    assert value(samples, "clock_offset_seconds", exchange="kraken") == -2.5
    assert ("feedmono_clock_offset_seconds", frozenset({("exchange", "binance")})) not in samples


def test_without_a_status_the_counters_are_told_all_the_same(rig: Rig) -> None:
    rig.counters["binance"][Field.TRADES] = 5
    (rig.config.state_dir / snapshot.FILE).unlink()
    samples = rig.samples()
    assert value(samples, "alive") == 0
    assert value(samples, "trades_total", exchange="binance") == 5
    assert "feedmono_ring_used_bytes" not in {name for name, _ in samples}


def test_symbols_have_names_of_their_own_so_that_sums_are_right(rig: Rig) -> None:
    book = ledger.Ledger(rig.shared["binance"].ledger, log.get())
    now_us = 1_795_392_281_000_000
    for trade_id in (1, 2, 5):
        trade = Trade("BTCUSDT", trade_id, "1", "1", 0, now_us + trade_id, True)
        book.deliver([trade], STREAM, "lost", now_us, 1000, trade_id)
    book.deliver([Trade("OLDUSDT", 1, "1", "1", 0, now_us, True)], STREAM, "", now_us, 1000, 9)
    book.commit(-1, 0, 9, {})
    book.close()
    rig.counters["binance"][Field.TRADES] = 3
    samples = rig.samples()
    key = {"exchange": "binance", "symbol": "BTCUSDT"}
    assert value(samples, "symbol_trades_total", **key) == 3
    assert value(samples, "symbol_gaps_open", **key) == 1
    assert value(samples, "symbol_gap_trades_open", **key) == 2
    assert value(samples, "symbol_gap_age_seconds", **key) >= 0
    assert value(samples, "symbol_stale", **key) == 0
    assert not any(("symbol", "OLDUSDT") in labels for _, labels in samples), "not configured"
    for name, labels in samples:
        assert ("symbol" in dict(labels)) == name.startswith("feedmono_symbol_"), name


def test_a_ledger_that_cannot_be_read_is_told(rig: Rig) -> None:
    rig.shared["kraken"].ledger.write_bytes(b"no ledger" * 1000)
    samples = rig.samples()
    assert value(samples, "ledger_readable", exchange="kraken") == 0
    assert value(samples, "ledger_readable", exchange="binance") == 1


def test_both_formats_say_the_same(rig: Rig) -> None:
    plain = rig.text()
    strict = rig.text(OPENMETRICS)
    assert strict.endswith("# EOF\n")
    families = list(openmetrics.text_string_to_metric_families(strict))  # type: ignore[no-untyped-call]
    found = {(s.name, frozenset(s.labels.items())) for f in families for s in f.samples}
    assert found == set(parsed(plain))
    assert all(family.documentation for family in families)


def test_each_name_is_documented_and_each_documented_name_is_told(running: Scrapes) -> None:
    documented = set(re.findall(r"^\| `feedmono_(\w+)", DOCS.read_text("utf-8"), re.MULTILINE))
    told = set()
    for family in text_string_to_metric_families(running.first):
        suffix = "_total" if family.type == "counter" else ""
        told.add(f"{family.name}{suffix}".removeprefix("feedmono_"))
    assert told == documented


# --- a running instance


class Scrapes:
    """Of a running instance, one after the other."""

    def __init__(self, first: str, state: Snapshot, second: str) -> None:
        self.first = first
        self.state = state
        """Between the two."""
        self.second = second


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrapes]:
    with (
        Sim("binance", "--rate", "200", "--faults", "lose=0.02,repeat=0.02") as binance,
        Sim("kraken", "--rate", "50") as kraken,
        Instance(tmp_path_factory.mktemp("running"), binance, kraken) as feedmono,
    ):
        feedmono.wait_trades("binance", 500)
        feedmono.wait_trades("kraken", 100)
        binance.fault("cut")
        feedmono.wait(lambda s: any(e["reconnects"] for e in s))
        path = feedmono.state / snapshot.FILE
        port = int(json.loads(path.read_text())["http"].rpartition(":")[2])
        first = ask(port, "/metrics").text
        before = Snapshot.from_json(path.read_text()).taken_at_s
        state = wait_until(
            lambda: Snapshot.from_json(path.read_text()), lambda s: s.taken_at_s > before + 0.5
        )
        yield Scrapes(first, state, ask(port, "/metrics").text)


def test_a_running_instances_figures_are_those_of_its_status(running: Scrapes) -> None:
    first, second = parsed(running.first), parsed(running.second)
    for status in running.state.exchanges:
        e = {"exchange": status.name}
        for name, told in (
            ("trades_total", status.trades),
            ("delivered_trades_total", status.delivered),
            ("duplicates_dropped_total", status.duplicates),
            ("frames_total", status.counts["frames"]),
            ("bytes_total", status.counts["bytes"]),
            ("gap_trades_total", status.counts["hole_trades"]),
            ("backfilled_trades_total", status.counts["backfilled"]),
        ):
            assert value(first, name, **e) <= told <= value(second, name, **e), name
        assert value(second, "ring_capacity_bytes", **e) == status.ring_capacity_bytes
        assert value(second, "symbols", **e) == status.symbols
        assert value(second, "symbols_subscribed", **e) == status.subscribed
        assert value(second, "connection_state", **e) == 2
        assert value(second, "exchange_ready", **e) == 1
        reconnects = {dict(k[1])["reason"]: v for k, v in second.items() if _is_reconnect(k, e)}
        assert sum(reconnects.values()) == status.reconnects
        for worker in status.workers:
            cpu_s = value(second, "worker_cpu_seconds_total", worker=worker.role, **e)
            assert cpu_s >= worker.cpu_s
        delivered = sum(v for k, v in second.items() if _is_trades_of(k, status.name))
        assert delivered == pytest.approx(value(second, "delivered_trades_total", **e), abs=600)


def _is_reconnect(key: tuple[str, frozenset[tuple[str, str]]], of: Mapping[str, str]) -> bool:
    return key[0] == "feedmono_reconnects_total" and of.items() <= key[1]


def _is_trades_of(key: tuple[str, frozenset[tuple[str, str]]], exchange: str) -> bool:
    return key[0] == "feedmono_symbol_trades_total" and ("exchange", exchange) in key[1]


def test_no_counter_of_a_running_instance_ever_falls(running: Scrapes) -> None:
    first, second = parsed(running.first), parsed(running.second)
    for key, before in first.items():
        if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
            assert second[key] >= before, key


def test_promtool_finds_nothing_to_complain_about(running: Scrapes) -> None:
    assert promtool("check", "metrics", text=running.first.encode()) == ""
