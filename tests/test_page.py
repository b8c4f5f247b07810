"""The page: its verdict, what it is served with, and how it shows it in a real browser."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Tab, find
from instance import Instance
from page_rig import Made, exchange, state
from sim import Sim

from feedmono import config as configuration
from feedmono import events
from feedmono.supervision.snapshot import Alarm
from feedmono.web import page
from feedmono.web.health import Health
from feedmono.web.health import Reason as Unready

_FLOWING = "All exchanges flowing, nothing missing"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find() is None:
        missing = "this machine has no Chromium (Debian's package is `chromium`)"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI looks at the page: {missing}", pytrace=False)
        pytest.skip(f"the page is not looked at: {missing}")
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    made = Made(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def opened(chromium: Browser, url: str, **how: Any) -> Tab:
    """A tab that shows the state and the history."""
    tab = chromium.tab(url, **how)
    tab.wait("!!document.querySelector('#overview tbody tr') && lately !== null")
    return tab


def row(tab: Tab, name: str) -> dict[str, str]:
    """An exchange's figures in the overview, by column."""
    cells: dict[str, str] = tab.value(
        f"""Object.fromEntries([...document.querySelectorAll('#overview tbody tr')]
        .find(tr => tr.cells[0].textContent === {json.dumps(name)})
        .querySelectorAll('[data-name]').values().map(c => [c.dataset.name, c.textContent]))"""
    )
    return cells


# --- the verdict


def test_all_is_well_when_all_exchanges_flow_and_nothing_is_missing() -> None:
    assert page.judge(state(), time.time()) == page.Verdict("ok", _FLOWING)


def test_what_is_missing_for_good_is_told_though_nothing_can_be_done() -> None:
    lost = exchange(counts={"beyond": 1200})
    verdict = page.judge(state(lost), time.time())
    assert verdict.level == "ok"
    assert verdict.text == "All exchanges flowing, 1,200 trades missing for good"


@pytest.mark.parametrize(
    ("fields", "level", "text"),
    [
        ({"state": "waiting", "detail": "no broker"}, "bad", "waiting: no broker"),
        ({"state": "stopped"}, "bad", "stopped"),
        ({"state": "connecting"}, "bad", "connecting"),
        ({"state": "restarting", "detail": "the reader, for 2 s"}, "bad", "for 2 s"),
        ({"state": "partial", "detail": "1 of 2 connections"}, "warn", "1 of 2 connections"),
        ({"state": "starting"}, "warn", "starting"),
        ({"counts": {"holes_open": 2, "open_trades": 7}}, "warn", "7 trades missing in 2 gaps"),
        ({"counts": {"holes_open": 1, "open_trades": 1}}, "warn", "1 trade missing in 1 gap,"),
        ({"dead_letters": 1}, "warn", "1 message could not be stored"),
        ({"throttle": 0.4}, "warn", "throttled to 40%"),
    ],
)
def test_the_verdict_names_what_is_wrong_with_an_exchange(
    fields: dict[str, object], level: str, text: str
) -> None:
    verdict = page.judge(state(exchange(), exchange("kraken", **fields)), time.time())
    assert verdict.level == level
    assert verdict.text == {"bad": "Trouble", "warn": "Attention"}[level] + ": kraken"
    (reason,) = verdict.reasons
    assert (reason.level, reason.exchange) == (level, "kraken")
    assert text in reason.text


def test_the_verdict_tells_alarms_with_their_beginning_and_the_worst_first() -> None:
    alarm = Alarm("disk", "", "4 % free", 12.0)
    verdict = page.judge(state(exchange(state="stopped"), alarms=(alarm,)), time.time())
    assert verdict.text == "Trouble: binance, the machine"
    assert [r.level for r in verdict.reasons] == ["bad", "warn"]
    assert verdict.reasons[1] == page.Reason("warn", "", "4 % free", 12.0)


def test_the_verdict_says_what_readyz_says() -> None:
    stale = Unready("kraken", "stale", "no trade of BTC/USD", 40.0)
    health = Health(0.0, None, (stale,), (), {})
    verdict = page.judge(state(), 1000.0, health=health)
    assert verdict.text == "Trouble: kraken"
    assert verdict.reasons == (page.Reason("bad", "kraken", "no trade of BTC/USD", 960.0),)
    waiting = exchange("kraken", state="waiting", detail="no broker")
    assert len(page.judge(state(waiting), 1000.0, health=health).reasons) == 1


