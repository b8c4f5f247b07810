"""What the workers count and say, and how it is shown."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from feedmono import log, workers
from feedmono.commands import table
from feedmono.counters import BOUNDS_S, Counters, Field, Histogram, quantile
from feedmono.supervision import display, snapshot
from feedmono.supervision.alarms import conditions
from feedmono.supervision.snapshot import RESOURCES, ExchangeStatus, Snapshot, Tree


def status(**fields: object) -> ExchangeStatus:
    usual: dict[str, object] = {
        "name": "binance", "state": "flowing", "detail": "", "trades_per_s": 12345.6,
        "trades": 123_456_789, "delivered": 123_456_789, "last_trade_age_s": 0.04,
        "receive_p50_s": 0.02, "delivery_p50_s": 0.0061, "delivery_p99_s": 0.0143,
        "ring_used_bytes": 1 << 20, "ring_capacity_bytes": 64 << 20, "cpu_cores": 0.31,
        "cpu_budget_cores": 0.5, "memory_bytes": 61 << 20, "memory_budget_bytes": 512 << 20,
        "reconnects": 12, "restarts": 0, "duplicates": 3, "dead_letters": 0, "symbols": 5,
        "subscribed": 5,
    }  # fmt: skip
    return ExchangeStatus(**{**usual, **fields})  # type: ignore[arg-type]


def shown(what: object, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


def test_totals_outlive_the_worker_that_counted_them(tmp_path: Path) -> None:
    counters = Counters.create(tmp_path / "c")
    counters.add(Field.TRADES, 5)
    Counters(tmp_path / "c").add(Field.TRADES, 2)
    assert counters[Field.TRADES] == 7
    assert Counters.create(tmp_path / "c")[Field.TRADES] == 0


def test_quantiles_lie_within_the_bucket_that_holds_them(tmp_path: Path) -> None:
    counters = Counters.create(tmp_path / "c")
    assert quantile(counters.buckets(Histogram.RING), 0.5) is None
    for duration_s, times in ((0.004, 90), (0.08, 9), (-1.0, 1), (10_000.0, 1)):
        counters.observe(Histogram.RING, duration_s, times)
    buckets = counters.buckets(Histogram.RING)
    assert sum(buckets) == 101
    median, high = quantile(buckets, 0.5), quantile(buckets, 0.95)
    assert median is not None
    assert high is not None
    assert 0.003 <= median <= 0.005
    assert 0.075 <= high <= 0.1
    assert quantile(buckets, 1.0) == BOUNDS_S[-1]


def test_a_snapshot_survives_its_file(tmp_path: Path) -> None:
    state = Snapshot(1, 2.0, 3.0, "files", (status(refused={"XBT/USDT": "no"}),))
    snapshot.publish(state, tmp_path)
    assert Snapshot.from_json((tmp_path / snapshot.FILE).read_text()) == state
    with pytest.raises(ValueError, match="not a snapshot"):
        Snapshot.from_json('{"exchanges": [{"other": 1}]}')


def test_the_table_fits_80_columns_and_tells_what_is_wrong() -> None:
    trouble = status(
        name="kraken",
        state="waiting",
        detail="the registry http://localhost:8081 does not answer",
        delivery_p50_s=None,
        last_trade_age_s=300.0,
        dead_letters=2,
        refused={"XBT/USDT": "not supported"},
    )
    text = shown(table.render(Snapshot(1, 2.0, 3.0, "files", (status(), trouble))))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("123.5 M", "12,346", "6.1/14", "waiting", "does not answer", "5 min"):
        assert part in text
    assert "2 dead letters" in text
    assert "XBT/USDT refused: not supported" in " ".join(text.split())


def test_budgets_show_target_actual_and_status_per_exchange_and_in_total() -> None:
    greedy = status(name="kraken", cpu_cores=0.9)
    rows = shown(table.budgets(Snapshot(1, 2.0, 3.0, "files", (status(), greedy)))).splitlines()
    found = {row[:14].strip(): row.split()[-1] for row in rows[1:]}
    assert {name: state for name, state in found.items() if name.endswith(("CPU", "memory"))} == {
        "binance CPU": "ok",
        "binance memory": "ok",
        "kraken CPU": "over",
        "kraken memory": "ok",
        "total CPU": "over",
        "total memory": "ok",
    }


def test_a_resource_has_the_same_names_everywhere_and_keeps_them() -> None:
    """Rules, dashboards and scripts of others go by them."""
    names = {(r.name, r.total, r.used, r.budget, r.metric) for r in RESOURCES}
    assert names >= {
        ("cpu", "total_cpu", "cpu_cores", "cpu_budget_cores", "budget_cpu_cores"),
        ("memory", "total_memory", "memory_bytes", "memory_budget_bytes", "budget_memory_bytes"),
    }
    told = json.loads(Snapshot(1, 2.0, 3.0, "files", (status(),)).to_json())
    for resource in RESOURCES:
        assert {resource.used, resource.budget} <= told["exchanges"][0].keys()
        assert resource.used in told["tree"]


def test_a_budget_that_is_exceeded_is_an_alarm_until_it_is_well_kept_again() -> None:
    def found(share: float, lasting: frozenset[tuple[str, str]]) -> set[tuple[str, str, str]]:
        e = status(cpu_cores=0.5 * share, memory_bytes=int((512 << 20) * share))
        tree = Tree(e.cpu_cores, 9.0, e.memory_bytes, 9, 1024, 4)
        others = {r.name for r in RESOURCES} | {r.total for r in RESOURCES}
        others -= {"cpu", "memory", "total_cpu", "total_memory"}
        told = conditions(Snapshot(1, 2.0, 3.0, "files", (e,), tree), lasting)
        return {each for each in told if each.kind not in others}

    over = found(1.5, frozenset())
    assert over == {
        ("cpu", "binance", "0.75 of 0.5 cores"),
        ("memory", "binance", "768 MiB of 512 MiB"),
        ("total_cpu", "", "0.75 of 0.5 cores in all"),
        ("total_memory", "", "768 MiB of 512 MiB in all"),
    }
    lasting = frozenset((kind, exchange) for kind, exchange, _ in over)
    assert [len(found(share, lasting)) for share in (0.95, 0.85)] == [4, 0]
    assert not found(0.95, frozenset())


def test_the_summary_is_a_line_for_each_exchange() -> None:
    read_fd, write_fd = os.pipe()
    log.configure("info", "json", write_fd)
    state = Snapshot(1, 2.0, 3.0, "files", (status(), status(name="kraken", dead_letters=2)))
    display.summarize(state, log.get())
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        first, second = map(json.loads, pipe.read().splitlines())
    assert (first["exchange"], first["trades"], first["state"]) == (
        "binance",
        123_456_789,
        "flowing",
    )
    assert (second["exchange"], second["dead_letters"]) == ("kraken", 2)


def test_what_is_published_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    assert workers.published(path) is None
    path.write_text('{"cut')
    assert workers.published(path) is None
    workers.publish(path, {"trouble": "none"})
    assert workers.published(path) == {"trouble": "none"}
    assert list(tmp_path.iterdir()) == [path]
