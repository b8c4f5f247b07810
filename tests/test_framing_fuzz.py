"""The frame cutter against 100,000 seeded byte streams: no crash, no hang, bounded memory."""

from __future__ import annotations

import random
from collections.abc import Iterator

import frame_twins
import pytest
from wsserver import frame

from feedmono.native import Frames
from feedmono.network.framing import FrameCutter, ProtocolError

STREAMS = 100_000
LIMIT_BYTES = 4096
_OPCODES = (1, 1, 1, 1, 0, 2, 9, 10, 8, 3)


@pytest.fixture(params=frame_twins.FRAMES, autouse=True)
def _twin(request: pytest.FixtureRequest) -> Iterator[Frames]:
    yield from frame_twins.at_work(request.param)


def _plausible(rng: random.Random) -> bytes:
    """Frames that are right more often than not, then damaged here and there."""
    stream = bytearray()
    for _ in range(rng.randrange(1, 6)):
        size = rng.choice((0, 3, 60, 125, 126, 200, LIMIT_BYTES + 1))
        form = rng.choice((0, 0, 0, 0, 126, 127))
        payload = rng.randbytes(size)
        stream += frame(payload, rng.choice(_OPCODES), final=rng.random() < 0.7, form=form)
    for _ in range(rng.choice((0, 0, 1, 3))):
        stream[rng.randrange(len(stream))] = rng.randrange(256)
    return bytes(stream)


def _kept_bytes(cutter: FrameCutter) -> int:
    return len(cutter._rest) + len(cutter._fragments or b"")


def _feed(stream: bytes, rng: random.Random) -> tuple[int, ProtocolError | None]:
    """Feeds it in random pieces: how many bytes came out, and how it ended."""
    cutter = FrameCutter(LIMIT_BYTES)
    out = position = 0
    error: ProtocolError | None = None
    while position < len(stream):
        size = rng.choice((1, 7, 64, 500, 5000))
        cut = cutter.feed(stream[position : position + size])
        position += size
        assert error is None or (cut.error is error and not cut.messages and not cut.rare)
        assert all(len(message) <= LIMIT_BYTES for message in cut.messages)
        assert _kept_bytes(cutter) <= 2 * LIMIT_BYTES + 14 + size
        out += sum(map(len, cut.messages))
        error = cut.error
    return out, error


@pytest.mark.timeout(600)
def test_a_hundred_thousand_fuzzed_streams_are_read_or_refused(full: bool) -> None:
    streams = STREAMS * 10 if full else STREAMS
    rng = random.Random(6455)
    refused = read = 0
    for index in range(streams):
        stream = rng.randbytes(rng.randrange(1, 60)) if index % 4 else _plausible(rng)
        out, error = _feed(stream, rng)
        assert out <= len(stream)
        refused += error is not None
        read += out > 0
    # Both ways were gone, many times: the streams are neither all garbage nor all good.
    assert refused > streams // 10
    assert read > streams // 50
