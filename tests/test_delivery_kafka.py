"""Nothing lost over kills and outages, into the real Kafka. The counts are a tenth of those of
``scripts/test --full``, whose results docs/DELIVERY.md keeps."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from broker import Kafka, Registry
from delivery import ids_of, independent, verified, wait_complete, watch_drain
from instance import Instance
from kafka_rig import AnyRegistry
from sim import Sim, wait_until
from test_pipeline_kafka import into, normalized

SOON = {"BACKFILL_CONFIRM_AFTER": "200 ms", "COVERAGE_INTERVAL": "1 s"}
KILLS_SEED = 4


@pytest.fixture
def own_kafka(real_kafka: Kafka) -> Iterator[Kafka]:
    """A broker that a test may stop and kill."""
    with Kafka() as broker:
        yield broker


def _all_agree(
    feedmono: Instance, sim: Sim, stored: Iterator[Mapping[str, Any]], doubled: int
) -> None:
    """An independent consumer and ``verify`` find the same: nothing missing."""
    outcome = independent(stored, sim)
    print(f"{outcome.trades} trades, {outcome.doubled} doubled, {dict(outcome.origins)}")
    assert outcome.missing == []
    assert outcome.doubled <= doubled
    assert all(not list(ids.open_holes()) for ids in ids_of(feedmono, sim.exchange).values())
    (found,) = verified(feedmono, sim.exchange)["exchanges"]
    assert found["trades"] == outcome.trades + outcome.doubled
    findings: Counter[str] = Counter()
    for finding in found["found"]:
        findings[finding["kind"]] += finding["count"]
    assert findings.pop("doubled", 0) == outcome.doubled
    # A frame that is stored again brings its trades and its bytes again.
    findings.pop("raw doubled", 0)
    assert not findings


@pytest.mark.timeout(3000)
def test_random_kills_of_all_processes_under_cuts_lose_nothing(
    tmp_path: Path, real_kafka: Kafka, registry: AnyRegistry, topic_prefix: str, full: bool
) -> None:
    window = 1000
    kills, ends = (200, 20) if full else (20, 2)
    dice = random.Random(KILLS_SEED)
    plan = ["reader", "serializer"] * (kills // 2) + ["supervisor"] * ends
    dice.shuffle(plan)
    with (
        Sim("binance", "--rate", "1000", "--hold", "--faults", "cut=3s") as sim,
        Instance(
            tmp_path, sim, **into(real_kafka, registry, topic_prefix, WINDOW=window, **SOON)
        ) as feedmono,
    ):
        feedmono.wait_trades("binance", 500)
        for victim in plan:
            before = feedmono.of("binance")
            feedmono.wait_trades("binance", before["delivered"] + dice.randrange(1, 600))
            if victim == "supervisor":
                feedmono.kill()
                feedmono.start()
                continue
            pid = feedmono.of("binance")[f"{victim}_pid"]
            if pid:
                os.kill(pid, signal.SIGKILL)
                feedmono.wait_replaced("binance", victim, pid)
        sim.fault("cut", False)
        sim.fault("pause")
        wait_complete(feedmono, sim, limit_s=300)
        assert feedmono.stop() == 0
        stored = normalized(real_kafka, registry, f"{topic_prefix}.binance")
        _all_agree(feedmono, sim, stored, doubled=(kills // 2 + ends) * window)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_broker_outage_under_load_loses_and_doubles_nothing(
    tmp_path: Path, own_kafka: Kafka, registry: AnyRegistry, topic_prefix: str, full: bool, how: str
) -> None:
    rate, outage_s = 1000, 60 if full else 6
    with (
        Sim("binance", "--rate", str(rate), "--hold") as sim,
        Instance(tmp_path, sim, **into(own_kafka, registry, topic_prefix, **SOON)) as feedmono,
    ):
        feedmono.wait_trades("binance", 2 * rate)
        own_kafka.kill() if how == "killed" else own_kafka.stop_signal()
        made = _made(sim)
        sim.wait(lambda _: _made(sim) >= made + rate * outage_s, limit_s=outage_s + 60)
        waiting = feedmono.of("binance")
        assert waiting["memory_bytes"] < waiting["memory_budget_bytes"]
        own_kafka.restart() if how == "killed" else own_kafka.continue_signal()
        print(watch_drain(feedmono, "binance", made + rate * outage_s, rate))
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.of("binance")["memory_bytes"] < waiting["memory_budget_bytes"]
        assert feedmono.stop() == 0
        stored = normalized(own_kafka, registry, f"{topic_prefix}.binance")
        _all_agree(feedmono, sim, stored, doubled=0)


def _made(sim: Sim) -> int:
    return sum(int(t["made"]) for t in sim.state()["symbols"].values())


@pytest.mark.timeout(600)
def test_a_ring_that_overflows_while_the_broker_is_away_is_healed_by_rest(
    tmp_path: Path, own_kafka: Kafka, registry: AnyRegistry, topic_prefix: str, full: bool
) -> None:
    rate = 1000
    # A frame takes 200 bytes of the ring: room for five seconds, an outage of four times that.
    capacity, outage_s = ("1000 KiB", 20) if full else ("500 KiB", 10)
    with (
        Sim("binance", "--rate", str(rate), "--hold", "--send-buffer", "1") as sim,
        Instance(
            tmp_path,
            sim,
            **into(own_kafka, registry, topic_prefix, RING_CAPACITY=capacity, WINDOW=500, **SOON),
        ) as feedmono,
    ):
        feedmono.wait_trades("binance", rate)
        own_kafka.kill()
        feedmono.wait(lambda s: s[0]["ring_used_bytes"] > 0.8 * s[0]["ring_capacity_bytes"])
        feedmono.wait(lambda s: s[0]["counts"]["ring_full"] > 0)
        # What the kernels' buffers could still hold of it is gone as well.
        sim.fault("cut")
        made = _made(sim)
        sim.wait(lambda _: _made(sim) >= made + rate * outage_s, limit_s=120)
        own_kafka.restart()
        feedmono.wait(
            lambda s: s[0]["ring_used_bytes"] < 0.3 * s[0]["ring_capacity_bytes"], limit_s=120
        )
        sim.fault("pause")
        wait_complete(feedmono, sim, limit_s=240)
        assert feedmono.of("binance")["counts"]["backfilled"] > 0
        assert feedmono.stop() == 0
        stored = normalized(own_kafka, registry, f"{topic_prefix}.binance")
        _all_agree(feedmono, sim, stored, doubled=0)


def test_consumers_are_told_what_is_complete(
    tmp_path: Path, real_kafka: Kafka, registry: AnyRegistry, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.binance.coverage"
    with (
        Sim("binance", "--rate", "500", "--hold") as sim,
        Instance(tmp_path, sim, **into(real_kafka, registry, topic_prefix, **SOON)) as feedmono,
    ):
        feedmono.wait_trades("binance", 300)
        sim.fault("rest-5xx", True)
        sim.fault("cut")

        def news() -> dict[str, dict[str, Any]]:
            return {r["symbol"]: r for r in normalized(real_kafka, registry, topic)}

        wait_until(news, lambda n: any(c["open_holes"] for c in n.values()))
        sim.fault("rest-5xx", False)
        sim.fault("pause")
        wait_complete(feedmono, sim)
        last = {s: t["last_id"] for s, t in sim.state()["symbols"].items()}
        told = wait_until(
            news, lambda n: {s: c["to_id"] for s, c in n.items() if not c["open_holes"]} == last
        )
        assert {c["from_id"] for c in told.values()} == {1_000_001}
        assert feedmono.stop() == 0


def test_the_real_broker_is_used(real_kafka: Kafka, real_registry: Registry) -> None:
    assert isinstance(real_kafka, Kafka)
    assert isinstance(real_registry, Registry)
