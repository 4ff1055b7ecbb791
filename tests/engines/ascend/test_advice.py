"""Every rule about vllm-ascend speaks of a fault, and not of the same launch without it."""

from __future__ import annotations

import json

import pytest

from tests.engines.doctor.said import corrected, model, said

QWEN = model("qwen3-235b-a22b")
NESTED = "additional-config.eplb_config"
RECORD = "/maps/record.json"
EP = "-tp 8 -ep"
V2 = "VLLM_USE_V2_MODEL_RUNNER=1"


def serve(
    nested: dict | None = None, *, flags: str = "-tp 8 -ep", before: str = "", **top: object
) -> str:
    config = dict(top) if nested is None else {**top, "eplb_config": nested}
    return f"{before} vllm serve m {flags} --additional-config '{json.dumps(config)}'"


def dynamic(flags: str = EP, **nested: object) -> str:
    return serve({"dynamic_eplb": True, **nested}, flags=flags, before="DYNAMIC_EPLB=true")


NEW = {"version": "0.23.0"}
OURS = "EQUIPOISE_ASCEND={}"
RULES = [
    # finding, launch with the fault, launch without it, what is known
    (
        "ignored dynamic_eplb in additional-config",
        serve(dynamic_eplb=True),
        dynamic(),
        NEW,
    ),
    (
        "wrong dynamic_eplb in additional-config",
        serve(dynamic_eplb=True),
        dynamic(),
        {"version": "0.30.0rc1"},
    ),
    (
        "deprecated dynamic_eplb in additional-config",
        serve(dynamic_eplb=True),
        dynamic(),
        {"version": "0.13.0"},
    ),
    (
        "ignored num_wait_woker_iterations in additional-config",
        serve(dynamic_eplb=True, num_wait_woker_iterations=50),
        serve(dynamic_eplb=True, num_wait_worker_iterations=50),
        {"version": "0.11.0"},
    ),
    ("wrong --additional-config", dynamic(flags="-tp 8"), dynamic(), NEW),
    ("wrong DYNAMIC_EPLB", serve({"dynamic_eplb": True}), dynamic(), NEW),
    (
        "wrong EXPERT_MAP_RECORD",
        serve({"expert_map_record_path": RECORD}),
        serve({"expert_map_record_path": RECORD}, before="EXPERT_MAP_RECORD=true"),
        NEW,
    ),
    (
        "ignored eplb_config in additional-config",
        serve({"num_redundant_experts": 8}),
        dynamic(num_redundant_experts=8),
        NEW,
    ),
    (
        f"wrong dynamic_eplb in {NESTED}",
        serve({"dynamic_eplb": True}, before=V2),
        serve({"dynamic_eplb": True}, before="VLLM_USE_V2_MODEL_RUNNER=0"),
        NEW,
    ),
    (
        "wrong DYNAMIC_EPLB",
        serve({}, flags=f"{EP} --enable-eplb", before=f"{V2} DYNAMIC_EPLB=1"),
        serve({}, flags=f"{EP} --enable-eplb", before=V2),
        NEW,
    ),
    (
        "wrong --enable-eplb",
        serve({}, flags=f"{EP} --enable-eplb", before="VLLM_USE_V2_MODEL_RUNNER=0"),
        serve({}, flags=f"{EP} --enable-eplb", before=V2),
        NEW,
    ),
    (
        "ignored use_async in eplb-config",
        serve({}, flags=f"{EP} --enable-eplb --eplb-config.use_async false"),
        serve({}, flags=f"{EP} --enable-eplb --eplb-config.use_async true"),
        {},
    ),
    (
        f"ignored expert_heat_collection_interval in {NESTED}",
        dynamic(expert_heat_collection_interval=0),
        dynamic(expert_heat_collection_interval=400),
        NEW,
    ),
    (
        f"advice expert_heat_collection_interval in {NESTED}",
        dynamic(expert_heat_collection_interval=50),
        dynamic(expert_heat_collection_interval=100),
        NEW,
    ),
    (
        f"advice algorithm_execution_interval in {NESTED}",
        dynamic(algorithm_execution_interval=20),
        dynamic(algorithm_execution_interval=30),
        NEW,
    ),
    (
        f"wrong eplb_policy_type in {NESTED}",
        dynamic(eplb_policy_type=4),
        dynamic(eplb_policy_type=3),
        NEW,
    ),
    (
        f"wasteful eplb_policy_type in {NESTED}",
        dynamic(eplb_policy_type=0),
        dynamic(eplb_policy_type=2),
        NEW,
    ),
    (
        f"wrong eplb_policy_type in {NESTED}",
        dynamic(eplb_policy_type=1, num_redundant_experts=16),
        dynamic(eplb_policy_type=1, num_redundant_experts=8),
        NEW,
    ),
    (
        "ignored EQUIPOISE_ASCEND",
        serve({"expert_map_path": "/maps/m.json"}, before=OURS),
        f"{OURS} {dynamic()}",
        NEW,
    ),
    (
        "ignored EQUIPOISE_ASCEND",
        f"{OURS} {dynamic(eplb_policy_type=1)}",
        f"{OURS} {dynamic(eplb_policy_type=2)}",
        NEW,
    ),
    (
        "ignored EQUIPOISE_ASCEND",
        f"{OURS} {dynamic()}",
        f"{OURS} {dynamic(eplb_policy_type=2)}",
        {"version": "0.18.0"},
    ),
    (
        f"wrong eplb_heat_collection_stage in {NESTED}",
        dynamic(eplb_heat_collection_stage="both"),
        dynamic(eplb_heat_collection_stage="decode"),
        NEW,
    ),
    (
        f"wrong expert_map_record_path in {NESTED}",
        dynamic(expert_map_record_path="/maps/record.yaml"),
        dynamic(expert_map_record_path=RECORD),
        NEW,
    ),
    (
        f"wrong expert_map_record_path in {NESTED}",
        dynamic(expert_map_record_path="record.json"),
        dynamic(expert_map_record_path=RECORD),
        NEW,
    ),
    (
        f"wrong expert_map_path in {NESTED}",
        serve({"expert_map_path": "/maps/map.yaml"}),
        serve({"expert_map_path": "/maps/map.json"}),
        NEW,
    ),
    (
        f"advice expert_map_path in {NESTED}",
        dynamic(expert_map_path="/maps/map.json"),
        serve({"expert_map_path": "/maps/map.json"}),
        NEW,
    ),
    (
        f"advice expert_map_path in {NESTED}",
        serve({"expert_map_path": "/m/map.json"}, flags=EP + " --speculative-config '{}'"),
        serve({"expert_map_path": "/m/map.json"}),
        NEW,
    ),
    (
        f"wrong num_redundant_experts in {NESTED}",
        dynamic(num_redundant_experts=4),
        dynamic(num_redundant_experts=8),
        NEW | {"model": QWEN},
    ),
    (
        f"wrong dynamic_elpb in {NESTED}",
        serve({"dynamic_elpb": True}, before="DYNAMIC_EPLB=true"),
        dynamic(),
        NEW,
    ),
]


