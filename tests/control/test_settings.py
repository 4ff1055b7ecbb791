from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.control.settings import Settings
from equipoise.errors import EquipoiseError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 2000, "update_interval": 1000}, "longer than the update_interval of 1000"),
        ({"cool_down_steps": 10}, "judged by steps from before it"),
        ({"layers_per_step": 0}, "nothing would ever be balanced; give a map_path"),
        ({"map_path": "no/such/map.json"}, "map_path: there is no map 'no/such/map.json'"),
        ({"map_path": 5}, "there is no map '5'; give the path of a file"),
        ({"map_path": "x" * 5000}, "there is no map 'xxxxxx"),
        ({"map_path": "\ud800"}, "there is no map"),
        ({"window": 100.0}, "window is 100.0; expected a whole number"),
        ({"window": None}, "window is None; expected a whole number"),
        ({"excess_on": 0.02}, "has to fall at less than what raises it"),
        ({"excess_off": -1}, "excess_off is -1; expected 0 or more"),
        ({"window": 8.5}, "window is 8.5; expected a whole number"),
        ({"window": True}, "window is True; expected a whole number"),
        ({"window": 7}, "window is 7; expected 8 or more"),
        ({"wait_steps": 0}, "wait_steps is 0"),
        ({"num_redundant": -1}, "num_redundant is -1"),
        ({"max_bytes_per_step": 0}, "max_bytes_per_step is 0"),
        ({"background": 1}, "background is 1; expected true or false"),
        ({"once": "yes"}, "once is 'yes'; expected true or false"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        Settings(**values)


def test_slots_of_a_layer():
    assert Settings(num_redundant=32).num_slots(256, 32) == 288


@pytest.mark.parametrize(
    ("redundant", "ranks", "message"),
    [
        (30, 32, "nearest legal: 256 slots (0 redundant) or 288 slots (32 redundant)"),
        (0, 1, "There is one rank, so nothing to balance"),
        (32, 2, "num_redundant is 32; 16 already put every expert"),
    ],
)
def test_slots_that_do_not_fit_the_ranks(redundant, ranks, message):
    experts = 16 if ranks == 2 else 256
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        Settings(num_redundant=redundant).num_slots(experts, ranks)


@given(st.integers(1, 64), st.integers(2, 16), st.integers(0, 200))
def test_slots_are_legal_or_refused(experts, ranks, redundant):
    try:
        slots = Settings(num_redundant=redundant).num_slots(experts, ranks)
    except EquipoiseError:
        return
    assert slots % ranks == 0
    assert experts <= slots <= experts * ranks


@given(st.integers(1, 64), st.integers(1, 16), st.integers(0, 200))
def test_slots_on_other_ranks_than_expected_are_always_legal(experts, ranks, redundant):
    slots = Settings(num_redundant=redundant).rounded_slots(experts, ranks)
    assert slots % ranks == 0
    assert experts <= slots <= experts * ranks
    assert slots >= min(experts + redundant, experts * ranks)
