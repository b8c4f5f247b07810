"""The exact arithmetic of decimal texts, and what passes for a decimal or a symbol."""

from __future__ import annotations

import json
import string
from decimal import Context, Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmono.trade import MAX_DECIMAL_CHARS, MAX_SYMBOL_CHARS, is_decimal, is_symbol, multiply

WHOLE = st.from_regex(r"\A(0|[1-9][0-9]{0,14})\Z")
PLAIN = st.builds(
    lambda whole, decimals: f"{whole}.{decimals}" if decimals else whole,
    WHOLE,
    st.text("0123456789", max_size=20),
)
SCIENTIFIC = st.builds(
    lambda text, letter, sign, exponent: f"{text}{letter}{sign}{exponent}",
    PLAIN,
    st.sampled_from("eE"),
    st.sampled_from(["", "+", "-"]),
    st.integers(0, 99),
)
LAW = settings(derandomize=True, max_examples=150)


@LAW
@given(st.one_of(PLAIN, SCIENTIFIC), st.one_of(PLAIN, SCIENTIFIC))
def test_a_product_is_exact_and_in_plain_notation(price: str, quantity: str) -> None:
    product = multiply(price, quantity)
    assert Decimal(product) == Context(prec=600).multiply(Decimal(price), Decimal(quantity))
    assert set(product) <= set("0123456789.")


@LAW
@given(PLAIN, PLAIN)
def test_a_product_has_as_many_decimals_as_both_factors(price: str, quantity: str) -> None:
    decimals = len(price.partition(".")[2]) + len(quantity.partition(".")[2])
    assert len(multiply(price, quantity).partition(".")[2]) == decimals


@pytest.mark.parametrize(
    ("price", "quantity", "product"),
    [
        ("2688.30", "0.00010000", "0.2688300000"),
        ("61837.63000000", "0.00009000", "5.5653867000000000"),
        ("0.00000001", "0.00000001", "0.0000000000000001"),
        ("0", "5", "0"),
        ("0.00", "1.0", "0.000"),
        ("3", "4", "12"),
        ("1e-7", "2", "0.0000002"),
        ("1.50E3", "2", "3000"),
    ],
)
def test_products_keep_every_digit(price: str, quantity: str, product: str) -> None:
    assert multiply(price, quantity) == product


@pytest.mark.parametrize("text", ["", "1,5", "-1", "nan", "1.", "0x1", " 1", "1_0", "٣"])
def test_what_is_no_decimal_is_not_multiplied(text: str) -> None:
    with pytest.raises(ValueError, match="not a decimal number"):
        multiply(text, "1")
    with pytest.raises(ValueError, match="not a decimal number"):
        multiply("1", text)


@LAW
@given(st.one_of(PLAIN, SCIENTIFIC))
def test_every_number_that_json_can_write_is_a_decimal(text: str) -> None:
    assert is_decimal(text) == (len(text) <= MAX_DECIMAL_CHARS)


@settings(derandomize=True, max_examples=1000)
@given(st.one_of(st.text("019.eE+-_ ٣²", max_size=8), st.text(max_size=4)))
def test_a_decimal_is_what_json_takes_for_a_number_without_sign(text: str) -> None:
    try:
        # Python's reader takes NaN and Infinity as well, and white space around.
        number = json.loads(text, parse_float=str, parse_int=str, parse_constant=lambda _: None)
    except ValueError:
        number = None
    is_number = number == text and not text.startswith("-")
    exponent = text.lower().partition("e")[2].lstrip("+-")
    assert is_decimal(text) == (is_number and len(exponent) <= 2)


def test_a_decimal_of_a_megabyte_is_refused() -> None:
    assert not is_decimal("1" * 1_000_000)
    assert not is_decimal("1." + "0" * 1_000_000)
    assert is_decimal("1." + "0" * (MAX_DECIMAL_CHARS - 2))
    assert not is_decimal("1." + "0" * (MAX_DECIMAL_CHARS - 1))


@pytest.mark.parametrize("text", ["BTCUSDT", "BTC/USD", "AAPLx/USD", "币安人生USDT", "1000SATS"])
def test_names_of_markets_are_symbols(text: str) -> None:
    assert is_symbol(text)


@pytest.mark.parametrize(
    "text", ["", "BTC\0USD", "BTC\nUSD", "\ud800", "X" * (MAX_SYMBOL_CHARS + 1), "\u202eUSD"]
)
def test_what_can_not_be_printed_is_no_symbol(text: str) -> None:
    assert not is_symbol(text)


@LAW
@given(st.text())
def test_every_symbol_can_be_written_as_utf_8(text: str) -> None:
    if is_symbol(text):
        assert text.encode().decode() == text
        assert not set(text) & set(string.whitespace) - {" "}
