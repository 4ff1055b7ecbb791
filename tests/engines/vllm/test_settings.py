from __future__ import annotations

import re

import pytest

from equipoise.control.settings import Settings
from equipoise.engines.settings import from_options, read_options
from equipoise.errors import EquipoiseError


def settings(options: dict[str, object]) -> Settings:
    return from_options("vllm", options, num_experts=256)


def test_its_options():
    options = {
        "window_size": 100, "step_interval": 300, "num_redundant_experts": 32, "use_async": False,
    }  # fmt: skip
    assert settings(options) == Settings(
        window=100, update_interval=300, num_redundant=32, background=False
    )


def test_what_is_not_given_is_as_in_the_engine():
    assert settings({}) == Settings(window=1000, update_interval=3000, background=True)


def test_values_that_ask_for_nothing():
    options = {
        "policy": "default", "communicator": None, "enable_migration_batching": False,
        "log_balancedness_interval": 1,
    }  # fmt: skip
    assert settings(options) == Settings()


@pytest.mark.parametrize("value", [True, False])
def test_the_balance_is_told_in_another_way(value):
    found = read_options("vllm", {"log_balancedness": value})
    assert found.settings == Settings()
    (advice,) = found.advice
    assert advice.startswith(
        "log_balancedness: the metric equipoise_balancedness always reports it"
    )


@pytest.mark.parametrize(
    "option", ["initial_mapping_path", "initial_expert_map_path", "expert_map_path"]
)
def test_a_map_to_start_from_and_to_keep(option, tmp_path):
    path = tmp_path / "map.jsonl"
    path.touch()
    options = {option: str(path)}
    assert settings(options) == Settings(map_path=path)
    static = Settings(map_path=path, layers_per_step=0)
    assert settings(options | {"disable_online_rebalancing": True}) == static
    assert settings(options | {"disable_online_rebalancing": False}) == Settings(map_path=path)


def test_short_intervals_are_advised_against():
    options = {"window_size": 50, "step_interval": 50}
    (advice,) = read_options("vllm", options).advice
    assert advice.startswith("step_interval is 50: 400 and more suit traffic that is stable")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windowsize": 5}, "vLLM has no option 'windowsize' for balancing; did you mean window_"),
        ({"gate_eplb": True}, "vLLM has no option 'gate_eplb' for balancing; it has communicator"),
        ({"window_size": 4000}, "window_size is 4000, longer than the step_interval of 3000"),
        ({"step_interval": 100}, "window_size is 1000, longer than the step_interval of 100"),
        ({"disable_online_rebalancing": True}, "disable_online_rebalancing is true, and there is"),
        ({"use_async": 1}, "use_async is 1; expected true or false."),
        ({"policy": "stair"}, "policy 'stair' would have no effect: plans are made by"),
        ({"communicator": "nixl"}, "communicator 'nixl' would have no effect: experts travel"),
        ({"log_balancedness": 1}, "log_balancedness 1 would have no effect"),
        ({"enable_migration_batching": True}, "layers_per_step says how many layers move"),
        ({"expert_map_record_path": "map.json"}, "expert_map_record_path 'map.json' would have no"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        settings(options)
