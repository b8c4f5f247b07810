"""The ids of a symbol against a model of plain sets, over random sequences of events."""

from __future__ import annotations

import itertools
import random

import pytest
from ids_rig import (
    ABSENT,
    BEYOND,
    EPOCH,
    FAR,
    FILLED,
    JUMPED,
    NEXT,
    NOW_US,
    OPEN,
    REPEATED,
    SECOND_US,
    START_US,
    told,
    told_of,
    trade,
)

from feedmono.delivery import ids as ids_module
from feedmono.delivery.holes import UNKNOWN, Edge, Hole, State, edge_of
from feedmono.delivery.ids import Ids, Outcome
from feedmono.trade import BACKFILL, SNAPSHOT, STREAM

SEEDS = 1000


class Missing:
    """A missing id of the model."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.proofs = 0
        self.proved_us = 0


def _proved(one: Missing | Hole) -> tuple[object, ...]:
    """What becomes of it; what is settled was proved once and for all."""
    return (one.state, one.proofs, one.proved_us) if one.state is OPEN else (one.state,)


class Model:
    """The same with plain sets: every id by itself."""

    def __init__(self, first: int) -> None:
        self.epoch = 0
        self.start_us = START_US
        self.begin(first)

    def begin(self, first: int) -> None:
        self.first = self.last = first
        self.known = {first}
        self.missing: dict[int, Missing] = {}
        self.alone: list[int] = []
        self.candidate: int | None = None
        self.anew: dict[int, int] = {}
        self.anew_last = -1
        self.strays: dict[int, int] = {}
        self.times: dict[int, int] = {}
        """Of those that do not have the time that belongs to their id."""
        self.begin_us = self.newest_us = self.time_us(first)

    def time_us(self, number: int) -> int:
        return self.times.get(number, trade(number, self.start_us).time_us)

    def begun_by(self, number: int, time_us: int) -> list[int]:
        """The ids of the epoch that, as that trade, if it is newer, shows, has begun."""
        if self.anew_last != self.last or number > self.last:
            return []
        times = {**self.anew, number: time_us}
        begun = [number]
        for step in (1, -1):
            at = number
            for other in sorted(times)[::step]:
                low, high = min(at, other), max(at, other)
                late = times[high] <= times[low] - ids_module.EPOCH_US
                if 0 < (other - at) * step <= ids_module.FAR and not late:
                    begun.append(other)
                    at = other
        return sorted(begun) if len(begun) > 1 else []

    def _stray(self, number: int, time_us: int) -> None:
        self.strays[number] = time_us
        if len(self.strays) > ids_module.MAX_ANEW:
            del self.strays[next(iter(self.strays))]

    def _strand(self, number: int) -> Outcome:
        if number in self.alone:
            return FAR
        self.known.add(number)
        self.alone.append(number)
        if len(self.alone) > ids_module.MAX_ISLANDS:
            self.known.remove(self.alone.pop(0))
        return FAR

    def _lose(self, first: int, last: int, max_trades: int) -> bool:
        lost = [number for number in range(first, last + 1) if number not in self.known]
        for number in lost:
            self.missing[number] = Missing(OPEN if number > last - max_trades else BEYOND)
        return bool(lost)

    def add(self, number: int, origin: int, time_us: int, max_trades: int) -> Outcome:
        outcome = self._add(number, origin, time_us, max_trades)
        self.alone = [n for n in self.alone if not self.first <= n <= self.last]
        return outcome

    def _add(self, number: int, origin: int, time_us: int, max_trades: int) -> Outcome:
        known = self.first <= number <= self.last and number in self.known
        if number > self.last or not (known or origin == BACKFILL):
            strays = self.strays.get(number) == time_us
            old = self.epoch and time_us <= self.begin_us - ids_module.EPOCH_US
            if strays or old:
                if strays or origin != STREAM:
                    return REPEATED
                self._stray(number, time_us)
                return FAR
        if number > self.last:
            return REPEATED if number in self.known else self._add_above(number, max_trades)
        newer = origin != BACKFILL and time_us >= self.newest_us + ids_module.EPOCH_US
        if newer and self.anew.get(number) == time_us:
            return REPEATED
        if newer and (begun := self.begun_by(number, time_us)):
            times = {**self.anew, number: time_us}
            self.epoch += 1
            self.start_us = times[begun[0]] - trade(begun[0], 0).time_us
            self.begin(begun[0])
            self.times = {each: times[each] for each in begun}
            for each in begun[1:]:
                self._lead_to(each, max_trades)
            for other, other_us in times.items():
                if other not in begun:
                    self._stray(other, other_us)
            return EPOCH
        if number in self.missing:
            del self.missing[number]
            self.known.add(number)
            self.times[number] = time_us
            self.candidate = None
            return FILLED
        if newer:
            if self.anew_last != self.last:
                self.anew, self.anew_last = {}, self.last
            self.anew.pop(number, None)
            self.anew[number] = time_us
            if len(self.anew) > ids_module.MAX_ANEW:
                del self.anew[next(iter(self.anew))]
            return self._strand(number) if number < self.first else FAR
        if number in self.known or origin != STREAM:
            return REPEATED
        self.candidate = None
        if self.first - number > ids_module.NEAR:
            return self._strand(number)
        self._lose(number + 1, self.first - 1, 10**6)
        self.known.add(number)
        self.times[number] = time_us
        self.first = number
        return NEXT

    def _add_above(self, number: int, max_trades: int) -> Outcome:
        tops = [number]
        if number - self.last > ids_module.FAR:
            candidate = self.candidate
            if candidate is None or not 0 < number - candidate <= ids_module.FAR:
                self.candidate = number
                return self._strand(number)
            tops.insert(0, candidate)
        self.candidate = None
        jumped = False
        for top in tops:
            jumped |= self._lead_to(top, max_trades)
        return JUMPED if jumped else NEXT

    def _lead_to(self, top: int, max_trades: int) -> bool:
        lost = self._lose(self.last + 1, top - 1, max_trades)
        self.known.add(top)
        self.last = top
        self.newest_us = max(self.newest_us, self.time_us(top))
        return lost

    def miss(self, number: int, time_us: int) -> None:
        if self.anew.get(number) == time_us:
            del self.anew[number]
            if number in self.alone:
                self.alone.remove(number)
                self.known.remove(number)
            return
        if self.strays.get(number) == time_us:
            del self.strays[number]
            return
        if number not in self.known:
            return
        self.known.remove(number)
        if number in self.alone:
            self.alone.remove(number)
            self.candidate = None
        else:
            self.missing[number] = Missing(OPEN)

    def prove(self, first: int, last: int, now_us: int, confirm_after_us: int) -> int:
        absent = 0
        for number, missing in self.missing.items():
            if not first <= number <= last or missing.state is not OPEN:
                continue
            missing.proved_us = min(missing.proved_us, now_us)
            if not missing.proofs:
                missing.proofs, missing.proved_us = 1, now_us
            elif now_us - missing.proved_us >= confirm_after_us:
                missing.proofs += 1
                missing.state = ABSENT
                absent += 1
        return absent

    def give_up(self, first: int, last: int) -> int:
        given_up = [
            missing
            for number, missing in self.missing.items()
            if first <= number <= last and missing.state is OPEN
        ]
        for missing in given_up:
            missing.state = BEYOND
        return len(given_up)

    def fold(self, until: int, count: int, left: set[int]) -> None:
        """So many of the oldest missing ids, settled ones first, are taken for known from now
        on."""
        folded = self.missing.keys() - left
        assert len(folded) == count
        assert not folded or max(folded) < until
        settled = [n for n in self.missing if self.missing[n].state is not OPEN]
        for number in folded:
            kept = left & set(settled) if number in settled else left & set(self.missing)
            assert all(number < other for other in kept)
        for number in folded:
            del self.missing[number]
            self.known.add(number)


class Run:
    """One random sequence of operations, checked against the model after each."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        first = self.chance.randrange(100, 200)
        self.model = Model(first)
        self.ids = Ids(trade(first))
        self.folded = 0
        self.now_us = NOW_US
        self.shadow: dict[int, tuple[object, ...]] = {}
        self.missing_ended = 0
        self.outcomes = dict.fromkeys(Outcome, 0)

    def step(self) -> None:
        operation = self.chance.choices(
            (self._add, self._begin, self._miss, self._prove, self._give_up, self._try),
            (20, 2, 2, 3, 1, 1),
        )[0]
        operation()
        self._check()
        if self.chance.random() < 0.3:
            self._empty()
        if self.chance.random() < 0.1:
            self._copy()

    def _number(self) -> int:
        """Any id, near or far, known, missing or new."""
        model, chance = self.model, self.chance
        kind = chance.randrange(10)
        if kind < 2:
            return model.last + 1
        if kind < 4:
            return model.last + chance.randrange(1, 8)
        if kind < 6 and model.missing:
            return chance.choice(list(model.missing))
        if kind < 7:
            return chance.choice(list(model.known) or [model.first])
        if kind < 8 and model.candidate is not None:
            return model.candidate + chance.randrange(-2, 5)
        if kind < 9 and (model.anew or model.strays):
            near = chance.choice([*model.anew, *model.strays])
            return max(0, near + chance.choice((-1, 0, 1, 1, 1, 2, 4, 29, 30, 31)))
        return max(0, chance.randrange(model.first - 20, model.last + 60))

    def _add(self) -> None:
        number = self._number()
        origin = self.chance.choice((STREAM, STREAM, SNAPSHOT, BACKFILL))
        usual = number > self.model.last or self.chance.random() > 0.1
        time_us = self.model.time_us(number) if usual else None
        if self.model.epoch and origin != BACKFILL and self.chance.random() < 0.05:
            time_us = self.model.begin_us - ids_module.EPOCH_US
        self._take(number, origin, time_us)

    def _begin(self) -> None:
        """Several of an epoch, some of them perhaps of no use."""
        number = self.chance.randint(self.model.first - 20, self.model.last)
        for _ in range(self.chance.randrange(1, 4)):
            if 0 <= number <= self.model.last:
                self._take(number, self.chance.choice((STREAM, STREAM, SNAPSHOT, BACKFILL)))
                self._check()
            number += self.chance.choice((-4, -1, 0, 1, 1, 1, 2, 4, 29, 30, 31, -30))

    def _take(self, number: int, origin: int, time_us: int | None = None) -> None:
        model = self.model
        max_trades = self.chance.choice((10**6, 10**6, 3, 1, 0))
        if time_us is None:
            time_us = self._newer_us(number, origin)
        told_trade = trade(number, model.start_us)._replace(time_us=time_us)
        outcome = model.add(number, origin, told_trade.time_us, max_trades)
        held = sum(hole.size for hole in self.ids.holes) + self.ids.folded
        sequence = self.chance.randrange(10**6)
        found = self.ids.add(told_trade, origin, "gap", self.now_us, max_trades, sequence)
        assert found is outcome
        assert self.ids.knows(number) == (number in model.known)
        self.outcomes[outcome] += 1
        if outcome is EPOCH:
            self.folded = 0
            self.missing_ended += held
            assert self.ids.ended[-1].missing == held
        assert (self.ids.sequence == sequence) or outcome not in (JUMPED, EPOCH)

    def _newer_us(self, number: int, origin: int) -> int:
        """A time for an old id that is newer than everything known, if it may have one."""
        model, chance = self.model, self.chance
        if model.anew and origin != BACKFILL:
            # If it confirms the epoch, it must have the time that belongs to its id there.
            first = chance.choice(list(model.anew))
            time_us = model.anew[first] + number - first
            if model.begun_by(number, time_us) or (
                model.anew_last == model.last and number not in model.missing
            ):
                return time_us
            if number == first and number in model.known and chance.random() < 0.5:
                return time_us
        newer_us = chance.choice((-1, 0, 5))
        begins = newer_us >= 0 and origin != BACKFILL
        if number in model.known or (begins and number not in model.missing):
            return model.newest_us + ids_module.EPOCH_US + newer_us
        return model.time_us(number)

    def _miss(self) -> None:
        number, time_us = self._number(), self.chance.choice((0, START_US))
        if (anew := self.model.anew or self.model.strays) and self.chance.random() < 0.1:
            number, time_us = self.chance.choice(list(anew.items()))
        self.model.miss(number, time_us)
        self.ids.miss(number, "dead", self.now_us, time_us)

    def _prove(self) -> None:
        self.now_us += self.chance.choice((0, 1, SECOND_US, SECOND_US, -SECOND_US // 2))
        first, last = sorted((self._number(), self._number()))
        absent = self.model.prove(first, last, self.now_us, SECOND_US)
        assert self.ids.prove(first, last, self.now_us, SECOND_US) == absent

    def _give_up(self) -> None:
        first = self._number()
        last = first + self.chance.randrange(4)
        given_up = self.model.give_up(first, last)
        assert self.ids.give_up(first, last) == given_up

    def _try(self) -> None:
        first = self._number()
        if first <= self.model.last:
            self.ids.tried(first, self.model.last, self.chance.randrange(5))

    def _check(self) -> None:
        ids, model = self.ids, self.model
        left = {n for hole in ids.holes for n in range(hole.first_id, hole.last_id + 1)}
        model.fold(ids.folded_until, ids.folded - self.folded, left)
        self.folded = ids.folded
        assert len(ids.holes) <= ids_module.MAX_HOLES
        assert (ids.epoch, ids.first_id, ids.last_id) == (model.epoch, model.first, model.last)
        assert (ids.newest_us, list(ids.islands)) == (model.newest_us, model.alone)
        before = ids.first_id - 1
        for hole in ids.holes:
            assert before < hole.first_id <= hole.last_id <= ids.last_id
            before = hole.last_id
        self._check_missing()
        for state in State:
            count = sum(missing.state is state for missing in model.missing.values())
            assert ids.missing(state) == count
        filled = ids.late + ids.backfilled + self.missing_ended
        assert ids.found_trades == filled + len(model.missing) + ids.folded
        for _ in range(5):
            number = self._number()
            assert ids.knows(number) == (number in model.known)
            assert (ids.hole_of(number) is not None) == (number in model.missing)
            last = number + self.chance.randrange(5)
            within = [h for h in ids.holes if h.first_id <= last and h.last_id >= number]
            assert ids.holes_within(number, last) == within

    def _check_missing(self) -> None:
        ids, model = self.ids, self.model
        missing = {}
        for hole in ids.holes:
            for number in range(hole.first_id, hole.last_id + 1):
                missing[number] = _proved(hole)
            self._check_edge(hole.before, hole.first_id - 1)
            self._check_edge(hole.after, hole.last_id + 1)
        assert missing == {number: _proved(m) for number, m in model.missing.items()}
        for left, right in itertools.pairwise(ids.holes):
            one, other = ((*_proved(hole), hole.cause) for hole in (left, right))
            touch = left.last_id + 1 == right.first_id
            assert not touch or left.state != right.state or (left.state is OPEN and one != other)

    def _check_edge(self, found: Edge | None, number: int) -> None:
        if found is not None and found.mark != UNKNOWN:
            told_trade = trade(number)._replace(time_us=self.model.time_us(number))
            assert found == edge_of(told_trade)
        else:
            assert found is None or found.trade_id == number

    def _empty(self) -> None:
        """Does what the ledger does with the changes."""
        ids = self.ids
        if ids.changes is None:
            self.shadow = {hole.first_id: told(hole) for hole in ids.holes}
        for first_id, hole in (ids.changes or {}).items():
            if hole is None:
                self.shadow.pop(first_id, None)
            else:
                self.shadow[first_id] = told(hole)
        assert self.shadow == {hole.first_id: told(hole) for hole in ids.holes}
        ids.changes = {}
        ids.fills.clear()
        ids.ended.clear()

    def _copy(self) -> None:
        """Goes on with the original or with the copy; the other one stays as it was."""
        self._empty()
        other = self.ids.copy()
        assert told_of(other) == told_of(self.ids)
        assert (other.changes, other.fills, other.ended) == ({}, [], [])
        before = told_of(other)
        if self.chance.random() < 0.5:
            self.ids, other = other, self.ids
        number = self._number()
        other.miss(number, "other", 1)
        other.prove(0, 10**6, 1, 0)
        other.give_up(0, 10**6)
        for _ in range(3):
            other.add(trade(self._number()), STREAM, "other", 1, 5, 1)
        assert told_of(self.ids) == before
        self.ids.changes = {}


@pytest.fixture(params=[(30, 5, 3, 10_000), (30, 5, 2, 4)], ids=["unbounded", "few holes"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so small that random ids come to all of them."""
    names = ("FAR", "NEAR", "MAX_ISLANDS", "MAX_HOLES")
    for name, bound in zip(names, request.param, strict=True):
        monkeypatch.setattr(ids_module, name, bound)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("small")
def test_any_sequence_of_events_leaves_what_plain_sets_would(full: bool) -> None:
    outcomes = dict.fromkeys(Outcome, 0)
    for seed in range(SEEDS * 10 if full else SEEDS):
        run = Run(seed)
        run.outcomes = outcomes
        for step in range(40):
            try:
                run.step()
            except Exception as error:
                raise AssertionError(f"seed {seed}, step {step}: {error}") from error
    assert min(outcomes.values()) > SEEDS // 5
