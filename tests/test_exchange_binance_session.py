"""Binance: sessions of subscriptions, as tables of what is sent and answered."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
import trade_twins
from sessions import START_S, Run, drive, frame

from feedmono.exchanges.base import (
    Event,
    Refused,
    Session,
    Shutdown,
    Subscribed,
    Unanswered,
    Unknown,
)
from feedmono.exchanges.binance import Binance


@pytest.fixture(params=trade_twins.TWINS, autouse=True)
def _twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    trade_twins.choose(request.param, monkeypatch)


def session(*symbols: str) -> Session:
    return Binance().session(symbols)


def acknowledge(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"result": None, "id": message["id"]}]


def many(count: int) -> list[str]:
    return [f"S{number}USDT" for number in range(count)]


def test_a_session_subscribes_on_one_connection_in_microseconds() -> None:
    one = session("BTCUSDT", "币安人生USDT", "BTCUSDT")
    assert one.path == "/stream?timeUnit=MICROSECOND"
    assert one.pending == {"BTCUSDT", "币安人生USDT"}
    assert one.next_poll_s() <= START_S
    texts, events = one.poll(START_S)
    assert texts == (
        '{"method":"SUBSCRIBE","params":["btcusdt@trade","币安人生usdt@trade"],"id":1}',
    )
    assert events == ()
    acknowledged = one.receive(b'{"result":null,"id":1}', START_S)
    assert acknowledged == (Subscribed("BTCUSDT"), Subscribed("币安人生USDT"))
    assert one.pending == frozenset()
    assert one.next_poll_s() == float("inf")
    # The answer to a repetition says nothing new.
    assert one.receive(b'{"result":null,"id":1}', START_S) == ()


def test_the_messages_stay_below_the_rate_and_the_size_that_is_allowed() -> None:
    run = drive(session(*many(1024)), acknowledge)
    assert len(run.messages) == 11
    assert max(len(message["params"]) for _, message in run.messages) <= 100
    assert run.most_in(1.0) <= 2
    assert run.told() == [Subscribed(symbol) for symbol in many(1024)]
    assert len({message["id"] for _, message in run.messages}) == 11


def test_polling_too_often_or_too_late_sends_no_faster() -> None:
    busy = session(*many(1024))
    times = [START_S + i / 100 for i in range(1, 400)] + [START_S + 60 + i / 100 for i in range(90)]
    run = Run()
    for now_s in times:
        for text in busy.poll(now_s)[0]:
            message = json.loads(text)
            run.messages.append((now_s, message))
            busy.receive(frame({"result": None, "id": message["id"]}), now_s)
    assert len(run.messages) == 10
    assert run.most_in(0.999) <= 2


@pytest.mark.parametrize("shape", ["flat", "nested"])
def test_a_refused_request_is_halved_until_the_culprits_are_known(shape: str) -> None:
    bad = {"s3usdt@trade", "s64usdt@trade", "s65usdt@trade"}

    def answer(message: dict[str, Any]) -> list[dict[str, Any]]:
        if not bad & set(message["params"]):
            return acknowledge(message)
        error: dict[str, Any] = {"code": 2, "msg": "Invalid request: bad stream"}
        if shape == "flat":
            return [{**error, "id": message["id"]}]
        return [{"error": error, "id": message["id"]}]

    one = session(*many(100))
    run = drive(one, answer)
    refused = [event for event in run.told() if isinstance(event, Refused)]
    assert {event.symbol for event in refused} == {"S3USDT", "S64USDT", "S65USDT"}
    assert {event.reason for event in refused} == {"Invalid request: bad stream (code 2)"}
    subscribed = [event.symbol for event in run.told() if isinstance(event, Subscribed)]
    assert len(subscribed) == 97
    assert set(subscribed) == set(many(100)) - {"S3USDT", "S64USDT", "S65USDT"}
    assert len(run.told()) == 100
    assert run.most_in(1.0) <= 2
    assert one.pending == frozenset()


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (99_999, "no", "no (code 99999)"),
        (-99_999, "no", "no (code -99999)"),
        (100_000, "no", "no (code None)"),
        (True, "no", "no (code None)"),
        (2, "n" * 200, "n" * 200 + " (code 2)"),
        (2, "n" * 201, "n" * 200 + " (code 2)"),
        (2, None, "no message (code 2)"),
    ],
)
def test_of_a_refusal_what_is_harmless_is_quoted(code: object, text: object, reason: str) -> None:
    one = session("BTCUSDT")
    one.poll(START_S)
    answer = json.dumps({"id": 1, "error": {"code": code, "msg": text}}).encode()
    assert one.receive(answer, START_S) == (Refused("BTCUSDT", reason),)


def test_an_unanswered_request_is_repeated_three_times_and_then_given_up() -> None:
    one = session("BTCUSDT", "ETHUSDT")
    run = drive(one, lambda _: [])
    assert [when - START_S for when, _ in run.messages] == [0, 10, 20, 30]
    assert len({json.dumps(message) for _, message in run.messages}) == 1
    assert run.events == [(START_S + 40, Unanswered(("BTCUSDT", "ETHUSDT")))]
    assert one.pending == {"BTCUSDT", "ETHUSDT"}
    assert one.next_poll_s() == float("inf")


def test_an_answer_to_a_repetition_counts() -> None:
    asked: list[int] = []

    def answer(message: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(message["id"])
        return acknowledge(message) if len(asked) == 3 else []

    run = drive(session("BTCUSDT"), answer)
    assert run.events == [(START_S + 20.05, Subscribed("BTCUSDT"))]
    assert asked == [1, 1, 1]


def test_a_server_in_trouble_is_asked_again_with_growing_waits() -> None:
    busy = {"error": {"code": -1008, "msg": "Server is busy"}}

    def answer(message: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**busy, "id": message["id"]}]

    one = session(*many(150))
    run = drive(one, answer, for_s=1000)
    assert not [event for event in run.told() if isinstance(event, Refused)]
    assert [event for event in run.told() if isinstance(event, Unanswered)]
    first = [when - START_S for when, message in run.messages if message["id"] == 1]
    waits = [round(after - before) for before, after in itertools.pairwise(first)]
    assert len(first) == 4
    assert waits == sorted(waits)
    assert waits[-1] >= 2 * waits[0]


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (b'{"e":"serverShutdown","E":1770123456789}', Shutdown),
        (b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}', Shutdown),
        (b'{"data":{"E":1,"e":"serverShutdown"},"stream":"!serverShutdown"}', Shutdown),
        (b'{"stream":"!serverShutdown","data":null}', Shutdown),
        (b'{"result":null,"id":99}', Unknown),
        (b'{"result":null,"id":"1"}', Unknown),
        (b'{"result":null,"id":true}', Unknown),
        (b'{"result":null,"id":1.0}', Unknown),
        (b'{"result":null,"id":[1]}', Unknown),
        (b'{"result":null}', Unknown),
        (b'{"id":1}', Unknown),
        (b'{"result":["btcusdt@trade"],"id":1}', Unknown),
        (b'{"code":3,"msg":"Invalid JSON: expected value"}', Unknown),
        (b'{"stream":"btcusdt@depth","data":{"e":"depthUpdate"}}', Unknown),
        (b"garbage", Unknown),
        (b"", Unknown),
        (b'"\xff\xfe"', Unknown),
    ],
)
def test_messages_about_no_request_mean_what_they_say_and_answer_none(
    data: bytes, event: type[Event]
) -> None:
    one = session("BTCUSDT")
    one.poll(START_S)
    (told,) = one.receive(data, START_S)
    assert isinstance(told, event)
    assert one.pending == {"BTCUSDT"}


def test_an_error_with_strange_contents_still_refuses() -> None:
    deep = b"[" * 500 + b"]" * 500
    for code, msg in [(b"[1]", deep), (deep, b"null"), (b"1" * 4000, b'"x"'), (b"{}", b"{}")]:
        one = session("BTCUSDT")
        one.poll(START_S)
        data = b'{"id":1,"error":{"code":' + code + b',"msg":' + msg + b"}}"
        (told,) = one.receive(data, START_S)
        assert isinstance(told, Refused)
        assert len(told.reason) < 300


@pytest.mark.parametrize("seed", range(20))
def test_every_symbol_gets_one_verdict_whatever_the_server_answers(seed: int) -> None:
    rng = random.Random(seed)
    symbols = many(rng.randint(1, 300))
    bad = set(rng.sample(symbols, rng.randint(0, len(symbols) // 10)))

    def answer(message: dict[str, Any]) -> list[dict[str, Any]]:
        replies = 1 if rng.random() < 0.8 else rng.choice([0, 2])
        asked = {stream.split("@")[0].upper() for stream in message["params"]}
        if asked & bad:
            return [{"code": 2, "msg": "no", "id": message["id"]}] * replies
        return acknowledge(message) * replies

    one = session(*symbols)
    run = drive(one, answer, for_s=10_000)
    verdicts: dict[str, str] = {}
    for event in run.told():
        assert isinstance(event, (Subscribed, Refused, Unanswered))
        given = event.symbols if isinstance(event, Unanswered) else (event.symbol,)
        for symbol in given:
            assert symbol not in verdicts
            verdicts[symbol] = type(event).__name__
            assert (symbol in bad) == isinstance(event, Refused) or isinstance(event, Unanswered)
    assert set(verdicts) == set(symbols)
    assert one.pending == {s for s, verdict in verdicts.items() if verdict == "Unanswered"}
    assert run.most_in(1.0) <= 2
