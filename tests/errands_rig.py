"""What the tests of the errands share: they in their thread, and a server that goes by a script."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim import wait_until
from toy import Reply

from feedmono import log, messages, workers
from feedmono.exchanges.base import Exchange, PageRequest
from feedmono.network.errands import Errands
from feedmono.network.pace import RestPace

LIMIT_S = 30.0
CANT = "pages of past trades can't be fetched"
AGAIN = "pages of past trades are fetched again"


class Patient(RestPace):
    """Notes the holds, and holds nothing if *eager*; lets nobody go while the gate is shut."""

    def __init__(self, path: Path, exchange: Exchange, eager: bool) -> None:
        super().__init__(path, exchange.limits, log.get())
        self.eager = eager
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0
        self.holds: list[tuple[float, bool]] = []
        self.used: list[int] = []

    def reserve(self, weight: int) -> float:
        self.asked += 1
        if not self.gate.is_set():
            return 0.005
        return 0.0 if self.eager else super().reserve(weight)

    def hold(self, seconds: float, *, remember: bool = True) -> None:
        self.holds.append((seconds, remember))
        if not self.eager:
            super().hold(seconds, remember=remember)

    def told(self, used: int) -> None:
        self.used.append(used)
        super().told(used)


class Running:
    """Errands in their thread, what they deliver and tell, and the socket that asks them."""

    def __init__(
        self,
        tmp_path: Path,
        exchange: Exchange,
        rest_url: str,
        *,
        rest: dict[str, str],
        eager: bool = True,
        max_page_bytes: int = 1 << 20,
        stopped: bool = False,
    ) -> None:
        self._changed = threading.Condition()
        self.payloads: list[bytes] = []
        self.told: list[dict[str, Any]] = []
        self.counted = 0
        self.failed = 0
        self.refusals = 0
        self.room = True
        self.error: BaseException | None = None
        self.names = tmp_path / "toy.symbols.json"
        self.publish(rest)
        self.pace = Patient(tmp_path / "toy.rest", exchange, eager)
        self._ask, self._asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._asked.setblocking(False)
        self._ask.settimeout(LIMIT_S)
        self.errands = Errands(
            exchange,
            rest_url,
            self.names,
            self.pace,
            self._asked.fileno(),
            log.get(),
            deliver_page=self._deliver,
            tell=self._tell,
            count_page=self._count,
            count_failed=self._count_failed,
            max_page_bytes=max_page_bytes,
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        if stopped:
            self.errands.stop()
        self.thread.start()

    def publish(self, rest: dict[str, str]) -> None:
        workers.publish(self.names, {"rest": rest})

    def _run(self) -> None:
        try:
            self.errands.run()
        except BaseException as error:  # for the test to look at
            self.error = error

    def _deliver(self, payload: bytes) -> bool:
        with self._changed:
            if self.room:
                self.payloads.append(payload)
            else:
                self.refusals += 1
            self._changed.notify_all()
            return self.room

    def _tell(self, payload: bytes) -> None:
        with self._changed:
            self.told.append(dict(messages.read_event(payload)))
            self._changed.notify_all()

    def _count(self) -> None:
        with self._changed:
            self.counted += 1
            self._changed.notify_all()

    def _count_failed(self) -> None:
        self.failed += 1

    def ask(
        self, symbol: str, first_id: int, rows: int = 100, since_us: int = 0, tail: bool = False
    ) -> None:
        self.send(messages.request(PageRequest(symbol, first_id, since_us, rows, tail)))

    def send(self, datagram: bytes) -> None:
        self._ask.send(datagram)

    def has_taken_all(self) -> None:
        """Waits, while something waits, until all that was sent is in the queue."""
        asked = self.pace.asked
        wait_until(lambda: self.pace.asked, lambda now: now >= asked + 2)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, LIMIT_S), (
                f"never came; error {self.error!r}, {len(self.payloads)} pages, {self.told[-3:]}"
            )

    def pages(self, count: int) -> Sequence[tuple[PageRequest, bytes]]:
        """Waits for so many, and gives all."""
        self.wait(lambda: self.counted >= count)
        read = [messages.read_page(payload) for payload in self.payloads]
        return [page for page in read if page is not None]

    def failures(self, count: int) -> list[dict[str, Any]]:
        self.wait(lambda: len(self.told) >= count)
        assert all(told["event"] == messages.PAGE_FAILED for told in self.told)
        return self.told

    def stop(self) -> float:
        """How many seconds that took."""
        begun_s = time.monotonic()
        self.errands.stop()
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        assert self.error is None
        self._ask.close()
        self._asked.close()
        return time.monotonic() - begun_s


@contextmanager
def running(tmp_path: Path, exchange: Exchange, rest_url: str, **options: Any) -> Iterator[Running]:
    options.setdefault("rest", {symbol: symbol for symbol in "ABC"})
    run = Running(tmp_path, exchange, rest_url, **options)
    try:
        yield run
    finally:
        run.stop()


class Script:
    """Answers in this order, the last one for ever."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)

    def __call__(self, path: str) -> Reply:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
