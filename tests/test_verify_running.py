"""``feedmono verify`` on an instance of real processes: at work, killed, stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from delivery import feedmono as command
from delivery import independent, wait_complete
from instance import Instance, read_avro
from sim import Sim, wait_until

from feedmono.findings import BEYOND, KINDS


def verify(instance: Instance) -> tuple[int, dict[str, Any]]:
    """The exit status, and what was told of the only exchange."""
    status, output = command(instance, "verify", "--format", "json")
    told = json.loads(output)
    assert told["ok"] is (status == 0), output
    (exchange,) = told["exchanges"]
    return status, exchange


def in_flight(exchange: dict[str, Any]) -> int:
    return sum(symbol["in_flight"] for symbol in exchange["symbols"])


def test_whatever_state_the_instance_is_in_only_what_is_so_is_found(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold") as sim,
        Instance(tmp_path, sim) as feedmono,
    ):
        for _ in range(3):
            before = feedmono.of("binance")["delivered"]
            feedmono.wait_trades("binance", before + 500)

            def at_work() -> dict[str, Any]:
                status, exchange = verify(feedmono)
                assert (status, exchange["found"]) == (0, [])
                assert exchange["trades"] - in_flight(exchange) >= 500
                return exchange

            wait_until(at_work, lambda exchange: in_flight(exchange) > 0)
            feedmono.kill()
            status, exchange = verify(feedmono)
            assert {found["kind"] for found in exchange["found"]} <= {BEYOND}
            assert in_flight(exchange) == 0
            assert (KINDS[BEYOND] in command(feedmono, "verify")[1]) is (status == 1)
            feedmono.start()
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        status, exchange = verify(feedmono)
        assert (status, exchange["found"], in_flight(exchange)) == (0, [], 0)
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)
        assert exchange["trades"] == outcome.trades
