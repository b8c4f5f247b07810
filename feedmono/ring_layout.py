"""Every byte of a ring file: the header page, the record, and their arithmetic.

The file is one header page and, behind it, `capacity` bytes of records::

    header page
    0         8         12        16        24               32           48          56     64
    ├ magic ──┼ version ┼ crc ────┼ capacity ┼ first sequence ┼ boot id ───┼ created_ns ┼ zero ┤
    64   committed       cursor, moved by the writer only
    128  acknowledged    cursor, moved by the reader only
    192  next sequence   plain number, written by the writer before it commits

    record, 8-byte aligned, never split by the end of the ring
    0       4       8              16             24    26  27  28      32
    ├ size ─┼ crc ──┼─ sequence ───┼─ received_ns ─┼conn┼kind┼flg┼ spare ┼─ payload … ┤

All numbers are little-endian. `size` is the payload's, `crc` covers bytes 8 to 32 and the payload:
it is seeded with the sequence, so that bytes of an earlier lap never look like this one's.

A *position* is the number of record bytes before it since the ring was made; it never wraps, and
its place in the file is ``position % capacity``. What is left at the end of a lap is skipped when
it is shorter than a record's header, and filled by one record of kind `PAD` otherwise, which has
the sequence of the record behind it and whose crc covers the header only; its payload is zeroes.

A *cursor* is one 8-byte word on a cache line of its own, written by one store: a position in the
lower 48 bits, and 16 check bits above them, so that a damaged cursor is seen and not believed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

MAGIC: Final = b"feedring"
VERSION: Final = 1

HEADER_BYTES: Final = 4096
CAPACITY_STEP_BYTES: Final = 4096
"""Capacities are multiples of it: whole pages."""
STATIC = struct.Struct("<8sIIQQ16sQQ")
"""magic, version, crc of all of it but this crc, capacity, first sequence, boot id, created,
zero."""

COMMITTED_WORD: Final = 64 // 8
ACKNOWLEDGED_WORD: Final = 128 // 8
NEXT_SEQUENCE_WORD: Final = 192 // 8

ALIGNMENT: Final = 8
RECORD = struct.Struct("<IIQQHBBI")
"""size, crc, sequence, received_ns, connection, kind, flags, spare."""
RECORD_FRONT = struct.Struct("<II")
"""size, crc: what the crc does not cover."""
RECORD_REST = struct.Struct("<QQHBBI")
"""sequence, received_ns, connection, kind, flags, spare: what the crc begins with."""
RECORD_KIND_AT: Final = 26
RECORD_BYTES: Final = RECORD.size
assert RECORD_BYTES == 32
assert STATIC.size == 64

MIN_CAPACITY_BYTES: Final = 64 * 1024
MAX_CAPACITY_BYTES: Final = 1 << 44

PAD: Final = 0
"""Fills the end of a lap; never handed out."""
FRAME: Final = 1
"""A message of the stream, as it came."""
PAGE: Final = 2
"""A page of a REST answer, as it came."""
EVENT: Final = 3
"""Something that the reader process did or saw, as JSON."""
KINDS: Final = (PAD, FRAME, PAGE, EVENT)

BINARY: Final = 1
"""Flag of a `FRAME` that came as a binary message."""

POSITION_MASK: Final = (1 << 48) - 1
"""The part of a cursor's word that is the position."""
# 2^64 / golden ratio: multiplying spreads each bit of the position over the upper bits.
_MIX: Final = 0x9E3779B97F4A7C15


class Record(NamedTuple):
    """One record of the ring."""

    end: int
    """The position behind it: what is acknowledged when it is done."""
    sequence: int
    received_ns: int
    """Unix time in nanoseconds."""
    connection: int
    kind: int
    flags: int
    payload: bytes


def whole_capacity(wanted_bytes: int) -> int:
    """The smallest capacity of at least so many bytes."""
    return (wanted_bytes + CAPACITY_STEP_BYTES - 1) & -CAPACITY_STEP_BYTES


def static_crc(fields: Sequence[Any]) -> int:
    """What stands third in `STATIC`'s *fields*, whatever stands there."""
    magic, version, _, *tail = fields
    return zlib.crc32(STATIC.pack(magic, version, 0, *tail))


def record_bytes(size_bytes: int) -> int:
    """What a record with a payload of that size takes in the ring."""
    return (RECORD_BYTES + size_bytes + ALIGNMENT - 1) & -ALIGNMENT


def reserve_bytes(capacity_bytes: int) -> int:
    """What `FRAME` and `PAGE` records leave free for the reader process's own events."""
    return min(64 * 1024, capacity_bytes // 8)


def max_payload_bytes(capacity_bytes: int) -> int:
    """The largest payload that a ring takes: a quarter, so that it always fits some time, and no
    more than `size` can tell."""
    return min(capacity_bytes // 4 - RECORD_BYTES, (1 << 32) - 1)


def cursor_word(position: int) -> int:
    """The word that holds *position*."""
    return position | ((position + 1) * _MIX >> 48 & 0xFFFF) << 48


def cursor_position(word: int) -> int | None:
    """The position in a word, or None if its check bits do not fit."""
    position = word & POSITION_MASK
    return position if cursor_word(position) == word and not position % ALIGNMENT else None
