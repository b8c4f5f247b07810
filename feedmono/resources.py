"""Finds the files that are installed with the code: the schemas and the default configuration."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def path(folder: str, name: str) -> Path:
    """The file *name* of *folder* (``schemas`` or ``etc``).

    An installed package has the folder inside, a checkout beside the package (``setup.cfg``
    maps one to the other).

    :raises FileNotFoundError: it is in neither place.
    """
    places = [parent / folder / name for parent in (_PACKAGE, _PACKAGE.parent)]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"feedmono's own file {folder}/{name} is missing, neither {places[0]} nor {places[1]} is "
        "there: install feedmono again"
    )
