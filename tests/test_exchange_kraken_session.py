"""Kraken: sessions of subscriptions, as tables of what is sent and answered."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from sessions import START_S, drive, frame, recorded

from feedmono.exchanges.base import (
    Event,
    Refused,
    Session,
    Subscribed,
    SystemStatus,
    Unanswered,
    Unknown,
)
from feedmono.exchanges.kraken import Kraken

KRAKEN = Kraken()


def session(*symbols: str) -> Session:
    return KRAKEN.session(symbols)


def many(count: int) -> list[str]:
    return [f"S{number}/USD" for number in range(count)]


def acknowledged(symbol: str, req_id: int | None = None) -> dict[str, Any]:
    result = {"channel": "trade", "snapshot": True, "symbol": symbol}
    reply = {"method": "subscribe", "result": result, "success": True}
    return reply if req_id is None else {**reply, "req_id": req_id}


def refused(error: str, **fields: Any) -> dict[str, Any]:
    return {"error": error, "method": "subscribe", "success": False, **fields}


def acknowledge(asked: dict[str, Any]) -> list[dict[str, Any]]:
    if asked["method"] == "ping":
        return [{"method": "pong", "req_id": asked["req_id"]}]
    return [acknowledged(symbol, asked["req_id"]) for symbol in asked["params"]["symbol"]]


def test_a_session_subscribes_symbol_by_symbol() -> None:
    one = session("BTC/USD", "AAPLx/USD")
    assert one.path == "/v2"
    assert one.next_poll_s() <= START_S
    texts, events = one.poll(START_S)
    assert events == ()
    params = '{"channel":"trade","symbol":["BTC/USD","AAPLx/USD"],"snapshot":true}'
    assert texts == (f'{{"method":"subscribe","params":{params},"req_id":1}}',)
    assert one.pending == {"BTC/USD", "AAPLx/USD"}
    ack = frame(acknowledged("AAPLx/USD", 1))
    assert one.receive(ack, START_S) == (Subscribed("AAPLx/USD"),)
    assert one.pending == {"BTC/USD"}
    assert one.receive(ack, START_S) == ()
    no_id = frame(acknowledged("BTC/USD"))
    assert one.receive(no_id, START_S) == (Subscribed("BTC/USD"),)
    assert one.pending == frozenset()


def test_a_whole_recorded_session_means_what_it_says() -> None:
    one = session("BTC/USD", "XBT/USDT")
    one.poll(START_S)
    connection = [
        *recorded("kraken-v2-control.jsonl"),
        *recorded("kraken-v2-errors.jsonl"),
    ]
    told = [one.receive(data, START_S) for data in connection]
    kinds = [[type(event).__name__ for event in events] for events in told]
    assert kinds == [
        [],  # heartbeat
        ["SystemStatus"],
        ["Unknown"],  # an error about a ping
        ["Unknown"],  # an error about a request of another number, 0
        [],  # pong
        ["Unknown"],  # another channel's acknowledgement
        ["Unknown"],  # a right one, but of request 0
        ["Unknown"],  # the instrument channel's
        ["Unknown"],  # already subscribed, but by request 2
        ["Unknown"],
    ]
    assert told[1] == (SystemStatus("online", True),)
    assert one.pending == {"BTC/USD", "XBT/USDT"}


def test_a_refused_symbol_is_told_and_the_others_go_on() -> None:
    def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
        if asked["method"] == "ping":
            return acknowledge(asked)
        error = refused(
            "Currency pair not supported XBT/USDT", symbol="XBT/USDT", req_id=asked["req_id"]
        )
        return [error, *(reply for reply in acknowledge(asked) if "XBT" not in str(reply))]

    one = session("BTC/USD", "XBT/USDT", "ETH/USD")
    run = drive(one, answer)
    assert run.told() == [
        Refused("XBT/USDT", "Currency pair not supported XBT/USDT"),
        Subscribed("BTC/USD"),
        Subscribed("ETH/USD"),
    ]
    assert one.pending == frozenset()


def test_an_error_without_a_symbol_refuses_what_its_request_still_waits_for() -> None:
    one = session(*many(60))
    one.poll(START_S)
    one.poll(START_S + 1)
    one.receive(frame(acknowledged("S0/USD", 1)), START_S + 1)
    events = one.receive(frame(refused("Unsupported event", req_id=1)), START_S + 1)
    assert events == tuple(Refused(symbol, "Unsupported event") for symbol in many(50)[1:])
    assert one.pending == set(many(60)[50:])


def test_already_subscribed_counts_as_subscribed() -> None:
    one = session("BTC/USD")
    one.poll(START_S)
    reply = frame(refused("Already subscribed", symbol="BTC/USD", req_id=1))
    assert one.receive(reply, START_S) == (Subscribed("BTC/USD"),)
    assert one.receive(reply, START_S) == ()
    assert one.pending == frozenset()


def test_the_messages_are_paced_and_cut() -> None:
    run = drive(session(*many(200)), acknowledge, for_s=10)
    assert len(run.messages) == 4
    assert run.most_in(1.0) <= 1
    assert all(len(asked["params"]["symbol"]) == 50 for _, asked in run.messages)
    assert run.told() == [Subscribed(symbol) for symbol in many(200)]


Errors = Callable[[str, int], dict[str, Any]]


@pytest.mark.parametrize(
    "error",
    [
        lambda symbol, req_id: refused("Exceeded msg rate", symbol=symbol, req_id=req_id),
        lambda symbol, _: refused("EGeneral:Too many requests", symbol=symbol),
        lambda _, req_id: refused("EAPI:Rate limit exceeded", req_id=req_id),
        lambda *_: {"Error": "Exceeded msg rate"},
        lambda symbol, req_id: refused("EService:Unavailable", symbol=symbol, req_id=req_id),
    ],
)
def test_a_subscription_refused_for_its_rate_is_asked_for_again_later(error: Errors) -> None:
    refusals = 0

    def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
        nonlocal refusals
        replies = acknowledge(asked)
        if asked["method"] == "subscribe" and "S1/USD" in asked["params"]["symbol"]:
            refusals += 1
            if refusals <= 3:
                asked_for = asked["params"]["symbol"].index("S1/USD")
                replies[asked_for] = error("S1/USD", asked["req_id"])
        return replies

    one = session(*many(60))
    run = drive(one, answer, for_s=300)
    subscribed = [event.symbol for event in run.told() if isinstance(event, Subscribed)]
    assert sorted(subscribed) == sorted(many(60))
    assert not [event for event in run.told() if isinstance(event, (Refused, Unanswered))]
    asked_at = [
        (when, asked["params"]["symbol"])
        for when, asked in run.messages
        if asked["method"] == "subscribe" and "S1/USD" in asked["params"]["symbol"]
    ]
    assert [symbols for _, symbols in asked_at[1:]] == [["S1/USD"]] * 3
    waits = [later - sooner for (sooner, _), (later, _) in itertools.pairwise(asked_at)]
    # A ping may come in between and cost a second.
    assert [
        expected <= wait < expected + 2 for wait, expected in zip(waits, (10, 20, 40), strict=True)
    ]
    # Nothing else was asked for while the server said that it was too much.
    assert not [
        asked
        for when, asked in run.messages
        if asked["method"] == "subscribe" and START_S + 0.05 < when < START_S + 10
    ]


def test_a_server_that_always_says_later_is_given_up_in_the_end() -> None:
    def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
        if asked["method"] == "ping":
            return acknowledge(asked)
        return [refused("Exceeded msg rate", req_id=asked["req_id"])]

    one = session("BTC/USD", "ETH/USD")
    run = drive(one, answer, for_s=1000)
    assert [e for e in run.told() if not isinstance(e, Unknown)] == [
        Unanswered(("BTC/USD", "ETH/USD"))
    ]
    assert len([1 for _, asked in run.messages if asked["method"] == "subscribe"]) == 4


def test_an_unanswered_symbol_is_repeated_alone_and_then_given_up() -> None:
    def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
        return [reply for reply in acknowledge(asked) if "ETH" not in str(reply)]

    one = session("BTC/USD", "ETH/USD")
    run = drive(one, answer, for_s=60)
    asked_for = [
        (round(when - START_S), asked["params"]["symbol"])
        for when, asked in run.messages
        if asked["method"] == "subscribe"
    ]
    assert asked_for == [
        (0, ["BTC/USD", "ETH/USD"]),
        (10, ["ETH/USD"]),
        (20, ["ETH/USD"]),
        (30, ["ETH/USD"]),
    ]
    assert run.told() == [Subscribed("BTC/USD"), Unanswered(("ETH/USD",))]
    assert one.pending == {"ETH/USD"}


def test_a_quiet_connection_is_kept_open_by_pings() -> None:
    run = drive(session("BTC/USD"), acknowledge, for_s=100)
    pings = [round(when - START_S) for when, asked in run.messages if asked["method"] == "ping"]
    assert pings == [20, 40, 60, 80, 100]
    assert run.told() == [Subscribed("BTC/USD")]
    assert run.most_in(1.0) <= 1


def test_a_connection_without_symbols_is_kept_open_as_well() -> None:
    run = drive(session(), acknowledge, for_s=50)
    assert [round(when - START_S) for when, _ in run.messages] == [20, 40]


@pytest.mark.parametrize(
    ("system", "trading"),
    [
        ("online", True),
        ("limit_only", True),
        ("something_new", True),
        ("post_only", False),
        ("cancel_only", False),
        ("maintenance", False),
    ],
)
def test_silence_is_legitimate_while_no_orders_are_matched(system: str, trading: bool) -> None:
    data = frame(
        {
            "channel": "status",
            "type": "update",
            "data": [{"system": system, "connection_id": 12_393_906_104_898_154_338}],
        }
    )
    assert session().receive(data, START_S) == (SystemStatus(system, trading),)


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"",
        b"7",
        b'"\xff"',
        b"{}",
        b'{"channel":"status","data":[]}',
        b'{"channel":"status","data":[{"system":5}]}',
        b'{"channel":"status"}',
        b'{"channel":"ticker","data":[]}',
        b'{"channel":["trade"]}',
        b'{"method":"subscribe","success":true}',
        b'{"method":"subscribe","success":true,"result":7,"req_id":1}',
        b'{"method":"subscribe","success":true,"result":{"channel":"trade"},"req_id":1}',
        frame(acknowledged("ETH/USD", 1)).replace(b'"req_id":1', b'"req_id":2'),
        frame(acknowledged("BTC/USD", 1)).replace(b'"trade"', b'"ticker"'),
        frame(acknowledged("BTC/USD", 1)).replace(b"true,", b"1,"),
        frame(acknowledged("BTC/USD", 2)),
        frame(refused("Currency pair not supported", symbol="ETH/USD", req_id=2)),
        frame(refused("Currency pair not supported", symbol="BTC/USD", req_id=2)),
        frame(refused("Unsupported event", req_id=0)),
        frame(refused("Unsupported event")),
        b'{"error":"Unsupported field","method":"ping","req_id":1,"success":false}',
        b'{"error":["x"],"req_id":[1]}',
    ],
)
def test_messages_about_no_request_are_unknown_and_answer_none(data: bytes) -> None:
    one = session("BTC/USD")
    one.poll(START_S)
    (told,) = one.receive(data, START_S)
    assert isinstance(told, Unknown)
    assert one.pending == {"BTC/USD"}


@pytest.mark.parametrize("seed", range(20))
def test_every_symbol_gets_one_verdict_whatever_the_server_answers(seed: int) -> None:
    rng = random.Random(seed)
    symbols = many(rng.randint(1, 200))
    bad = set(rng.sample(symbols, rng.randint(0, len(symbols) // 5)))

    def reply(symbol: str, req_id: int) -> list[dict[str, Any]]:
        if rng.random() < 0.1:
            return rng.choice([[], [refused("Exceeded msg rate", symbol=symbol, req_id=req_id)]])
        if symbol in bad:
            return [refused("Currency pair not supported", symbol=symbol, req_id=req_id)]
        return [acknowledged(symbol, req_id)] * rng.choice([1, 1, 1, 2])

    def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
        if asked["method"] == "ping":
            return acknowledge(asked)
        replies = [r for s in asked["params"]["symbol"] for r in reply(s, asked["req_id"])]
        rng.shuffle(replies)
        return replies

    one = session(*symbols)
    run = drive(one, answer, for_s=1000)
    verdicts: dict[str, Event] = {}
    for event in run.told():
        if isinstance(event, Unknown):
            continue
        assert isinstance(event, (Subscribed, Refused, Unanswered))
        for symbol in event.symbols if isinstance(event, Unanswered) else (event.symbol,):
            assert symbol not in verdicts
            verdicts[symbol] = event
            assert isinstance(event, Unanswered) or (symbol in bad) == isinstance(event, Refused)
    assert set(verdicts) == set(symbols)
    assert one.pending == {s for s, event in verdicts.items() if isinstance(event, Unanswered)}
    assert run.most_in(1.0) <= 1
