"""The ring: the one log between a reader process and its serializer, in shared memory.

One process appends (its threads share a lock), one reads and acknowledges. The ring is a
memory-mapped file, so it outlives both, and the supervisor. `feedmono.ring_layout` draws it.

Promises, and what they rest on:

- What `RingWriter.append` has taken is read exactly once by one `RingReader`, in order, and again
  by its successor unless it was acknowledged. Records are written first, then *one* cursor word is
  stored: a writer killed at any point leaves all of a batch or nothing.
- *Full* is a return value. Nothing is overwritten before it was acknowledged.
- A record that was damaged is never handed out: what is intact behind it is, and the damage is
  reported (`RingReader.damage`).

CPython issues no memory barrier for the cursor's store; the native extension issues one before it.
x86 keeps the order of stores; elsewhere, without the extension, the reader may see the cursor
before the record. The crc finds that, and the reader looks again.
"""

from __future__ import annotations

from feedmono.ring.files import Prepared, create, keep_damaged, prepare, set_aside_of
from feedmono.ring.mapped import ForeignRingError, Ring, RingError, boot_id
from feedmono.ring.reader import Damage, RingReader
from feedmono.ring.salvage import SalvagedReader
from feedmono.ring.writer import RingWriter

__all__ = [
    "Damage",
    "ForeignRingError",
    "Prepared",
    "Ring",
    "RingError",
    "RingReader",
    "RingWriter",
    "SalvagedReader",
    "boot_id",
    "create",
    "keep_damaged",
    "prepare",
    "set_aside_of",
]
