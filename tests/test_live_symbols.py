"""Symbols come and go while a whole feedmono captures: the others do not notice."""

from __future__ import annotations

import csv
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from delivery import feedmono as command
from delivery import ids_of
from instance import Instance, read_avro
from sim import Sim, wait_until

from feedmono import workers
from feedmono.delivery.ledger_file import read_fills

STAY = {"binance": ("BTCUSDT", "ETHUSDT"), "kraken": ("BTC/USD", "ETH/USD")}
GUESTS = {"binance": ("SOLUSDT", "XRPUSDT", "BNBUSDT"), "kraken": ("SOL/USD", "XRP/USD", "ADA/USD")}
# Which guests are there, order by order.
VISITS = ((0,), (0, 1), (1,), (2, 0), (), (0, 1, 2), (1, 2), (1,))
SOON = {"BACKFILL_CONFIRM_AFTER": "1 s"}
both = pytest.mark.parametrize("name", sorted(STAY))


def simulator(folder: Path, name: str, rate: int, *args: str) -> Sim:
    """One that makes trades of all symbols from its start on, and keeps a journal."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = ",".join(STAY[name] + GUESTS[name])
    journal = str(folder / f"{name}.csv")
    return Sim(name, "--symbols", symbols, "--rate", str(rate), "--journal", journal, *args)


def settings(*names: str, **more: object) -> dict[str, object]:
    return {f"{name.upper()}_SYMBOLS": ",".join(STAY[name]) for name in names} | SOON | more


def order(feedmono: Instance, name: str, symbols: Sequence[str], **more: Any) -> None:
    """Gives orders to an exchange's workers, as the supervisor does."""
    leave(feedmono, name, symbols, **more)
    for role in ("reader", "serializer"):
        os.kill(feedmono.worker(f"{role} {name}"), signal.SIGHUP)


def leave(feedmono: Instance, name: str, symbols: Sequence[str], **more: Any) -> None:
    """Leaves orders for whoever looks."""
    fields = {"canonical_symbols": {}, "log_level": "info", "log_format": "json", **more}
    workers.Orders(tuple(symbols), **fields).give(feedmono.state / f"{name}.orders.json")


def serves(sim: Sim, symbols: Sequence[str], connections: int = 1) -> None:
    """Waits until exactly these are subscribed at the exchange, on so many connections each."""
    sim.wait(lambda s: s["subscriptions"] == dict.fromkeys(symbols, connections))


def more_trades(feedmono: Instance, name: str, symbols: Sequence[str], count: int = 20) -> None:
    """Waits until so many more trades of each of these are delivered."""

    def last_ids() -> dict[str, int]:
        known = ids_of(feedmono, name)
        return {symbol: known[symbol].last_id for symbol in symbols if symbol in known}

    before = wait_until(last_ids, lambda found: len(found) == len(symbols))
    wait_until(last_ids, lambda found: all(found[s] >= before[s] + count for s in symbols))


def sent(sim: Sim, folder: Path) -> dict[str, list[int]]:
    """The ids of all trades that the exchange sent to somebody, by symbol; it is paused."""
    made = sum(totals["made"] for totals in sim.state()["symbols"].values())

    def rows() -> list[dict[str, str]]:
        with (folder / f"{sim.exchange}.csv").open() as file:
            return list(csv.DictReader(file))

    found: dict[str, list[int]] = {}
    for row in wait_until(rows, lambda all_rows: len(all_rows) == made):
        if row["fate"] == "sent":
            found.setdefault(row["symbol"], []).append(int(row["id"]))
    return found


def settle(feedmono: Instance, sim: Sim, folder: Path) -> dict[str, list[int]]:
    """Ends the trading and waits until all that was sent is delivered and no hole is open; what
    was sent."""
    sim.fault("pause")
    everything = sent(sim, folder)

    def behind() -> dict[str, object]:
        known = ids_of(feedmono, sim.exchange)
        found: dict[str, object] = {}
        for symbol, sent_ids in everything.items():
            ids = known.get(symbol)
            if ids is None or ids.last_id < sent_ids[-1]:
                found[symbol] = ids and ids.last_id, sent_ids[-1]
            elif holes := [(h.first_id, h.last_id, h.cause, h.tries) for h in ids.open_holes()]:
                found[symbol] = holes
        return found

    wait_until(behind, lambda found: not found, 60.0)
    return everything