def test_an_old_state_or_none_is_no_good_news() -> None:
    now_s = time.time()
    old = page.judge(replace(state(), taken_at_s=now_s - 11), now_s)
    assert (old.level, old.text) == ("bad", "Nothing is known of now")
    none = page.judge(None, now_s, "nothing there")
    assert (none.level, none.reasons[0].text) == ("bad", "nothing there")


def test_a_folder_without_a_readable_state_is_said_in_the_verdict(tmp_path: Path) -> None:
    environ = {"FEEDMONO_STATE_DIR": str(tmp_path)}
    config = configuration.load(None, environ, cwd=tmp_path).config
    nothing = json.loads(page.state(config))
    assert nothing["snapshot"] is None
    assert "no state has been published" in nothing["verdict"]["reasons"][0]["text"]
    (tmp_path / "status.json").write_text('{"half": ')
    assert "can't be read" in json.loads(page.state(config))["verdict"]["reasons"][0]["text"]


def test_the_newest_events_come_first_and_without_the_summaries(made: Made) -> None:
    for second in range(60):
        for event in ("summary", f"event {second}"):
            at = f"2026-01-01T00:00:{second:02}Z"
            line = {"timestamp": at, "level": "info", "event": event, "text": "x" * 1000}
            events.append(made.config.state_dir, json.dumps(line).encode())
    shown = json.loads(page.state(made.config))["events"]
    assert [e["event"] for e in shown] == [f"event {second}" for second in range(59, 9, -1)]
    assert len(shown[0]["fields"]["text"]) == 300


# --- what was


def test_the_history_has_the_figures_of_each_exchange_and_of_all_together(made: Made) -> None:
    made.sample(3000, 60)
    history = json.loads(page.history(made.config, 60))
    assert history["until_s"] - history["from_s"] == pytest.approx(3600)
    assert set(history["series"]) == {"binance", "kraken", ""}
    series = history["series"]["binance"]
    assert len({len(values) for values in series.values()}) == 1
    assert 280 < len(series["at_s"]) <= 360
    assert sum(series["reconnects"]) == 1
    assert series["trades_per_s"][100] == pytest.approx(50)
    assert history["series"]["kraken"]["trades_per_s"][100] == pytest.approx(0.6)


def test_a_history_is_bounded_however_long_it_is_asked_for(made: Made) -> None:
    made.sample(3000, 60)
    for minutes, allowed in ((0, 1), (10**9, page.MAX_MINUTES)):
        history = json.loads(page.history(made.config, minutes))
        assert history["until_s"] - history["from_s"] == pytest.approx(60 * allowed)
        assert all(len(s["at_s"]) <= 361 for s in history["series"].values())


def test_who_asks_soon_again_gets_the_same_history(made: Made) -> None:
    assert page.history(made.config, 17) == page.history(made.config, 17)
    assert page.history(made.config, 17) != page.history(made.config, 18)


def test_symbols_are_listed_those_with_gaps_first_and_bounded(made: Made) -> None:
    symbols = [f"S{number:04}USDT" for number in range(page.MAX_SYMBOLS + 200)]
    made.deliver("binance", symbols, gap_in=symbols[-1])
    found = json.loads(page.history(made.config, 60))["symbols"]["binance"]
    assert found["total"] == len(symbols)
    assert len(found["rows"]) == page.MAX_SYMBOLS
    first, second = found["rows"][:2]
    assert (first["symbol"], first["open_holes"], first["open_ids"]) == (symbols[-1], 1, 5)
    assert (first["first_id"], first["last_id"], first["trades"]) == (101, 108, 3)
    assert (second["symbol"], second["open_ids"], second["trades"]) == (symbols[0], 0, 3)


# --- in a browser


