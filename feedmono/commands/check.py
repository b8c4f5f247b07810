"""``feedmono check``: the effective configuration, and what it met when it was tried, as text."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from feedmono.config import Loaded
from feedmono.config.values import mask_urls

# Without a terminal nobody wraps: one line a row, however long, so that grep finds it whole.
_PIPE_WIDTH = 10_000
# Below it a long key is broken behind a dot.
_NARROW_WIDTH = 130
_NARROW_KEY = 26


class Probe(NamedTuple):
    """What came of trying an exchange, a broker or a registry."""

    name: str
    ok: bool
    detail: str


def render(loaded: Loaded, style: str, width: int | None = None) -> str:
    """Every key with its value and where that came from, secrets masked.

    *style* is ``table`` or ``json``: an object by key of ``value``, ``origin`` and, for numbers
    of something, ``unit`` (bytes, s). *width*: the table's columns; default: the terminal's, and
    one line a row where standard output is none.
    """
    if style == "json":
        values = {
            name: {
                "value": value.plain,
                **({"unit": value.unit} if value.unit else {}),
                "origin": loaded.origins[name],
            }
            for name, value in loaded.values.items()
        }
        return json.dumps(values, indent=2, ensure_ascii=False)
    rows = [(name, value.text, loaded.origins[name]) for name, value in loaded.values.items()]
    return _table(("key", "value", "from"), rows, width)


def render_probes(probes: Sequence[Probe], style: str, width: int | None = None) -> str:
    """What was tried, and whether it worked; passwords in URLs masked. *style* and *width* as
    for `render`."""
    masked = [probe._replace(detail=mask_urls(probe.detail)) for probe in probes]
    if style == "json":
        return json.dumps([probe._asdict() for probe in masked], indent=2, ensure_ascii=False)
    rows = [(name, "ok" if ok else "failed", detail) for name, ok, detail in masked]
    return _table(("tried", "result", "detail"), rows, width)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int | None) -> str:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, name in enumerate(head):
        table.add_column(name, no_wrap=column == 0, overflow="fold")
    for first, *others in rows:
        # As `Text`: a bracket in a value is no markup.
        label = _broken(first) if width < _NARROW_WIDTH else first
        table.add_row(*map(Text, (label, *others)))
    page = io.StringIO()
    Console(file=page, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def _broken(name: str) -> str:
    """A dotted name in lines of about `_NARROW_KEY` characters."""
    lines = [""]
    for part in name.replace(".", ".\n").split("\n"):
        if lines[-1].strip() and len(lines[-1] + part) > _NARROW_KEY:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)
