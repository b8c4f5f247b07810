"""Whether a stored trade makes sense by itself: what every record must be, whatever the ledger
says."""

from __future__ import annotations

from collections.abc import Mapping

from feedmono.trade import MAX_TRADE_ID, ORIGINS, SIDES, multiply

_MAX_DIGITS = len(str(MAX_TRADE_ID))
_TIMES = ("timestamp", "exchange_timestamp", "exchange_timestamp_us", "received_timestamp_us")


def id_of(text: object) -> int | None:
    """The id that a record's ``trade_id`` is; None: it is none."""
    if not isinstance(text, str) or len(text) > _MAX_DIGITS or not text.isdecimal():
        return None
    trade_id = int(text)
    return trade_id if str(trade_id) == text and trade_id <= MAX_TRADE_ID else None


def nonsense(record: Mapping[str, object], exchange: str) -> str:
    """What is wrong with a trade of *exchange*; empty if nothing is."""
    try:
        price, quantity, volume = record["price"], record["quantity"], record["quote_volume"]
        if record["exchange"] != exchange:
            return f"its exchange is {record['exchange']!r}"
        if multiply(str(price), str(quantity)) != volume:
            return f"its quote_volume is {volume!r}, not {price!r} x {quantity!r}"
        if record["origin"] not in ORIGINS:
            return f"its origin is {record['origin']!r}"
        if record["side"] not in SIDES:
            return f"its side is {record['side']!r}"
        for name in _TIMES:
            moment = record[name]
            if not isinstance(moment, int) or moment <= 0:
                return f"its {name} is {moment!r}"
        sequence = record["frame_sequence"]
        if not isinstance(sequence, int) or sequence < 0:
            return f"its frame_sequence is {sequence!r}"
    except (KeyError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