def delivered(feedmono: Instance, name: str) -> dict[str, Counter[int]]:
    found: dict[str, Counter[int]] = {}
    for trade in read_avro(feedmono.data / name, "trades"):
        found.setdefault(trade["symbol"], Counter())[int(trade["trade_id"])] += 1
    return found


def assert_all_once(feedmono: Instance, name: str, everything: Mapping[str, list[int]]) -> None:
    """Everything that was sent is stored once; nothing is stored twice or is a dead letter."""
    stored = delivered(feedmono, name)
    for symbol, ids in everything.items():
        assert not [i for i in ids if stored[symbol][i] != 1], symbol
        assert max(stored[symbol].values()) == 1, symbol
    assert not list(read_avro(feedmono.data / name, "dead"))


def assert_undisturbed(feedmono: Instance, name: str, symbols: Sequence[str]) -> None:
    """These never had a hole, and no connection was lost."""
    for symbol in symbols:
        ids = ids_of(feedmono, name)[symbol]
        assert (ids.found, ids.holes) == (0, []), symbol
    assert feedmono.of(name)["reconnects"] == 0


def test_symbols_come_and_go_under_load_and_the_others_do_not_notice(tmp_path: Path) -> None:
    with (
        simulator(tmp_path, "binance", 800) as binance,
        simulator(tmp_path, "kraken", 300, "--batch", "3") as kraken,
        Instance(tmp_path / "instance", binance, kraken, **settings(*STAY)) as feedmono,
    ):
        sims = (binance, kraken)
        for sim in sims:
            serves(sim, STAY[sim.exchange])
        for visit in VISITS:
            for sim in sims:
                guests = tuple(GUESTS[sim.exchange][number] for number in visit)
                order(feedmono, sim.exchange, STAY[sim.exchange] + guests)
            for sim in sims:
                guests = tuple(GUESTS[sim.exchange][number] for number in visit)
                serves(sim, STAY[sim.exchange] + guests)
                more_trades(feedmono, sim.exchange, STAY[sim.exchange] + guests)
        everything = {sim.exchange: settle(feedmono, sim, tmp_path) for sim in sims}
        for sim in sims:
            name = sim.exchange
            assert sim.state()["connections_accepted"] == 1
            assert set(everything[name]) == set(STAY[name] + GUESTS[name])
            assert_undisturbed(feedmono, name, STAY[name])
            causes = {(f.symbol, f.cause) for f in read_fills(feedmono.state / f"{name}.ledger")}
            assert {cause for _, cause in causes} <= {"unsubscribed"}
            assert not {symbol for symbol, _ in causes} & set(STAY[name])
            feedmono.wait(lambda s: all(e["subscribed"] == 3 for e in s))
        assert feedmono.stop() == 0
        for name, ids in everything.items():
            assert_all_once(feedmono, name, ids)
        assert command(feedmono, "verify")[0] == 0


@both
def test_orders_that_follow_each_other_at_once_end_right(tmp_path: Path, name: str) -> None:
    stay, (one, two, three) = STAY[name], GUESTS[name]
    with (
        simulator(tmp_path, name, 300) as sim,
        Instance(tmp_path / "instance", sim, **settings(name)) as feedmono,
    ):
        serves(sim, stay)
        for _ in range(5):
            for guests in ((one,), (one, two), (), (two, three), (three, one), ()):
                order(feedmono, name, stay + guests)
        order(feedmono, name, (*stay, two, one))
        serves(sim, (*stay, two, one))
        more_trades(feedmono, name, (*stay, two, one))
        everything = settle(feedmono, sim, tmp_path)
        assert_undisturbed(feedmono, name, stay)
        assert feedmono.stop() == 0
        assert_all_once(feedmono, name, everything)


def _connected_since(times: int, state: Mapping[str, Any]) -> bool:
    return bool(state["connections_accepted"] > times)


@both
def test_a_rotation_under_way_ends_with_the_ordered_symbols(tmp_path: Path, name: str) -> None:
    stay, (one, two, _) = STAY[name], GUESTS[name]
    with (
        simulator(tmp_path, name, 300) as sim,
        Instance(
            tmp_path / "instance", sim, **settings(name, CONNECTIONS_MAX_AGE="700 ms")
        ) as feedmono,
    ):
        for guests in ((one,), (one, two), (two,), (), (one,), (two,), (one, two), (one,)):
            before = sim.state()["connections_accepted"]
            sim.wait(partial(_connected_since, before))
            order(feedmono, name, stay + guests)
        sim.wait(lambda s: s["connections_open"] == 1 and set(s["subscriptions"]) == {*stay, one})
        more_trades(feedmono, name, (*stay, one))
        everything = settle(feedmono, sim, tmp_path)
        assert_undisturbed(feedmono, name, stay)
        assert feedmono.of(name)["counts"]["rotations"] >= len(GUESTS)
        assert feedmono.stop() == 0
        assert_all_once(feedmono, name, everything)


