"""A simulator as a subprocess, for tests: `Sim`."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from feedmono.simulator import Figures, figures

READY_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0


class Sim:
    """``python -m feedmono.simulator --exchange EXCHANGE ARGS…`` on a free loopback port.

    It is ready when the block is entered and ended by its pid when it is left; it also ends
    with the process that started it. Without ``--seed`` among *args* the seed is 1.

        with Sim("binance", "--rate", "1000", "--limit", "5000", "--hold") as sim:
            run(sim.ws_url, sim.rest_url)
            sim.fault("cut")
            assert sim.state()["symbols"]["BTCUSDT"]["sent"] == 1000
    """

    def __init__(self, exchange: str, *args: str) -> None:
        self.exchange = exchange
        self.args = args
        self.ws_url = ""
        self.rest_url = ""
        self.port = 0
        self.pid = 0
        self.seed = 0
        self.totals: dict[str, Any] = {}
        """The last line it printed, once it has ended in order (`stop`)."""
        self._process: subprocess.Popen[bytes] | None = None
        self._output = b""

    def __enter__(self) -> Sim:
        seed = () if "--seed" in self.args else ("--seed", "1")
        command = [sys.executable, "-m", "feedmono.simulator", "--exchange", self.exchange]
        command += ["--stop-with-parent", *seed, *self.args]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            ready = json.loads(self._line(READY_LIMIT_S))
        except BaseException:
            self.kill()
            raise
        self.ws_url = ready["ws_url"]
        self.rest_url = ready["rest_url"]
        self.port = int(self.rest_url.rpartition(":")[2])
        self.pid = ready["pid"]
        self.seed = ready["seed"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()

    def stop(self) -> dict[str, Any]:
        """Ends it in order, if it still runs; gives its totals."""
        process = self._process
        if process is None:
            return self.totals
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            rest, _ = process.communicate(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._process = None
        lines = (self._output + rest).splitlines()
        if process.returncode == 0 and lines:
            self.totals = json.loads(lines[-1])
        return self.totals

    def kill(self) -> None:
        """kill -9: the exchange is gone from one moment to the next."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def state(self) -> dict[str, Any]:
        """What it did so far: ``GET /sim/state``."""
        answer: dict[str, Any] = self._request("GET", "/sim/state", None)
        return answer

    def fault(self, kind: str, value: object = True) -> None:
        """Makes a fault now, or sets one: ``POST /sim/fault``.

        :raises ValueError: it refused; the text says why.
        """
        self._request("POST", "/sim/fault", {"kind": kind, "value": value})

    def send(self, text: str) -> None:
        """Sends a text frame to every client."""
        self._request("POST", "/sim/send", {"text": text})

    def send_bytes(self, payload: bytes, opcode: int = 2) -> None:
        """Sends a frame of any opcode (1 text, 2 binary, 8 close, 9 ping) to every client."""
        body = {"base64": base64.b64encode(payload).decode("ascii"), "opcode": opcode}
        self._request("POST", "/sim/send", body)

    def figures(self, symbol: str, trade_id: int) -> Figures:
        """Price, quantity and side that a made trade of this simulator has."""
        return figures(self.exchange, self.seed, symbol, trade_id)

    def wait(
        self, condition: Callable[[dict[str, Any]], bool], limit_s: float = 30.0
    ) -> dict[str, Any]:
        """Waits until the state fulfils *condition* and gives that state.

        :raises TimeoutError: it did not within the limit.
        """
        seen: dict[str, Any] = wait_until(self.state, condition, limit_s)
        return seen

    def _request(self, method: str, path: str, body: object) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(text.decode("utf-8", "replace"))
        return json.loads(text)

    def _line(self, limit_s: float) -> bytes:
        """Its first line of output.

        :raises RuntimeError: it ended without one.
        :raises TimeoutError: none came within the limit.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._output:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the simulator was not ready within {limit_s} s")
            if select.select([fd], [], [], left)[0]:
                data = os.read(fd, 65536)
                if not data:
                    code = self._process.wait()
                    raise RuntimeError(f"the simulator ended with status {code}: {self.args}")
                self._output += data
        line, _, _ = self._output.partition(b"\n")
        return line


def wait_until(
    look: Callable[[], Any], condition: Callable[[Any], bool], limit_s: float = 30.0
) -> Any:
    """Calls *look* until what it gives fulfils *condition*, and gives that.

    :raises TimeoutError: it did not within the limit; says what it saw last.
    """
    deadline = time.monotonic() + limit_s
    while True:
        seen = look()
        if condition(seen):
            return seen
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not within {limit_s} s; last seen: {seen!r}")
        time.sleep(0.01)
