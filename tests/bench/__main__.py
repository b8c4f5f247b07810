"""What feedmono costs on this machine, beside the obvious program with the same libraries."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import plot, rig, run, tables
from bench.model import PARTITIONS, PERIOD_MS, SATURATION, Case, Figures, Results, Run
from bench.rig import Baseline, Broker, Feedmono, Handler

RATES = (55.0, 200.0, 2_000.0, 10_000.0, 20_000.0, SATURATION)
_QUICK_RATES = (200.0, 2_000.0, SATURATION)
_LINGER_RATES = (200.0, 2_000.0, 10_000.0)
_SINKS = ("kafka", "files")
_SECONDS, _QUICK_SECONDS = 4.0, 3.0
_LATENCY_RATE = 1_000.0
_EVEN_PERIOD_MS = 1
_BOTH_RATE = 200.0
_SYMBOLS_RATE = 2_000.0
_SOAK_RATE = 2_000.0
_BURST_RATE, _BURST_FACTOR, _BURST_S = 2_000.0, 10.0, 10.0
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured."""

    rates: Sequence[float]
    sinks: Sequence[str]
    seconds: float
    rounds: int
    latency: bool
    lingers_ms: Sequence[float]
    period_ms: int
    partitions: int
    both: bool
    symbols: int
    soak_s: float
    burst: bool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without any of the parts: cost, latency and memory at each rate with both sinks,\n"
        "the latency at linger 0, the memory with both exchanges; ten to twenty minutes.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rates, one round, Kafka only: two minutes")
    add("--rates", type=_rates, metavar="R,…", help="trades a second; max: saturation")
    add("--sinks", type=_sinks, metavar="S,…", help="kafka, files")
    add("--seconds", type=_positive, metavar="S", help="length of each measured part")
    add("--rounds", type=_whole, metavar="N", help="how often each is measured, in turn (2)")
    add("--period-ms", type=_whole, metavar="MS", help="how often the simulator makes trades (10)")
    add("--partitions", type=_whole, metavar="N", help="of each topic of trades (40)")
    add("--no-baseline", action="store_true", help="without the baseline handler")
    add("--compare", type=Path, metavar="ROOT", help="another checkout's feedmono beside this one")
    parts = parser.add_argument_group("parts, each instead of all that is measured without them")
    part = parts.add_argument
    part("--latency", action="store_true", help="the latency at linger 0 and 1,000/s, together "
         "and one by one")  # fmt: skip
    part(
        "--linger", type=_lingers, metavar="MS,…", help="cost and latency for each, such as 0,5,20"
    )
    part("--both", action="store_true", help="memory with both exchanges")
    part("--symbols", type=_whole, metavar="N", help="so many symbols, at 2,000/s")
    part(
        "--soak", type=_duration, metavar="TIME", help="2,000/s with cuts for so long, such as 30m"
    )
    part("--burst", action="store_true", help="10 × 2,000/s for 10 s")
    where = parser.add_argument_group("broker and output")
    broker = where.add_argument
    broker("--mock", action="store_true", help="the mock cluster, even where Java is")
    broker("--kafka", metavar="ADDRESS", help="a broker of yours, with --registry; topics of the "
           "benchmark are made and deleted there")  # fmt: skip
    broker("--registry", metavar="URL", help="its schema registry")
    broker("--format", choices=("table", "markdown", "json"), default="table", help="of the output")
    broker("--json", type=Path, metavar="FILE", help="every figure as JSON, there")
    broker("--plot", type=Path, metavar="FILE", help="a picture, there: .svg, .png, .pdf")
    return parser


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _rates(text: str) -> list[float]:
    return [SATURATION if word == "max" else _positive(word) for word in _listed(text)]


def _sinks(text: str) -> list[str]:
    if unknown := set(_listed(text)) - set(_SINKS):
        raise argparse.ArgumentTypeError(f"{unknown.pop()!r} is none of {', '.join(_SINKS)}")
    return _listed(text)


def _lingers(text: str) -> list[float]:
    return [_number(word) for word in _listed(text)]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def _positive(text: str) -> float:
    if not (value := _number(text)):
        raise argparse.ArgumentTypeError("a number above 0 is wanted")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 30m, 1h")
    return float(match[1]) * _UNITS_S[match[2]]


def _wanted(args: argparse.Namespace) -> Wanted:
    # A part that is asked for is measured alone, unless rates or sinks are named as well.
    alone = any((args.latency, args.linger, args.both, args.symbols, args.soak, args.burst))
    main = args.rates or args.sinks or not alone
    return Wanted(
        rates=(args.rates or (_QUICK_RATES if args.quick else RATES)) if main else (),
        sinks=args.sinks or (("kafka",) if args.quick else _SINKS),
        seconds=args.seconds or (_QUICK_SECONDS if args.quick else _SECONDS),
        rounds=args.rounds or (1 if args.quick else 2),
        latency=args.latency or (not alone and not (args.rates or args.sinks)),
        lingers_ms=args.linger or (),
        period_ms=args.period_ms or PERIOD_MS,
        partitions=args.partitions or PARTITIONS,
        both=args.both or (not alone and not (args.rates or args.sinks or args.quick)),
        symbols=args.symbols or 0,
        soak_s=args.soak or 0.0,
        burst=args.burst,
    )