@both
def test_two_copies_of_each_symbol_both_follow(tmp_path: Path, name: str) -> None:
    stay, (one, two, _) = STAY[name], GUESTS[name]
    with (
        simulator(tmp_path, name, 300) as sim,
        Instance(
            tmp_path / "instance", sim, **settings(name, CONNECTIONS_REDUNDANCY=2)
        ) as feedmono,
    ):
        serves(sim, stay, connections=2)
        for guests in ((one,), (two,), (one, two), (), (two,)):
            order(feedmono, name, stay + guests)
            serves(sim, stay + guests, connections=2)
            more_trades(feedmono, name, stay + guests)
        everything = settle(feedmono, sim, tmp_path)
        assert_undisturbed(feedmono, name, stay)
        assert feedmono.of(name)["counts"]["connections"] == 2
        assert feedmono.stop() == 0
        assert_all_once(feedmono, name, everything)


@both
def test_orders_during_a_backoff_hold_for_the_next_connection(tmp_path: Path, name: str) -> None:
    stay, (one, two, _) = STAY[name], GUESTS[name]
    with (
        simulator(tmp_path, name, 300) as sim,
        Instance(tmp_path / "instance", sim, **settings(name)) as feedmono,
    ):
        serves(sim, stay)
        order(feedmono, name, (*stay, one))
        serves(sim, (*stay, one))
        more_trades(feedmono, name, (*stay, one))
        sim.fault("refuse-connections", True)
        sim.fault("cut")
        feedmono.wait(lambda s: s[0]["counts"]["connected"] == 0)
        order(feedmono, name, (*stay, two))
        feedmono.wait_event("orders taken over", added=[two], removed=[one])
        sim.fault("refuse-connections", False)
        serves(sim, (*stay, two))
        more_trades(feedmono, name, (*stay, two))
        everything = settle(feedmono, sim, tmp_path)
        assert feedmono.of(name)["counts"]["connections"] == 1
        assert feedmono.stop() == 0
        assert_all_once(feedmono, name, everything)


@both
@pytest.mark.parametrize("role", ["reader", "serializer"])
def test_a_worker_that_is_killed_right_after_the_orders_comes_back_with_them(
    tmp_path: Path, name: str, role: str
) -> None:
    stay, (one, two, _) = STAY[name], GUESTS[name]
    with (
        simulator(tmp_path, name, 300) as sim,
        Instance(tmp_path / "instance", sim, **settings(name)) as feedmono,
    ):
        serves(sim, stay)
        more_trades(feedmono, name, stay)
        # Nobody knows the new ones, and REST takes its time to tell.
        (feedmono.state / f"{name}.symbols.json").write_text('{"symbols": {}, "asked": []}')
        sim.fault("rest-slow", 0.5)
        victim = feedmono.worker(f"{role} {name}")
        order(feedmono, name, (*stay, one, two))
        os.kill(victim, signal.SIGKILL)
        feedmono.wait_replaced(name, role, victim)
        serves(sim, (*stay, one, two))
        sim.fault("rest-slow", 0)
        more_trades(feedmono, name, (*stay, one, two))
        everything = settle(feedmono, sim, tmp_path)
        assert feedmono.stop() == 0
        stored = delivered(feedmono, name)
        for symbol, ids in everything.items():
            missing = [i for i in ids if not stored[symbol][i]]
            assert not missing, symbol
        assert not list(read_avro(feedmono.data / name, "dead"))


@both
def test_an_unknown_symbol_among_the_new_ones_is_reported_and_the_others_go_on(
    tmp_path: Path, name: str
) -> None:
    stay, (one, _, _) = STAY[name], GUESTS[name]
    with (
        simulator(tmp_path, name, 300) as sim,
        Instance(tmp_path / "instance", sim, **settings(name)) as feedmono,
    ):
        serves(sim, stay)
        order(feedmono, name, (*stay, "NOSUCH/THING", one))
        serves(sim, (*stay, one))
        feedmono.wait(lambda s: set(s[0]["refused"]) == {"NOSUCH/THING"})
        feedmono.wait(lambda s: s[0]["subscribed"] == 3)
        order(feedmono, name, stay)
        serves(sim, stay)
        feedmono.wait(lambda s: not s[0]["refused"] and s[0]["subscribed"] == 2)
        everything = settle(feedmono, sim, tmp_path)
        assert_undisturbed(feedmono, name, stay)
        assert feedmono.stop() == 0
        assert_all_once(feedmono, name, everything)