def test_each_exchange_is_shown_as_the_snapshot_has_it(made: Made, chromium: Browser) -> None:
    waiting = exchange(
        "kraken",
        state="waiting",
        detail="no broker",
        last_trade_age_s=None,
        delivery_p50_s=None,
        delivery_p99_s=None,
        memory_bytes=600 << 20,
        counts={"holes_open": 2, "open_trades": 1234},
    )
    made.publish(state(exchange(), waiting))
    tab = opened(chromium, made.url)
    assert row(tab, "binance") == {
        "state": "✓ flowing",
        "trades/s": "54.6",
        "trades": "1,234,567",
        "last": "< 1 s",
        "receive p50 / p99": "23 ms / 81 ms",
        "delivery p50 / p99": "6.1 ms / 1.5 s",
        "missing": "0",
        "ring": "10 %",
        "CPU cores of budget": "0.04 / 0.50",
        "memory of budget": "78 / 512 MiB",
        "reconnects": "12",
        "restarts": "3",
    }
    kraken = row(tab, "kraken")
    assert (kraken["state"], kraken["last"], kraken["delivery p50 / p99"]) == (
        "✕ waiting",
        "–",
        "–",
    )
    assert kraken["missing"] == "▲ 1,234in 2 gaps"
    assert kraken["memory of budget"] == "▲ 600 / 512 MiB"
    together = row(tab, "all processes")
    assert together["CPU cores of budget"] == "0.06 / 1.00"
    assert together["memory of budget"] == "171 / 1,024 MiB"
    assert tab.text("#headline") == "Trouble: kraken"
    assert "waiting: no broker" in tab.text("#reasons")
    assert "files" in tab.text("#facts")
    assert "1 d 2 h" in tab.text("#facts")
    tab.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    tab.wait_text("#details article", "4,242")
    for part in ("reader", "4711", "crashed 3", "lost 11, silent 1"):
        assert part in tab.text("#details article")
    assert "/srv/data" in tab.text("#details article:last-child")


def test_the_page_updates_by_itself(made: Made, chromium: Browser) -> None:
    tab = opened(chromium, made.url)
    tab.wait_text("#headline", _FLOWING)
    assert tab.value("document.title") == "✓ feedmono"
    alarm = Alarm("cpu", "kraken", "0.9 cores of 0.5", time.time() - 300)
    made.publish(state(exchange("kraken", trades_per_s=77.7), alarms=(alarm,)))
    tab.wait_text("#headline", "Attention: kraken")
    assert "0.9 cores of 0.5" in tab.text("#reasons")
    assert ", 5 min" in tab.text("#reasons")
    assert row(tab, "kraken")["trades/s"] == "77.7"
    assert tab.value("document.querySelectorAll('article').length") == 2
    assert tab.value("document.title") == "▲ feedmono – Attention: kraken"
    made.publish(state())
    tab.wait_text("#headline", _FLOWING)
    assert tab.value("document.querySelectorAll('article').length") == 3


def test_charts_have_the_hour_s_points_and_gaps_where_nothing_was_recorded(
    made: Made, chromium: Browser
) -> None:
    made.sample(3000, 1800)
    made.sample(1200, 60)
    tab = opened(chromium, made.url)
    lines = tab.value(
        "[...document.querySelectorAll('article:first-child figure')].map(f => "
        "f.querySelector('path.line:not(.two)').getAttribute('d'))"
    )
    assert len(lines) == 6
    for line in lines:
        assert line.count("M") == 2
        assert line.count("L") > 200
    read = tab.text("article:first-child figure:nth-child(4)")
    assert "budget 0.50" in read
    assert tab.value("document.querySelectorAll('article:first-child line.limit').length") == 3
    marks = tab.value("document.querySelector('path.mark').getAttribute('d')")
    assert marks.count("M") == 2
    label = tab.value("document.querySelector('svg.chart').getAttribute('aria-label')")
    assert label.startswith("Trades per second, binance, 1 h: between 0.0 and 50.0")


def test_a_chart_tells_the_values_below_the_pointer_and_by_arrow_keys(
    made: Made, chromium: Browser
) -> None:
    made.sample(3000, 60)
    tab = opened(chromium, made.url)
    x, y = tab.value(
        "(() => { const box = document.querySelector('svg.chart').getBoundingClientRect();"
        "return [box.left + box.width / 2, box.top + box.height / 2] })()"
    )
    tab.mouse(x, y)
    tab.wait("document.querySelectorAll('line.cursor').length === charts.size")
    shown = "document.querySelector('text.at').textContent"
    first = tab.value(shown)
    assert first.count(":") == 2
    assert "50.0" in tab.text("article:first-child figcaption")
    tab.value("document.querySelector('svg.chart').focus()")
    key = {"key": "ArrowLeft", "code": "ArrowLeft", "windowsVirtualKeyCode": 37}
    tab.call("Input.dispatchKeyEvent", type="keyDown", **key)
    assert tab.value(shown) < first
    tab.mouse(2, 2)
    tab.wait("!document.querySelector('line.cursor')")


