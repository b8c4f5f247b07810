"""``feedmono compare``: two sources of the same trades, held against each other trade by trade.

Each side is read once, and its trades are set aside on disk by symbol and id; then they are
matched bucket by bucket, and the sequences of those that both have are compared. So memory is
bounded, whatever the two hold.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from feedmono.compare.mapping import VALUE_FIELDS
from feedmono.compare.match import Examples, Matcher, common_names
from feedmono.compare.order import MAX_TRADES, Moved, Orders
from feedmono.compare.order import buckets as order_buckets
from feedmono.compare.reader import Progress, Wish, read_both
from feedmono.compare.result import (
    KINDS,
    ORDER,
    CompareError,
    Example,
    Found,
    Result,
    SideResult,
)
from feedmono.compare.side import BUCKETS, Side
from feedmono.compare.source import Origin
from feedmono.compare.spill import RESERVE_BYTES, Spill, SpillFull
from feedmono.compare.trade import Taken, seen_by, uncompared


@contextlib.contextmanager
def silent(_: str, __: int) -> Iterator[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    yield lambda _: None


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for."""

    exchange: str | None = None
    """Only this one's trades."""
    symbol: str | None = None
    """Only this one's, by feedmono's name."""
    examples: int = 5
    """How many of each kind and symbol are given."""
    folder: Path | None = None
    """Where trades are set aside; None: where temporary files go."""
    reserve_bytes: int = RESERVE_BYTES
    """What is left free on that disk."""

    def wanted(self) -> Callable[[Taken], bool] | None:
        exchange, symbol = self.exchange, self.symbol
        if exchange is None and symbol is None:
            return None
        return lambda t: exchange in (None, t.exchange) and symbol in (None, t.symbol)


def compare(a: Origin, b: Origin, options: Options, progress: Progress = silent) -> Result:
    """Compares all that both sources hold now.

    :raises CompareError: one of them holds no trades.
    :raises SpillFull: there is no more room on the disk.
    :raises OSError: files can't be read, or temporary ones not written.
    :raises BrokerTrouble: a topic can't be read.
    :raises RegistryTrouble: the registry does not answer.
    """
    folder = options.folder or Path(tempfile.gettempdir())
    with ExitStack() as stack:

        def spill(buckets: int) -> Spill:
            return stack.enter_context(Spill(buckets, folder, options.reserve_bytes))

        spills = spill(BUCKETS), spill(BUCKETS)
        sides = _read((a, b), spills, options, progress)
        return match((a, b), sides, spills, spill, options, progress)


def _read(
    origins: Sequence[Origin], spills: Sequence[Spill], options: Options, progress: Progress
) -> list[Side]:
    sides = read_both(origins, spills, Wish(options.wanted(), options.examples), progress)
    for letter, origin, side in zip("AB", origins, sides, strict=True):
        _require_trades(letter, origin, side)
    return sides


def match(
    origins: Sequence[Origin],
    sides: Sequence[Side],
    spills: Sequence[Spill],
    spill: Callable[[int], Spill],
    options: Options,
    progress: Progress = silent,
) -> Result:
    """Compares two sides that are read.

    :param spill: makes one more, of so many buckets.
    :raises SpillFull: there is no more room on the disk.
    :raises OSError: temporary files can't be read or written.
    """
    a, b = sides
    names = common_names(a, b)
    mixed = {
        name for side in sides for name, s in zip(side.names, side.spans, strict=True) if s.mixed
    }
    unordered = {number for number, name in enumerate(names) if name in mixed}
    buckets = order_buckets(a.trades)
    orders = Orders(spill(buckets), a.trades, len(names), unordered)
    matcher = Matcher(a, b, orders, Examples(options.examples))
    with progress("matching", BUCKETS) as advance:
        matcher.run(spills[0], spills[1], advance)
    with progress("order", buckets) as advance:
        moved = orders.run(options.examples, advance)
    for number, result in enumerate(matcher.results):
        result.out_of_order = None if number in unordered else orders.counts.get(number, 0)
    return _result(matcher, moved, origins, sides)


def _require_trades(letter: str, origin: Origin, side: Side) -> None:
    """:raises CompareError: there is nothing to compare."""
    if side.trades > MAX_TRADES:
        raise CompareError(f"{letter} ({origin.name}) holds more than {MAX_TRADES:,} trades")
    if side.trades:
        return
    why = f"it has {side.records:,} records"
    if side.passed_over:
        why += f", {side.passed_over:,} of them not asked for"
    if side.undecoded:
        why += f", {side.undecoded:,} of them not to be read as trades"
    for place, reason in side.undecoded_named[:1]:
        why += f"; {place}: {reason}"
    raise CompareError(f"{letter} ({origin.name}) holds no trades: {why}")


def _result(
    matcher: Matcher,
    moved: Mapping[int, list[Moved]],
    origins: Sequence[Origin],
    sides: Sequence[Side],
) -> Result:
    results = sorted(
        enumerate(matcher.results), key=lambda each: (each[1].exchange, each[1].symbol)
    )
    found = []
    for kind in KINDS:
        for number, symbol in results:
            if not (count := symbol.counts()[kind]):
                continue
            if kind == ORDER:
                examples = [_moved(each) for each in moved.get(number, ())]
                found.append(Found(kind, symbol.exchange, symbol.symbol, count, examples))
            else:
                found.append(matcher.found(kind, number, count))
    missing = [set(uncompared(origin.mapping)) for origin in origins]
    return Result(
        a=_side(origins[0], sides[0]),
        b=_side(origins[1], sides[1]),
        symbols=[symbol for _, symbol in results],
        found=found,
        compared=[name for name in VALUE_FIELDS if not any(name in names for names in missing)],
        uncompared=[
            f"{name} is not compared: {letter} does not map it"
            for name in VALUE_FIELDS
            for letter, names in zip("AB", missing, strict=True)
            if name in names
        ],
        time_steps_ns=dict(sorted(matcher.steps_ns.items())),
    )


def _side(origin: Origin, side: Side) -> SideResult:
    return SideResult(
        name=origin.name,
        trades=side.trades,
        passed_over=side.passed_over,
        undecoded=side.undecoded,
        undecoded_named=side.undecoded_named,
        torn=side.torn,
        seen_by=seen_by(origin.mapping, topic=origin.path is None),
    )


def _moved(moved: Moved) -> Example:
    distance = f"{abs(moved.places):,} place{'s' if abs(moved.places) != 1 else ''}"
    return Example(
        moved.trade_id, None, None, f"{distance} {'later' if moved.places > 0 else 'earlier'} in B"
    )


def troubles(*origins: Origin) -> tuple[type[Exception], ...]:
    """What is raised when the sources can't be compared. Those of topics are imported only where
    there is one."""
    common = (CompareError, SpillFull, OSError)
    if any(origin.path is None for origin in origins):
        from feedmono.sinks.kafka_client import BrokerTrouble  # noqa: PLC0415
        from feedmono.sinks.registry import RegistryTrouble  # noqa: PLC0415

        return *common, BrokerTrouble, RegistryTrouble
    return common
