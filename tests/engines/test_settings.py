from __future__ import annotations

import re

import pytest

from equipoise.control.settings import Settings
from equipoise.engines.settings import from_options
from equipoise.errors import EquipoiseError


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
        ("trtllm", {"num_slots": "288"}, "num_slots is '288'; expected a whole number"),
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
