"""Paths of fields: texts to steps and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.flows.field_path import format_path, parse_path


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("amount", ("amount",)),
        ("user.age", ("user", "age")),
        ("items[0].price", ("items", 0, "price")),
        ("grid[-1][2]", ("grid", -1, 2)),
        ('headers."x.id"', ("headers", "x.id")),
        (r'"a\"b"', ('a"b',)),
        ("größe.€", ("größe", "€")),
    ],
)
def test_path_of_each_form_is_parsed(text: str, steps: tuple[str | int, ...]) -> None:
    assert parse_path(text) == steps
    assert format_path(steps) == text


@pytest.mark.parametrize("text", ["", ".a", "a.", "a..b", "[0]", "a[", "a[x]", "a b", 'a"b"', '"a'])
def test_path_with_a_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="path"):
        parse_path(text)


@pytest.mark.slow
@given(st.text(min_size=1), st.lists(st.text(min_size=1) | st.integers()))
def test_path_of_any_keys_survives_formatting(first: str, rest: list[str | int]) -> None:
    assert parse_path(format_path((first, *rest))) == (first, *rest)
