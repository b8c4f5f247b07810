"""The journal: every trade made, as CSV, in the order it was made."""

from __future__ import annotations

from collections.abc import Sequence
from io import BufferedWriter
from pathlib import Path

from feedmono.simulator.market import Figures
from feedmono.trade import SIDES

HEAD = "symbol,id,price,quantity,side,time_us,fate\n"


class Journal:
    """Writes the trades to a new file; what is there already is replaced.

    :raises OSError: the file can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._file: BufferedWriter = path.open("wb")
        self._file.write(HEAD.encode())

    def write(
        self,
        symbol: str,
        first_id: int,
        figures: Sequence[Figures],
        time_us: int,
        fates: Sequence[str],
    ) -> None:
        """Consecutive trades of one symbol and time."""
        lines = [
            f"{symbol},{trade_id},{price},{quantity},{SIDES[side]},{time_us},{fate}\n"
            for trade_id, ((price, quantity, side), fate) in enumerate(
                zip(figures, fates, strict=True), first_id
            )
        ]
        self._file.write("".join(lines).encode())

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()
