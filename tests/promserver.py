"""A Prometheus server of its own for a test, and promtool: Debian's package ``prometheus``."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from sim import wait_until

ALERTS = Path(__file__).parents[1] / "etc" / "prometheus" / "alerts.yml"
_PR_SET_PDEATHSIG = 1


def tool(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``; without it the test fails in CI, and is left out
    elsewhere."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is missing: install the package prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path


def promtool(*arguments: str, text: bytes = b"") -> str:
    """What promtool says; it must have found nothing wrong."""
    done = subprocess.run(
        [tool("promtool"), *arguments], input=text, capture_output=True, check=False
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


class Prometheus:
    """A server on a free loopback port that scrapes one address each half a second, as job
    ``feedmono``."""

    def __init__(self, folder: Path, target: str, rules: str | None = None) -> None:
        """:param target: host and port.
        :param rules: text of the rules that it evaluates each half a second; default: the file
            that is shipped.
        """
        self._binary = tool("prometheus")
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rules.yml").write_text(ALERTS.read_text() if rules is None else rules)
        (folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
                    "rule_files": ["rules.yml"],
                    "scrape_configs": [
                        {"job_name": "feedmono", "static_configs": [{"targets": [target]}]}
                    ],
                }
            )
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    def __enter__(self) -> Prometheus:
        libc = ctypes.CDLL(None)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509
            )
        try:
            ports = wait_until(self._ports, bool)
            self._url = f"http://127.0.0.1:{ports[0]}"
            wait_until(self._is_ready, bool)
        except BaseException:
            self._kill()
            print((self._folder / "log").read_text()[-2000:])
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now: ``metric`` (the labels) and ``value`` of each sample."""
        result: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return result

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are pending or firing: ``labels``, ``annotations``, ``state``."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def wait_scrape(self, metric: str = "up", value: float = 1) -> None:
        """Waits until the newest scrape has such a value in all series of *metric*."""

        def values() -> set[float]:
            return {float(sample["value"][1]) for sample in self.query(metric)}

        wait_until(values, lambda seen: seen == {value})

    def rules(self) -> list[dict[str, Any]]:
        """Every rule: ``name``, ``health``, ``lastError``, ``state``."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **query: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            content = json.loads(answer.read())
        assert content["status"] == "success", content
        return content["data"]

    def _ports(self) -> list[int]:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError((self._folder / "log").read_text())
        connections = psutil.Process(self._process.pid).net_connections("tcp4")
        return [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
