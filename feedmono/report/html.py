"""A report as one HTML file that needs nothing else: tables, and plots as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from feedmono.report.plot import Series, chart
from feedmono.report.report import Report
from feedmono.report.text import failed, happened, heading, step_s
from feedmono.supervision.samples import Row, in_steps

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--fore:#1b1f24;--faint:#6a737d;--line:#e3e6ea;
--ok:#1a7f37;--bad:#c62828;--note:#9a6700;--c0:#1769c2;--c1:#c2571a;--c2:#2c8a57;--c3:#8a3fb0;
--c4:#a8891a;--c5:#b0305c}
@media(prefers-color-scheme:dark){:root{--back:#14171b;--fore:#e4e7ea;--faint:#98a1ab;
--line:#2d333b;--ok:#57c26f;--bad:#ff7b72;--note:#d8a93a;--c0:#6cb0ff;--c1:#ff9d5c;--c2:#63cf95;
--c3:#cf94f0;--c4:#e0c44f;--c5:#f38bb0}}
body{font:15px/1.45 system-ui,sans-serif;background:var(--back);color:var(--fore);
max-width:760px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin:1.8em 0 .4em}
p.of{color:var(--faint);margin:.1em 0}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.28em .8em .28em 0;border-bottom:1px solid var(--line);
vertical-align:top;overflow-wrap:anywhere}th{color:var(--faint);font-weight:600}
td.ok{color:var(--ok)}td.over,td.failed{color:var(--bad);font-weight:600}
td.note,td.times,td.unchecked{color:var(--note)}
ul{padding-left:1.2em}li{overflow-wrap:anywhere}
figure{margin:1.4em 0}figcaption{display:flex;gap:1.2em;flex-wrap:wrap}
figcaption i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--faint)}
line.g{stroke:var(--line)}polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}
""" + "".join(
    f"polyline.s{n}{{stroke:var(--c{n % 6})}}i.k{n}{{background:var(--c{n % 6})}}"
    for n in range(12)
)

_Value = Callable[[Row], float | None]


def html(report: Report) -> str:
    """The whole document."""
    parts = ["<h1>feedmono report</h1>"]
    parts += [f'<p class="of">{escape(line)}</p>' for line in heading(report)]
    for validation in report.validations:
        parts.append(f"<h2>{escape(validation.exchange)}</h2>")
        rows = [(line.metric, line.actual, line.status) for line in validation.lines]
        parts.append(_table(("Metric", "Actual", "Status"), rows))
    parts.append("<h2>Resources</h2>")
    rows4 = [(each.metric, each.target, each.actual, each.status) for each in report.resources]
    parts.append(_table(("Metric", "Target", "Actual", "Status"), rows4))
    parts.append("<h2>Plots</h2>")
    parts += _plots(report)
    parts.append("<h2>Events</h2>")
    lines = [happened(act) for act in report.acts]
    if report.acts_left_out:
        lines.append(f"and {report.acts_left_out:,} before these")
    parts.append(_list(lines) if lines else "<p>None: no alarm, no warning, no error.</p>")
    if failures := [line for _, line in failed(report)]:
        parts += ["<h2>Records that are not valid</h2>", _list(failures)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>feedmono report</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>"
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in titles)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[:-1])
        kind = row[-1].rpartition(" ")[2]
        lines.append(f'<tr>{cells}<td class="{kind}">{escape(row[-1])}</td></tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _plots(report: Report) -> list[str]:
    step = step_s(report)
    rows = in_steps(report.rows, step)
    names = [validation.exchange for validation in report.validations]

    def plot(title: str, values: Sequence[tuple[str, str, _Value]], shown: _Shown) -> str:
        """:param values: name of the line, exchange, and which figure."""
        series = [
            Series(
                name, [(r.at_s, v) for r in rows if r.exchange == e and (v := of(r)) is not None]
            )
            for name, e, of in values
        ]
        return chart(title, series, report.since_s, report.until_s, step, shown)

    each: list[tuple[str, str]] = [(name, name) for name in names]
    together = [*each, ("total", "")]
    latencies: list[tuple[str, str, _Value]] = [
        (f"{name} {which}", name, of)
        for name in names
        for which, of in (
            ("median", lambda row: row.delivery_p50_s),
            ("p99", lambda row: row.delivery_p99_s),
        )
    ]
    return [
        plot("Trades/s", [(n, e, lambda r: r.trades / r.span_s) for n, e in each], _number),
        plot("Socket to acknowledged", latencies, _duration),
        plot("CPU, cores", [(n, e, lambda r: r.cpu_cores) for n, e in together], _fraction),
        plot("Memory", [(n, e, lambda r: r.memory_bytes) for n, e in together], _size),
        plot("Waiting in the ring", [(n, e, lambda r: r.ring_used_bytes) for n, e in each], _size),
    ]


_Shown = Callable[[float], str]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _fraction(value: float) -> str:
    return f"{value:.3g}"


def _duration(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _size(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"
