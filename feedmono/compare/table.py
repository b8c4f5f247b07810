"""What ``feedmono compare`` shows: tables, one line for all, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from feedmono.commands.columns import Column, columns_fit, counted
from feedmono.compare.result import (
    DIFFERENT,
    KINDS,
    Example,
    Found,
    Latency,
    Result,
    SideResult,
    SymbolResult,
    Values,
)

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_UNITS = {10**9: "1 s", 10**6: "1 ms", 10**3: "1 us", 1: "1 ns"}
_NS = 10**9


def summary(result: Result) -> str:
    """All in one line."""
    common = result.total("common")
    read = f"{counted(common, 'common trade')} of {counted(len(result.symbols), 'symbol')}"
    found = [f"{count:,} {kind}" for kind, count in result.kinds() if count]
    for letter, side in (("A", result.a), ("B", result.b)):
        if side.undecoded:
            found.append(f"{side.undecoded:,} undecodable in {letter}")
    if found:
        return f"different: {read}; {', '.join(found)}"
    if not common:
        return "nothing compared: A and B have no trade in common, and no time"
    return f"equal: {read}, none missing, doubled, different or out of order"


def to_json(result: Result) -> str:
    """All of it as one object; times are nanoseconds of Unix time, latencies microseconds."""
    content = {
        "equal": result.equal,
        "summary": summary(result),
        "a": _side_json(result.a),
        "b": _side_json(result.b),
        "compared": result.compared,
        "time_steps_ns": result.time_steps_ns,
        "symbols": [_symbol_json(symbol) for symbol in result.symbols],
        "latency_us": _latency_json(result.latency),
        "found": [
            {
                "kind": found.kind,
                "exchange": found.exchange,
                "symbol": found.symbol,
                "count": found.count,
                "examples": [_example_json(example) for example in found.examples],
            }
            for found in result.found
        ],
        "notes": list(_notes(result)),
    }
    return json.dumps(content, ensure_ascii=False, indent=2)


def _side_json(side: SideResult) -> dict[str, object]:
    return {
        "source": side.name,
        "trades": side.trades,
        "passed_over": side.passed_over,
        "undecodable": side.undecoded,
        "undecodable_examples": [each._asdict() for each in side.undecoded_named],
        "torn_ends": side.torn,
        "latency_by": side.seen_by or None,
    }


def _symbol_json(symbol: SymbolResult) -> dict[str, object]:
    content = {
        name: getattr(symbol, name)
        for name in symbol.__slots__
        if name not in ("latency", "fields", "different")
    }
    return {
        **content,
        "different": symbol.different,
        "different_fields": dict(sorted(symbol.fields.items())),
        "latency_us": _latency_json(symbol.latency),
    }


def _latency_json(latency: Latency) -> dict[str, int] | None:
    if not latency.count:
        return None
    shares = {name: latency.percentile_us(share) for name, share in _SHARES.items()}
    return {"count": latency.count, "min": latency.min_us, **shares, "max": latency.max_us}


def _example_json(example: Example) -> dict[str, object]:
    return {
        "trade_id": example.trade_id,
        "a": example.a and example.a._asdict(),
        "b": example.b and example.b._asdict(),
        "note": example.note or None,
    }


def render(result: Result, width: int | None = None) -> str:
    """A row per symbol, below it latencies and what was found, and all in one line at last."""
    parts = [f"A: {_side(result.a)}\nB: {_side(result.b)}", _table(result.symbols, width)]
    if result.latency.count:
        by = " minus ".join(f"{x}'s {s.seen_by}" for x, s in (("A", result.a), ("B", result.b)))
        parts.append(f"latency of A against B ({by}):\n{_latencies(result, width)}")
    if notes := list(_notes(result)):
        parts.append("\n".join(notes))
    for kind, meaning in KINDS.items():
        lines = [line for f in result.found if f.kind == kind for line in _lines(result, f)]
        if lines:
            parts.append("\n".join([f"{kind} ({meaning}):", *lines]))
    for letter, side in (("A", result.a), ("B", result.b)):
        if side.undecoded:
            named = [f"  {place}: {reason}" for place, reason in side.undecoded_named]
            more = ["  …"] if len(named) < side.undecoded else []
            title = f"undecodable in {letter} ({counted(side.undecoded, 'record')}):"
            parts.append("\n".join([title, *named, *more]))
    return "\n\n".join([*parts, summary(result)])


def _side(side: SideResult) -> str:
    passed = f", {counted(side.passed_over, 'record')} passed over" if side.passed_over else ""
    return f"{side.name}: {counted(side.trades, 'trade')}{passed}"


def _table(symbols: Sequence[SymbolResult], width: int | None) -> str:
    def column(title: str, name: str, rank: int = 0) -> Column:
        cells = [_number(getattr(symbol, name)) for symbol in symbols]
        total = [_number(sum(getattr(symbol, name) or 0 for symbol in symbols))]
        return Column(title, cells + (total if len(symbols) > 1 else []), rank=rank)

    more = ["all"] if len(symbols) > 1 else []
    return columns_fit(
        [
            Column("exchange", [symbol.exchange for symbol in symbols] + more, left=True),
            Column("symbol", [symbol.symbol for symbol in symbols] + [""] * len(more), left=True),
            column("in A", "trades_a", 1),
            column("in B", "trades_b", 1),
            column("common", "common"),
            column("not in A", "missing_a"),
            column("not in B", "missing_b"),
            column("different", "different"),
            column("moved", "out_of_order"),
            column("2x A", "doubled_a"),
            column("2x B", "doubled_b"),
            column("outside A", "outside_a", 2),
            column("outside B", "outside_b", 2),
        ],
        width,
    )


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _latencies(result: Result, width: int | None) -> str:
    rows = [(s.exchange, s.symbol, s.latency) for s in result.symbols if s.latency.count]
    if len(rows) > 1:
        rows.append(("all", "", result.latency))
    columns = [
        Column("exchange", [exchange for exchange, _, _ in rows], left=True),
        Column("symbol", [symbol for _, symbol, _ in rows], left=True),
        Column("trades", [f"{each.count:,}" for _, _, each in rows], rank=1),
        Column("min", [_ms(each.min_us) for _, _, each in rows]),
    ]
    for name, share in _SHARES.items():
        columns.append(Column(name, [_ms(each.percentile_us(share)) for _, _, each in rows]))
    columns.append(Column("max", [_ms(each.max_us) for _, _, each in rows]))
    return columns_fit(columns, width)


def _ms(latency_us: int) -> str:
    return f"{latency_us / 1000:+,.3f} ms"


def _notes(result: Result) -> Iterator[str]:
    """What is worth knowing and no difference."""
    outside = {letter: result.total(f"outside_{letter.lower()}") for letter in "AB"}
    for letter, other in (("A", "B"), ("B", "A")):
        if outside[letter]:
            yield (
                f"{counted(outside[letter], 'trade')} only in {letter}, from before {other} began "
                "or after it ended: not judged"
            )
    yield from result.uncompared
    for exchange, step_ns in result.time_steps_ns.items():
        if "exchange_timestamp" in result.compared:
            yield f"{exchange}: times are compared at {_UNITS[step_ns]}, the coarser side's"
    for letter, side in (("A", result.a), ("B", result.b)):
        if not side.seen_by:
            yield f"no latency: {letter} does not tell when it had its trades"
        if side.torn:
            yield f"{letter}: {counted(side.torn, 'file')} end within a record, still being written"
    if result.a.seen_by and result.b.seen_by and not result.latency.count:
        yield "no latency: no common trade has its time of receipt on both sides"
    if mixed := [symbol.symbol for symbol in result.symbols if symbol.out_of_order is None]:
        yield (
            f"order is not compared for {counted(len(mixed), 'symbol')}, such as {mixed[0]}, whose "
            "trades lie in several partitions"
        )


def _lines(result: Result, found: Found) -> Iterator[str]:
    fields = ""
    if found.kind == DIFFERENT:
        (symbol,) = (
            s for s in result.symbols if (s.exchange, s.symbol) == (found.exchange, found.symbol)
        )
        fields = f" ({', '.join(f'{n} {c:,}' for n, c in sorted(symbol.fields.items()))})"
    yield f"  {found.exchange} {found.symbol}: {found.count:,}{fields}"
    for example in found.examples:
        yield f"    {example.trade_id}{_example(example)}"
    if 0 < len(found.examples) < found.count:
        yield "    …"


def _example(example: Example) -> str:
    _, a, b, note = example
    if a is None or b is None:
        known = a or b
        parts = [note, _values(known) if known else ""]
        return "".join(f", {part}" for part in parts if part)
    shown = []
    for name in note.split(", "):
        each = "time_ns" if name == "exchange_timestamp" else name
        shown.append(f"{name} {_value(a, each)} in A, {_value(b, each)} in B")
    return ": " + "; ".join(shown)


def _value(values: Values, name: str) -> str:
    value = getattr(values, name)
    return _moment(value) if name == "time_ns" else str(value)


def _values(values: Values) -> str:
    figures = " x ".join(text for text in (values.price, values.quantity) if text is not None)
    moment = "" if values.time_ns is None else _moment(values.time_ns)
    return " ".join(part for part in (values.side, figures, moment) if part)


def _moment(time_ns: int | None) -> str:
    if time_ns is None:
        return "unknown"
    seconds, rest = divmod(time_ns, _NS)
    fraction = f"{rest:09}".rstrip("0")
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}{'.' if fraction else ''}{fraction}Z"