def test_an_empty_history_is_said(made: Made, chromium: Browser) -> None:
    tab = opened(chromium, made.url)
    assert "nothing recorded in this time" in tab.value(
        "document.querySelector('svg.chart').textContent"
    )
    tab.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    tab.wait_text("article:first-child", "Nothing has been delivered yet.")
    assert "nothing has happened yet" in tab.text("#events")
    assert tab.complaints == []


def test_another_time_is_shown_when_it_is_chosen(made: Made, chromium: Browser) -> None:
    made.sample(290, 10, every_s=1.0)
    tab = opened(chromium, made.url)
    assert tab.text("#range label:has(:checked)") == "1 h"
    tab.value("document.querySelector('#range input[value=\"5\"]').click()")
    tab.wait("lately.until_s - lately.from_s < 301 && lately.series.binance.at_s.length > 200")
    assert tab.value("location.hash") == "#minutes=5"
    again = opened(chromium, made.url + "#minutes=5")
    assert again.text("#range label:has(:checked)") == "5 min"


def test_nothing_leaves_the_origin_and_nothing_is_complained_of(
    made: Made, chromium: Browser
) -> None:
    made.sample(3000, 60)
    made.deliver("binance", ["BTCUSDT"], gap_in="BTCUSDT")
    tab = opened(chromium, made.url)
    tab.wait(f"performance.getEntriesByType('resource').length > {len(page.ASSETS) + 3}")
    asked = [url for url in tab.requests if not url.startswith("data:")]
    assert f"{made.url}api/state" in asked
    assert all(url.startswith(made.url) for url in asked)
    assert tab.complaints == []
    # The log of complaints does work.
    tab.value("fetch('https://example.com/').catch(() => 0)")
    tab.wait("1")
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


def test_what_an_exchange_says_stays_text(made: Made, chromium: Browser) -> None:
    evil = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>\'"&amp;'
    made.publish(
        state(
            exchange(name=evil, state="waiting", detail=evil, refused={evil: evil}),
            alarms=(Alarm("disk", "", evil, 1.0),),
            sink=evil,
        )
    )
    line = {"timestamp": "2026-01-01T00:00:00Z", "level": "error", "event": evil, "worker": evil}
    events.append(made.config.state_dir, json.dumps({**line, evil: evil}).encode())
    made.deliver("binance", [evil], gap_in=evil)
    tab = opened(chromium, made.url)
    tab.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    for part in ("#headline", "#reasons", "#overview", "#details", "#events", "#facts"):
        assert evil in tab.text(part)
    assert tab.value("document.querySelectorAll('img, body script').length") == 0
    assert tab.value("window.evil === undefined")
    assert tab.complaints == []


def test_a_lost_connection_is_said_and_so_is_its_return(made: Made, chromium: Browser) -> None:
    tab = opened(chromium, made.url)
    tab.wait_text("#headline", _FLOWING)
    made.stop()
    tab.wait_text("#headline", "No connection to feedmono since ")
    assert tab.text("#reasons") == (
        "It can't be reached. What is below is from then. Trying again every 2 s."
    )
    # Its green is no longer true.
    faded = "getComputedStyle(document.querySelector('#now')).filter"
    assert tab.value(faded) == "grayscale(1)"
    assert tab.value("document.querySelector('#verdict').className") == "verdict bad"
    assert row(tab, "binance")["trades/s"] == "54.6"
    made.publish(state(exchange(trades_per_s=99.0)))
    made.serve()
    tab.wait_text("#headline", _FLOWING)
    assert row(tab, "binance")["trades/s"] == "99.0"
    assert tab.value(faded) == "none"


