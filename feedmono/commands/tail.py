"""``feedmono tail``: the trades that the sink stores, as they pass."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone

from feedmono.config import Config
from feedmono.sinks import kinds

_QUEUE = 1000


class TailError(Exception):
    """What is stored can't be followed; its text says why."""


def follow(
    config: Config, exchanges: list[str], symbol: str | None
) -> Iterator[Mapping[str, object]]:
    """The trades of these exchanges, of one symbol or of all, in the order they are stored.

    :raises TailError: the sink, or what it holds, can't be read.
    """
    sink = kinds.configured(config)
    troubles: tuple[type[Exception], ...] = (OSError, ValueError, *sink.troubles())
    passing: queue.Queue[Mapping[str, object] | Exception] = queue.Queue(_QUEUE)

    def read(exchange: str) -> None:
        try:
            for trade in sink.source(config, exchange).follow():
                if trade is not None and symbol in (None, trade["symbol"]):
                    passing.put(trade)
        except troubles as error:
            passing.put(TailError(f"{exchange}: {error}"))
        except Exception as error:  # raised where somebody waits
            passing.put(error)

    for exchange in exchanges:
        threading.Thread(target=read, args=(exchange,), daemon=True).start()
    while True:
        item = passing.get()
        if isinstance(item, Exception):
            raise item
        yield item


def as_text(trade: Mapping[str, object]) -> str:
    """A trade as a line for people."""
    time_us = trade["exchange_timestamp_us"]
    if isinstance(time_us, datetime):
        moment = time_us
    else:
        moment = datetime.fromtimestamp(int(str(time_us)) / 1e6, timezone.utc)
    return (
        f"{moment:%H:%M:%S.%f} {trade['exchange']:<8} {trade['symbol']:<10} {trade['side']:<4} "
        f"{trade['price']:>18} x {trade['quantity']:<18} {trade['trade_id']}"
    )


def as_json(trade: Mapping[str, object]) -> str:
    """A trade as a line of JSON; times as ISO 8601."""
    return json.dumps(
        trade,
        ensure_ascii=False,
        default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v),
    )
