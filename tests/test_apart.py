"""A call in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sim import wait_until

from feedmono import apart


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_it_returns_what_the_function_returns() -> None:
    before = _children()
    assert apart.call("counting", lambda: [os.getpid(), "ü", None], 30.0)[1:] == ["ü", None]
    assert apart.call("counting", os.getpid, 30.0) != os.getpid()
    assert apart.call("much", lambda: "x" * 1_000_000, 30.0) == "x" * 1_000_000
    assert _children() == before


def test_what_it_imports_and_changes_ends_with_it() -> None:
    changed: list[int] = []

    def change() -> int:
        changed.append(1)
        return len(changed)

    assert apart.call("changing", change, 30.0) == 1
    assert not changed


def test_an_error_is_told_with_its_text() -> None:
    def fail() -> None:
        raise ValueError("the registry is made of cheese")

    with pytest.raises(apart.Failed, match=r"^the registry is made of cheese$"):
        apart.call("failing", fail, 30.0)
    with pytest.raises(apart.Failed, match="pickle"):
        apart.call("failing", lambda: fail, 30.0)


def test_a_killed_one_is_told() -> None:
    before = _children()
    with pytest.raises(apart.Failed, match="dying: its process ended"):
        apart.call("dying", lambda: os.kill(os.getpid(), signal.SIGKILL), 30.0)
    assert _children() == before


def test_one_that_takes_too_long_is_killed() -> None:
    before = _children()
    with pytest.raises(apart.Failed, match=r"hanging: not done within 0\.2 s"):
        apart.call("hanging", lambda: time.sleep(600), 0.2)
    assert _children() == before


def test_it_ends_with_the_process_that_made_it() -> None:
    code = "import time; from feedmono import apart, log; log.configure('info', 'text'); "
    code += "apart.call('hanging', lambda: time.sleep(600), 600.0)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent) as parent:
        try:
            made = psutil.Process(parent.pid)
            found = wait_until(lambda: [c for c in made.children() if "hanging" in _title(c)], bool)
        finally:
            parent.kill()
    wait_until(lambda: [c for c in found if "hanging" in _title(c)], lambda left: not left)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.parametrize(
    "library",
    [
        "confluent_kafka.schema_registry",
        "http.client",
        "prometheus_client",
        "pyhocon",
        "rich",
        "urllib.request",
    ],
)
def test_what_few_need_is_in_none_of_the_workers(library: str) -> None:
    """The registry's client would cost 15 MiB, the others a few, and the pages that copies of
    them touch."""
    code = "import sys, feedmono.cli, feedmono.supervisor, feedmono.sinks.kafka; "
    code += f"feedmono.log.get(); sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
