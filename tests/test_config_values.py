"""Sizes and durations: exact, with their units, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmono.config.values import (
    DURATION_UNITS_US,
    SIZE_UNITS,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@settings(derandomize=True)
@given(st.integers(0, 2**63))
def test_a_size_is_read_back_as_it_is_shown(size_bytes: int) -> None:
    text = format_size(size_bytes)
    if len(text.split()[0]) <= 18:
        assert parse_size(text) == size_bytes


@settings(derandomize=True)
@given(st.integers(0, 10**15))
def test_a_duration_is_read_back_as_it_is_shown(duration_us: int) -> None:
    assert parse_duration(format_duration(duration_us / 1e6)) == duration_us / 1e6


@settings(derandomize=True)
@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6 - 1),
    st.sampled_from(list(SIZE_UNITS)),
    st.sampled_from([str.lower, str.upper, str]),
)
def test_a_size_is_exact_or_refused(whole: int, rest: int, unit: str, case: type[str]) -> None:
    text = f"{whole}.{rest:06} {case(unit)}"
    exact = (whole * 10**6 + rest) * SIZE_UNITS[unit]
    if exact % 10**6:
        with pytest.raises(ValueError, match="finer"):
            parse_size(text)
    else:
        assert parse_size(text) == exact // 10**6


@settings(derandomize=True)
@given(st.text(max_size=12))
def test_any_text_is_a_size_and_a_duration_or_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert parse(text) >= 0
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1 B", 1),
        ("64KiB", 65536),
        ("64 kB", 64000),
        ("1.5 GiB", 3 * 2**29),
        ("2mib", 2**21),
        ("1 TiB", 2**40),
        (" 0 B ", 0),
    ],
)
def test_sizes_count_in_thousands_or_in_1024s(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("0", 0.0),
        ("250 us", 0.00025),
        ("5ms", 0.005),
        ("0.5 s", 0.5),
        ("90 seconds", 90.0),
        ("2 m", 120.0),
        ("2 min", 120.0),
        ("1 h", 3600.0),
        ("1.5 days", 129600.0),
    ],
)
def test_durations_have_their_usual_units(text: str, duration_s: float) -> None:
    assert parse_duration(text) == duration_s


@pytest.mark.parametrize(
    "text", ["", "5", "0.0", "-1 s", "5 M", "5 ns", "1e3 s", "5 s s", "0.5 us"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_duration(text)


def test_every_unit_of_time_is_longer_than_the_one_before() -> None:
    assert list(DURATION_UNITS_US.values()) == sorted(set(DURATION_UNITS_US.values()))
    assert list(SIZE_UNITS.values()) == sorted(set(SIZE_UNITS.values()))
