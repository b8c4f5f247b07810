"""Sessions whose symbols change while they are connected, against an exchange by the book."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from sessions import START_S, frame

from feedmono.exchanges import load
from feedmono.exchanges._subscriptions import ANSWER_WAIT_S, MAX_REPEATS
from feedmono.exchanges.base import (
    Event,
    Refused,
    Session,
    Subscribed,
    Unanswered,
    Unknown,
    Unsubscribed,
)

SYMBOLS = {
    "binance": ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"),
    "kraken": ("BTC/USD", "ETH/USD", "SOL/USD", "XRP/USD"),
}
LEAST_INTERVAL_S = {"binance": 0.5, "kraken": 1.0}
both = pytest.mark.parametrize("name", sorted(SYMBOLS))


class Book:
    """What an exchange does with a connection's messages, and what it answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.subscribed: set[str] = set()
        self.refuses: set[str] = set()

    def asked(self, text: str) -> tuple[bool, list[str], int]:
        """Whether it subscribes, the symbols, the number."""
        message = json.loads(text)
        joins = message["method"].lower() == "subscribe"
        if self.name == "binance":
            names = [stream.partition("@")[0].upper() for stream in message["params"]]
            return joins, names, message["id"]
        assert message["params"]["channel"] == "trade"
        assert ("snapshot" in message["params"]) == joins
        return joins, message["params"]["symbol"], message["req_id"]

    def take(self, text: str) -> list[bytes]:
        """Does what a message asks for; the answers."""
        if '"ping"' in text:
            return []
        joins, symbols, number = self.asked(text)
        replies: list[dict[str, Any]] = []
        for symbol in symbols:
            error = ""
            if joins and symbol in self.refuses:
                error = "Currency pair not supported"
            elif joins == (symbol in self.subscribed):
                error = "Already subscribed" if joins else "Subscription Not Found"
            else:
                (self.subscribed.add if joins else self.subscribed.remove)(symbol)
            replies.append(self._reply(joins, symbol, number, error))
        if self.name == "binance":
            bad = [s for s in symbols if joins and s in self.refuses]
            self.subscribed -= set(symbols if bad else ())
            told = {"code": 2, "msg": "Invalid request", "id": number}
            replies = [told if bad else {"result": None, "id": number}]
        return [frame(reply) for reply in replies]

    @staticmethod
    def _reply(joins: bool, symbol: str, number: int, error: str) -> dict[str, Any]:
        head = {"method": "subscribe" if joins else "unsubscribe", "req_id": number}
        if error:
            return {**head, "error": error, "success": False, "symbol": symbol}
        return {**head, "result": {"channel": "trade", "symbol": symbol}, "success": True}


