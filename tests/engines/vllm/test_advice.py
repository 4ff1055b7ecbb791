"""Every rule about vLLM speaks of a fault, and not of the same launch without it."""

from __future__ import annotations

import pytest

from equipoise.engines.doctor.examine import Surroundings, examine
from equipoise.engines.vllm.advice import FLAT
from tests.engines.doctor.said import corrected, model, said

ON = "vllm serve m -dp 8 --enable-expert-parallel --enable-eplb"
DEEPSEEK, QWEN = "deepseek-v3", "qwen3-235b-a22b"

RULES = [
    # finding, launch with the fault, launch without it, what is known
    (
        "wrong --enable-eplb",
        "vllm serve m -ep --enable-eplb",
        "vllm serve m -ep -tp 2 --enable-eplb",
        {},
    ),
    ("wrong --enable-eplb", "vllm serve m -dp 8 --enable-eplb", ON, {}),
    (
        "wrong --enable-elastic-ep",
        "vllm serve m -dp 8 -ep --enable-elastic-ep",
        f"{ON} --enable-elastic-ep",
        {},
    ),
    (
        "ignored --expert-placement-strategy",
        f"{ON} --expert-placement-strategy round_robin",
        f"{ON} --expert-placement-strategy linear",
        {},
    ),
    (
        "ignored --eplb-config",
        f"{ON} --no-enable-eplb --eplb-config.window_size 500",
        f"{ON} --eplb-config.window_size 500",
        {},
    ),
    (
        "deprecated VLLM_ALL2ALL_BACKEND",
        "VLLM_ALL2ALL_BACKEND=deepep_low_latency vllm serve m -dp 8 -ep",
        "vllm serve m -dp 8 -ep --all2all-backend deepep_low_latency",
        {"version": "0.13.0"},
    ),
    (
        "ignored --all2all-backend",
        "vllm serve m -dp 8 -ep --all2all-backend pplx",
        "vllm serve m -dp 8 -ep --all2all-backend deepep_v2",
        {},
    ),
    (
        "ignored --all2all-backend",
        "vllm serve m -dp 8 --all2all-backend deepep_v2",
        "vllm serve m -dp 8 -ep --all2all-backend deepep_v2",
        {},
    ),
    (
        "ignored --all2all-backend",
        "vllm serve m -tp 8 -ep --all2all-backend deepep_v2",
        "vllm serve m -tp 4 -dp 2 -ep --all2all-backend deepep_v2",
        {},
    ),
    (
        "wrong --all2all-backend",
        f"{ON} --all2all-backend moonep",
        "vllm serve m -dp 8 -ep --all2all-backend moonep",
        {},
    ),
    (
        "wrong --all2all-backend",
        "vllm serve m -dp 8 -ep --all2all-backend zzz",
        "vllm serve m -dp 8 -ep --all2all-backend nixl_ep",
        {},
    ),
    (
        "wasteful --enforce-eager",
        "vllm serve m -dp 8 -ep --enforce-eager --all2all-backend deepep_low_latency",
        "vllm serve m -dp 8 -ep --enforce-eager --all2all-backend deepep_high_throughput",
        {},
    ),
    (
        "wrong window_size in eplb-config",
        f"{ON} --eplb-config.window_size 0",
        f"{ON} --eplb-config.window_size 1000",
        {},
    ),
    (
        "wrong window_size in eplb-config",
        f"{ON} --eplb-config.step_interval 500",
        f"{ON} --eplb-config.step_interval 1500",
        {},
    ),
    (
        "wasteful window_size in eplb-config",
        f"{ON} --eplb-config.window_size 1000 --eplb-config.step_interval 1050",
        f"{ON} --eplb-config.window_size 900 --eplb-config.step_interval 1050",
        {"model": DEEPSEEK},
    ),
    (
        "wasteful window_size in eplb-config",
        f"{ON} --eplb-config.step_interval 1000",
        f"{ON} --eplb-config.step_interval 1000 --eplb-config.use_async false",
        {"model": DEEPSEEK},
    ),
    (
        "wrong communicator in eplb-config",
        f"{ON} --eplb-config.communicator torch_nccl",
        f"{ON} --eplb-config.communicator torch_nccl --eplb-config.use_async false",
        {},
    ),
    (
        "ignored enable_migration_batching in eplb-config",
        f"{ON} --eplb-config.enable_migration_batching true --eplb-config.use_async false",
        f"{ON} --eplb-config.enable_migration_batching true",
        {},
    ),
    (
        "wasteful log_balancedness in eplb-config",
        f"{ON} --eplb-config.log_balancedness true",
        f"{ON} --eplb-config.log_balancedness true --eplb-config.log_balancedness_interval 200",
        {},
    ),
    (
        "wrong initial_expert_map_path in eplb-config",
        f"{ON} --eplb-config.initial_expert_map_path /maps/m.json",
        ON,
        {"version": "0.33.0"},
    ),
    (
        "wrong num_redundant_experts in eplb-config",
        f"{ON} --eplb-config.num_redundant_experts 1024",
        f"{ON} --eplb-config.num_redundant_experts 1016",
        {},
    ),
    (
        "wasteful num_redundant_experts in eplb-config",
        f"{ON} --eplb-config.num_redundant_experts 200",
        f"{ON} --eplb-config.num_redundant_experts 32",
        {"model": DEEPSEEK},
    ),
    (
        "advice num_redundant_experts in eplb-config",
        ON,
        "vllm serve m -dp 8 -ep",
        {"model": DEEPSEEK},
    ),
    ("wrong --enable-eplb", f"{ON} -q torchao", f"{ON} -q fp8", {}),
    ("advice --enable-eplb", f"{ON} -q awq_marlin", f"{ON} -q fp8", {}),
    (
        "wrong --speculative-config",
        f"""{ON} --speculative-config '{{"method": "mtp"}}'""",
        ON,
        {"version": "0.11.0"},
    ),
    (
        "wrong --data-parallel-size-local",
        "vllm serve m -dp 4 -dpl 8 -ep",
        "vllm serve m -dp 16 -dpl 8 -ep",
        {},
    ),
    (
        "wasteful --data-parallel-size",
        "vllm serve m -dp 4 -ep",
        "vllm serve m -dp 8 -ep",
        {"devices": 8},
    ),
    (
        "wrong --data-parallel-size",
        "vllm serve m -dp 9 -ep",
        "vllm serve m -dp 8 -ep",
        {"nodes": 2, "devices": 9},
    ),
    ("wrong --tensor-parallel-size", "vllm serve m -tp 0", "vllm serve m -tp 1", {}),
    ("wrong --tensor-parallel-size", "vllm serve m -tp eight", "vllm serve m -tp 8", {}),
    ("wrong --quantization", "vllm serve m --quantization --enable-eplb", "vllm serve m", {}),
]


