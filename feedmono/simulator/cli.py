"""A stand-in exchange on a loopback port: both protocols, any rate, faults on demand."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import difflib
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from feedmono.simulator import load, names
from feedmono.simulator.base import Dialect
from feedmono.simulator.control import totals
from feedmono.simulator.faults import KINDS, Setting, parse
from feedmono.simulator.market import Market
from feedmono.simulator.options import Options
from feedmono.simulator.server import Server
from feedmono.simulator.tape import FATES, MAX_BATCH
from feedmono.trade import MAX_TRADE_ID

MAX_PRERENDER = 5_000_000
MAX_RATE = 10_000_000.0
MAX_PERIOD_MS = 100
_MAX_ID = MAX_TRADE_ID // 2
_DEFAULT_BATCH = 5
_PR_SET_PDEATHSIG = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``feedmono sim``."""
    add = parser.add_argument
    faults = "\n".join(f"  {kind:20}{entry.help}" for kind, entry in KINDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        f"Faults (P: probability, TIME: such as 5s, 500ms):\n{faults}\n\n"
        'While it runs: GET /sim/state; POST /sim/fault with {"kind": …, "value": …}, where\n'
        "cut, half-open, shutdown and close do it to all connections at once unless they are\n"
        'given a TIME, and rate (trades/s or "max") and status (a trading status to tell)\n'
        'are known as well; POST /sim/send with {"text": …} or {"base64": …, "opcode": …}.'
    )
    add("--exchange", required=True, metavar="NAME", help="whom it stands in for")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_whole(0, 65535), default=0, metavar="N", help="0, the default: any free")
    add(
        "--rate",
        type=_rate,
        default=100.0,
        metavar="R",
        help="trades a second over all symbols, or max: as fast as they are taken (default: 100)",
    )
    add(
        "--period-ms",
        type=_whole(1, MAX_PERIOD_MS),
        default=10,
        metavar="MS",
        help="how often trades are made; those of one time come together (default: %(default)s)",
    )
    add(
        "--seed",
        type=_whole(0, 2**63 - 1),
        default=1,
        metavar="S",
        help="of made trades and of faults (default: %(default)s)",
    )
    add("--symbols", metavar="A,B", help="symbols, or SYMBOL=BASE/QUOTE to make a new market")
    _add_behaviour(add)


def _add_behaviour(add: Callable[..., object]) -> None:
    add(
        "--trades",
        choices=("made", "recorded"),
        default="made",
        help="recorded: one symbol replays real trades, again and again, at the current time",
    )
    add(
        "--pace",
        choices=("rate", "recorded"),
        default="rate",
        help="recorded: the replayed symbol goes at its own pace, the others at --rate",
    )
    add(
        "--speed",
        type=_positive,
        default=None,
        metavar="X",
        help="how many times faster than its own that pace is (default: 1)",
    )
    add(
        "--prerender",
        type=_whole(0, MAX_PRERENDER),
        default=0,
        metavar="N",
        help="so many trades are rendered before the start, the others as it goes",
    )
    add(
        "--first-id",
        type=_whole(0, _MAX_ID),
        default=None,
        metavar="N",
        help="id of each symbol's first trade",
    )
    add(
        "--batch",
        type=_whole(1, MAX_BATCH),
        default=None,
        metavar="N",
        help=f"up to N trades a frame, where the exchange does that (default: {_DEFAULT_BATCH})",
    )
    add(
        "--limit",
        type=_whole(0, _MAX_ID),
        default=None,
        metavar="N",
        help="no more than N trades in all; the connections stay open",
    )
    _add_circumstances(add)


def _add_circumstances(add: Callable[..., object]) -> None:
    add("--hold", action="store_true", help="no trades until every symbol has been subscribed to")
    add(
        "--journal",
        type=Path,
        metavar="FILE",
        help=f"every trade as CSV, with its fate: {', '.join(FATES)}",
    )
    add("--faults", default="", metavar="SPEC", help="kind=value,… of those below")
    add("--no-limits", action="store_true", help="lifts the exchange's rate limits")
    add(
        "--ping-interval",
        type=_positive,
        default=None,
        metavar="S",
        help="seconds between the server's pings (default: as the exchange has it); a pong may "
        "take three times as long",
    )
    add(
        "--send-buffer",
        type=_positive,
        default=16.0,
        metavar="MIB",
        help="a client that leaves more than this unread is cut (default: %(default)s); at "
        "--rate max it is waited for instead, for a minute",
    )
    add(
        "--stop-with-parent",
        action="store_true",
        help="ends as soon as the process that started it has ended",
    )


def _whole(low: int, high: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number {low} … {high} is wanted")
        return value

    return whole


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is wanted")
    return value


def _rate(text: str) -> float:
    if text == "max":
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"{text!r}: trades per second, or max, are wanted")
    return value


