"""The reader's errands: requests for pages of past trades, run one after the other over REST.

They come from the serializer as datagrams. A page is not read here: its bytes are handed on as
they came, behind what was asked. Whatever goes wrong with a request is told, and the request
forgotten: the serializer knows the hole, and asks again.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from feedmono import messages
from feedmono.exchanges.base import Exchange, PageRequest
from feedmono.heartbeat import Pulse
from feedmono.log import Log
from feedmono.network import metadata
from feedmono.network.pace import LIMITED_S, RestPace
from feedmono.network.rest import LIMITED, REQUEST_LIMIT_S, RestClient, RestError, TooLarge
from feedmono.network.wire import WAIT_LIMIT_S, Wake

MAX_QUEUED = 10_000
"""How many requests wait at most; the oldest give way."""
MAX_PAGE_BYTES = 8 * 1024 * 1024
"""The largest page that is taken; a thousand trades have some 200 KB."""
LEAST_ROWS = 2
"""The smallest page that is asked for where a larger one does not fit: by time, a page of one
row might end where it began."""
ROOM_RETRY_S = 0.05
"""How often a full ring is asked again."""

_MAX_REASON_CHARS = 300


class _Trouble(NamedTuple):
    """A kind of failure after which no request is made for a while, as it would fail too."""

    name: str
    first_s: float
    """How long the first time, if the exchange does not say; doubles with each one in vain."""
    cap_s: float
    remember: bool
    """Whether a restart must wait, too."""


_LIMITED = _Trouble("too many requests", LIMITED_S, 300.0, True)
_DOWN = _Trouble("no answer, or that of a server in trouble", 1.0, 60.0, False)


class Wishes:
    """The requests that wait: one for each symbol and first id, each symbol in its turn."""

    def __init__(self, limit: int = MAX_QUEUED) -> None:
        self._limit = limit
        # In order of arrival; and the first ids of each symbol, the one whose turn it is first.
        self._all: dict[tuple[str, int], PageRequest] = {}
        self._turns: dict[str, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def put(self, wish: PageRequest) -> bool:
        """Takes a request in; in the place of one that wants the same, if there is one. Whether
        there was room: if not, the oldest of all is dropped."""
        key = wish.symbol, wish.first_id
        room = key in self._all or len(self) < self._limit
        if not room:
            self._remove(*next(iter(self._all)))
        self._all[key] = wish
        self._turns.setdefault(wish.symbol, {})[wish.first_id] = None
        return room

    def take(self) -> PageRequest:
        """The next one. (There must be one.)"""
        symbol, first_ids = next(iter(self._turns.items()))
        wish = self._remove(symbol, next(iter(first_ids)))
        if first_ids:
            self._turns[symbol] = self._turns.pop(symbol)
        return wish

    def _remove(self, symbol: str, first_id: int) -> PageRequest:
        first_ids = self._turns[symbol]
        del first_ids[first_id]
        if not first_ids:
            del self._turns[symbol]
        return self._all.pop((symbol, first_id))


class Errands:
    """One exchange's. Its callables are called by the thread that calls `run`."""

    def __init__(
        self,
        exchange: Exchange,
        rest_url: str,
        names: Path,
        pace: RestPace,
        requests_fd: int,
        log: Log,
        *,
        deliver_page: Callable[[bytes], bool],
        tell: Callable[[bytes], None],
        count_page: Callable[[], None],
        count_failed: Callable[[], None],
        max_page_bytes: int,
    ) -> None:
        """:param names: the published metadata, see `metadata.rest_names`.
        :param pace: the exchange's, shared with all that ask it.
        :param requests_fd: a non-blocking datagram socket with what `messages.request` makes.
        :param deliver_page: takes what `messages.page` makes; False if there is no room now.
        :param tell: takes what `messages.event` makes, about a request that brought no page.
        :param count_page: is called for each page delivered.
        :param count_failed: is called for each request that brought none.
        :param max_page_bytes: the longest payload that `deliver_page` can ever take.
        """
        self._exchange = exchange
        self._client = RestClient(rest_url, exchange.rest_headers)
        self._names_path = names
        self._names_ns = 0
        self._names: dict[str, str] = {}
        self._pace = pace
        self._requests_fd = requests_fd
        self._log = log
        self._deliver_page = deliver_page
        self._tell = tell
        self._count_page = count_page
        self._count_failed = count_failed
        self._max_page_bytes = max_page_bytes
        self.pulse = Pulse()
        """Beats while `run` comes round."""
        self._wake = Wake()
        self._poll = select.poll()
        self._wishes = Wishes()
        self._dropped = False
        self._trouble: _Trouble | None = None
        self._next_s = 0.0
        # Symbols whose requests alone fail, so that each is logged once.
        self._refused: set[str] = set()

    def run(self) -> None:
        """Serves until `stop`. Nothing that the network does makes it raise."""
        self._wake.open()
        try:
            with contextlib.closing(self._client):
                self._poll.register(self._wake, select.POLLIN)
                self._poll.register(self._requests_fd, select.POLLIN)
                pause_s = 0.0
                while not self._stopped(pause_s):
                    weight = self._exchange.limits.page_weight
                    pause_s = self._pace.reserve(weight) if self._wishes else math.inf
                    if pause_s == 0.0:
                        self._serve(self._wishes.take())
        finally:
            self._wake.close()

    def stop(self) -> None:
        """Ends `run` at once, from any thread; if a request is under way, after it."""
        self._wake.set()

    # --- Requests.

    def _stopped(self, seconds: float) -> bool:
        """Waits so long at most, less if requests come, which it takes; whether to end."""
        wait_s = min(seconds, WAIT_LIMIT_S)
        self.pulse.beat(wait_s)
        ready = self._poll.poll(math.ceil(wait_s * 1000))
        if any(fd == self._requests_fd for fd, _ in ready):
            for wish in self._read():
                self._take(wish)
        return self._wake.is_set

    def _read(self) -> Iterator[PageRequest]:
        # A sender that is gone is no error: its successor will ask.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(MAX_QUEUED):
                wish = messages.read_request(os.read(self._requests_fd, messages.MAX_REQUEST_BYTES))
                if wish is not None:
                    yield wish

    def _take(self, wish: PageRequest) -> None:
        if not self._has_name(wish.symbol):
            self._refuse(wish, "the exchange's metadata (REST) does not list the symbol, so far")
        elif not self._wishes.put(wish) and not self._dropped:
            self._dropped = True
            self._log.warning("too many requests for pages wait: dropping the oldest")

    def _has_name(self, symbol: str) -> bool:
        """Whether it is known how REST requests name *symbol*, looked up if the file is new."""
        with contextlib.suppress(OSError):
            changed_ns = self._names_path.stat().st_mtime_ns
            if changed_ns != self._names_ns:
                self._names_ns = changed_ns
                self._names.update(metadata.rest_names(self._names_path))
        return symbol in self._names

    # --- Pages.

    def _serve(self, wish: PageRequest) -> None:
        """Fetches and delivers a page; the first request's weight is reserved already."""
        most = rows = max(1, min(wish.rows, self._exchange.limits.page_rows))
        # The page of a hole is recognised by the known trade behind it: where it begins at an id,
        # a smaller one must keep its end.
        keeps_end = self._exchange.pages_by_id and not wish.tail
        while True:
            # Whoever reads the page finds its request by the first id, and counts its rows.
            told = wish._replace(rows=rows)
            first_id = wish.first_id + (most - rows if keeps_end else 0)
            try:
                payload = self._fetched(told, told._replace(first_id=first_id))
            except TooLarge as error:
                if rows <= LEAST_ROWS:
                    self._refuse(told, f"even {rows} rows are too large: {error}")
                    return
                rows = max(LEAST_ROWS, rows // 2)
            else:
                break
            while (wait_s := self._pace.reserve(self._exchange.limits.page_weight)) > 0.0:
                if self._stopped(wait_s):
                    return
        if payload is not None and self._delivered(payload):
            self._count_page()

    def _delivered(self, payload: bytes) -> bool:
        """Waits for room in the ring; false if it is time to end before."""
        while not self._deliver_page(payload):
            if self._stopped(ROOM_RETRY_S):
                return False
        return True

    def _fetched(self, wish: PageRequest, asked: PageRequest) -> bytes | None:
        """The payload of a page record; None if there is none, which is told then.

        :param wish: what stands in the record, or in the event.
        :param asked: what the exchange is asked.
        :raises TooLarge: it does not fit.
        """
        room_bytes = self._max_page_bytes - len(messages.page(wish, b""))
        rest_name = self._names[wish.symbol]
        path = self._exchange.page_path(asked, rest_name)
        self.pulse.beat(REQUEST_LIMIT_S)
        try:
            answer = self._client.get(path, min(MAX_PAGE_BYTES, room_bytes))
        except TooLarge:
            self._works()
            raise
        except RestError as error:
            if error.status in LIMITED:
                self._back_off(_LIMITED, wish, str(error), error.retry_after_s)
            elif error.status is None or error.status >= 500:
                self._back_off(_DOWN, wish, str(error), error.retry_after_s)
            else:
                self._refuse(wish, str(error))
            return None
        used = self._exchange.used_weight(answer.headers)
        if used is not None:
            self._pace.told(used)
        refusal = self._exchange.refusal(answer.body)
        if refusal is not None and refusal.limited:
            self._back_off(_LIMITED, wish, refusal.reason, 0.0)
            return None
        if refusal is not None:
            self._refuse(wish, refusal.reason)
            return None
        self._works()
        if not self._exchange.is_page_of(answer.body, rest_name):
            self._refuse(wish, f"the answer is not a page of {rest_name}, which was asked for")
            return None
        self._refused.discard(wish.symbol)
        return messages.page(wish, answer.body)

    # --- Failures.

    def _refuse(self, wish: PageRequest, reason: str) -> None:
        """A failure of this request alone."""
        if wish.symbol not in self._refused:
            self._refused.add(wish.symbol)
            self._log.warning("no page of past trades", symbol=wish.symbol, reason=reason)
        self._fail(wish, reason, passing=False)

    def _back_off(
        self, trouble: _Trouble, wish: PageRequest, reason: str, retry_after_s: float
    ) -> None:
        """A failure that the next request would share."""
        begins = trouble is not self._trouble
        if begins:
            self._trouble, self._next_s = trouble, trouble.first_s
        hold_s = retry_after_s
        if not hold_s:
            hold_s, self._next_s = self._next_s, min(2 * self._next_s, trouble.cap_s)
        self._pace.hold(hold_s, remember=trouble.remember or retry_after_s > 0.0)
        if begins:
            self._log.warning(
                "pages of past trades can't be fetched",
                trouble=trouble.name,
                reason=reason,
                retry_in_s=hold_s,
            )
        self._fail(wish, reason, passing=True)

    def _works(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            self._log.info("pages of past trades are fetched again")

    def _fail(self, wish: PageRequest, reason: str, *, passing: bool) -> None:
        self._count_failed()
        self._tell(
            messages.event(
                messages.PAGE_FAILED,
                symbol=wish.symbol,
                first_id=wish.first_id,
                reason=reason[:_MAX_REASON_CHARS],
                passing=passing,
            )
        )