@pytest.mark.parametrize(("finding", "faulty", "sound", "known"), RULES)
def test_a_rule_speaks_of_its_fault_only(finding, faulty, sound, known):
    known = {k: model(v) if k == "model" else v for k, v in known.items()}
    assert finding in said(faulty, **known)
    assert finding not in said(sound, **known)


@pytest.mark.parametrize("flag", FLAT)
def test_flags_of_before_by_release(flag):
    value = "" if flag.endswith("balancedness") else " 1000"
    launch = f"{ON} --{flag}{value}"
    assert f"deprecated --{flag}" in said(launch, version="0.11.0")
    assert f"wrong --{flag}" in said(launch, version="0.12.0")
    assert not any(flag in line for line in said(launch, version="0.10.1") if "advice" not in line)


def test_a_flag_moves_into_the_settings_that_are_there():
    launch = f"""{ON} --num-redundant-experts 8 --eplb-config '{{"window_size": 500}}'"""
    assert """--eplb-config '{"window_size": 500, "num_redundant_experts": 8}'""" in corrected(
        launch
    )


def test_two_fixes_of_one_switch_are_one():
    fixed = corrected("vllm serve m -dp 8 --eplb-config.num_redundant_experts 8")
    assert fixed.count("--enable-eplb") == fixed.count("--enable-expert-parallel") == 1


@pytest.mark.parametrize("name", ["gpt-oss-120b", "qwen2-57b-a14b", "olmoe-1b-7b"])
def test_architectures_whose_experts_stay(name):
    launch = "vllm serve m -tp 2 -ep --enable-eplb"
    assert "ignored --enable-eplb" in said(launch, model=model(name))
    assert "ignored --enable-eplb" not in said(launch, model=model(QWEN))


def test_draft_layers_count():
    launch = (
        f"""{ON} --eplb-config.num_redundant_experts 8 --speculative-config '{{"method": "mtp"}}'"""
    )
    assert "advice --speculative-config" in said(launch, model=model(DEEPSEEK))
    assert "advice --speculative-config" not in said(launch, model=model(QWEN))


def test_a_build_that_reads_a_map(tmp_path):
    path = tmp_path / "map.json"
    path.write_text("[0, 1, 2, 3, 0, 1]")
    key = "initial_expert_map_path"
    settings = f"--eplb-config.num_redundant_experts 2 --eplb-config.{key} {path}"
    launch = f"vllm serve m -tp 2 -ep --enable-eplb {settings}"
    assert f"wrong {key} in eplb-config" in said(launch)
    assert said(launch, version="pr-49572") == set()
    for damaged in ("[0, 1, 2, 3, 9, 1]", "[0, 1", ""):
        path.write_text(damaged)
        assert f"wrong {key} in eplb-config" in said(launch, version="pr-49572")
    no_name = launch.replace(str(path), "3")
    assert f"wrong {key} in eplb-config" in said(no_name, version="pr-49572")


def test_memory_and_time_are_those_published():
    launch = "vllm serve m -dp 32 -ep --enable-eplb --eplb-config.num_redundant_experts 32"
    known = Surroundings(model=model(DEEPSEEK), link_bytes_per_second=50e9)
    (diagnosis,) = examine(launch, known)
    texts = [finding.text for finding in diagnosis.findings]
    assert any("2.55 GB of every rank" in text for text in texts)
    slots, layers, expert_bytes = 9, 58, model(DEEPSEEK).expert_bytes
    seconds = slots * layers * expert_bytes / 50e9
    assert any(f"{seconds:.1f} s at 400 Gbit/s (the link given)" in text for text in texts)
