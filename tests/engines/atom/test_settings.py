from __future__ import annotations

import re

import pytest

from equipoise.control.settings import Settings
from equipoise.engines.settings import from_options, read_options
from equipoise.errors import EquipoiseError


def settings(options: dict[str, object]) -> Settings:
    return from_options("atom", options, num_experts=256)


def test_the_options_of_the_manual():
    options = {
        "load_window_size": 500, "rebalance_interval": 2000, "num_redundant_experts": 64,
        "rebalance_layers_per_chunk": 8, "placement_policy": "naive", "p2p_batch_chunk_size": 32,
    }  # fmt: skip
    expected = Settings(window=500, update_interval=2000, num_redundant=64, layers_per_step=8)
    assert settings(options) == settings({"eplb_config": options}) == expected


def test_what_is_not_given_is_as_in_the_engine():
    assert (settings({}).window, settings({}).update_interval) == (1000, 3000)


@pytest.mark.parametrize(
    ("balancedness", "on", "off"),
    [(0.8, 0.25, 0.02), (0.99, 1 / 99, 1 / 198), (1, 0.05, 0.02), (2.0, 0.05, 0.02)],
)
def test_balancedness_is_an_imbalance_that_raises_the_alarm(balancedness, on, off):
    found = read_options("atom", {"rebalance_min_balancedness": balancedness})
    assert found.settings.excess_on == pytest.approx(on)
    assert found.settings.excess_off == pytest.approx(off)
    (told,) = found.advice
    assert told.startswith("rebalance_min_balancedness: what chance explains")


def test_a_threshold_of_ours_stays():
    found = from_options("atom", {"rebalance_min_balancedness": 0.8}, num_experts=8, excess_off=0.2)
    assert (found.excess_on, found.excess_off) == (pytest.approx(0.25), 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": 5}, "window_size"),
        ({"placement_policy": "biased"}, "placement_policy 'biased' would have no effect"),
        ({"rebalance_layers_per_chunk": 0}, "rebalance_layers_per_chunk: the number of layers"),
        ({"rebalance_min_balancedness": 0}, "rebalance_min_balancedness: the balancedness"),
        ({"rebalance_min_balancedness": "0.9"}, "rebalance_min_balancedness: the balancedness"),
        ({"rebalance_interval": 200}, "longer than the rebalance_interval of 200"),
    ],
)
def test_what_would_be_refused_or_without_effect_is_refused_by_its_name(options, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        settings(options)
