"""A stand-in exchange on a loopback port: WebSocket and REST, any rate, faults on demand.

Each file beside this one that binds ``DIALECT`` is an exchange that it can stand in for.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from feedmono.simulator.base import Dialect
from feedmono.simulator.market import Figures, block_figures

__all__ = ["Figures", "figures", "load", "names"]


def names() -> list[str]:
    """The names of all exchanges that can be simulated, sorted."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        if module.name != "__main__":
            loaded = importlib.import_module(f"{__name__}.{module.name}")
            if hasattr(loaded, "DIALECT"):
                found.append(module.name)
    return sorted(found)


def load(name: str) -> type[Dialect]:
    """The dialect of that exchange.

    :raises KeyError: there is none.
    """
    if name not in names():
        raise KeyError(name)
    module = importlib.import_module(f"{__name__}.{name}")
    dialect: type[Dialect] = module.DIALECT
    return dialect


_load_once = lru_cache(maxsize=16)(load)


def figures(exchange: str, seed: int, symbol: str, trade_id: int) -> Figures:
    """Price, quantity and side of a made trade: a pure function of its arguments.

    :raises KeyError: no such exchange.
    """
    return block_figures(seed, symbol, _load_once(exchange).shape(symbol), trade_id)
