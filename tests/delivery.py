"""What must be true once feedmono has come to rest: nothing missing, nothing doubled."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from instance import Instance, read_avro
from sim import Sim, wait_until

from feedmono.counters import Counters, Field
from feedmono.delivery import ledger_file
from feedmono.delivery.ids import Ids
from feedmono.ring import Ring


class Outcome(NamedTuple):
    """What an independent look at the stored trades found."""

    trades: int
    """Different ones."""
    missing: list[tuple[str, int]]
    doubled: int
    """Copies beyond the first."""
    origins: Counter[str]


def independent(
    trades: Iterable[Mapping[str, Any]], sim: Sim, since: Mapping[str, int] | None = None
) -> Outcome:
    """Holds what is stored against what the simulator made: every id from the first one stored
    (or *since*, by symbol) to the last one made, with its exact figures.

    Knows nothing of feedmono's ledger, nor of its own reader: *trades* come by fastavro.
    """
    stored: dict[str, Counter[int]] = {}
    origins: Counter[str] = Counter()
    for trade in trades:
        symbol, trade_id = trade["symbol"], int(trade["trade_id"])
        stored.setdefault(symbol, Counter())[trade_id] += 1
        origins[trade["origin"]] += 1
        expected = sim.figures(symbol, trade_id)
        got = (trade["price"], trade["quantity"], trade["side"])
        assert got == (expected.price, expected.quantity, ("BUY", "SELL")[expected.side]), trade
    missing = []
    for symbol, totals in sim.state()["symbols"].items():
        count = stored.get(symbol, Counter())
        first = (since or {}).get(symbol, min(count, default=totals["first_id"]))
        missing += [(symbol, i) for i in range(first, totals["last_id"] + 1) if not count[i]]
    total = sum(len(count) for count in stored.values())
    doubled = sum(sum(count.values()) for count in stored.values()) - total
    return Outcome(total, missing, doubled, origins)


def ids_of(instance: Instance, exchange: str) -> Mapping[str, Ids]:
    """What the ledger says, by symbol."""
    content = ledger_file.read(instance.state / f"{exchange}.ledger")
    return content.symbols if content is not None else {}


def wait_complete(instance: Instance, sim: Sim, limit_s: float = 120.0) -> None:
    """Waits until every trade that the simulator made is delivered, and no hole is open."""

    def behind() -> dict[str, Any]:
        known = ids_of(instance, sim.exchange)
        found: dict[str, Any] = {}
        for symbol, totals in sim.state()["symbols"].items():
            ids = known.get(symbol)
            if ids is None or ids.last_id < totals["last_id"]:
                found[symbol] = ids and ids.last_id, totals["last_id"]
            elif holes := [(h.first_id, h.last_id, h.cause, h.tries) for h in ids.open_holes()]:
                found[symbol] = holes
        return found

    wait_until(behind, lambda found: not found, limit_s)


def feedmono(instance: Instance, *arguments: str) -> tuple[int, str]:
    """Runs a command with the instance's configuration; exit status and output."""
    done = subprocess.run(
        [sys.executable, "-m", "feedmono", *arguments],
        env=dict(instance.environ),
        cwd=instance.folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def assert_nothing_lost(feedmono: Instance, *sims: Sim) -> None:
    """Has the exchanges pause, waits until all is delivered, and stops it: every trade is stored,
    each once."""
    for sim in sims:
        sim.fault("pause")
        wait_complete(feedmono, sim)
    assert feedmono.stop() == 0
    for sim in sims:
        outcome = independent(read_avro(feedmono.data / sim.exchange, "trades"), sim)
        assert (outcome.missing, outcome.doubled) == ([], 0)


def verified(instance: Instance, *arguments: str) -> dict[str, Any]:
    """What ``feedmono verify`` found."""
    _, output = feedmono(instance, "verify", "--format", "json", *arguments)
    content: dict[str, Any] = json.loads(output[output.index("{") :])
    return content


def watch_drain(instance: Instance, exchange: str, until: int, rate: int) -> str:
    """What a backlog's end looks like: from the first trade delivered until *until* are; how
    fast, against the live *rate*, and for how long the latency was raised."""
    (page,) = (instance.folder / "rings").glob(f"*-{exchange}.counters")
    (path,) = (instance.folder / "rings").glob(f"*-{exchange}.ring")
    counters, ring = Counters(page), Ring(path)
    asked_s, before = time.monotonic(), counters[Field.DELIVERED_TRADES]
    wait_until(lambda: counters[Field.DELIVERED_TRADES], lambda now: now > before, 120.0)
    begun_s, first = time.monotonic(), counters[Field.DELIVERED_TRADES]
    wait_until(lambda: counters[Field.DELIVERED_TRADES], lambda now: now >= until, 120.0)
    span_s = max(time.monotonic() - begun_s, 1e-3)
    drained = (counters[Field.DELIVERED_TRADES] - first) / span_s
    # Half a second of the live rate is what is always under way.
    wait_until(lambda: ring.used_bytes, lambda used: used < rate * 100, 60.0)
    raised_s = time.monotonic() - asked_s
    ring.close()
    return (
        f"drained at {drained:,.0f} trades/s, {drained / rate:.1f} times the live rate; latency "
        f"back to normal {raised_s:.1f} s after the broker, {begun_s - asked_s:.1f} s of which "
        "passed before its first acknowledgement"
    )


def parts(folder: Path) -> list[str]:
    """Files that are not finished."""
    return sorted(path.name for path in folder.rglob("*.part*"))
