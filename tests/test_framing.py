"""The frame cutter: whole messages out of any cut of the bytes, and what ends a stream."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import frame_twins
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsserver import BINARY, CLOSE, PING, PONG, TEXT, frame

from feedmono.native import Frames
from feedmono.network.framing import (
    MAX_FRAGMENTS,
    NO_CODE,
    Binary,
    Close,
    Cut,
    FrameCutter,
    Ping,
    Pong,
    ProtocolError,
    Rare,
    TooLarge,
    encode_close,
    encode_frame,
)

LIMIT_BYTES = 1 << 20
Event = bytes | Ping | Pong | Binary | Close


def in_order(cut: Cut) -> list[Event]:
    """Everything that *cut* holds, in the order of the stream."""
    events: list[Event] = []
    done = 0
    for after, event in cut.rare:
        events += cut.messages[done:after]
        events.append(event)
        done = after
    return events + cut.messages[done:]


def feed_all(cutter: FrameCutter, chunks: Iterable[bytes]) -> list[Event]:
    events: list[Event] = []
    for chunk in chunks:
        cut = cutter.feed(chunk)
        assert cut.error is None
        events += in_order(cut)
    return events


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.fixture(params=frame_twins.FRAMES, autouse=True)
def _twin(request: pytest.FixtureRequest) -> Iterator[Frames]:
    yield from frame_twins.at_work(request.param)


# --- What is cut.


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_text_message_of_any_length_form_comes_out_whole(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    cut = FrameCutter(LIMIT_BYTES).feed(frame(payload) + frame(b"next"))
    assert cut == Cut([payload, b"next"], [], None)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5, 4096])
def test_where_the_network_cuts_the_bytes_makes_no_difference(piece_bytes: int) -> None:
    messages = [b"x" * size for size in (0, 1, 125, 126, 300, 70_000, 3)]
    stream = b"".join(map(frame, messages))
    assert feed_all(FrameCutter(LIMIT_BYTES), pieces(stream, piece_bytes)) == messages


def test_a_buffer_may_be_reused_after_feeding_it() -> None:
    cutter = FrameCutter(LIMIT_BYTES)
    data = bytearray(frame(b"first") + frame(b"second")[:4])
    got = cutter.feed(memoryview(data)).messages
    data[:] = b"\xff" * len(data)
    assert got == [b"first"]
    assert cutter.feed(frame(b"second")[4:]).messages == [b"second"]


def test_fragments_are_joined_and_control_frames_between_them_keep_their_place() -> None:
    stream = (
        frame(b"before")
        + frame(b"one ", final=False)
        + frame(b"ping", PING)
        + frame(b"two ", 0, final=False)
        + frame(b"", 0, final=False)
        + frame(b"pong", PONG)
        + frame(b"three", 0)
        + frame(b"after")
    )
    cut = FrameCutter(LIMIT_BYTES).feed(stream)
    assert cut.messages == [b"before", b"one two three", b"after"]
    assert cut.rare == [Rare(1, Ping(b"ping")), Rare(1, Pong(b"pong"))]


def test_binary_messages_keep_their_place_among_text_ones() -> None:
    stream = (
        frame(b"a")
        + frame(b"b", BINARY)
        + frame(b"c")
        + frame(b"d", BINARY, final=False)
        + frame(b"e", 0)
    )
    assert in_order(FrameCutter(LIMIT_BYTES).feed(stream)) == [
        b"a",
        Binary(b"b"),
        b"c",
        Binary(b"de"),
    ]


def test_invalid_utf8_is_passed_on_as_it_came() -> None:
    assert FrameCutter(LIMIT_BYTES).feed(frame(b"\xff\xfe\x80")).messages == [b"\xff\xfe\x80"]


@pytest.mark.parametrize("form", [126, 127])
def test_a_length_written_longer_than_needed_is_read_all_the_same(form: int) -> None:
    assert FrameCutter(LIMIT_BYTES).feed(frame(b"abc", form=form)).messages == [b"abc"]


@pytest.mark.parametrize(
    ("payload", "close"),
    [
        (b"", Close(NO_CODE, "")),
        ((1000).to_bytes(2, "big"), Close(1000, "")),
        ((4321).to_bytes(2, "big") + "später".encode(), Close(4321, "später")),
        ((1001).to_bytes(2, "big") + b"\xff", Close(1001, "\N{REPLACEMENT CHARACTER}")),
    ],
)
def test_after_a_close_frame_nothing_more_is_read(payload: bytes, close: Close) -> None:
    cutter = FrameCutter(LIMIT_BYTES)
    cut = cutter.feed(frame(b"last") + frame(payload, CLOSE) + frame(b"never"))
    assert cut == Cut([b"last"], [Rare(1, close)], None)
    assert cutter.feed(frame(b"never")) == Cut([], [], None)


# --- What ends a stream.


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"\xc1\x01x", "reserved bit"),
        (b"\x91\x01x", "reserved bit"),
        (b"\x81\x81\x00\x00\x00\x00x", "masked"),
        (b"\x83\x01x", "unknown opcode 0x3"),
        (b"\x8b\x01x", "unknown opcode 0xb"),
        (b"\x09\x01x", "fragmented control frame"),
        (frame(b"x" * 126, PING), "above 125 bytes"),
        (frame(b"x", CLOSE), "half a code"),
        (b"\x80\x01x", "continuation of no message"),
        (b"\x01\x01x\x81\x01y", "new message inside"),
        (b"\x01\x01x\x82\x01y", "new message inside"),
        (b"\x81\x7f\x80\x00\x00\x00\x00\x00\x00\x00", "2^63"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 1000])
def test_a_broken_frame_ends_the_stream_behind_what_came_before_it(
    bad: bytes, says: str, piece_bytes: int
) -> None:
    cutter = FrameCutter(LIMIT_BYTES)
    events: list[Event] = []
    error: ProtocolError | None = None
    for chunk in pieces(frame(b"good") + frame(b"p", PING) + bad + frame(b"never"), piece_bytes):
        cut = cutter.feed(chunk)
        events += in_order(cut)
        error = cut.error
    assert events == [b"good", Ping(b"p")]
    assert error is not None
    assert says in str(error)
    assert error.code == 1002


def test_a_message_above_the_limit_is_refused_before_it_has_arrived() -> None:
    cut = FrameCutter(1000).feed(frame(b"x" * 1000) + frame(b"y" * 1001)[:4])
    assert cut.messages == [b"x" * 1000]
    assert isinstance(cut.error, TooLarge)
    assert cut.error.code == 1009


@pytest.mark.parametrize("size", [126, 1001, 70_000])
def test_a_message_above_the_limit_is_refused_though_it_has_arrived(size: int) -> None:
    cut = FrameCutter(125 if size == 126 else 1000).feed(frame(b"y" * size) + frame(b"never"))
    assert cut.messages == []
    assert isinstance(cut.error, TooLarge)


@pytest.mark.parametrize("size", [126, 70_000, 1 << 40])
def test_the_limit_holds_for_each_length_form(size: int) -> None:
    header = frame(b"x" * size)[:10] if size < 1 << 20 else b"\x81\x7f" + size.to_bytes(8, "big")
    cut = FrameCutter(125).feed(header)
    assert isinstance(cut.error, TooLarge)


def test_the_limit_holds_for_fragments_together() -> None:
    cutter = FrameCutter(1000)
    assert cutter.feed(frame(b"x" * 600, final=False)).error is None
    assert isinstance(cutter.feed(frame(b"x" * 401, 0)[:4]).error, TooLarge)


def test_a_message_of_endless_empty_fragments_is_refused() -> None:
    cutter = FrameCutter(1000)
    stream = frame(b"", final=False) + frame(b"", 0, final=False) * (MAX_FRAGMENTS - 1)
    assert cutter.feed(stream).error is None
    assert isinstance(cutter.feed(frame(b"", 0, final=False)).error, TooLarge)


def test_an_ended_stream_stays_ended() -> None:
    cutter = FrameCutter(LIMIT_BYTES)
    first = cutter.feed(b"\xff\x00").error
    assert first is not None
    assert cutter.feed(frame(b"never")) == Cut([], [], first)


# --- What it costs.


def cpu_s(stream: bytes, limit_bytes: int) -> float:
    """Of one message that comes in pieces of 4 KiB."""
    cutter = FrameCutter(limit_bytes)
    started = time.thread_time()
    messages = 0
    for start in range(0, len(stream), 4096):
        messages += len(cutter.feed(stream[start : start + 4096]).messages)
    assert messages == 1
    return time.thread_time() - started


def test_a_large_frame_in_small_pieces_costs_linear_time() -> None:
    """0.02 s; joining what is there with each piece copies 32 GiB: 10 s."""
    assert cpu_s(frame(b"x" * (16 << 20)), 16 << 20) < 2.0


def test_forty_thousand_fragments_cost_linear_time() -> None:
    """0.1 s; joining the message with each fragment copies 80 GB."""
    middle = frame(b"x" * 100, 0, final=False) * 39_998
    stream = frame(b"x" * 100, final=False) + middle + frame(b"x" * 100, 0)
    assert cpu_s(stream, 1 << 23) < 2.0


# --- The law.

_payloads = st.one_of(
    st.binary(max_size=40),
    st.integers(120, 400).map(lambda n: b"m" * n),
    st.sampled_from([65_535, 65_536]).map(lambda n: b"l" * n),
)
_controls = st.lists(
    st.builds(
        lambda kind, payload: kind(payload),
        st.sampled_from([Ping, Pong]),
        st.binary(max_size=125),
    ),
    max_size=2,
)


@st.composite
def _streams(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """A stream of messages, cut into fragments with control frames in between, and what is
    to come of it."""
    stream = bytearray()
    expected: list[Event] = []
    for payload in draw(st.lists(_payloads, max_size=8)):
        is_binary = draw(st.integers(0, 9)) == 0
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        starts, stops = [0, *cuts], [*cuts, len(payload)]
        for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            for control in draw(_controls) if draw(st.booleans()) else []:
                stream += frame(control.payload, PING if isinstance(control, Ping) else PONG)
                expected.append(control)
            opcode = (BINARY if is_binary else TEXT) if index == 0 else 0
            stream += frame(payload[start:stop], opcode, final=index == len(cuts))
        expected.append(Binary(payload) if is_binary else payload)
    return bytes(stream), expected


@settings(derandomize=True, max_examples=200, deadline=None)
@given(_streams(), st.data())
def test_any_stream_cut_anywhere_gives_the_same_messages(
    stream_and_events: tuple[bytes, list[Event]], data: st.DataObject
) -> None:
    stream, expected = stream_and_events
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert feed_all(FrameCutter(LIMIT_BYTES), chunks) == expected


# --- What a client sends.


def unmask(data: bytes) -> tuple[int, bytes]:
    assert data[1] & 0x80, "a client masks"
    size, start = data[1] & 0x7F, 2
    if size >= 126:
        width = 2 if size == 126 else 8
        size, start = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
    mask, masked = data[start : start + 4], data[start + 4 :]
    assert len(masked) == size
    return data[0], bytes(b ^ mask[i % 4] for i, b in enumerate(masked))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(_payloads, st.binary(min_size=4, max_size=4))
def test_a_client_frame_unmasks_to_its_payload(payload: bytes, mask_key: bytes) -> None:
    assert unmask(encode_frame(TEXT, payload, mask_key)) == (0x81, payload)


def test_a_masked_frame_is_the_one_of_the_rfc() -> None:
    """RFC 6455 5.7: a single-frame masked text message with "Hello"."""
    mask_key = bytes.fromhex("37fa213d")
    assert encode_frame(TEXT, b"Hello", mask_key).hex() == "818537fa213d7f9f4d5158"


@pytest.mark.parametrize(
    ("code", "sent"),
    [
        (1000, 1000),
        (1009, 1009),
        (1014, 1014),
        (3000, 3000),
        (4999, 4999),
        (1005, 1002),
        (1006, 1002),
    ],
)
def test_a_close_frame_never_carries_a_code_that_must_not_be_sent(code: int, sent: int) -> None:
    assert unmask(encode_close(code, bytes(4))) == (0x88, sent.to_bytes(2, "big"))


@pytest.mark.parametrize("code", [0, 999, 1004, 1015, 2999, 5000, 65_535])
def test_a_close_frame_echoes_no_code_outside_the_ranges_of_the_rfc(code: int) -> None:
    assert unmask(encode_close(code, bytes(4)))[1] == (1002).to_bytes(2, "big")
