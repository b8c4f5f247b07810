"""The exchanges: each file beside this one that binds ``EXCHANGE`` is one."""

from __future__ import annotations

import importlib
import pkgutil

from feedmono.exchanges.base import Exchange


def names() -> list[str]:
    """The names of all exchanges, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def load(name: str) -> Exchange:
    """The exchange of that name.

    :raises KeyError: there is none.
    """
    if name not in names():
        raise KeyError(name)
    module = importlib.import_module(f"{__name__}.{name}")
    exchange: Exchange = module.EXCHANGE()
    return exchange
