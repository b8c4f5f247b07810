"""The twins of frame cutting and ring, for tests that must hold of both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from feedmono import native
from feedmono.native import Frames, plain_frames

BUILT = native.frames
"""What is at work without a choice."""

NEEDS_NATIVE = pytest.mark.skipif(
    native.trades is None, reason=f"the native twin is left out: {native.describe()}"
)
FRAMES = [
    pytest.param(plain_frames, id="python"),
    pytest.param(BUILT, id="native", marks=NEEDS_NATIVE),
]
"""What a fixture is parametrized by."""


def at_work(frames: Frames) -> Iterator[Frames]:
    """For a fixture to yield from: that twin is at work until the test ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "frames", frames)
        yield frames
