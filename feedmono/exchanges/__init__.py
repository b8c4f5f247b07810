"""The exchanges: each file beside this one is one and binds ``EXCHANGE``, except for ``base`` and
for what begins with an underscore."""

from __future__ import annotations

import importlib
import pkgutil

from feedmono.exchanges.base import Exchange


def names() -> list[str]:
    """The names of all exchanges, sorted."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def load(name: str) -> Exchange:
    """The exchange of that name.

    :raises KeyError: there is none.
    :raises TypeError: its file does not bind a whole one.
    """
    if name not in names():
        raise KeyError(name)
    module = importlib.import_module(f"{__name__}.{name}")
    kind: type[Exchange] | None = getattr(module, "EXCHANGE", None)
    if not isinstance(kind, type):
        raise TypeError(f"{module.__file__} binds no EXCHANGE, the class derived from Exchange")
    if kind.name != name:
        raise TypeError(
            f"{module.__file__} calls its exchange {kind.name!r}: its file's name is wanted"
        )
    return kind()
