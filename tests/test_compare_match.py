"""Matching, order, latency and the spill, against what a few simple lines say of the same input."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from array import array
from collections import Counter
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest
from compare_rig import START_US, Trade, compare, compared, made, ours, record
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmono.compare.compare import Options, match
from feedmono.compare.mapping import FEEDMONO, Place, TradeMapping
from feedmono.compare.order import Orders, misplaced
from feedmono.compare.reader import Wish, collect
from feedmono.compare.result import Latency, Result
from feedmono.compare.side import BUCKETS
from feedmono.compare.source import Origin, resolve
from feedmono.compare.spill import Spill, SpillFull
from feedmono.compare.trade import NoTrade, taker
from feedmono.config import KafkaConfig

MEMORY_LIMIT_MIB = 300


def origin(path: Path) -> Origin:
    return resolve(str(path), KafkaConfig("localhost:9", "http://localhost:9", "x", 1, {}), {})


def matched(folder: Path, a: list[Trade], b: list[Trade]) -> Result:
    """The result of comparing these, without other processes."""
    origins = []
    for name, trades in (("a", a), ("b", b)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record(t)) + "\n" for t in trades))
        origins.append(origin(path))
    made_spills: list[Spill] = []

    def spill(buckets: int) -> Spill:
        made_spills.append(Spill(buckets, folder))
        return made_spills[-1]

    spills = spill(BUCKETS), spill(BUCKETS)
    sides = [
        collect(each, rows, Wish(None, 5), lambda _: None)
        for each, rows in zip(origins, spills, strict=True)
    ]
    result = match(origins, sides, spills, spill, Options())
    for each in made_spills:
        with each:
            pass
    return result


class Naive(NamedTuple):
    """What a dictionary finds out about one symbol."""

    common: int
    missing_a: int
    missing_b: int
    outside_a: int
    outside_b: int
    doubled_a: int
    doubled_b: int
    different: int
    out_of_order: int


def naive(a: list[Trade], b: list[Trade], all_a: list[Trade], all_b: list[Trade]) -> Naive:
    ours = {t.trade_id: t for t in reversed(a)}
    theirs = {t.trade_id: t for t in reversed(b)}
    common = [t for t in dict.fromkeys(t.trade_id for t in a) if t in theirs]
    low = max(min(ours, default=1), min(theirs, default=1))
    high = min(max(ours, default=0), max(theirs, default=0))

    def inside(trade: Trade) -> bool:
        if ours and theirs and low <= high:
            return low <= trade.trade_id <= high
        times = [sorted(t.time_us for t in side) for side in (all_a, all_b)]
        first, last = (max(t[0] for t in times), min(t[-1] for t in times))
        return first <= trade.time_us <= last

    only_a = [inside(t) for i, t in ours.items() if i not in theirs]
    only_b = [inside(t) for i, t in theirs.items() if i not in ours]
    places = {t: i for i, t in enumerate(dict.fromkeys(t.trade_id for t in b))}
    return Naive(
        common=len(common),
        missing_a=sum(only_b),
        missing_b=sum(only_a),
        outside_a=len(only_a) - sum(only_a),
        outside_b=len(only_b) - sum(only_b),
        doubled_a=len(a) - len(ours),
        doubled_b=len(b) - len(theirs),
        different=sum(not same(ours[i], theirs[i]) for i in common),
        out_of_order=len(common) - longest_rise([places[t] for t in common]),
    )


def same(a: Trade, b: Trade) -> bool:
    return (Decimal(a.price), a.quantity, a.side, a.time_us) == (
        Decimal(b.price),
        b.quantity,
        b.side,
        b.time_us,
    )


def longest_rise(places: list[int]) -> int:
    """Of a sequence, in quadratic time."""
    best: list[int] = []
    for i, place in enumerate(places):
        best.append(1 + max((best[j] for j in range(i) if places[j] < place), default=0))
    return max(best, default=0)


TRADES = st.builds(
    Trade,
    symbol=st.sampled_from(["BTC/USD", "ETH/USD"]),
    trade_id=st.integers(0, 12),
    price=st.sampled_from(["1", "1.0", "1.00", "2.5"]),
    quantity=st.sampled_from(["1", "3"]),
    side=st.sampled_from(["BUY", "SELL"]),
    # The last digit keeps every time at microseconds.
    time_us=st.integers(0, 5).map(lambda ms: START_US + 1000 * ms + 1),
    received_us=st.just(START_US),
)


@given(a=st.lists(TRADES, min_size=1, max_size=25), b=st.lists(TRADES, min_size=1, max_size=25))
@settings(max_examples=150, deadline=None)
def test_matching_finds_what_a_dictionary_finds(
    tmp_path_factory: pytest.TempPathFactory, a: list[Trade], b: list[Trade]
) -> None:
    result = matched(tmp_path_factory.mktemp("both"), a, b)
    for symbol in result.symbols:
        own, other = ([t for t in side if t.symbol == symbol.symbol] for side in (a, b))
        expected = naive(own, other, a, b)
        assert Naive(*(getattr(symbol, name) for name in Naive._fields)) == expected
        assert (symbol.trades_a, symbol.trades_b) == (len(own), len(other))
    assert {s.symbol for s in result.symbols} == {t.symbol for t in a + b}
    kinds = Counter({f.kind: 0 for f in result.found})
    for found in result.found:
        kinds[found.kind] += found.count
        assert len(found.examples) == min(found.count, 5) or "doubled" in found.kind
    assert dict(kinds) == {kind: count for kind, count in result.kinds() if count}
    assert result.equal == (not result.found and any(s.common for s in result.symbols))


@given(st.permutations(range(9)))
def test_as_few_trades_as_possible_are_out_of_order(places: list[int]) -> None:
    moved = list(misplaced(array("I", places)))
    rest = [place for index, place in enumerate(places) if index not in moved]
    assert rest == sorted(rest)
    assert len(rest) == longest_rise(places)
    # Not even one more could stay.
    assert not any([*more] == sorted(more) for more in combinations(places, len(rest) + 1))


@given(
    places=st.permutations(range(60)),
    blocks=st.integers(1, 10),
    symbols=st.lists(st.integers(0, 2), min_size=60, max_size=60),
)
@settings(deadline=None)
def test_order_is_the_same_whatever_the_buckets_are(
    tmp_path_factory: pytest.TempPathFactory,
    places: list[int],
    blocks: int,
    symbols: list[int],
) -> None:
    # Sorted by halves, so that there are places at which both sides agree.
    places = sorted(places[:30]) + places[30:] if blocks % 2 else places
    with Spill(blocks, tmp_path_factory.mktemp("order")) as rows:
        orders = Orders(rows, 60, 3, unordered={2})
        for a in reversed(range(60)):
            orders.add(symbols[a], a, places[a], a)
        named = orders.run(100, lambda _: None)
    for symbol in (0, 1):
        own = [places[a] for a in range(60) if symbols[a] == symbol]
        assert orders.counts.get(symbol, 0) == len(own) - longest_rise(own)
        assert len(named.get(symbol, ())) == orders.counts.get(symbol, 0)
        assert all(symbols[int(each.trade_id)] == symbol for each in named.get(symbol, ()))
    assert 2 not in orders.counts


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1))
def test_percentiles_are_within_one_percent(values: list[int]) -> None:
    latency = Latency()
    for value in values:
        latency.add(value)
    ranked = sorted(values)
    assert (latency.min_us, latency.max_us, latency.count) == (ranked[0], ranked[-1], len(values))
    for share in (0.5, 0.9, 0.99):
        exact = next(v for i, v in enumerate(ranked, 1) if i >= share * len(ranked))
        assert abs(latency.percentile_us(share) - exact) <= abs(exact) / 100


@pytest.mark.parametrize(
    ("value", "unit_ns", "time_ns"),
    [
        (1_732_320_000_123, 10**6, 1_732_320_000_123_000_000),
        ("1732320000.123456789", 10**9, 1_732_320_000_123_456_789),
        ("2024-11-23T00:00:00.1234567Z", 0, 1_732_320_000_123_456_700),
        ("2024-11-23 01:00:00+01:00", 0, 1_732_320_000_000_000_000),
        ("2024-11-22T19:30:00,5-0430", 0, 1_732_320_000_500_000_000),
        ("2024-11-23T00:00:00", 10**6, 1_732_320_000_000_000_000),
        (0, 10**6, None),
    ],
)
def test_times_are_exact_in_every_unit(value: object, unit_ns: int, time_ns: int | None) -> None:
    fields = {**FEEDMONO.fields, "exchange_timestamp": Place(("t",), unit_ns=unit_ns)}
    take = taker(TradeMapping(fields, FEEDMONO.sides))
    trade = {**record(next(made(1))), "t": value}
    taken = take(trade, None)
    assert taken is not None
    assert taken.time_ns == time_ns


@pytest.mark.parametrize("value", [-1, 10**30, "2024-13-01T00:00:00Z", "soon", True, [1], 1.5e300])
def test_what_is_no_time_is_refused(value: object) -> None:
    fields = {**FEEDMONO.fields, "exchange_timestamp": Place(("t",), unit_ns=10**6)}
    take = taker(TradeMapping(fields, FEEDMONO.sides))
    with pytest.raises(NoTrade, match="exchange_timestamp"):
        take({**record(next(made(1))), "t": value}, None)


def test_a_coarser_side_may_have_cut_or_rounded_its_times(tmp_path: Path) -> None:
    a = [t.but(time_us=t.time_us + 700) for t in made(300)]
    for rounded in (0, 1000):
        b = [t.but(time_us=t.time_us - 700 + rounded) for t in a]
        result = matched(tmp_path, a, b)
        assert result.equal
        assert result.time_steps_ns == {"kraken": 10**6}
    b = [t.but(time_us=t.time_us - 700 + 2000) for t in a]
    assert matched(tmp_path, a, b).total("different") == 300


def test_a_full_disk_ends_with_a_message_that_says_what_to_do(tmp_path: Path) -> None:
    with Spill(1, tmp_path, reserve_bytes=1 << 60) as spill:
        spill.add(0, ("a trade",))
        with pytest.raises(SpillFull, match="name a folder with more room by --spill"):
            spill.flush()


def test_a_limit_on_the_size_of_files_is_told_as_a_full_disk(tmp_path: Path) -> None:
    a = ours(tmp_path / "a", made(20_000))
    done = subprocess.run(
        [sys.executable, "-m", "feedmono", "compare", a, a],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1
    assert "is full" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(3000)
def test_memory_is_bounded_whatever_the_sides_hold(tmp_path: Path, full: bool) -> None:
    """Ten million trades on each side with ``--full``; every thousandth differs."""
    count = 10_000_000 if full else 200_000
    every = 1000
    a = ours(tmp_path / "a", made(count))
    changed = (t.but(price="0.1") if i % every == 0 else t for i, t in enumerate(made(count)))
    b = ours(tmp_path / "b", changed)
    script = (
        "import resource, sys, feedmono.cli as cli\n"
        "status = cli.main(sys.argv[1:])\n"
        # Not of getrusage: that remembers who called exec.
        "own = [l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1]\n"
        "child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(int(own) // 1024, child // 1024, file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "compare", a, b, "--spill", tmp_path, "--format", "json"],
        capture_output=True,
        text=True,
        timeout=2900,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert sum(s["common"] for s in found["symbols"]) == count
    assert sum(s["different"] for s in found["symbols"]) == count // every
    own_mib, child_mib = map(int, done.stderr.split())
    print(f"{count} trades a side: {own_mib} MiB, each reader {child_mib} MiB")
    assert own_mib + 2 * child_mib < MEMORY_LIMIT_MIB


def test_a_side_in_reverse_is_told_as_out_of_order(tmp_path: Path) -> None:
    trades = list(made(3000))
    a, b = ours(tmp_path / "a", trades), ours(tmp_path / "b", trades[::-1])
    found = compared(a, b, status=1)
    assert [s["out_of_order"] for s in found["symbols"]] == [999] * 3
    assert "999 places" in compare(a, b).stdout


def test_an_endless_line_is_one_record_that_can_not_be_read(tmp_path: Path) -> None:
    lines = [json.dumps(record(t)) for t in made(10)]
    lines.insert(5, "x" * 3_000_000)
    path = tmp_path / "b.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with Spill(BUCKETS, tmp_path) as rows:
        side = collect(origin(path), rows, Wish(None, 5), lambda _: None)
    assert (side.trades, side.undecoded) == (10, 1)
    assert side.undecoded_named[0].place == f"{path} line 6"
    assert "longer than" in side.undecoded_named[0].reason
