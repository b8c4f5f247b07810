"""The alerts and the dashboard, by a real Prometheus server that scrapes a running instance.

One instance is driven from trouble to trouble: binance has them, kraken beside it has none. What
can't be brought about in seconds is replayed: a real scrape in which one figure is changed.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from instance import Instance
from promserver import ALERTS, Prometheus, promtool, tool
from sim import Sim, wait_until
from status_rig import ask

DASHBOARD = Path(__file__).parents[1] / "etc" / "grafana" / "feedmono.json"
OPEN_GAP = "feedmono_symbol_gap_age_seconds > 900"
# A gap that is open for a quarter of an hour is not waited for.
SOONER = OPEN_GAP.replace("900", "3")
SERIES = re.compile(r"^(feedmono_\w+)(\{.*\})? (\S+)$", re.MULTILINE)

pytestmark = pytest.mark.timeout(400)


def names() -> list[str]:
    return re.findall(r"^ *- alert: (\w+)$", ALERTS.read_text(), re.MULTILINE)


class Scene:
    """Two exchanges, an instance, and a Prometheus server that scrapes it."""

    def __init__(self, binance: Sim, kraken: Sim, feedmono: Instance, server: Prometheus) -> None:
        self.binance = binance
        self.kraken = kraken
        self.feedmono = feedmono
        self.server = server
        self.quiet = ""
        """A scrape while all was well."""
        self.seen: dict[str, list[dict[str, Any]]] = {}
        """Each alert as it was when it was pending or firing."""
        self.troubled: dict[str, str] = {}
        """A scrape of that time."""
        self.queries: dict[str, str] = {}
        """Each expression of the dashboard and why it failed; empty if it gave data."""

    def scrape(self) -> str:
        path = self.feedmono.state / "status.json"
        return ask(int(json.loads(path.read_text())["http"].rpartition(":")[2]), "/metrics").text

    def expect(self, *alerts: str, limit_s: float = 60.0) -> None:
        """Waits until these alerts are pending or firing."""

        def missing() -> set[str]:
            active = self.server.alerts()
            for name in alerts:
                own = [a for a in active if a["labels"]["alertname"] == name]
                if own and name not in self.seen:
                    self.seen[name] = own
                    with contextlib.suppress(OSError):
                        self.troubled[name] = self.scrape()
            return set(alerts) - self.seen.keys()

        wait_until(missing, lambda left: not left, limit_s)


def port_of(feedmono: Instance) -> int:
    path = feedmono.state / "status.json"
    url = wait_until(lambda: json.loads(path.read_text())["http"], bool)
    return int(url.rpartition(":")[2])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    tool("prometheus")
    folder = tmp_path_factory.mktemp("scene")
    rules = ALERTS.read_text()
    assert OPEN_GAP in rules
    with (
        Sim("binance", "--rate", "100") as binance,
        Sim("kraken", "--rate", "20") as kraken,
        Instance(
            folder,
            binance,
            kraken,
            RING_CAPACITY="1 MiB",
            CONNECTIONS_BACKOFF_CAP="1 s",
            BINANCE_MEMORY_PATIENCE="1 h",
        ) as feedmono,
        Prometheus(
            folder / "prometheus",
            f"127.0.0.1:{port_of(feedmono)}",
            rules.replace(OPEN_GAP, SOONER),
        ) as server,
    ):
        found = Scene(binance, kraken, feedmono, server)
        all_is_well(found)
        trouble_with_the_exchange(found)
        trouble_with_the_processes(found)
        trouble_with_the_sink(found)
        trouble_with_all_of_it(found)
        yield found


def all_is_well(scene: Scene) -> None:
    """Nothing is pending while the dashboard's data come together."""
    scene.feedmono.wait_trades("binance", 200)
    scene.feedmono.wait_trades("kraken", 40)
    scene.server.wait_scrape("feedmono_exchange_ready")
    queries = dashboard_queries()

    def failed() -> dict[str, str]:
        scene.queries = {query: "" if scene.server.query(query) else "no data" for query in queries}
        return {query: why for query, why in scene.queries.items() if why}

    with contextlib.suppress(TimeoutError):
        wait_until(failed, lambda left: not left, 30.0)
    scene.quiet = scene.scrape()
    assert not scene.server.alerts(), "all is well"


