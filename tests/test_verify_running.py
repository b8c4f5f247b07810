"""``feedmono verify`` on an instance of real processes: at work, killed, stopped."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from delivery import feedmono as command
from delivery import independent, wait_complete
from instance import Instance, read_avro
from sim import Sim, wait_until

from feedmono.verify.findings import BEYOND, KINDS


def verify(instance: Instance) -> tuple[int, dict[str, Any]]:
    """The exit status, and what was told of the only exchange."""
    status, output = command(instance, "verify", "--format", "json")
    told = json.loads(output)
    assert told["ok"] is (status == 0), output
    (exchange,) = told["exchanges"]
    return status, exchange


def in_flight(exchange: dict[str, Any]) -> int:
    return sum(symbol["in_flight"] for symbol in exchange["symbols"])


@contextlib.contextmanager
def ledger_held(instance: Instance) -> Iterator[None]:
    """Nothing can be committed: what the sink stores from now on is newer than the ledger."""
    with contextlib.closing(sqlite3.connect(instance.state / "binance.ledger")) as ledger:
        ledger.execute("BEGIN IMMEDIATE")
        yield


def test_whatever_state_the_instance_is_in_only_what_is_so_is_found(tmp_path: Path) -> None:
    with (
        Sim("binance", "--rate", "500", "--hold") as sim,
        Instance(tmp_path, sim) as feedmono,
    ):
        feedmono.wait_trades("binance", 1000)

        def at_work() -> int:
            status, exchange = verify(feedmono)
            assert (status, exchange["found"]) == (0, [])
            assert exchange["trades"] - in_flight(exchange) >= 1000
            return in_flight(exchange)

        at_work()
        with ledger_held(feedmono):
            wait_until(at_work, bool)
            feedmono.kill()
            status, exchange = verify(feedmono)
            assert (status, in_flight(exchange)) == (1, 0)
            assert {found["kind"] for found in exchange["found"]} == {BEYOND}
            assert KINDS[BEYOND] in command(feedmono, "verify")[1]
        feedmono.start()
        before = feedmono.of("binance")["delivered"]
        feedmono.wait_trades("binance", before + 500)
        at_work()
        sim.fault("pause")
        wait_complete(feedmono, sim)
        assert feedmono.stop() == 0
        status, exchange = verify(feedmono)
        assert (status, exchange["found"], in_flight(exchange)) == (0, [], 0)
        outcome = independent(read_avro(feedmono.data / "binance", "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)
        assert exchange["trades"] == outcome.trades