def test_nothing_is_asked_while_the_page_is_hidden(made: Made, chromium: Browser) -> None:
    tab = opened(chromium, made.url)
    tab.value(
        "Object.defineProperty(document, 'hidden', { get: () => window.away });"
        "window.asked = 0; const real = fetch;"
        "window.fetch = (...how) => { asked++; return real(...how) };"
        "window.away = true; 0"
    )
    # Long enough for two questions, and the one that may be under way.
    tab.value("new Promise(done => setTimeout(done, 3 * STATE_MS))")
    assert tab.value("asked") == 0
    made.publish(state(exchange("kraken")))
    tab.value("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    tab.wait("asked >= 2")
    tab.wait("document.querySelectorAll('#overview tbody tr').length === 2")


def test_the_page_of_another_version_is_fetched_anew(made: Made, chromium: Browser) -> None:
    tab = opened(chromium, made.url)
    tab.value("window.old = true; version = version + 1; 0")
    tab.wait("window.old === undefined && !!document.querySelector('#overview tbody tr')")


# Each text's colour against what lies behind it, by the formula of WCAG 2.
_CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const color = rgb(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(color), light(behind(node))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.outerHTML.slice(0, 120)]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("well", [True, False])
def test_both_colour_schemes_are_rendered_with_enough_contrast(
    made: Made, chromium: Browser, scheme: str, well: bool
) -> None:
    made.sample(3000, 60)
    if not well:
        alarm = Alarm("disk", "", "4 % free", time.time())
        waiting = exchange("kraken", state="waiting", memory_bytes=1 << 30)
        missing = exchange(counts={"holes_open": 1, "open_trades": 5})
        made.publish(state(missing, waiting, alarms=(alarm,)))
    tab = opened(chromium, made.url, dark=scheme == "dark")
    tab.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    back = tab.value("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(246, 247, 248)", "dark": "rgb(18, 21, 23)"}[scheme]
    found = tab.value(_CONTRAST)
    assert len(found) > 100
    assert [entry for entry in found if entry[0] < 4.5] == []


@pytest.mark.parametrize("width", [360, 390, 768, 1101, 1280, 1920])
def test_the_page_is_as_wide_as_the_screen(made: Made, chromium: Browser, width: int) -> None:
    made.sample(3000, 60)
    reason = "a-reason-without-a-space-" * 12
    waiting = exchange(
        "kraken",
        state="restarting",
        detail=reason,
        memory_bytes=1 << 30,
        trades=12_345_678_901,
        reconnects=1234,
        trades_per_s=123_456.0,
        counts={"holes_open": 1234, "open_trades": 1_234_567},
    )
    made.publish(state(exchange(), waiting))
    made.deliver("binance", ["BTCUSDT"], gap_in="BTCUSDT")
    tab = opened(chromium, made.url, width=width)
    tab.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert tab.value("document.documentElement.scrollWidth") == width
    assert tab.value("document.querySelector('#now').scrollWidth") <= width - 24


def test_a_thousand_symbols_are_shown_in_part_and_found_by_name(
    made: Made, chromium: Browser
) -> None:
    symbols = [f"S{number:04}USDT" for number in range(1000)]
    made.deliver("binance", symbols, gap_in="S0777USDT")
    tab = opened(chromium, made.url)
    assert tab.text("article:first-child details:last-child summary") == (
        "Symbols: 1,000, 1 with gaps"
    )
    rows = "document.querySelectorAll('article:first-child details:last-child tbody tr')"
    assert tab.value(f"{rows}.length") == 0
    tab.value("document.querySelector('article:first-child details:last-child').open = true; 0")
    tab.wait(f"{rows}.length === 100")
    assert "S0777USDT" in tab.value(f"{rows}[0].textContent")
    assert "▲ 5 in 1 gap" in tab.value(f"{rows}[0].textContent")
    tab.value(
        "(() => { const input = document.querySelector('article:first-child input');"
        "input.value = 's0999'; input.dispatchEvent(new Event('input')) })()"
    )
    tab.wait(f"{rows}.length === 1")
    assert "S0999USDT" in tab.value(f"{rows}[0].textContent")


def test_a_running_instance_shows_its_page(tmp_path: Path, chromium: Browser) -> None:
    with Sim("binance", "--rate", "200") as sim, Instance(tmp_path, sim) as instance:
        instance.wait_trades("binance", 200)
        url = json.loads((instance.state / "status.json").read_text())["http"]
        tab = opened(chromium, url + "/")
        tab.wait_text("#headline", _FLOWING)
        tab.wait("document.querySelector('path.line').getAttribute('d')")
        assert row(tab, "binance")["state"] == "✓ flowing"
        assert float(row(tab, "binance")["trades/s"]) > 0
        assert "started" in tab.text("#events") or "up" in tab.text("#events")
        assert tab.complaints == []
