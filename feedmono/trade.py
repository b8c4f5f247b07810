"""The normalized trade, and the exact arithmetic of its decimal texts."""

from __future__ import annotations

import re
from decimal import Context, Decimal
from typing import Final, NamedTuple

BUY = 0
"""``side`` of a trade whose taker bought: the index in the Avro enum ``TradeSide``."""
SELL = 1
"""``side`` of a trade whose taker sold."""

STREAM = 0
"""``origin`` of a live trade: the index in the Avro enum ``Origin``."""
SNAPSHOT = 1
"""``origin`` of a trade that the exchange repeats at the start of a subscription."""
BACKFILL = 2
"""``origin`` of a trade that was fetched by REST."""

ORIGINS = ("STREAM", "SNAPSHOT", "BACKFILL")
"""The names of the origins, in the order of the Avro enum."""
SIDES = ("BUY", "SELL")
"""The names of the sides, in the order of the Avro enum."""

MAX_TRADE_ID = 2**63 - 1
"""The largest trade id that fits an Avro long."""

MAX_TIME_US = (2**63 - 1) // 1000
"""The latest time that is taken for one (the year 2262): its nanoseconds fit a long too."""

MAX_SYMBOL_CHARS = 64
"""The longest symbol that is taken for one; the exchanges' own have at most 20 or so."""

# Binance gives at most 8 + 8 decimals, Kraken the same; 48 leaves room for any
# sane market and keeps one garbage frame from costing a megabyte of digits.
MAX_DECIMAL_CHARS = 48

_PLAIN = re.compile(r"(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII)
_SCIENTIFIC = re.compile(r"(?:0|[1-9]\d*)(?:\.\d+)?[eE][+-]?\d{1,2}", re.ASCII)
_EXACT = Context(prec=512)


class Trade(NamedTuple):
    """One public trade as its exchange told it, nothing rounded, nothing renamed."""

    symbol: str
    """The exchange's own name of the market: ``BTCUSDT``, ``BTC/USD``."""
    trade_id: int
    """The exchange's id, 0 … 2^63-1, rising per symbol."""
    price: str
    """The exchange's exact decimal text."""
    quantity: str
    """The exchange's exact decimal text, in units of the base asset."""
    side: int
    """The taker's side: `BUY` or `SELL`."""
    time_us: int
    """The trade's time at the exchange, Unix time in microseconds."""
    is_buyer_maker: bool | None = None
    buyer_order_id: int | None = None
    seller_order_id: int | None = None


NOT_TOLD: Final = tuple(Trade._field_defaults.values())
"""The fields that not every exchange tells, for who makes a trade from a tuple."""


class EncodedTrade(NamedTuple):
    """A normalized trade, ready to be stored."""

    symbol: str
    body: bytes
    """The Avro encoding of its record, without any header."""


def is_symbol(text: str) -> bool:
    """Whether *text* can be a market's name: printable (no control character, no lone
    surrogate, which UTF-8 can't carry) and neither empty nor overlong."""
    return 0 < len(text) <= MAX_SYMBOL_CHARS and text.isprintable()


def is_decimal(text: str) -> bool:
    """Whether *text* is a non-negative JSON number of a sane length."""
    # What exchanges really send, digits with a point between, needs no regular expression.
    if text.strip("0123456789") == "." and text[-1] != "." and (text[0] > "0" or text[1] == "."):
        return len(text) <= MAX_DECIMAL_CHARS
    return len(text) <= MAX_DECIMAL_CHARS and (
        _PLAIN.fullmatch(text) is not None or _SCIENTIFIC.fullmatch(text) is not None
    )


def multiply(price: str, quantity: str) -> str:
    """The exact product of two decimal texts, in plain notation, all its digits kept.

    ``multiply("2688.30", "0.00010000")`` is ``"0.2688300000"``: as many decimals as both
    factors have together, as `decimal.Decimal` has it.

    :raises ValueError: one of them is not a decimal text.
    """
    price_whole, _, price_decimals = price.partition(".")
    quantity_whole, _, quantity_decimals = quantity.partition(".")
    price_digits = price_whole + price_decimals
    quantity_digits = quantity_whole + quantity_decimals
    together = price_digits + quantity_digits
    # What exchanges really send, digits with a point between, is checked here in one go: a tenth
    # to a third less time than with `is_decimal` for either.
    if not (
        together.isdecimal()
        and together.isascii()
        and price_whole
        and quantity_whole
        and price_decimals
        and quantity_decimals
        and (price_whole == "0" or price_whole[0] != "0")
        and (quantity_whole == "0" or quantity_whole[0] != "0")
        and len(price) <= MAX_DECIMAL_CHARS
        and len(quantity) <= MAX_DECIMAL_CHARS
    ):
        return _multiply_any(price, quantity)
    scale = len(price_decimals) + len(quantity_decimals)
    digits = str(int(price_digits) * int(quantity_digits))
    if len(digits) <= scale:
        digits = digits.rjust(scale + 1, "0")
    return f"{digits[:-scale]}.{digits[-scale:]}"


def _multiply_any(price: str, quantity: str) -> str:
    """The same for integers and exponents.

    :raises ValueError: one of them is not a decimal text.
    """
    if not (is_decimal(price) and is_decimal(quantity)):
        raise ValueError(f"not a decimal number: {price[:60]!r} or {quantity[:60]!r}")
    return format(_EXACT.multiply(Decimal(price), Decimal(quantity)), "f")
