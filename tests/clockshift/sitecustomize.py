"""Steps the wall clock of every Python process that finds this folder in ``PYTHONPATH``.

``time.time`` and ``time.time_ns`` are off by what the file named by ``CLOCKSHIFT_FILE`` holds:
eight bytes, nanoseconds, looked at in each call. Forks share them. The monotonic clock, the
kernel's file times and ``datetime.now`` are what they are.
"""

from __future__ import annotations

import mmap
import os
import time

_path = os.environ.get("CLOCKSHIFT_FILE")
if _path:
    with open(_path, "r+b") as _file:
        _shift = memoryview(mmap.mmap(_file.fileno(), 8)).cast("q")
    _time, _time_ns = time.time, time.time_ns

    def _shifted() -> float:
        return _time() + _shift[0] / 1e9

    def _shifted_ns() -> int:
        return _time_ns() + _shift[0]

    time.time, time.time_ns = _shifted, _shifted_ns