def trouble_with_the_exchange(scene: Scene) -> None:
    binance = scene.binance
    binance.send('{"stream":"btcusdt@trade","data":{"e":"trade","s":"BTCUSDT","t":"none"}}')
    binance.fault("skew", "5s")
    binance.fault("rest-5xx", 1)
    binance.fault("lose", 0.2)
    scene.expect("FeedmonoDeadLetters", "FeedmonoClockSkew", "FeedmonoGapOpen")
    binance.fault("lose", 0)
    binance.fault("skew", "0s")
    binance.fault("refuse", "XRPUSDT")
    binance.fault("cut", "300ms")
    # An increase over a time shorter than its window is reckoned too high: more than it takes.
    scene.feedmono.wait(lambda s: s[0]["reconnects"] > 7)
    scene.expect("FeedmonoReconnecting")
    binance.fault("cut", "0s")
    scene.expect("FeedmonoSymbolRefused")
    binance.fault("refuse-connections", 503)
    binance.fault("cut", "300ms")
    scene.expect("FeedmonoNotConnected", "FeedmonoNotReady")
    # Between two attempts the alert may be older than the scrape: one is kept that shows it.
    down = {
        f'feedmono_{what}{{exchange="binance"}} 0.0\n'
        for what in ("connection_state", "exchange_ready")
    }
    kept = wait_until(scene.scrape, lambda text: all(series in text for series in down))
    scene.troubled |= dict.fromkeys(("FeedmonoNotConnected", "FeedmonoNotReady"), kept)
    binance.fault("cut", "0s")
    binance.fault("refuse-connections", False)
    scene.feedmono.wait(lambda s: s[0]["state"] in ("flowing", "partial"))


def trouble_with_the_processes(scene: Scene) -> None:
    for _ in range(4):
        before = scene.feedmono.of("binance")["delivered"]
        scene.feedmono.kill_worker("binance", "serializer")
        scene.feedmono.wait_trades("binance", before + 1)
    scene.expect("FeedmonoRestarting")


def trouble_with_the_sink(scene: Scene) -> None:
    """Where binance's folder was there is a file, so that no file can be written there."""
    place = scene.feedmono.data / "binance"
    place.rename(place.with_name("away"))
    place.write_text("in the way")
    scene.binance.fault("rate", 2000)
    # The alert may be that of a serializer that was killed before, and opened its sink since.
    away = 'feedmono_sink_ready{exchange="binance"} 0.0\n'
    kept = wait_until(scene.scrape, lambda text: away in text)
    scene.expect(
        "FeedmonoSinkAway", "FeedmonoSinkErrors", "FeedmonoRingFilling", "FeedmonoRingFull"
    )
    scene.troubled["FeedmonoSinkAway"] = kept


def trouble_with_all_of_it(scene: Scene) -> None:
    os.kill(scene.feedmono.pid, signal.SIGSTOP)
    scene.expect("FeedmonoHangs")
    scene.feedmono.kill()
    scene.expect("FeedmonoDown")


LIVE = (
    "FeedmonoDeadLetters", "FeedmonoClockSkew", "FeedmonoGapOpen", "FeedmonoReconnecting",
    "FeedmonoSymbolRefused", "FeedmonoNotConnected", "FeedmonoNotReady", "FeedmonoRestarting",
    "FeedmonoSinkAway", "FeedmonoSinkErrors", "FeedmonoRingFilling", "FeedmonoRingFull",
    "FeedmonoHangs", "FeedmonoDown",
)  # fmt: skip
"""What the instance is driven into."""

GREEDY = (
    "FeedmonoOverCpuBudget", "FeedmonoOverMemoryBudget", "FeedmonoThrottled", "FeedmonoAlarm",
)  # fmt: skip
"""What an instance has whose budgets are too small."""


@pytest.mark.parametrize("name", LIVE)
def test_an_alert_is_raised_by_its_trouble_and_names_where_it_is(scene: Scene, name: str) -> None:
    for alert in scene.seen[name]:
        told = " ".join(alert["annotations"].values())
        assert "error" not in told.lower().replace("errors", ""), told
        assert "<no value>" not in told
        assert alert["labels"]["instance"] in told or name in ("FeedmonoClockSkew",), told
        if name not in ("FeedmonoHangs", "FeedmonoDown"):
            assert alert["labels"]["exchange"] == "binance", "kraken has no trouble"


