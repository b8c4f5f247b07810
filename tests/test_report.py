"""The report: what its tables say, of what, and how it looks in each format."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_rig import ALARM, BEGIN_S, report, row, rows, running, snapshot

from feedmono import config as configuration
from feedmono.config import Config
from feedmono.report import check as report_check
from feedmono.report import html as report_html
from feedmono.report import plot as report_plot
from feedmono.report import report as reporting
from feedmono.report import text as report_text
from feedmono.report.check import Checked
from feedmono.report.report import NoReportError, Watched
from feedmono.supervision import samples
from feedmono.supervision.snapshot import Snapshot

CHECKED = Checked(20, 20, 18, True, ("schemas/trade.avsc",))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    variables = {
        "FEEDMONO_STATE_DIR": str(tmp_path / "state"),
        "FEEDMONO_FILES_DIR": str(tmp_path / "data"),
    }
    return configuration.load(None, variables, cwd=tmp_path).config


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """Stands in for reading back; what was asked for."""
    asked: list[tuple[str, float, float]] = []

    def check(_: Config, exchange: str, since_s: float, until_s: float, __: object) -> Checked:
        asked.append((exchange, since_s, until_s))
        return CHECKED

    monkeypatch.setattr(report_check, "check", check)
    return asked


def actual(made: reporting.Report, metric: str, exchange: int = 0) -> tuple[str, str]:
    """What a line of the first table says, and its status."""
    lines = {line.metric: line for line in made.validations[exchange].lines}
    return lines[metric].actual, lines[metric].status


def test_the_tables_are_of_the_rows_and_of_nothing_else(
    config: Config, checked: list[tuple[str, float, float]]
) -> None:
    watched = Watched(tuple(rows(60, reconnects=1)), "kept", None)
    made = reporting.make(config, watched)
    assert checked == [("binance", BEGIN_S, BEGIN_S + 60)]
    assert (made.since_s, made.until_s, made.sampled_s) == (BEGIN_S, BEGIN_S + 60, 60)
    assert actual(made, "messages") == ("360", "ok")
    assert actual(made, "throughput") == ("5.0 trades/s, at most 5", "ok")
    assert actual(made, "reconnections") == ("60", "note")
    assert actual(made, "dead letters") == ("0", "ok")
    assert actual(made, "delivered after")[0] == "median 6.0 ms, p99 at most 14.0 ms"
    assert actual(made, "payload correctness") == (
        "20 of 20 records valid, 18 held against their frames",
        "ok",
    )
    resources = {each.metric: (each.target, each.actual, each.status) for each in made.resources}
    assert resources == {
        "binance CPU": ("0.50 cores", "0.100 cores, at most 0.100", "ok"),
        "binance RAM": ("512 MiB", "at most 60.0 MiB", "ok"),
        "total CPU": ("0.50 cores", "0.100 cores, at most 0.100", "ok"),
        "total RAM": ("512 MiB", "at most 60.0 MiB", "ok"),
    }


@pytest.mark.usefixtures("checked")
def test_what_is_over_its_budget_says_so_and_for_how_long(config: Config) -> None:
    calm, busy = rows(60), [replace(r, cpu_cores=0.9) for r in rows(60)]
    for taken, status in ((calm, "ok"), (calm[:90] + busy[90:], "at times"), (busy, "over")):
        made = reporting.make(config, Watched(tuple(taken), "kept", None))
        assert made.resources[0].status == status
        assert actual(made, "CPU")[1] == status
    greedy = Watched(tuple(rows(60, memory_bytes=600 << 20)), "kept", None)
    made = reporting.make(config, greedy)
    assert [r.status for r in made.resources] == ["ok", "over"] * 2
    assert [actual(made, what)[1] for what in ("CPU", "RAM")] == ["ok", "over"]
    # The budgets of a running instance are those that count.
    generous = snapshot(running(memory_budget_bytes=700 << 20))
    made = reporting.make(config, replace(greedy, state=generous))
    assert [r.status for r in made.resources] == ["ok"] * 4


@pytest.mark.usefixtures("checked")
def test_reasons_are_those_of_the_watched_time(config: Config) -> None:
    before = snapshot(
        running(reconnect_reasons={"stale": 3}, budget_exceeded={"memory restart": 1})
    )
    worker = replace(running().workers[0], restarts={"hung": 2})
    after = snapshot(
        running(
            reconnect_reasons={"stale": 4, "lost": 1},
            budget_exceeded={"memory restart": 2},
            workers=(worker,),
        )
    )
    seen = rows(10)
    seen[0] = replace(seen[0], reconnects=2, restarts=2)
    made = reporting.make(config, Watched(tuple(seen), "watched", after, before))
    assert actual(made, "reconnections") == ("2 (lost 1, stale 1)", "note")
    assert actual(made, "restarts of workers") == ("2 (hung 2)", "note")
    assert actual(made, "budget exceeded") == ("1 (memory restart 1)", "note")


@pytest.mark.usefixtures("checked")
def test_what_was_lost_and_what_is_missing_is_told(config: Config) -> None:
    seen = [row("binance", BEGIN_S + n, open_trades=9, holes_open=2) for n in range(5)]
    seen += [row("binance", BEGIN_S + 6, dead_letters=1, backfilled=7, trades=0, connected=0.0)]
    seen += [row("", BEGIN_S + 6)]
    made = reporting.make(config, Watched(tuple(seen), "kept", None))
    assert actual(made, "missing at the end") == ("0 in 0 gaps; 7 fetched by REST", "ok")
    assert actual(made, "dead letters") == ("1", "failed")
    assert actual(made, "connected") == ("83.3% of the time", "note")
    made = reporting.make(config, Watched((*seen[:5], seen[-1]), "kept", None))
    assert actual(made, "missing at the end") == ("9 in 2 gaps; 0 fetched by REST", "note")


@pytest.mark.parametrize(
    ("found", "text", "status"),
    [
        (Checked(9, 8, 0, True, ()), "8 of 9 records valid", "failed"),
        (Checked(9, 9, 0, False, ()), "9 of 9 newest records valid", "ok"),
        (Checked(0, 0, 0, True, ()), "no record of this time to read back", "unchecked"),
        (Checked(5, 0, 0, False, (), (), "no broker"), "not to be had: no broker", "unchecked"),
    ],
)
def test_correctness_is_never_assumed(found: Checked, text: str, status: str) -> None:
    line = reporting.payload(found)
    assert (line.actual, line.status) == (text, status)


@pytest.mark.usefixtures("checked")
def test_each_act_of_the_time_is_a_line(config: Config) -> None:
    config.state_dir.mkdir()
    lines: list[tuple[int, str, str, dict[str, object]]] = [
        (-5, "warning", "too early", {}),
        (5, "info", "summary", {}),
        (6, "warning", "over its memory budget: restarted",
         {"exchange": "binance", "worker": "reader", "memory_mib": 600, "pid": 7}),
        (7, "info", "throttled", {"exchange": "binance", "worker": "serializer"}),
        (8, "error", "a worker hangs: killed", {"exchange": "binance", "worker": "reader"}),
        (99, "warning", "too late", {}),
    ]  # fmt: skip
    with (config.state_dir / "events.jsonl").open("w") as file:
        for after_s, level, event, fields in lines:
            moment = time.gmtime(BEGIN_S + after_s)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", moment)
            file.write(json.dumps({"timestamp": stamp, "level": level, "event": event, **fields}))
            file.write("\n")
    state = snapshot(running(), alarms=(replace(ALARM, since_s=BEGIN_S - 60),))
    watched = Watched(tuple(rows(60)), "kept", state, alarms=state.alarms)
    made = reporting.make(config, watched)
    assert [(act.level, act.exchange, act.text) for act in made.acts] == [
        ("warning", "kraken", "alarm, since before: 600 MiB of 512 MiB"),
        ("warning", "binance", "reader over its memory budget: restarted: memory_mib 600"),
        ("info", "binance", "serializer throttled"),
        ("error", "binance", "reader a worker hangs: killed"),
    ]


def test_watching_takes_each_snapshot_once_and_none_before_the_first() -> None:
    taken: list[Snapshot] = []
    begun = time.monotonic()

    def look() -> Snapshot:
        # As a supervisor that tells every 0.6 s, 7 trades each time.
        number = int((time.monotonic() - begun) / 0.6)
        state = running(trades=1000 + 7 * number)
        taken.append(replace(snapshot(state), started_at_s=0.0, taken_at_s=BEGIN_S + number))
        return taken[-1]

    over: list[float] = []
    watched = reporting.watch(look, 3.2, over.append)
    own = [r for r in watched.rows if r.exchange == "binance"]
    count = len({state.taken_at_s for state in taken})
    assert count >= 4
    assert len(own) in (count - 1, count - 2)
    assert {r.trades % 7 for r in own} == {0}
    assert max(r.trades for r in own) < 1000
    assert sum(over) == pytest.approx(3.2)
    assert (watched.before, watched.state) == (taken[0], taken[-1])


def test_watching_goes_on_over_a_restart_and_says_that_there_was_one() -> None:
    begun = time.monotonic()

    def look() -> Snapshot | None:
        passed = time.monotonic() - begun
        if 1.5 < passed < 2.0:
            return None
        state = replace(snapshot(), started_at_s=0.0, taken_at_s=BEGIN_S + int(passed / 0.6))
        return state if passed < 1.5 else replace(state, pid=100)

    watched = reporting.watch(look, 4, lambda _: None)
    assert watched.notes == ("the instance did not run all the time",)
    assert watched.before is not None
    assert watched.before.pid == 100


def test_ctrl_c_reports_what_was_seen_so_far() -> None:
    begun = time.monotonic()

    def look() -> Snapshot:
        if time.monotonic() - begun > 2:
            raise KeyboardInterrupt
        number = int((time.monotonic() - begun) / 0.6)
        return replace(snapshot(), started_at_s=0.0, taken_at_s=BEGIN_S + number)

    watched = reporting.watch(look, 3600, lambda _: None)
    assert watched.notes == ("stopped after 2 of 3600 s",)


def test_an_instance_that_tells_nothing_is_no_report() -> None:
    with pytest.raises(NoReportError):
        reporting.watch(snapshot, 0.3, lambda _: None)


def test_kept_samples_are_those_of_the_last_hour_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(NoReportError, match="no samples"):
        reporting.kept(tmp_path, None, BEGIN_S)
    with samples._open(tmp_path / samples.FILE) as connection:
        seconds = [samples._stored(r, 1) for r in rows(5000)]
        connection.executemany(samples._PUT, seconds)
    connection.close()
    later_s = BEGIN_S + 50_000
    past = reporting.kept(tmp_path, None, later_s)
    assert {r.at_s for r in past.rows} == {BEGIN_S + n for n in range(1401, 5001)}
    assert past.notes == ("nothing runs now: this is of the past",)
    with pytest.raises(NoReportError):
        reporting.kept(tmp_path, snapshot(), later_s)
    now = reporting.kept(tmp_path, snapshot(), BEGIN_S + 5000)
    assert (len(now.rows), now.notes) == (7200, ())


# --- formats


def test_the_table_fits_80_columns_and_says_what_it_is_of() -> None:
    text = report_text.table(report())
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "2026-11-23 00:00:00 to 2026-11-23 00:02:00 UTC, 2 min",
        "a running instance, watched",
        "no samples of 1 min of it",
        "nothing runs now",
        "99 of 100 records valid",
        "f.avro byte 7: a|b <i>c</i>",
        "kraken restarted: <memory> | 2",
        "at most 2,000.0 MiB",
    ):
        assert part in text, part
    long = replace(report().validations[0].lines[0], actual="not to be had: " + "why " * 60)
    validation = replace(report().validations[0], lines=(long,))
    text = report_text.table(report(validations=(validation,)))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("why") == 60


def test_markdown_is_tables_that_no_text_breaks() -> None:
    lines = report_text.markdown(report()).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    # Behind an escape a bar does not part cells.
    widths = [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in tables]
    assert widths == [3] * 3 + [3] * 4 + [4] * 5
    assert "| Metric | Actual | Status |" in tables
    assert "| total RAM | 1,024 MiB | at most 2,000.0 MiB | over |" in tables
    assert any(r"\<memory\> \| 2" in line for line in lines)


def test_json_has_every_figure_and_the_samples() -> None:
    content = json.loads(report_text.to_json(report()))
    assert content["validations"][1]["checked"]["valid"] == 99
    assert content["validations"][0]["total"]["trades"] == 5
    assert content["resources"][1]["status"] == "over"
    assert content["acts"][0]["level"] == "warning"
    assert {point["exchange"] for point in content["samples"]} == {"", "binance", "kraken"}
    hours = report(since_s=BEGIN_S - 3480, rows=tuple(rows(3000)))
    assert len(json.loads(report_text.to_json(hours))["samples"]) <= 2 * 301


class Page(HTMLParser):
    """What a document has, and whether its elements are closed."""

    VOID = frozenset({"meta", "br", "line", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_html_is_whole_and_needs_nothing_from_outside() -> None:
    text = report_html.html(report())
    page = Page(text)
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == 3
    assert names.count("svg") == 5
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(names)
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "onload", "style"} & set(attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text
    assert "prefers-color-scheme:dark" in text
    assert "color-scheme:light dark" in text
    assert "restarted: <memory> | 2" in page.text
    assert "f.avro byte 7: a|b <i>c</i>" in page.text
    classes = {attributes.get("class") for tag, attributes in page.tags if tag == "td"}
    assert classes == {None, "ok", "over", "failed", "times"}
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)


def points(figure: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, _, y in (p.partition(",") for p in line.split())]
        for line in re.findall(r'points="([^"]*)"', figure)
    ]


def test_a_chart_is_true_to_scale_and_breaks_where_there_is_nothing() -> None:
    values = [(0.0, 0.0), (1.0, 5.0), (2.0, 10.0), (7.0, 10.0), (10.0, 2.5)]
    series = [report_plot.Series("a < b", values)]
    figure = report_plot.chart("Trades & more", series, 0, 10, 1, lambda v: f"{v:g}")
    lines = points(figure)
    assert [len(line) for line in lines] == [4, 2, 2]
    (_, bottom), (_, middle), (x, top) = lines[0][1:]
    assert bottom - middle == pytest.approx(middle - top)
    assert lines[1][1][1] == pytest.approx(top)
    left, right = lines[0][1][0], lines[2][1][0]
    assert x == pytest.approx(left + (right - left) / 5, abs=0.2)
    assert "Trades &amp; more" in figure
    assert "a &lt; b 2.5" in figure


@pytest.mark.parametrize(
    ("value", "round_"), [(0, 1), (0.013, 0.02), (7, 8), (8.5, 10), (55, 80), (1e9, 1e9), (41, 50)]
)
def test_an_axis_ends_at_a_round_number(value: float, round_: float) -> None:
    assert report_plot.nice(value) == pytest.approx(round_)


def test_a_report_without_latencies_or_acts_is_drawn_as_well() -> None:
    bare = [replace(r, delivery_p50_s=None, delivery_p99_s=None, trades=0) for r in report().rows]
    empty = report(rows=tuple(bare), acts=(), notes=())
    assert "None: no alarm, no warning, no error." in Page(report_html.html(empty)).text
    assert "none: no alarm" in report_text.table(empty)
    assert "- none: no alarm" in report_text.markdown(empty)
