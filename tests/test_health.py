"""When an instance is alive and ready, and when a symbol is stale: the rules, look by look."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instance import Instance, only
from sim import Sim, wait_until
from status_rig import ask, config_of, exchange_status

from feedmono.supervision.snapshot import Alarm, ExchangeStatus, Snapshot
from feedmono.web.health import (
    SLOT_S,
    SLOTS,
    Health,
    Judge,
    alive_json,
    alive_text,
    ready_json,
    ready_text,
    usual_gap_s,
)
from feedmono.web.observer import ExchangeView, SymbolView, View

_ONLY = {name.removeprefix("FEEDMONO_"): value for name, value in only("binance").items()}
START_S = 1_795_392_281.0  # 2026-11-23T00:04:41Z


class Story:
    """An instance with one exchange, as it goes on: time moves only here."""

    def __init__(self, folder: Path, **variables: object) -> None:
        self.config = config_of(folder, **(_ONLY | variables))
        self.judge = Judge(self.config)
        self.now_s = 0.0
        self.age_s = 0.0
        self.status: ExchangeStatus | None = exchange_status()
        self.alarms: tuple[Alarm, ...] = ()
        self.trouble = ""
        self.ids: dict[str, int] = {}

    def look(self) -> Health:
        symbols = {
            name: SymbolView(last_id, (0, last_id), 0, 0, 0, None)
            for name, last_id in self.ids.items()
        }
        statuses = () if self.status is None else (self.status,)
        state = (
            None if self.trouble else Snapshot(1, 0.0, 0.0, "files", statuses, alarms=self.alarms)
        )
        exchange = ExchangeView(self.status, None, symbols)
        view = View(
            START_S + self.now_s,
            self.now_s,
            state,
            self.age_s,
            self.trouble,
            {"binance": exchange},
        )
        return self.judge.judge(view)

    def run(self, for_s: float, trades: Mapping[str, Iterable[float]] | None = None) -> Health:
        """Looks each two seconds for so long; *trades*: by symbol, the times of its trades."""
        left = {name: sorted(times) for name, times in (trades or {}).items()}
        end_s = self.now_s + for_s
        health = self.look()
        while self.now_s < end_s:
            self.now_s += 2.0
            for name, times in left.items():
                done = sum(at_s <= self.now_s for at_s in times)
                self.ids[name] = self.ids.get(name, 0) + done
                del times[:done]
            health = self.look()
        return health

    def change(self, **fields: object) -> None:
        assert self.status is not None
        self.status = replace(self.status, **fields)  # type: ignore[arg-type]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def kinds(health: Health) -> list[str]:
    return [reason.kind for reason in health.reasons]


def regular(gap_s: float, until_s: float, from_s: float = 0.0) -> list[float]:
    return [from_s + gap_s * n for n in range(1, int((until_s - from_s) / gap_s) + 1)]


def test_what_is_connected_and_acknowledged_is_ready(story: Story) -> None:
    health = story.look()
    assert (health.dead, health.reasons, health.notes) == (None, (), ())
    assert health.ready("binance")
    assert (alive_text(health), ready_text(health)) == ("alive\n", "ready\n")


@pytest.mark.parametrize(
    ("state", "detail", "text"),
    [
        ("starting", "", "starting"),
        ("connecting", "the exchange is in maintenance", "connecting: the exchange is in maint"),
        ("waiting", "no broker answers", "waiting: no broker answers"),
        ("restarting", "reader binance, in 4 s", "restarting: reader binance, in 4 s"),
        ("stopped", "", "stopped"),
    ],
)
def test_an_exchange_in_another_state_is_not_ready_and_says_since_when(
    story: Story, state: str, detail: str, text: str
) -> None:
    story.run(20)
    story.change(state=state, detail=detail)
    health = story.run(60)
    (reason,) = health.reasons
    assert reason.exchange == "binance"
    assert reason.text.startswith(text)
    assert reason.for_s == pytest.approx(60)
    assert f"binance: {text}" in ready_text(health)
    assert "for 60 s (since 2026-11-23T00:05:01Z)" in ready_text(health)
    story.change(state="flowing", detail="")
    assert story.look().reasons == ()
    story.change(state=state, detail=detail)
    assert story.look().reasons[0].for_s == 0.0, "it begins anew"


def test_a_lost_connection_that_another_covers_does_not_matter(story: Story) -> None:
    story.change(state="partial", detail="1 of 2 connections")
    assert story.look().reasons == ()
    story.change(subscribed=3)
    (reason,) = story.look().reasons
    assert reason.kind == "symbols"
    assert reason.text == "2 of 5 symbols are not subscribed: 1 of 2 connections"


def test_a_refused_symbol_is_a_note_and_all_of_them_a_reason(story: Story) -> None:
    story.change(state="partial", subscribed=4, refused={"XBTUSDT": "unknown"})
    health = story.look()
    assert health.reasons == ()
    assert "note: binance: XBTUSDT is refused: unknown\n" in ready_text(health)
    story.change(subscribed=0, refused=dict.fromkeys("ABCDE", "unknown"))
    assert kinds(story.look()) == ["symbols"]


def test_an_exchange_that_the_supervisor_does_not_run_is_not_ready(story: Story) -> None:
    story.status = None
    assert [r.text for r in story.look().reasons] == ["the supervisor does not run it"]


def test_a_sink_that_acknowledges_nothing_is_a_reason_after_a_while(story: Story) -> None:
    story.run(100)
    story.change(ring_used_bytes=5000)
    assert story.run(30).reasons == ()
    (reason,) = story.run(4).reasons
    assert reason.kind == "sink"
    assert reason.for_s == pytest.approx(34)
    story.change(counts={"delivered_trades": 7})
    assert story.look().reasons == (), "something was acknowledged"
    story.change(ring_used_bytes=0)
    assert story.run(100).reasons == (), "nothing waits"


def test_a_sink_that_syncs_seldom_has_so_much_longer(tmp_path: Path) -> None:
    story = Story(tmp_path, FILES_SYNC_INTERVAL="60 s")
    story.change(ring_used_bytes=5000)
    assert story.run(90).reasons == ()
    assert kinds(story.run(4)) == ["sink"]


def test_a_busy_symbol_is_stale_after_thirty_seconds_once_its_pace_is_known(story: Story) -> None:
    assert story.run(3600, {"BTCUSDT": regular(0.5, 3600)}).reasons == ()
    assert story.run(30).reasons == ()
    (reason,) = story.run(10).reasons
    assert reason.kind == "stale"
    assert "BTCUSDT" in reason.text
    assert reason.for_s == pytest.approx(40)
    story.ids["BTCUSDT"] += 1
    assert story.look().reasons == ()


def test_a_stale_symbol_stays_stale_however_long_it_is_silent(story: Story) -> None:
    story.run(600, {"BTCUSDT": regular(1, 600)})
    assert kinds(story.run(90)) == ["stale"]
    assert kinds(story.run(3 * SLOT_S * SLOTS)) == ["stale"]


def test_a_symbol_that_trades_seldom_may_be_silent_for_longer(story: Story) -> None:
    dice = random.Random(5)
    times, at_s = [], 0.0
    while at_s < 3600:
        at_s += dice.expovariate(1 / 60)
        times.append(at_s)
    story.run(3600, {"ADAUSDT": times})
    judged = story.look().symbols["binance"]["ADAUSDT"]
    assert judged.usual_gap_s == pytest.approx(60, rel=0.4)
    assert story.run(600).reasons == ()
    assert kinds(story.run(1200)) == ["stale"]


def test_a_burst_of_trades_does_not_make_a_symbol_look_busy(story: Story) -> None:
    bursts = [at_s + 3 + n / 100 for at_s in regular(300, 3600) for n in range(50)]
    health = story.run(3600, {"DOTUSDT": bursts})
    assert (health.symbols["binance"]["DOTUSDT"].usual_gap_s or 1e9) > 200
    assert story.run(1200).reasons == ()


def test_a_symbol_seen_too_little_is_not_judged(story: Story) -> None:
    story.run(3600, {"AUSDT": [100.0, 200.0], "BUSDT": []})
    health = story.run(3600)
    assert health.reasons == ()
    assert health.symbols["binance"]["AUSDT"].limit_s is None


def test_an_outage_teaches_nothing_about_a_pace(story: Story) -> None:
    health = story.run(600, {"BTCUSDT": regular(1, 600)})
    before = health.symbols["binance"]["BTCUSDT"].limit_s
    story.change(state="connecting", detail="")
    assert kinds(story.run(1200)) == ["state"], "what is not connected is not called stale"
    story.change(state="flowing")
    health = story.run(0)
    assert kinds(health) == ["stale"], "connected, but silent until the first trade"
    health = story.run(20, {"BTCUSDT": regular(1, story.now_s + 20, story.now_s)})
    assert health.reasons == ()
    assert health.symbols["binance"]["BTCUSDT"].limit_s == pytest.approx(before, rel=0.1)


@given(st.floats(0.2, 500), st.integers(0, 2**32))
def test_the_usual_gap_is_near_the_true_one_of_random_trades(gap_s: float, seed: int) -> None:
    dice = random.Random(seed)
    active, at_s = set(), 0.0
    while (at_s := at_s + dice.expovariate(1 / gap_s)) < SLOTS * SLOT_S:
        active.add(int(at_s / SLOT_S))
    found = usual_gap_s(len(active), SLOTS)
    if gap_s > 300 and len(active) < 3:
        assert found is None
    elif found is not None:
        # Faster than the slots can tell counts as that fast; few trades tell little.
        floor_s = SLOT_S / 6.6
        assert max(gap_s, floor_s) / 4 <= found <= max(gap_s, floor_s) * 8


def test_a_hung_supervisor_makes_nothing_ready(story: Story) -> None:
    story.age_s = 9.9
    assert story.look().dead is None
    story.age_s = 10.0
    health = story.look()
    assert health.dead is not None
    assert kinds(health) == ["supervisor"]
    assert not health.ready("binance")
    assert alive_text(health).startswith("not alive, for 10 s: the supervisor does not renew")
    told = json.loads(alive_json(health))
    assert (told["alive"], told["reasons"][0]["for_s"]) == (False, 10.0)


def test_without_a_status_the_reason_is_told(story: Story) -> None:
    story.trouble = "status.json can't be read: No such file or directory"
    health = story.look()
    assert "No such file" in alive_text(health)
    assert kinds(health) == ["supervisor"]


def test_alarms_are_notes(story: Story) -> None:
    story.alarms = (Alarm("cpu", "binance", "0.9 of 0.5 cores", 0.0), Alarm("disk", "", "low", 0.0))
    text = ready_text(story.look())
    assert text == "ready\nnote: binance: 0.9 of 0.5 cores\nnote: low\n"


def test_json_says_what_the_text_says(story: Story) -> None:
    story.change(state="waiting", detail="no broker")
    story.run(10)
    told = json.loads(ready_json(story.look()))
    assert told == {
        "ready": False,
        "exchanges": {"binance": False},
        "reasons": [
            {
                "exchange": "binance",
                "kind": "state",
                "text": "waiting: no broker",
                "since": "2026-11-23T00:04:41Z",
                "for_s": 10.0,
            }
        ],
        "notes": [],
    }


def test_many_stale_symbols_are_told_in_short(story: Story) -> None:
    names = [f"S{n}USDT" for n in range(20)]
    story.run(600, {name: regular(1, 600) for name in names})
    text = story.run(100).reasons[0].text
    assert text.endswith("and 15 more")


def test_a_running_instance_is_ready_until_its_exchange_goes_away_and_again_when_it_is_back(
    tmp_path: Path,
) -> None:
    with (
        Sim("binance", "--rate", "100") as binance,
        Sim("kraken", "--rate", "20") as kraken,
        Instance(tmp_path, binance, kraken, CONNECTIONS_BACKOFF_CAP="1 s") as feedmono,
    ):
        url = wait_until(
            lambda: json.loads((feedmono.state / "status.json").read_text())["http"], bool
        )
        port = int(url.rpartition(":")[2])
        assert wait_until(lambda: ask(port, "/readyz"), lambda a: a.status == 200).text == "ready\n"
        binance.fault("refuse-connections", 503)
        binance.fault("cut")
        told = wait_until(
            lambda: ask(port, "/readyz", Accept="application/json"), lambda a: a.status == 503
        )
        content = json.loads(told.body)
        assert content["exchanges"] == {"binance": False, "kraken": True}
        assert ask(port, "/healthz").status == 200
        binance.fault("refuse-connections", False)
        wait_until(lambda: ask(port, "/readyz"), lambda a: a.status == 200)
