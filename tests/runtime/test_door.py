from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.runtime.serving.door import Door
from equipoise.runtime.serving.requests import Request


def door(make):
    return Door(make, vocab_size=100, most_tokens=20, new_tokens=5)


def admitted(prompt, **named):
    return door(lambda number: Request(number, prompt, **named)).admit(3)


@pytest.mark.parametrize(
    "prompt", [(0, 99), [5], np.array([1, 2]), np.array([1], np.uint8), range(15)]
)
def test_ids_of_the_model_are_let_in(prompt):
    request = admitted(prompt, domain="docs")
    assert request == Request(3, tuple(int(token) for token in prompt), "docs")
    assert all(type(token) is int for token in request.prompt)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ((), "is empty"),
        (np.zeros(0, int), "is empty"),
        ((5, 100), "token id 100; the model has ids from 0 to 99"),
        ((5, 10**30), "token id 10000"),
        ((-1,), "token id -1;"),
        (range(16), "has 16 tokens; with 5 new ones, at most 15 fit"),
        (range(10**12), "has 1000000000000 tokens"),
        ((1, "2"), "contains '2';"),
        ((1, 2.0), "contains 2.0;"),
        ((1, True), "contains True;"),
        ((1, None), "contains None;"),
        (((1, 2), (3, 4)), r"contains \(1, 2\);"),
        (np.zeros((2, 2), int), "expected a tuple of token ids"),
        (np.array([1.0]), "The prompt contains 1.0; expected token ids"),
        ("text", "The prompt is 'text'; expected a tuple"),
        (b"text", "expected a tuple"),
        (None, "The prompt is None"),
        (7, "The prompt is 7"),
        ({1, 2}, "expected a tuple"),
        (iter([1]), "expected a tuple"),
    ],
)
def test_other_prompts_are_not(prompt, why):
    said = admitted(prompt)
    assert isinstance(said, str)
    assert re.search(why, said), said
    assert len(said) < 400
    assert "\n" not in said


def broken(_number):
    raise KeyError("a\nlong " + "x" * 10_000)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (broken, "could not make request 3: KeyError"),
        (lambda n: 1 / 0, "ZeroDivisionError"),
        (lambda n: None, "made None; expected a Request"),
        (lambda n: (n, (1,)), "expected a Request"),
        (lambda n: Request(n + 1, (1,)), "made request 4 where 3 was asked for"),
        (lambda n: Request("3", (1,)), "made request '3' where 3"),
        (lambda n: Request(n, (1,), domain=None), "domain is None"),
    ],
)
def test_nor_is_what_a_source_makes_otherwise(make, why):
    said = door(make).admit(3)
    assert isinstance(said, str)
    assert why in said
    assert len(said) < 400
    assert "\n" not in said


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.integers(), inner),
)


@given(anything)
def test_whatever_comes_is_let_in_as_ids_of_the_model_or_refused_in_a_line(prompt):
    made = admitted(prompt)
    if isinstance(made, str):
        assert made
        assert "\n" not in made
    else:
        assert 0 < len(made.prompt) <= 15
        assert all(type(token) is int and 0 <= token < 100 for token in made.prompt)


def test_more_new_tokens_than_the_model_is_made_for_are_refused():
    with pytest.raises(EquipoiseError, match=r"new_tokens is 20; .* made for 20 tokens"):
        Door(lambda n: Request(n, (1,)), vocab_size=10, most_tokens=20, new_tokens=20)
