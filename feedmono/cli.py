"""The commands: argument parsing only, one function a command.

Exit status: 0 done or stopped in order, 1 failed, 2 wrong arguments or configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from feedmono import config as configuration
from feedmono import log as logs
from feedmono.config import Config, ConfigError, Loaded

_MAX_EXAMPLES = 1000
_LOAD_LIMIT_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    _open_standard_streams()
    given = sys.argv[1:] if arguments is None else arguments
    args = _parser(simulating=given[:1] == ["sim"]).parse_args(given)
    try:
        status: int = args.run(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # Whoever read standard output has seen enough, or its terminal is gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _open_standard_streams() -> None:
    """A closed descriptor 0, 1 or 2 would be given to the next file or socket."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


class _Version(argparse.Action):
    """Looks for the version only when asked: that takes a tenth of a short command's time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415

        print(f"feedmono {version('feedmono')}")
        parser.exit()


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _parser(*, simulating: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="feedmono",
        description="Captures every public trade of crypto exchanges into Kafka or Avro files.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_running(commands)
    _add_reading(commands)
    sim = commands.add_parser(
        "sim", help="a stand-in exchange on a loopback port", description="A stand-in exchange."
    )
    if simulating:
        # The simulator and its libraries are not for those who only capture.
        from feedmono.simulator import cli as simulator  # noqa: PLC0415

        simulator.add_arguments(sim)
        sim.set_defaults(run=simulator.run)
    return parser


def _add_running(commands: _Commands) -> None:
    """Those that run an instance, or ask how one does."""
    run = _command(commands, "run", _run, "capture trades until stopped")
    run.add_argument(
        "--demo", action="store_true", help="from simulated exchanges, into files; no network"
    )
    run.add_argument("--for", dest="for_s", type=_duration, metavar="5m", help="stop after so long")

    check = _command(commands, "check", _check, "validate and show the configuration")
    check.add_argument(
        "--online", action="store_true", help="try the exchanges, the broker and the registry too"
    )
    check.add_argument("--format", choices=("table", "json"), default="table")

    status = _command(commands, "status", _status, "how the running instance does")
    status.add_argument("--format", choices=("table", "json"), default="table")

    _command(commands, "top", _top, "the running instance live, with the last minutes; q ends it")

    report = _command(commands, "report", _report, "what an instance did, against its budgets")
    report.add_argument(
        "--for",
        dest="for_s",
        type=_duration,
        metavar="5m",
        help="watch the running instance for so long; default: its kept samples of the last hour",
    )
    report.add_argument(
        "--format",
        choices=("table", "markdown", "json", "html"),
        default="table",
        help="html: one self-contained file with plots",
    )

    _command(commands, "reload", _reload, "have the running instance read its configuration again")


def _add_reading(commands: _Commands) -> None:
    """Those that read what was stored."""
    tail = _command(commands, "tail", _tail, "trades as they are stored")
    tail.add_argument("exchange", nargs="?", metavar="EXCHANGE", help="only this one's")
    tail.add_argument("symbol", nargs="?", metavar="SYMBOL", help="as the exchange has it")
    tail.add_argument("--format", choices=("text", "json"), default="text")

    ledger = _command(commands, "ledger", _ledger, "what is delivered, and what is missing")
    ledger.add_argument("exchange", nargs="?", metavar="EXCHANGE", help="only this one's")
    ledger.add_argument("symbol", nargs="?", metavar="SYMBOL", help="with its holes and fills")
    ledger.add_argument("--format", choices=("table", "json"), default="table")

    verify = _command(
        commands, "verify", _verify, "read the sink back and hold it against the ledger"
    )
    verify.add_argument("exchange", nargs="?", metavar="EXCHANGE", help="only this one's")
    verify.add_argument("symbol", nargs="?", metavar="SYMBOL", help="as the exchange has it")
    verify.add_argument("--format", choices=("table", "json"), default="table")
    verify.add_argument(
        "--retained",
        action="store_true",
        help="what is older than all that is stored was removed, and is not missing",
    )

    compare = _command(
        commands, "compare", _compare, "two sources of the same trades, trade by trade"
    )
    for side in ("a", "b"):
        compare.add_argument(
            side, metavar=side.upper(), help="a file, a folder, kafka:TOPIC, or a .conf of either"
        )
    compare.add_argument("--exchange", metavar="EXCHANGE", help="only this one's")
    compare.add_argument("--symbol", metavar="SYMBOL", help="only this one's")
    compare.add_argument("--format", choices=("table", "json"), default="table")
    compare.add_argument(
        "--examples", type=_count, default=5, metavar="N", help="of each kind and symbol; default 5"
    )
    compare.add_argument(
        "--spill",
        type=Path,
        metavar="FOLDER",
        help="where trades are set aside meanwhile; default: where temporary files go",
    )


def _command(
    commands: _Commands,
    name: str,
    run: object,
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration (HOCON), laid over the default; else etc/feedmono.conf of the current "
        "folder",
    )
    parser.set_defaults(run=run)
    return parser


def _duration(text: str) -> float:
    try:
        duration_s = configuration.parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration: a number and its unit, such as 30s, 5m, 1h"
        ) from None
    if duration_s <= 0:
        raise argparse.ArgumentTypeError("must be longer than nothing")
    return duration_s


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > _MAX_EXAMPLES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {_MAX_EXAMPLES:,}")
    return int(text)


def _load(args: argparse.Namespace, overrides: Mapping[str, str] | None = None) -> Loaded:
    return configuration.load(args.config, os.environ, overrides or {})


def _run(args: argparse.Namespace) -> int:
    if args.demo:
        return _demo(args)
    return _capture(_loader(args), args.for_s)


def _loader(
    args: argparse.Namespace, overrides: Mapping[str, str] | None = None
) -> Callable[[], Config]:
    """Loads the configuration, now and for each reload. A file that was there at first must not
    be missing later: without it, all would be the default."""
    path = Path.cwd() / configuration.DEFAULT_FILE
    needed = args.config is None and path.is_file()

    def load() -> Config:
        if needed and not path.is_file():
            allowed = "the file that was read at the start; with nothing in it, all is the default"
            raise ConfigError([configuration.Mistake(str(path), "no such file", allowed)])
        return _load_apart(args, overrides)

    return load


def _load_apart(args: argparse.Namespace, overrides: Mapping[str, str] | None) -> Config:
    """What `_load` gives, loaded in a process of its own: pyhocon and pyparsing take 7 MiB, which
    would stay in each worker."""
    from feedmono import apart  # noqa: PLC0415

    def load() -> Config | list[configuration.Mistake]:
        try:
            return _load(args, overrides).config
        except ConfigError as error:
            return error.mistakes

    try:
        loaded: Config | list[configuration.Mistake]
        loaded = apart.call("configuration", load, _LOAD_LIMIT_S)
    except apart.Failed as error:
        mistake = configuration.Mistake("the configuration", str(error), "that it can be loaded")
        raise ConfigError([mistake]) from error
    if isinstance(loaded, list):
        raise ConfigError(loaded)
    return loaded


def _capture(load: Callable[[], Config], for_s: float | None) -> int:
    """:param load: gives the configuration, now and for each reload."""
    config = load()
    from feedmono.supervision.display import Display  # noqa: PLC0415
    from feedmono.supervisor import Supervisor  # noqa: PLC0415

    display = Display()
    if sys.stdout.isatty():
        from feedmono.commands.table import LiveTable  # noqa: PLC0415

        display = LiveTable()
    level, style = config.log.level, config.log.format
    logs.configure(level, style, display.log_fd, bool(display.fds), config.state_dir)
    try:
        return Supervisor(config, logs.get(), display, load).run(for_s)
    finally:
        logs.close()
        display.close()  # also when it could not start


def _demo(args: argparse.Namespace) -> int:
    from feedmono.commands import demo  # noqa: PLC0415

    # First without the simulators: a mistake in the configuration is told at once.
    config = _load(args, demo.overrides(os.environ)).config
    try:
        demo.empty(config)
        simulators = demo.start([e.name for e in config.enabled_exchanges])
    except demo.DemoError as error:
        print(f"feedmono: {error}", file=sys.stderr)
        return 1
    try:
        overrides = {**demo.overrides(os.environ), **simulators.overrides}
        status = _capture(_loader(args, overrides), args.for_s)
    finally:
        simulators.stop()
    if status == 0:
        print(demo.summary(config))
    return status


def _check(args: argparse.Namespace) -> int:
    from feedmono.commands import check  # noqa: PLC0415

    loaded = _load(args)
    shown = check.render(loaded, args.format)
    if not args.online:
        print(shown)
        return 0
    from feedmono.commands import probes  # noqa: PLC0415

    results = probes.probe(loaded.config)
    tried = check.render_probes(results, args.format)
    if args.format == "json":
        both = {"configuration": json.loads(shown), "probes": json.loads(tried)}
        print(json.dumps(both, ensure_ascii=False, indent=2))
    else:
        print(f"{shown}\n{tried}")
    return 0 if all(result.ok for result in results) else 1


def _status(args: argparse.Namespace) -> int:
    from feedmono.supervision import snapshot  # noqa: PLC0415

    config = _load(args).config
    try:
        state = snapshot.state_of(config.state_dir)
    except (ValueError, OSError) as error:
        return _fail(f"{config.state_dir}: {error}")
    if state is None:
        return _fail(_nothing_runs(config))
    if args.format == "json":
        print(state.to_json())
        return 0
    from rich.console import Console  # noqa: PLC0415

    from feedmono.commands import table  # noqa: PLC0415

    console = Console()
    console.print(table.render(state))
    console.print()
    console.print(table.budgets(state))
    console.print(table.total(state))
    if state.alarms:
        console.print(table.alarms(state))
    if any(alarm.kind == "disk" for alarm in state.alarms):
        console.print(table.disks(state))
    return 0


def _nothing_runs(config: Config) -> str:
    return (
        f"nothing runs on state_dir {config.state_dir}; another instance is looked at with its "
        "own FEEDMONO_STATE_DIR"
    )


def _top(args: argparse.Namespace) -> int:
    from feedmono.commands import top  # noqa: PLC0415

    return top.run(_load(args).config.state_dir)


def _report(args: argparse.Namespace) -> int:
    from feedmono.report import html as report_html  # noqa: PLC0415
    from feedmono.report import report  # noqa: PLC0415
    from feedmono.report import text as report_text  # noqa: PLC0415
    from feedmono.supervision import snapshot  # noqa: PLC0415

    config = _load(args).config
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        state = snapshot.state_of(config.state_dir)
        if args.for_s is None:
            watched = report.kept(config.state_dir, state, time.time())
        elif state is None:
            return _fail(_nothing_runs(config))
        else:
            with _progress("watching", args.for_s) as advance:
                watched = report.watch(
                    lambda: snapshot.state_of(config.state_dir), args.for_s, advance
                )
        with _progress("reading back", None) as read:
            made = report.make(config, watched, read)
    except (ValueError, OSError, report.NoReportError) as error:
        return _fail(f"{config.state_dir}: {error}")
    except KeyboardInterrupt:
        return _fail("stopped before the end: nothing is reported")
    render = {
        "table": report_text.table,
        "markdown": report_text.markdown,
        "json": report_text.to_json,
        "html": report_html.html,
    }[args.format]
    print(render(made))
    return 0


def _reload(args: argparse.Namespace) -> int:
    from feedmono.supervision import reload  # noqa: PLC0415

    try:
        outcome = reload.request(_load(args).config.state_dir)
    except ConfigError as error:
        print(f"feedmono: not reloaded: {error}", file=sys.stderr)
        return 2
    except reload.NotReloadedError as error:
        return _fail(error)
    if not outcome.ok:
        print("feedmono: " + "\n".join(outcome.lines), file=sys.stderr)
        return 2
    print("\n".join(outcome.lines))
    return 0


def _tail(args: argparse.Namespace) -> int:
    from feedmono.commands import tail  # noqa: PLC0415

    config = _load(args).config
    if (wanted := _wanted(args, config)) is None:
        return 2
    show = tail.as_json if args.format == "json" else tail.as_text
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for trade in tail.follow(config, wanted, args.symbol):
            print(show(trade), flush=True)
    except tail.TailError as error:
        return _fail(error)
    return 0


def _wanted(
    args: argparse.Namespace, config: Config, stored: Collection[str] = ()
) -> list[str] | None:
    """The exchanges that are asked for; None, and a message, if they or the symbol can't be.

    :param stored: symbols that may be asked for though they are not configured any more.
    """
    known = [e.name for e in config.enabled_exchanges]
    if args.exchange is not None and args.exchange not in known:
        print(
            f"feedmono: no exchange {args.exchange!r} is enabled; there are {', '.join(known)}",
            file=sys.stderr,
        )
        return None
    wanted = [args.exchange] if args.exchange else known
    symbols = [s for name in wanted for s in config.exchanges[name].symbols]
    symbols += [s for s in stored if s not in symbols]
    if args.symbol is not None and args.symbol not in symbols:
        print(
            f"feedmono: {args.exchange} has no symbol {args.symbol!r}; there are "
            f"{', '.join(symbols)}",
            file=sys.stderr,
        )
        return None
    return wanted


def _fail(message: object) -> int:
    print(f"feedmono: {message}", file=sys.stderr)
    return 1


def _ledger(args: argparse.Namespace) -> int:
    from feedmono.commands import ledger_table  # noqa: PLC0415
    from feedmono.delivery.ledger_file import LedgerError  # noqa: PLC0415

    config = _load(args).config
    names = [e.name for e in config.enabled_exchanges if args.exchange in (None, e.name)]
    try:
        looks = [look for name in names if (look := ledger_table.look(config, name)) is not None]
    except LedgerError as error:
        return _fail(error)
    stored = [symbol for look in looks for symbol in look.content.symbols]
    if _wanted(args, config, stored) is None:
        return 2
    there = [look.exchange for look in looks]
    if absent := [name for name in names if name not in there]:
        _fail(ledger_table.no_ledger(config, ", ".join(absent)))
    if not looks:
        return 1
    if args.symbol is not None:
        if args.symbol not in stored:
            return _fail(f"no trade of {args.exchange} {args.symbol} was delivered yet")
        looks = [looks[0].only(args.symbol)]
    if args.format == "json":
        print(ledger_table.to_json(looks))
    elif args.symbol is not None:
        print(ledger_table.render_symbol(looks[0], args.symbol))
    else:
        print(ledger_table.render(looks))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from feedmono.commands import ledger_table  # noqa: PLC0415
    from feedmono.verify import table as verify_table  # noqa: PLC0415
    from feedmono.verify import verify  # noqa: PLC0415
    from feedmono.verify.findings import Result  # noqa: PLC0415

    config = _load(args).config
    signal.signal(signal.SIGINT, signal.default_int_handler)
    results: list[Result] = []
    failed = False
    try:
        stored = ledger_table.look(config, args.exchange) if args.symbol is not None else None
        wanted = _wanted(args, config, stored.content.symbols if stored else ())
    except verify.troubles(config) as error:
        return _fail(error)
    if wanted is None:
        return 2
    for name in wanted:
        try:
            verifier = verify.prepare(config, name, args.symbol, args.retained)
            with _progress(name, verifier.total()) as advance:
                results.append(verifier.run(advance))
        except verify.troubles(config) as error:
            failed = bool(_fail(error))
        except KeyboardInterrupt:
            return _fail("stopped before the end: nothing is verified")
    if results:
        print((verify_table.to_json if args.format == "json" else verify_table.render)(results))
    return 1 if failed or any(result.found for result in results) else 0


def _compare(args: argparse.Namespace) -> int:
    from feedmono.compare import compare  # noqa: PLC0415
    from feedmono.compare import source as compare_source  # noqa: PLC0415
    from feedmono.compare import table as compare_table  # noqa: PLC0415

    kafka = _load(args).config.kafka
    try:
        a, b = (compare_source.resolve(each, kafka, os.environ) for each in (args.a, args.b))
    except ValueError as error:
        _fail(error)
        return 2
    options = compare.Options(args.exchange, args.symbol, args.examples, args.spill)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        result = compare.compare(a, b, options, _progress)
    except compare.troubles(a, b) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("stopped before the end: nothing is compared")
    print((compare_table.to_json if args.format == "json" else compare_table.render)(result))
    return 0 if result.equal else 1


@contextlib.contextmanager
def _progress(name: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, if that is a terminal; tell it how much more is done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.advance(task, count)