@pytest.mark.parametrize(("finding", "faulty", "sound", "known"), RULES)
def test_a_rule_speaks_of_its_fault_only(finding, faulty, sound, known):
    assert finding in said(faulty, **known)
    assert finding not in said(sound, **known)


def test_the_manuals_options_become_those_of_today():
    options = {
        "dynamic_eplb": True,
        "num_iterations_eplb_update": 400,
        "gate_eplb": True,
        "num_wait_worker_iterations": 30,
        "init_redundancy_expert": 16,
    }
    fixed = corrected(serve(**options), version="0.23.0")
    assert json.loads(fixed.partition("--additional-config '")[2].rstrip("'")) == {
        "eplb_config": {
            "dynamic_eplb": True,
            "expert_heat_collection_interval": 400,
            "algorithm_execution_interval": 30,
            "num_redundant_experts": 16,
        }
    }
    assert fixed.startswith("DYNAMIC_EPLB=true vllm serve m")


def test_both_spellings_are_read_by_the_release_between():
    launch = serve({"num_redundant_experts": 8}, dynamic_eplb=True)
    found = said(launch, version="0.13.0", model=QWEN)
    assert f"advice num_redundant_experts in {NESTED}" in found


@pytest.mark.parametrize("sign", ["PYTORCH_NPU_ALLOC_CONF=x", "ASCEND_RT_VISIBLE_DEVICES=0,1"])
def test_variables_of_the_device_say_which_engine_it_is(sign):
    assert said(f"{sign} vllm serve m -tp 2 -ep --all2all-backend pplx") == set()
    assert said("vllm serve m -tp 2 -ep --all2all-backend pplx") != set()