# --- budgets that are too small


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Alert → a scrape of when it was raised; and "quiet" → one of before."""
    tool("prometheus")
    folder = tmp_path_factory.mktemp("greedy")
    budget = {"CPU": 0.01, "CPU_ACTION": "throttle", "MEMORY": "1 MiB", "MEMORY_PATIENCE": "1 h"}
    with (
        Sim("binance", "--rate", "3000") as binance,
        Sim("kraken", "--rate", "5") as kraken,
        Instance(
            folder, binance, kraken, **{f"BINANCE_{name}": value for name, value in budget.items()}
        ) as feedmono,
        Prometheus(folder / "prometheus", f"127.0.0.1:{port_of(feedmono)}") as server,
    ):
        scene = Scene(binance, kraken, feedmono, server)
        scene.expect(*GREEDY, limit_s=90.0)
        of_exchanges = [a for name in GREEDY for a in scene.seen[name] if "exchange" in a["labels"]]
        assert {alert["labels"]["exchange"] for alert in of_exchanges} == {"binance"}
        yield scene.troubled


@pytest.mark.parametrize("name", GREEDY)
def test_an_alert_is_raised_by_a_budget_that_is_too_small(
    greedy: Mapping[str, str], name: str
) -> None:
    assert "feedmono_" in greedy[name]


# --- replayed: a real scrape, one figure of which is changed


def changed(series: str, value: float | Callable[[float], float]) -> Callable[[str], str]:
    """Gives those series (a regular expression) another value."""

    def change(text: str) -> str:
        def other(found: re.Match[str]) -> str:
            new = value(float(found[2])) if callable(value) else value
            return f"{found[1]} {float(new)}"

        new_text, count = re.subn(rf"^({series}) (\S+)$", other, text, flags=re.MULTILINE)
        assert count, series
        return new_text

    return change


REPLAYED: Mapping[str, Callable[[str], str]] = {
    "FeedmonoStale": changed(r'feedmono_symbol_stale\{exchange="binance",symbol="BTCUSDT"\}', 1),
    "FeedmonoPartlyConnected": changed(r'feedmono_connection_state\{exchange="binance"\}', 1),
    "FeedmonoDamage": changed(
        r'feedmono_damaged_records_total\{exchange="binance"\}', lambda before: before + 1
    ),
    "FeedmonoDiskNearlyFull": changed(r'feedmono_disk_free_bytes\{folder="files.dir"\}', 50e6),
}


class Replay(http.server.BaseHTTPRequestHandler):
    """Answers each scrape with `text`."""

    text = ""

    def do_GET(self) -> None:
        body = Replay.text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_what_takes_long_to_happen_is_raised_by_a_replay_of_it(
    scene: Scene, tmp_path: Path
) -> None:
    Replay.text = scene.quiet
    server = http.server.HTTPServer(("127.0.0.1", 0), Replay)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with Prometheus(tmp_path, f"127.0.0.1:{server.server_port}") as prometheus:
            prometheus.wait_scrape("feedmono_alive")

            def active() -> set[str]:
                return {alert["labels"]["alertname"] for alert in prometheus.alerts()}

            def settle(lasting: set[str]) -> None:
                wait_until(active, lambda found: found == lasting)

            lasting: set[str] = set()
            for name, change in REPLAYED.items():
                Replay.text = change(scene.quiet)
                wait_until(active, lambda found, name=name: name in found)  # type: ignore[misc]
                assert active() == lasting | {name}
                # What was counted once stays an increase for the rest of its window.
                lasting |= {name} & {"FeedmonoDamage"}
                Replay.text = scene.quiet
                settle(lasting)
            Replay.text = REPLAYED["FeedmonoStale"](
                changed(r'feedmono_connection_state\{exchange="binance"\}', 0)(scene.quiet)
            )
            wait_until(active, lambda found: "FeedmonoNotConnected" in found)
            assert "FeedmonoStale" not in active(), "one alert is enough"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_every_alert_is_brought_about() -> None:
    assert sorted([*LIVE, *GREEDY, *REPLAYED]) == sorted(names())


# --- how long each must last


@pytest.mark.parametrize("name", names())
def test_an_alert_fires_when_its_trouble_has_lasted_and_not_before(
    scene: Scene, greedy: Mapping[str, str], tmp_path: Path, name: str
) -> None:
    """promtool's own clock, on the series of the real scrapes: all is well for half an hour, then
    the trouble is there for half an hour."""
    troubled = {**scene.troubled, **greedy}.get(name, "")
    if name in REPLAYED:
        troubled = REPLAYED[name](scene.quiet)
    rule = rule_of(name)
    wait_s = int(re.sub("s$", "", (rule["for"] or "0s").replace("m", "*60").split("*")[0])) * (
        60 if "m" in rule["for"] else 1
    )
    (tmp_path / "rules.yml").write_text(ALERTS.read_text())
    (tmp_path / "test.yml").write_text(
        json.dumps(
            {
                "rule_files": ["rules.yml"],
                "evaluation_interval": "15s",
                "tests": [
                    {
                        "interval": "15s",
                        "input_series": list(course(rule["expr"], scene.quiet, troubled)),
                        "promql_expr_test": list(verdicts(name, wait_s)),
                    }
                ],
            }
        )
    )
    promtool("test", "rules", str(tmp_path / "test.yml"))


def rule_of(name: str) -> dict[str, str]:
    """Its expression and how long it must hold, as the file has them."""
    block = ALERTS.read_text().split(f"- alert: {name}\n")[1].split("- alert:")[0]
    expression = block.split("expr:")[1].split("\n        for:")[0].split("\n        labels:")[0]
    found = re.search(r"^        for: (\w+)$", block, re.MULTILINE)
    return {"expr": expression, "for": found[1] if found else ""}


STEPS = 120
"""Of 15 s: half an hour."""


def course(expression: str, quiet: str, troubled: str) -> Iterator[dict[str, str]]:
    """The series that an expression needs: of the quiet scrape, then of the troubled one."""
    wanted = set(re.findall(r"feedmono_\w+", expression))
    before = {f"{n}{labels}": v for n, labels, v in SERIES.findall(quiet) if n in wanted}
    after = {f"{n}{labels}": v for n, labels, v in SERIES.findall(troubled) if n in wanted}
    for series in before.keys() | after.keys():
        one = float(before.get(series, 0))
        # Without a scrape the target is down: its series end.
        other = float(after.get(series, one))
        own = 'job="feedmono",instance="host:9464"'
        labelled = f"{series[:-1]},{own}}}" if series.endswith("}") else f"{series}{{{own}}}"
        if "_cpu_seconds_total" in series:
            # Beyond any budget from then on: what a scrape has of it is one point only.
            values = f"{one}+0.01x{STEPS - 1} {one + 1.2}+15x{STEPS}"
        elif "gap_age_seconds" in series and other > one:
            values = f"{one}+0x{STEPS - 1} {other + 900}+15x{STEPS}"
        else:
            values = f"{one}+0x{STEPS - 1} {other}+0x{STEPS}"
        yield {"series": labelled, "values": values}
    if "up{" in expression:
        own = 'up{job="feedmono",instance="host:9464"}'
        yield {"series": own, "values": f"1+0x{STEPS - 1} 0+0x{STEPS}"}


def verdicts(name: str, wait_s: int) -> Iterator[dict[str, Any]]:
    """Quiet before the trouble; pending until it has lasted; then firing."""
    start_s = STEPS * 15

    def state(at_s: int, *states: str) -> dict[str, Any]:
        return {
            "expr": f'group by (alertstate) (ALERTS{{alertname="{name}"}})',
            "eval_time": f"{at_s}s",
            "exp_samples": [{"labels": f'{{alertstate="{s}"}}', "value": 1} for s in states],
        }

    yield state(start_s - 15)
    if wait_s:
        # A rate needs some of its window until it is above.
        yield state(start_s + wait_s - 15, "pending")
    yield state(start_s + wait_s + 60, "firing")


# --- the files themselves


def test_the_alerts_are_rules_that_promtool_takes() -> None:
    said = promtool("check", "rules", str(ALERTS))
    assert f"SUCCESS: {len(names())} rules found" in said


def test_the_alerts_name_only_metrics_that_there_are(scene: Scene) -> None:
    told = {name for name, _, _ in SERIES.findall(scene.quiet)}
    for name in names():
        wanted = set(re.findall(r"feedmono_\w+", rule_of(name)["expr"]))
        assert wanted <= told, (name, wanted - told)


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return content


def panels() -> list[dict[str, Any]]:
    return [p for p in dashboard()["panels"] if p["type"] != "row"]


def dashboard_queries() -> list[str]:
    """All expressions of its panels, the variables filled in as Grafana does."""
    values = {"$__rate_interval": "10s", "$__interval": "10s"}
    values |= {"$instance": ".*", "$exchange": ".*", "$job": ".*"}
    found = []
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in values.items():
                query = query.replace(name, value)
            assert "$" not in query, query
            found.append(query)
    return found


def test_every_panel_of_the_dashboard_shows_data_of_a_running_instance(scene: Scene) -> None:
    assert scene.queries
    assert not {query for query, why in scene.queries.items() if why}


def test_the_dashboard_takes_its_data_source_as_an_input() -> None:
    variables = {v["name"]: v for v in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "exchange"]
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(t["datasource"] == panel["datasource"] for t in panel["targets"])


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    assert len({p["id"] for p in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in own) < 24
        assert not taken & own, panel["title"]
        taken |= own


def test_the_dashboard_shows_every_metric(scene: Scene) -> None:
    shown = set(re.findall(r"feedmono_\w+", json.dumps([p["targets"] for p in panels()])))
    told = {name for name, _, _ in SERIES.findall(scene.quiet)}
    told = {re.sub("_(count|sum)$", "_bucket", name) for name in told}
    # Two sums of what stands there in parts.
    assert told - shown <= {"feedmono_ready", "feedmono_symbol_usual_gap_seconds"}
