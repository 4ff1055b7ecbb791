from __future__ import annotations

import base64

import numpy as np
import pytest

from equipoise.engines._shared.requests import Request
from equipoise.engines.formats import TraceOptions
from equipoise.engines.replay.encoding import decode_choices, refuse_cut_choices
from equipoise.errors import FormatError


def routing(tokens: int, layers: int, top_k: int, experts: int = 64) -> np.ndarray:
    """Different choices, the first layer dense."""
    random = np.random.default_rng(8).random((tokens, layers, experts))
    ids = random.argsort(axis=2)[:, :, :top_k]
    ids[:, 0] = 0
    return ids


def encoded(ids: np.ndarray) -> str:
    return base64.b64encode(ids.astype("<i4").tobytes()).decode()


@pytest.mark.parametrize(("layers", "top_k"), [(12, 8), (7, 6), (5, 4)])
def test_a_top_k_that_is_a_part_of_the_right_one_is_refused(layers, top_k):
    ids = routing(200, layers, top_k)
    refuse_cut_choices([Request("r", ids[:150]), Request("s", ids[150:])])
    for part in (n for n in range(1, top_k) if top_k % n == 0):
        cut = ids.reshape(200, -1, part)
        with pytest.raises(FormatError, match=f"top_k is {part}, but looks like {top_k}"):
            refuse_cut_choices([Request("r", cut)])


def test_few_tokens_and_many_experts_prove_nothing():
    refuse_cut_choices([Request("r", routing(3, 4, 2).reshape(3, 8, 1))])
    refuse_cut_choices([Request("r", np.zeros((2, 1, 1000), int))])
    refuse_cut_choices([Request("r", np.full((9, 4, 2), -1))])


def test_an_answer_that_states_another_top_k_is_refused():
    with pytest.raises(FormatError, match="tokens have 2 experts, but top_k is 3"):
        decode_choices([[[1, 2]]], None, TraceOptions(top_k=3), "here")
    with pytest.raises(FormatError, match="do not fit the 4 tokens"):
        decode_choices(encoded(routing(5, 3, 2)), 4, TraceOptions(top_k=2), "here")


def test_the_number_of_layers_follows_from_tokens_and_top_k():
    ids = routing(5, 3, 2)
    read = decode_choices(encoded(ids), 5, TraceOptions(top_k=2), "here")
    np.testing.assert_array_equal(read, ids)
