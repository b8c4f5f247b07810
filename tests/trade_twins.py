"""Parsing and encoding have two twins, in Python and in C: tests run against either."""

from __future__ import annotations

import pytest

from feedmono import native

TWINS = ["python", "native"]


def choose(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanges and encoders that the test makes from now on are of that twin."""
    if twin == "python":
        monkeypatch.setattr(native, "trades", None)
    elif native.trades is None:
        pytest.skip(f"no native twin to test: {native.describe()}")
