"""A headless Chromium, driven by the DevTools protocol: `Browser`, and its `Tab`.

Debian's packages need no driver and no download; the protocol comes over a WebSocket, for which
feedmono has a library already.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import websocket

START_LIMIT_S = 60.0
ANSWER_LIMIT_S = 30.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find() -> str | None:
    """The path of a Chromium; None if this machine has none."""
    return next((path for path in map(shutil.which, _NAMES) if path), None)


class Browser:
    """A Chromium with a profile of its own below *folder*; it ends with the block.

    with Browser(tmp_path) as browser:
        tab = browser.tab(url, width=1280)
        assert tab.value("document.title") == "feedmono"
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "chromium"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._tabs: list[Tab] = []

    def __enter__(self) -> Browser:
        program = find()
        assert program is not None, "no Chromium"
        self._folder.mkdir(parents=True)
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--no-default-browser-check", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-default-apps", "--mute-audio", "--hide-scrollbars",
            "--force-color-profile=srgb", "--remote-debugging-port=0", "--remote-allow-origins=*",
            f"--user-data-dir={self._folder / 'profile'}", "about:blank",
        ]  # fmt: skip
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, *flags],
                env={**os.environ, "HOME": str(self._folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # All of its processes are one group, which ends as a whole.
                start_new_session=True,
            )
        try:
            self._port = self._wait_port()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_port(self) -> int:
        """Where it listens, as it writes it into its profile."""
        assert self._process is not None
        told = self._folder / "profile" / "DevToolsActivePort"
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError, IndexError, ValueError):
                return int(told.read_text().split()[0])
            time.sleep(0.02)
        raise RuntimeError(f"Chromium did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def tab(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Tab:
        """A new tab that has loaded *url*."""
        tab = Tab(self._port, width, height, dark=dark)
        self._tabs.append(tab)
        tab.open(url)
        return tab

    def stop(self) -> None:
        for tab in self._tabs:
            tab.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Tab:
    """One page, and all that it asked for, logged and complained of."""

    def __init__(self, port: int, width: int, height: int, *, dark: bool) -> None:
        browser = websocket.create_connection(_browser_url(port), timeout=ANSWER_LIMIT_S)
        with contextlib.closing(browser):
            browser.send(
                json.dumps(
                    {"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}
                )
            )
            while "id" not in (answer := json.loads(browser.recv())):
                pass
        target = answer["result"]["targetId"]
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}/devtools/page/{target}", timeout=ANSWER_LIMIT_S
        )
        self._last_id = 0
        self.requests: list[str] = []
        """The URL of each request."""
        self.complaints: list[str] = []
        """Errors and warnings of the console: exceptions, what the content policy refused, what
        could not be loaded."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.size(width, height)
        self.scheme("dark" if dark else "light")

    def open(self, url: str) -> None:
        """Loads a page and waits for it."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def size(self, width: int, height: int, scale: float = 1.0) -> None:
        """In CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def scheme(self, name: str) -> None:
        """``light`` or ``dark``, as the user's system prefers it."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression (or the promise that it gives) comes to.

        :raises RuntimeError: it threw.
        """
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """The text of the first element that matches, as it is seen; "" if none does."""
        found = self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return str(found)

    def wait(self, expression: str, limit_s: float = 30.0) -> Any:
        """Waits until the expression is true, and gives it.

        :raises TimeoutError: it did not come true.
        """
        deadline = time.monotonic() + limit_s
        while not (value := self.value(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {limit_s} s: {expression}; {self.complaints}")
            time.sleep(0.02)
        return value

    def wait_text(self, selector: str, part: str, limit_s: float = 30.0) -> None:
        """Waits until that element shows that text."""
        found = f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"
        try:
            self.wait(f"({found}).includes({json.dumps(part)})", limit_s)
        except TimeoutError:
            raise TimeoutError(f"{part!r} not in {self.text(selector)!r}") from None

    def mouse(self, x: float, y: float) -> None:
        """Moves the pointer there, in CSS pixels."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """As a PNG; of the whole page, or of what is seen without scrolling."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def call(self, method: str, **params: object) -> Mapping[str, Any]:
        """A command of the DevTools protocol, and its result.

        :raises RuntimeError: it was refused.
        """
        self._last_id += 1
        self._socket.send(json.dumps({"id": self._last_id, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._last_id:
                break
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        result: Mapping[str, Any] = message["result"]
        return result

    def _note(self, message: Mapping[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                entry = params["entry"]
                self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"])[:1000])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(params["args"])[:1000])

    def close(self) -> None:
        self._socket.close()


def _browser_url(port: int) -> str:
    import urllib.request  # noqa: PLC0415

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/version", timeout=10) as answer:
        return str(json.load(answer)["webSocketDebuggerUrl"])
