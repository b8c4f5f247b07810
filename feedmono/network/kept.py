"""A small file of JSON that outlives its process."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from feedmono.log import Log

_LIMIT_BYTES = 1 << 20

_T = TypeVar("_T")


class KeptFile:
    """Trouble with it is logged and stops nothing: what can't be read counts as never kept, and
    what can't be written is lost with the process."""

    def __init__(
        self, path: Path, log: Log, *, missing: str, unreadable: str, unwritable: str
    ) -> None:
        """:param missing: what the log says where there is no such file.
        :param unreadable: what it says of one that can't be read.
        :param unwritable: what it says of one that can't be written, once until it can.
        """
        self._path = path
        self._log = log
        self._missing = missing
        self._unreadable = unreadable
        self._unwritable = unwritable
        self._failed = False

    def read(self, parse: Callable[[Any], _T]) -> _T | None:
        """What *parse* makes of the content; None if there is none. Whatever *parse* stumbles
        over, on whatever the file holds, is a file that can't be read."""
        try:
            with self._path.open("rb") as file:
                return parse(json.loads(file.read(_LIMIT_BYTES)))
        except FileNotFoundError:
            self._log.debug(self._missing, path=str(self._path))
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            OverflowError,
            RecursionError,
        ) as error:
            self._log.warning(self._unreadable, path=str(self._path), error=repr(error)[:200])
        return None

    def write(self, content: object) -> None:
        """Replaces the file. Not synced: one that a crash of the host tore can't be read."""
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(json.dumps(content))
            os.replace(new, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            if not self._failed:
                self._log.warning(self._unwritable, path=str(self._path), error=str(error))
            self._failed = True
        else:
            self._failed = False