def handlers(args: argparse.Namespace) -> list[Handler]:
    """Who is measured, this checkout's feedmono first. :raises ValueError: no such checkout."""
    found: list[Handler] = [Feedmono()]
    if args.compare:
        root = args.compare.resolve()
        found.append(Feedmono(root, f"feedmono in {root.name}"))
    if not args.no_baseline:
        found.append(Baseline())
    return found


def interleaved(
    cases: Sequence[Case], who: Sequence[Handler], broker: Broker | None, rounds: int
) -> Iterator[Figures]:
    """Each case by each handler in turn, again and again: whatever else the machine does meets all
    of them."""
    for case in cases:
        found: dict[str, list[Run]] = {handler.name: [] for handler in who}
        for number in range(rounds):
            for handler in who:
                _tell(f"{case.sink} {case.load}, {handler.name}, round {number + 1} of {rounds}")
                found[handler.name].append(run.measure(handler, case, broker))
        yield from (Figures.of(runs) for runs in found.values())


def _measured(wanted: Wanted, who: Sequence[Handler], broker: Broker | None) -> Results:
    seconds, rounds = wanted.seconds, wanted.rounds

    def figures(cases: Sequence[Case], those: Sequence[Handler] = who) -> list[Figures]:
        return list(interleaved(cases, those, broker, rounds))

    case = partial(Case, seconds=seconds, period_ms=wanted.period_ms, partitions=wanted.partitions)
    rates = [case(sink, rate) for sink in wanted.sinks for rate in wanted.rates]
    # One by one as well, as a fast exchange may send them.
    periods_ms = sorted({wanted.period_ms, _EVEN_PERIOD_MS}, reverse=True)
    latency = [
        case("kafka", _LATENCY_RATE, linger_ms=0, period_ms=period_ms) for period_ms in periods_ms
    ]
    lingers = [
        case("kafka", rate, linger_ms=linger_ms)
        for linger_ms in wanted.lingers_ms
        for rate in _LINGER_RATES
    ]
    both = case("kafka", _BOTH_RATE, exchanges=("binance", "kraken"))
    many = case("kafka", _SYMBOLS_RATE, symbols=wanted.symbols)
    # The baseline handler knows one exchange, and fetches nothing that a cut has lost.
    own = [handler for handler in who if isinstance(handler, Feedmono)]
    results = Results(
        machine(),
        broker.name if broker else "no broker",
        notes=[f"{handler.name}: {handler.twin}" for handler in own],
        figures=figures(rates),
        latency=figures(latency) if wanted.latency else (),
        lingers=figures(lingers),
        both=figures([both], own) if wanted.both else (),
        symbols=figures([many]) if wanted.symbols else (),
    )
    if broker is not None and wanted.soak_s:
        _tell(f"soak for {wanted.soak_s / 60:g} minutes")
        soak = case("kafka", _SOAK_RATE, seconds=wanted.soak_s)
        results = replace(results, soak=run.soak(own[0], soak, broker))
    if broker is not None and wanted.burst:
        _tell("burst")
        burst = case("kafka", _BURST_RATE)
        results = replace(results, burst=run.burst(own[0], burst, broker, _BURST_FACTOR, _BURST_S))
    return results


def machine() -> str:
    """Where it was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return (
        f"{os.cpu_count()} cores ({model}), Linux {platform.release().partition('-')[0]}, Python "
        f"{platform.python_version()}"
    )


def _tell(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if (args.kafka is None) != (args.registry is None):
        parser.error("--kafka and --registry belong together")
    wanted = _wanted(args)
    try:
        who = handlers(args)
    except ValueError as error:
        parser.error(str(error))
    addresses = (args.kafka, args.registry) if args.kafka else None
    needs = "kafka" in wanted.sinks or not wanted.rates
    with rig.broker(addresses, args.mock) if needs else contextlib.nullcontext() as broker:
        results = _measured(wanted, who, broker)
    formats: dict[str, Callable[[Results], str]] = {
        "table": tables.terminal,
        "markdown": tables.markdown,
        "json": tables.to_json,
    }
    print(formats[args.format](results))
    if args.json:
        args.json.write_text(tables.to_json(results), "utf-8")
    if args.plot:
        plot.draw(results, args.plot)
    return 0


if __name__ == "__main__":
    # Whoever ends it, its processes end with it. A shell's background job ignores SIGINT at first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