@both
def test_a_new_symbol_is_subscribed_once_its_name_is_known_and_holds_up_nobody(
    tmp_path: Path, name: str
) -> None:
    stay, (one, _, _) = STAY[name], GUESTS[name]
    with (
        simulator(tmp_path, name, 300) as sim,
        Instance(tmp_path / "instance", sim, **settings(name)) as feedmono,
    ):
        serves(sim, stay)
        more_trades(feedmono, name, stay)
        # As if the exchange had listed it since.
        published = feedmono.state / f"{name}.symbols.json"
        content = dict(workers.published(published) or {})
        for part in ("symbols", "rest"):
            names = content[part]
            assert isinstance(names, dict)
            content[part] = {symbol: text for symbol, text in names.items() if symbol != one}
        workers.publish(published, content)
        sim.fault("rest-5xx", 1.0)
        order(feedmono, name, (*stay, one))
        feedmono.wait_event("no metadata")
        more_trades(feedmono, name, stay)
        serves(sim, stay)
        sim.fault("rest-5xx", 0.0)
        serves(sim, (*stay, one))
        more_trades(feedmono, name, (*stay, one))
        everything = settle(feedmono, sim, tmp_path)
        assert_undisturbed(feedmono, name, (*stay, one))
        assert feedmono.stop() == 0
        assert_all_once(feedmono, name, everything)


def test_without_metadata_a_new_symbol_with_a_name_of_the_operators_is_subscribed_at_once(
    tmp_path: Path,
) -> None:
    names = {"BTCUSDT": "BTC/USDT", "ETHUSDT": "ETH/USDT"}
    variables = settings("binance", BINANCE_REST_URL="http://127.0.0.1:9") | {
        "BINANCE_CANONICAL_SYMBOLS": ",".join(f"{k}={v}" for k, v in names.items())
    }
    with (
        simulator(tmp_path, "binance", 300) as sim,
        Instance(tmp_path / "instance", sim, **variables) as feedmono,
    ):
        serves(sim, STAY["binance"])
        more_trades(feedmono, "binance", STAY["binance"])
        new = {**names, "BTCUSDT": "XBT/Tether", "SOLUSDT": "SOL/Tether"}
        order(feedmono, "binance", tuple(new), canonical_symbols=new)
        serves(sim, tuple(new))
        more_trades(feedmono, "binance", tuple(new))
        assert feedmono.stop() == 0
        found = {
            (t["symbol"], t["canonical_symbol"])
            for t in read_avro(feedmono.data / "binance", "trades")
        }
        assert found == set(new.items()) | set(names.items())


def test_orders_change_the_log_level_of_the_workers(tmp_path: Path) -> None:
    with (
        simulator(tmp_path, "binance", 100) as sim,
        Instance(tmp_path / "instance", sim, **settings("binance")) as feedmono,
    ):
        serves(sim, STAY["binance"])
        guest = GUESTS["binance"][0]
        order(feedmono, "binance", (*STAY["binance"], guest), log_level="error")
        serves(sim, (*STAY["binance"], guest))
        sim.fault("cut")
        sim.wait(lambda s: s["connections_accepted"] == 2)
        order(feedmono, "binance", STAY["binance"])
        serves(sim, STAY["binance"])
        feedmono.wait_event("orders taken over", removed=[guest])
        told = [e["event"] for e in feedmono.events() if e.get("worker") == "reader"]
        assert told.count("orders taken over") == 1, "the first ones silenced it"
        assert "disconnected" not in told


def test_orders_that_can_not_be_read_change_nothing(tmp_path: Path) -> None:
    with (
        simulator(tmp_path, "binance", 300) as sim,
        Instance(tmp_path / "instance", sim, **settings("binance")) as feedmono,
    ):
        serves(sim, STAY["binance"])
        more_trades(feedmono, "binance", STAY["binance"])
        (feedmono.state / "binance.orders.json").write_text('{"symbols": [')
        for role in ("reader", "serializer"):
            os.kill(feedmono.worker(f"{role} binance"), signal.SIGHUP)
        more_trades(feedmono, "binance", STAY["binance"], 100)
        assert_undisturbed(feedmono, "binance", STAY["binance"])
        serves(sim, STAY["binance"])
        assert feedmono.stop() == 0
