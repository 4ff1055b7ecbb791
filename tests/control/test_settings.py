from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.control.settings import Settings, from_options
from equipoise.errors import EquipoiseError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 2000, "update_interval": 1000}, "longer than the update interval of 1000"),
        ({"cool_down_steps": 10}, "judged by steps from before it"),
        ({"layers_per_step": 0}, "nothing would ever be balanced; give a map_path"),
        ({"map_path": "no/such/map.json"}, "There is no map 'no/such/map.json'"),
        ({"map_path": 5}, "There is no map '5'; give the path of a file"),
        ({"window": 100.0}, "window is 100.0; expected a whole number"),
        ({"window": None}, "window is None; expected a number"),
        ({"excess_on": 0.02}, "has to fall at less than what raises it"),
        ({"excess_off": -1}, "excess_off is -1; expected 0 or more"),
        ({"window": 8.5}, "window is 8.5; expected a whole number"),
        ({"window": True}, "window is True; expected a number"),
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


def test_the_options_of_vllm():
    settings = from_options(
        "vllm",
        {"window_size": 100, "step_interval": 300, "num_redundant_experts": 32, "use_async": False},
        num_experts=256,
        wait_steps=20,
    )
    assert settings == Settings(
        window=100, update_interval=300, num_redundant=32, background=False, wait_steps=20
    )


def test_both_generations_of_options_of_swift_balancer():
    new = {
        "dynamic_eplb": True,
        "expert_heat_collection_interval": 600,
        "algorithm_execution_interval": 50,
        "num_redundant_experts": 16,
    }
    old = {
        "num_iterations_eplb_update": 600,
        "num_wait_worker_iterations": 50,
        "init_redundancy_expert": 16,
    }
    settings = Settings(window=600, update_interval=600, wait_steps=50, num_redundant=16)
    assert from_options("ascend", new, num_experts=256) == settings
    assert from_options("ascend", old, num_experts=256) == settings
    assert from_options("ascend", {"gate_eplb": True}, num_experts=256) == Settings(once=True)


def test_the_options_of_tensorrt_llm(tmp_path):
    options = {"num_slots": 288, "layer_updates_per_iter": 2}
    settings = from_options("trtllm", options, num_experts=256)
    assert settings == Settings(num_redundant=32, layers_per_step=2)
    file = tmp_path / "map.yaml"
    file.touch()
    static = from_options("trtllm", {"layer_updates_per_iter": 0}, num_experts=256, map_path=file)
    assert static.layers_per_step == 0


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("sglang", {}, "No options of 'sglang' are known; use one of ascend, trtllm, vllm."),
        ("vllm", {"windowsize": 5}, "vllm has no option 'windowsize' for balancing; it has"),
        ("vllm", {"window_size": 4000}, "longer than the update interval of 3000"),
        ("vllm", {"disable_online_rebalancing": True}, "nothing would ever be balanced"),
        ("vllm", {"use_async": 1}, "background is 1"),
        ("vllm", {"log_balancedness": True}, "log_balancedness would have no effect: the metrics"),
        ("ascend", {"dynamic_eplb": False}, "nothing would ever be balanced"),
        ("ascend", {"dynamic_eplb": "true"}, "dynamic_eplb: 'true' was given; expected true or"),
        ("ascend", {"eplb_policy_type": 2}, "eplb_policy_type would have no effect"),
        (
            "ascend",
            {"init_redundancy_expert": 2, "num_redundant_experts": 4},
            "num_redundant_experts and init_redundancy_expert both set num_redundant",
        ),
        ("trtllm", {"num_slots": 0}, "num_slots: num_slots is 0; expected 256 or more"),
        ("trtllm", {"num_slots": "288"}, "num_slots is '288'; expected a number"),
        ("trtllm", {"layer_updates_per_iter": -1}, "layers_per_step is -1"),
        ("trtllm", {"initial_global_assignments": {}}, "leave the map in its file"),
    ],
)
def test_options_that_are_refused(engine, options, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        from_options(engine, options, num_experts=256)


def test_a_setting_that_there_is_not():
    with pytest.raises(EquipoiseError, match="There is no setting windwo"):
        from_options("vllm", {}, num_experts=256, windwo=5)


@given(st.integers(1, 64), st.integers(1, 16), st.integers(0, 200))
def test_slots_on_other_ranks_than_expected_are_always_legal(experts, ranks, redundant):
    slots = Settings(num_redundant=redundant).rounded_slots(experts, ranks)
    assert slots % ranks == 0
    assert experts <= slots <= experts * ranks
    assert slots >= min(experts + redundant, experts * ranks)
