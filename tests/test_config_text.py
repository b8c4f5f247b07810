"""Where the keys of a configuration file stand; held against what pyhocon reads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyhocon import ConfigFactory  # type: ignore[import-untyped]

from feedmono.config.text import scan


def lines(text: str) -> dict[str, int]:
    found = scan(text)
    assert found.complete
    return {".".join(key.path): key.line for key in found.assignments}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\nb : 2, c=3", {"a": 1, "b": 2, "c": 2}),
        ("a.b.c = 1", {"a.b.c": 1}),
        ("a {\n b {\n  c = 1 } }\nd = 2", {"a": 1, "a.b": 2, "a.b.c": 3, "d": 4}),
        ("{\na = 1\n}\n", {"a": 2}),
        ('"a.b" {\n "c.d" = 1 }', {"a.b": 1, "a.b.c.d": 2}),
        ("# a = 1 {\n// b = {\nc = 1", {"c": 3}),
        ('a = "} # {"  # }\nb = 1', {"a": 1, "b": 2}),
        ('a = """{\n# "x" }\n"""\nb = 1', {"a": 1, "b": 4}),
        ("a = [\n 1, # ]\n { x = 1 },\n 2\n]\nb = 1", {"a": 1, "b": 6}),
        ("a = http://h/x # y\nb = 1", {"a": 1, "b": 2}),
        ("a =\n  1\nb\n{\n}\nc = 1", {"a": 1, "b": 3, "c": 6}),
        ("a = ${b} {\n c = 1 }\nd = 1", {"a": 1, "a.c": 2, "d": 3}),
        ("a = x \\\n y\nb = 1", {"a": 1, "b": 3}),
        ("a = 1\na = 2", {"a": 2}),
        ("include = 1\nincluded = 2", {"include": 1, "included": 2}),
        ('a = "\\""\nb = "\\\\"\nc = 1', {"a": 1, "b": 2, "c": 3}),
        ("", {}),
    ],
)
def test_each_key_is_found_in_its_line(text: str, expected: dict[str, int]) -> None:
    assert lines(text) == expected


@pytest.mark.parametrize("text", ["a", "a = {", "a = [1", "}", "a = ]", 'a = "x', "a = @", "= 1"])
def test_what_is_no_hocon_is_not_claimed_to_be_understood(text: str) -> None:
    assert not scan(text).complete
    assert scan(text).bare == text


def test_a_text_nested_without_end_is_given_up() -> None:
    assert not scan("a {" * 5000).complete
    assert not scan("a = " + "[" * 5000).complete


@pytest.mark.parametrize(
    ("text", "form", "target", "line"),
    [
        ('include "x"', "file", "x", 1),
        ('a {\n include file("x.conf")\n}', "file", "x.conf", 2),
        ('include required(file("x"))', "file", "x", 1),
        ('include required("x")', "file", "x", 1),
        ('include url("http://h")', "url", "http://h", 1),
        ('include "https://h"', "url", "https://h", 1),
        ('include package("a:b")', "package", "a:b", 1),
        ('a = include "x"', "file", "x", 1),
    ],
)
def test_an_include_is_found(text: str, form: str, target: str, line: int) -> None:
    [include] = scan(text).includes
    assert (include.form, include.target, include.line) == (form, target, line)


def test_the_value_of_a_key_is_told_apart_from_blocks_and_references() -> None:
    found = scan("a = 1 x\nb { c = [1] }\nd = ${a}\ne = ${a} x\nf += 1")
    assert [key.path[-1] for key in found.assignments if key.plain] == ["a", "f"]
    assert [key.path[-1] for key in found.assignments if key.appends] == ["f"]


NAMES = st.sampled_from(["a", "b", "long_name", "é", '"q.r"', '"s t"'])
VALUES = st.sampled_from(
    [
        *("1", "0.5", "true", "5 ms", "text of words", "x/y", "h://p", '"{ # }"', '"a // b"'),
        *("[1, 2]", "[\n1 # ]\n2\n]", "[{ x = 1 }, { y = [] }]", '"""\n} #\n"""', '"\\""'),
    ]
)
TREES = st.recursive(
    VALUES, lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=4), max_leaves=8
)


def write(tree: dict[str, Any], rnd: random.Random, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A tree in one of the many ways to write it: pieces of text with the path each begins."""
    for name, value in tree.items():
        path = prefix + name.strip('"')
        yield "", rnd.choice(["", "\n", "# x = {\n", "// }\n", "  "])
        if isinstance(value, str):
            yield path, name + rnd.choice([" = ", " : ", "=", " =\n# c\n "]) + value
        else:
            yield path, name + rnd.choice([" {", " = {", "{ # [\n"])
            yield from write(value, rnd, f"{path}.")
            yield "", "}"
        yield "", rnd.choice(["\n", " # y = [\n", ",\n", "\n\n"])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, TREES, min_size=1, max_size=4), st.integers(0, 2**32))
def test_keys_are_found_however_the_file_is_written(tree: dict[str, Any], seed: int) -> None:
    expected: dict[str, int] = {}
    text = ""
    for path, piece in write(tree, random.Random(seed)):
        if path:
            expected[path] = text.count("\n") + 1
        text += piece
    assert lines(text) == expected


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.dictionaries(NAMES, TREES, min_size=1, max_size=3), st.integers(0, 2**32))
def test_pyhocon_reads_the_same_without_comments(tree: dict[str, Any], seed: int) -> None:
    text = "".join(piece for _, piece in write(tree, random.Random(seed)))
    found = scan(text)
    assert "# x" not in found.bare
    assert found.bare.count("\n") == text.count("\n") + 1
    assert ConfigFactory.parse_string(found.bare) == ConfigFactory.parse_string(text)


@settings(derandomize=True, max_examples=300)
@given(st.text(st.sampled_from('ab.={}[]",#/\\\n $+:"'), max_size=40))
def test_no_text_makes_the_scanner_fail(text: str) -> None:
    assert scan(text).bare.rstrip("\n").count("\n") <= text.count("\n")