class Talk:
    """A session and its exchange, by a clock of their own."""

    def __init__(self, name: str, symbols: Sequence[str]) -> None:
        self.session: Session = load(name).session(symbols)
        self.book = Book(name)
        self.now_s = START_S
        self.sent: list[tuple[float, str]] = []
        self.told: list[Event] = []
        self.served: set[str] = set()
        """As the events tell it."""
        self.deaf = False
        """Nothing is done, and nothing answered."""
        self.mute = False
        """What is asked is done, but not answered."""

    def poll(self) -> list[bytes]:
        """Sends what is due now; the answers."""
        texts, events = self.session.poll(self.now_s)
        self._note(events)
        self.sent += [(self.now_s, text) for text in texts if '"ping"' not in text]
        if self.deaf:
            return []
        answers = [reply for text in texts for reply in self.book.take(text)]
        return [] if self.mute else answers

    def hear(self, answers: Sequence[bytes]) -> None:
        for reply in answers:
            self._note(self.session.receive(reply, self.now_s))

    def _note(self, events: Sequence[Event]) -> None:
        self.told += events
        for event in events:
            if isinstance(event, Subscribed):
                self.served.add(event.symbol)
            elif isinstance(event, Unsubscribed):
                self.served.discard(event.symbol)

    def run(self, seconds: float) -> None:
        """So long, with every answer at once."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.hear(self.poll())
            next_s = self.session.next_poll_s()
            assert next_s > self.now_s, "it has nothing to do, but wants to be polled again"
            self.now_s = min(next_s, end_s)

    def methods(self) -> list[tuple[bool, list[str]]]:
        """What was sent: whether it subscribes, and which symbols."""
        return [self.book.asked(text)[:2] for _, text in self.sent]


@both
def test_what_goes_is_unsubscribed_and_what_is_new_is_subscribed(name: str) -> None:
    a, b, c, d = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.session.change((b, c, d))
    assert talk.session.pending == {c, d}
    assert talk.session.next_poll_s() <= talk.now_s
    talk.run(5)
    assert talk.methods() == [(True, [a, b]), (False, [a]), (True, [c, d])]
    assert talk.told[2:] == [Unsubscribed(a), Subscribed(c), Subscribed(d)]
    assert talk.book.subscribed == talk.served == {b, c, d}
    assert talk.session.pending == frozenset()
    assert len({json.loads(t).get("id", json.loads(t).get("req_id")) for _, t in talk.sent}) == 3


@both
def test_messages_of_changes_keep_their_distance(name: str) -> None:
    a, b, *others = SYMBOLS[name]
    talk = Talk(name, (a, b))
    for number in range(200):
        talk.session.change((a, b, *others[: number % 3]))
        talk.run(0.05)
    times = [when for when, _ in talk.sent]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) > 5
    assert min(gaps) >= LEAST_INTERVAL_S[name] - 1e-9


@both
def test_what_goes_and_comes_back_before_it_was_told_costs_no_message(name: str) -> None:
    a, b, c, _ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.session.change((b, c))
    talk.session.change((a, b))
    talk.run(5)
    assert talk.methods() == [(True, [a, b])]
    assert talk.told == [Subscribed(a), Subscribed(b)]
    assert talk.session.pending == frozenset()


@both
def test_what_comes_back_while_it_is_unsubscribed_is_subscribed_behind_the_answer(
    name: str,
) -> None:
    a, b, *_ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.session.change((b,))
    answers = talk.poll()
    talk.session.change((a, b))
    assert talk.session.pending == {a}
    talk.now_s += 1
    assert talk.poll() == [], "nothing before the answer"
    talk.hear(answers)
    talk.run(5)
    assert talk.methods() == [(True, [a, b]), (False, [a]), (True, [a])]
    assert talk.told[2:] == [Unsubscribed(a), Subscribed(a)]
    assert talk.book.subscribed == {a, b}


@both
def test_what_goes_while_it_is_subscribed_is_unsubscribed_behind_the_answer(name: str) -> None:
    a, b, *_ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    answers = talk.poll()
    talk.session.change((b,))
    assert talk.session.pending == {b}
    talk.now_s += 1
    assert talk.poll() == []
    talk.hear(answers)
    talk.run(5)
    assert talk.methods() == [(True, [a, b]), (False, [a])]
    assert talk.book.subscribed == talk.served == {b}


@both
def test_what_goes_before_it_was_asked_for_is_never_asked_for(name: str) -> None:
    a, b, c, _ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.session.change((b, c))
    talk.run(5)
    assert talk.methods() == [(True, [b, c])]


@both
@pytest.mark.parametrize("done", [False, True])
def test_an_unsubscription_that_is_never_answered_is_no_trouble(name: str, done: bool) -> None:
    a, b, *_ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.mute, talk.deaf = done, not done
    talk.session.change((b,))
    talk.run((MAX_REPEATS + 2) * ANSWER_WAIT_S)
    assert talk.methods()[1:] == [(False, [a])] * (MAX_REPEATS + 1)
    assert talk.told[2:] == [Unsubscribed(a)]
    talk.mute = talk.deaf = False
    # If it was not done, the exchange says that it is subscribed already.
    talk.session.change((a, b))
    talk.run(5)
    assert talk.told[3:] == [Subscribed(a)]
    assert talk.book.subscribed == {a, b}


@both
@pytest.mark.parametrize("done", [False, True])
def test_an_unanswered_unsubscription_of_what_came_back_is_not_repeated(
    name: str, done: bool
) -> None:
    a, b, *_ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.mute, talk.deaf = done, not done
    talk.session.change((b,))
    talk.run(1)
    talk.mute = talk.deaf = False
    talk.session.change((a, b))
    talk.run(2 * ANSWER_WAIT_S)
    assert talk.methods()[1:] == [(False, [a]), (True, [a])]
    assert talk.book.subscribed == {a, b}
    assert talk.session.pending == frozenset()


@both
@pytest.mark.parametrize("done", [False, True])
def test_an_unanswered_subscription_of_what_is_not_wanted_any_more_is_undone(
    name: str, done: bool
) -> None:
    a, b, c, _ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.mute, talk.deaf = done, not done
    talk.session.change((a, b, c))
    talk.run(1)
    talk.mute = talk.deaf = False
    talk.session.change((a, b))
    assert talk.session.pending == frozenset()
    talk.run((MAX_REPEATS + 2) * ANSWER_WAIT_S)
    assert talk.methods()[1:] == [(True, [c]), (False, [c])]
    assert talk.book.subscribed == {a, b}
    assert not [event for event in talk.told if isinstance(event, Unanswered)]


@both
def test_a_new_symbol_that_is_refused_is_told_and_asked_again_when_it_comes_back(
    name: str,
) -> None:
    a, b, c, d = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.book.refuses = {c}
    talk.session.change((a, b, c, d))
    talk.run(10)
    (refusal,) = [event for event in talk.told if isinstance(event, Refused)]
    assert refusal.symbol == c
    assert talk.served == talk.book.subscribed == {a, b, d}
    talk.session.change((a, b, d))
    talk.book.refuses = set()
    talk.session.change((a, b, c, d))
    talk.run(10)
    assert talk.served == talk.book.subscribed == {a, b, c, d}


@both
def test_a_new_symbol_that_is_never_answered_ends_the_connection(name: str) -> None:
    a, b, c, _ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.deaf = True
    talk.session.change((a, b, c))
    talk.run((MAX_REPEATS + 2) * ANSWER_WAIT_S)
    assert talk.told[2:] == [Unanswered((c,))]


def test_an_unsubscription_that_is_not_found_counts_as_done() -> None:
    talk = Talk("kraken", ("BTC/USD", "ETH/USD"))
    talk.run(5)
    talk.book.subscribed.clear()
    talk.session.change(("ETH/USD",))
    talk.run(20)
    assert talk.methods()[1:] == [(False, ["BTC/USD"])]
    assert talk.told[2:] == [Unsubscribed("BTC/USD")]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("binance", {"code": -1008, "msg": "busy", "id": 2}),
        ("kraken", {"method": "unsubscribe", "error": "Exceeded msg rate", "req_id": 2}),
    ],
)
def test_an_unsubscription_that_can_not_be_taken_now_is_repeated(
    name: str, error: dict[str, Any]
) -> None:
    a, b, *_ = SYMBOLS[name]
    talk = Talk(name, (a, b))
    talk.run(5)
    talk.session.change((b,))
    talk.deaf = True
    talk.poll()
    talk.deaf = False
    talk.hear([frame(error)])
    assert isinstance(talk.told[2], Unknown)
    talk.run(2 * ANSWER_WAIT_S)
    assert talk.methods()[1:] == [(False, [a])] * 2
    assert talk.told[3:] == [Unsubscribed(a)]
    assert talk.book.subscribed == {b}


def test_an_answer_to_a_subscription_is_none_to_an_unsubscription() -> None:
    talk = Talk("kraken", ("BTC/USD", "ETH/USD"))
    talk.run(5)
    talk.session.change(("ETH/USD",))
    talk.deaf = True
    talk.poll()
    late = {"channel": "trade", "symbol": "BTC/USD"}
    for number in ({"req_id": 1}, {"req_id": 2}, {}):
        reply = {"method": "subscribe", "result": late, "success": True, **number}
        talk.hear([frame(reply)])
    assert not [event for event in talk.told[2:] if not isinstance(event, Unknown)]


@both
def test_many_symbols_change_in_messages_of_the_usual_size(name: str) -> None:
    base, quote = ("S", "USDT") if name == "binance" else ("S", "/USD")
    many = [f"{base}{number}{quote}" for number in range(180)]
    talk = Talk(name, many[:170])
    talk.run(60)
    sent = len(talk.sent)
    talk.session.change(many[160:])
    talk.run(60)
    sizes = [len(symbols) for _, symbols in talk.methods()[sent:]]
    assert sizes == ([100, 60, 10] if name == "binance" else [50, 50, 50, 10, 10])
    assert talk.book.subscribed == talk.served == set(many[160:])


@both
@pytest.mark.parametrize("seed", range(30))
def test_whatever_changes_and_whoever_does_not_answer_the_end_is_right(
    name: str, seed: int
) -> None:
    dice = random.Random(seed)
    symbols = SYMBOLS[name]
    wanted: Sequence[str] = symbols[:2]
    talk = Talk(name, wanted)
    waiting: list[bytes] = []
    for _ in range(120):
        if any(isinstance(event, Unanswered) for event in talk.told):
            talk = Talk(name, wanted)
            waiting.clear()
        talk.deaf, talk.mute = dice.random() < 0.1, dice.random() < 0.1
        waiting += talk.poll()
        if dice.random() < 0.5:
            talk.hear(waiting)
            waiting.clear()
        if dice.random() < 0.4:
            wanted = dice.sample(symbols, dice.randint(1, 4))
            talk.session.change(wanted)
        talk.now_s += dice.choice((0.1, 0.5, 2.0, 11.0))
    talk.deaf = talk.mute = False
    talk.hear(waiting)
    for last in (wanted, (), dice.sample(symbols, 2)):
        talk.session.change(last)
        talk.run(100)
        if any(isinstance(event, Unanswered) for event in talk.told):
            return
        assert talk.book.subscribed == talk.served == set(last)
        assert talk.session.pending == frozenset()
