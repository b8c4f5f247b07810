"""The faults that happen to connections: now and then by themselves, or at once on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from feedmono.simulator.connection import Connection
from feedmono.simulator.faults import KINDS, Faults, setting
from feedmono.simulator.websocket import TEXT, frame

SHUTDOWN_GRACE_S = 3.0
"""How long after the notice of a shutdown the connections are closed."""

# The start of a frame of 255 bytes of which no more comes.
_TAIL = b"\x81\x7e\x00\xff" + b'{"stream":"'
_TIMED = ("cut", "half-open", "close", "shutdown")


class Mischief:
    """Harms connections, seeded."""

    def __init__(
        self,
        faults: Faults,
        connections: Callable[[], Sequence[Connection]],
        notice: Callable[[str], str],
    ) -> None:
        """*connections* gives the open WebSocket ones, *notice* a shutdown's message."""
        self._faults = faults
        self._connections = connections
        self._notice = notice
        self._rng = faults.generator("mischief")
        self._plan: dict[str, tuple[float, float]] = {}
        self._condemned: list[tuple[float, Connection]] = []

    def poll(self, now_s: float) -> None:
        """Does what is due (monotonic time)."""
        for kind in _TIMED:
            interval_s = self._interval_s(kind)
            planned, at_s = self._plan.get(kind, (0.0, 0.0))
            if interval_s != planned:
                self._plan[kind] = interval_s, now_s + self._wait_s(kind, interval_s)
            elif interval_s and now_s >= at_s:
                self._plan[kind] = interval_s, now_s + self._wait_s(kind, interval_s)
                connections = self._connections()
                if connections and kind != "shutdown":
                    connections = [self._rng.choice(connections)]
                self._do(kind, connections, now_s)
        due = [c for at_s, c in self._condemned if at_s <= now_s]
        self._condemned = [entry for entry in self._condemned if entry[0] > now_s]
        for connection in due:
            connection.close(1001, "going away")

    def act(self, kind: str, value: object, now_s: float) -> None:
        """A fault on demand: at once where it can be, else set from now on.

        :raises ValueError: no such fault, or no such value of it; says what is allowed.
        """
        now = value is None or value is True
        if kind in ("cut", "half-open", "shutdown") and now:
            self._do(kind, self._connections(), now_s)
        elif kind == "close" and "@" not in str(value) and value is not False:
            checked = setting("close", f"{1001 if now else value}@0s")
            self._close(str(checked.value), self._connections())
        else:
            self._faults.set(setting(kind, value))

    def _interval_s(self, kind: str) -> float:
        if kind == "close":
            _, _, interval = self._faults.close.partition("@")
            parsed = KINDS["cut"].parse(interval or "0")
        else:
            parsed = getattr(self._faults, kind.replace("-", "_"))
        assert isinstance(parsed, float)
        return parsed

    def _wait_s(self, kind: str, interval_s: float) -> float:
        if not interval_s:
            return 0.0
        return interval_s if kind == "shutdown" else self._rng.expovariate(1.0 / interval_s)

    def _do(self, kind: str, connections: Sequence[Connection], now_s: float) -> None:
        if kind == "close":
            self._close(self._faults.close, connections)
            return
        for connection in connections:
            self._faults.done[kind] += 1
            if kind == "cut":
                connection.cut(self._rng.choice((b"", _TAIL)), self._rng.random() < 0.5)
            elif kind == "half-open":
                connection.hush()
            elif connection.session is not None:
                text = self._notice(connection.session.variant)
                connection.send(frame(TEXT, text.encode()))
                self._condemned.append((now_s + SHUTDOWN_GRACE_S, connection))

    def _close(self, how: str, connections: Sequence[Connection]) -> None:
        code = int(how.partition("@")[0])
        for connection in connections:
            self._faults.done["close"] += 1
            connection.close(code, "closed by the simulator")