def run(args: argparse.Namespace) -> int:
    """Runs a simulator until SIGTERM or SIGINT; gives the exit status."""
    mistakes: list[str] = []
    options = _options(args, mistakes)
    if options is None:
        for mistake in mistakes:
            print(f"feedmono sim: {mistake}", file=sys.stderr)
        return 2
    if args.stop_with_parent and not _die_with_parent():
        return 0
    try:
        server = Server(options, load(options.exchange))
    except OSError as error:
        print(f"feedmono sim: the journal can't be written: {error}", file=sys.stderr)
        return 1
    return asyncio.run(_serve(server, options))


def _options(args: argparse.Namespace, mistakes: list[str]) -> Options | None:
    """The checked options; None with what is wrong in *mistakes*."""
    if args.exchange not in names():
        near = difflib.get_close_matches(args.exchange, names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(names())
        mistakes.append(f"--exchange {args.exchange!r} is none of {known}{hint}")
        return None
    dialect = load(args.exchange)
    markets = _markets(dialect, args.symbols, mistakes)
    symbols = [m.symbol for m in markets]
    if args.trades == "recorded" and dialect.recorded_symbol not in symbols:
        there = dialect.recorded_symbol
        reason = f"only {there} was recorded" if there else f"{dialect.name} was not recorded"
        mistakes.append(f"--trades recorded: {reason}")
    if args.pace == "recorded" and args.trades != "recorded":
        mistakes.append("--pace recorded needs --trades recorded")
    if args.speed is not None and args.pace != "recorded":
        mistakes.append("--speed needs --pace recorded")
    if args.batch is not None and args.batch > 1 and not dialect.batches:
        mistakes.append(f"--batch {args.batch}: {dialect.name} sends one trade a frame")
    faults = _faults(args.faults, symbols, mistakes)
    if mistakes:
        return None
    return Options(
        exchange=args.exchange,
        host=args.host,
        port=args.port,
        rate=args.rate,
        period_s=args.period_ms / 1000,
        seed=args.seed,
        markets=markets,
        recorded=args.trades == "recorded",
        speed=(args.speed or 1.0) if args.pace == "recorded" else 0.0,
        prerender=args.prerender,
        first_id=args.first_id,
        batch=(args.batch or _DEFAULT_BATCH) if dialect.batches else 1,
        limit=args.limit,
        hold=args.hold,
        journal=args.journal,
        faults=faults,
        strict=not args.no_limits,
        ping_interval_s=args.ping_interval,
        send_buffer_bytes=int(args.send_buffer * 2**20),
    )


def _markets(dialect: type[Dialect], text: str | None, mistakes: list[str]) -> tuple[Market, ...]:
    symbols = dialect.default_symbols if text is None else text.split(",")
    markets: dict[str, Market] = {}
    for symbol in symbols:
        try:
            market = dialect.market(symbol.strip())
        except ValueError as error:
            mistakes.append(f"--symbols: {error}")
            continue
        if market.symbol in markets:
            mistakes.append(f"--symbols: {market.symbol} is named twice")
        markets[market.symbol] = market
    return tuple(markets.values())


def _faults(spec: str, symbols: list[str], mistakes: list[str]) -> tuple[Setting, ...]:
    try:
        faults = parse(spec)
    except ValueError as error:
        mistakes.append(f"--faults: {error}")
        return ()
    for fault in faults:
        if isinstance(fault.value, frozenset):
            unknown = sorted(fault.value.difference(symbols))
            mistakes += [f"--faults {fault.kind}={s}: it is none of --symbols" for s in unknown]
    return faults


def _die_with_parent() -> bool:
    """Has the kernel send SIGTERM when the parent dies; false if it is dead already."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == parent


async def _serve(server: Server, options: Options) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        port = await server.start()
    except OSError as error:
        where = f"{options.host}:{options.port}"
        print(f"feedmono sim: can't listen on {where}: {error.strerror}", file=sys.stderr)
        return 1
    host = f"[{options.host}]" if ":" in options.host else options.host
    ready = {
        "exchange": options.exchange,
        "ws_url": f"ws://{host}:{port}",
        "rest_url": f"http://{host}:{port}",
        "pid": os.getpid(),
        "seed": options.seed,
    }
    _tell(ready)
    await stop.wait()
    # Another one changes nothing any more: the end is near, and its status is 0.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    await server.stop()
    _tell({"exchange": options.exchange, "symbols": all_totals(server)})
    return 0


def all_totals(server: Server) -> dict[str, dict[str, int]]:
    """What became of each symbol's trades."""
    return {symbol: totals(tape) for symbol, tape in server.venue.tapes.items()}


def _tell(line: dict[str, object]) -> None:
    """One JSON line on standard output; whoever listened may be gone."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(line), flush=True)
