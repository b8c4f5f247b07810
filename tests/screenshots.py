"""The pictures of the README: screenshots.py FOLDER MINUTES (`scripts/screenshots` calls it).

An instance on simulated exchanges runs for so long and loses a connection on the way; then the
page and ``feedmono top`` are photographed.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from browser import Browser, find
from instance import Instance
from rich.console import Console
from rich.text import Text
from sim import Sim

_COLUMNS, _LINES = 100, 40
_WATCH_TOP_S = 8.0
# How a terminal is told to begin the picture anew, and what else is no text.
_ANEW = re.compile(r"(?:\r?\x1b\[(?:\d*;?\d*H|\d*A|2[JK]))+")
_MODES = re.compile(r"\x1b\[\?\d+[hl]|\x1b\[\d*[JK]")
_FONTS = re.compile(r"@font-face\s*\{[^}]*\}")


def main() -> int:
    if len(sys.argv) != 3 or find() is None:
        print("usage: screenshots.py FOLDER MINUTES; needs Chromium", file=sys.stderr)
        return 2
    target, minutes = Path(sys.argv[1]), float(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as name,
        Sim("binance", "--rate", "55", "--trades", "recorded") as binance,
        Sim("kraken", "--rate", "4") as kraken,
        Instance(Path(name) / "feedmono", binance, kraken) as instance,
        Browser(Path(name)) as browser,
    ):
        instance.wait_trades("binance", 100)
        print(f"It runs for {minutes:g} minutes ...", file=sys.stderr)
        time.sleep(minutes * 36)
        binance.fault("cut")
        time.sleep(minutes * 24)
        url = json.loads((instance.state / "status.json").read_text())["http"]
        for scheme in ("light", "dark"):
            take_page(browser, f"{url}/#minutes=5", scheme, target / f"page-{scheme}.png")
        take_top(browser, instance, target / "top.png")
    return 0


def take_page(browser: Browser, url: str, scheme: str, path: Path) -> None:
    """The page down to the end of its first exchanges."""
    tab = browser.tab(url, width=1280, height=1000, dark=scheme == "dark")
    tab.wait("!!document.querySelector('path.line')?.getAttribute('d')")
    tab.wait_text("#headline", "All exchanges flowing")
    bottom = tab.value(
        "document.querySelector('article:nth-child(2)').getBoundingClientRect().bottom"
    )
    tab.size(1280, int(bottom) + 5)
    # The charts fit themselves to the new size with the next frame.
    tab.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    tab.screenshot(path)
    print(f"{path}: {path.stat().st_size:,} bytes", file=sys.stderr)


def take_top(browser: Browser, instance: Instance, path: Path) -> None:
    """What ``feedmono top`` shows in a terminal."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    # Where it ran says nothing to whoever looks at the picture.
    shown = watch_top(instance).replace(str(instance.folder), "/var/lib/feedmono")
    console.print(Text.from_ansi(shown))
    # The picture's fonts would come from elsewhere; the machine's are good.
    svg = _FONTS.sub("", console.export_svg(title="feedmono top"))
    page = path.with_suffix(".html")
    page.write_text(f"<!doctype html><meta charset=utf-8><body style=margin:0>{svg}", "utf-8")
    try:
        tab = browser.tab(page.as_uri(), width=1000)
        height = tab.value(
            "(() => { const { width, height } = document.querySelector('svg').viewBox.baseVal;"
            "return Math.ceil(1000 * height / width) })()"
        )
        tab.size(1000, height)
        tab.screenshot(path)
    finally:
        page.unlink()
    print(f"{path}: {path.stat().st_size:,} bytes", file=sys.stderr)


def watch_top(instance: Instance) -> str:
    """The last whole picture that it draws in some seconds, colours included."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    environ = {**instance.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    top = subprocess.Popen(
        [sys.executable, "-m", "feedmono", "top"],
        env=environ,
        cwd=instance.folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    deadline = time.monotonic() + _WATCH_TOP_S
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            if not select.select([master], [], [], left_s)[0]:
                break
            try:
                seen += os.read(master, 65536)
            except OSError:  # it has ended
                break
        status = top.poll()
    finally:
        top.kill()
        top.wait()
        os.close(master)
    text = seen.decode("utf-8", "replace")
    if status is not None:
        raise RuntimeError(f"feedmono top ended with status {status}: {text[-500:]}")
    # The last one may be cut off.
    pictures = [part for part in _ANEW.split(text)[:-1] if part.strip()]
    return _MODES.sub("", pictures[-1]).replace("\r\n", "\n").rstrip()


if __name__ == "__main__":
    sys.exit(main())
