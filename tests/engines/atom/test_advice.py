"""Every rule about ATOM speaks of a fault, and not of the same launch without it."""

from __future__ import annotations

import json

import pytest

from tests.engines.doctor.said import corrected, model, said

QWEN = {"model": model("qwen3-235b-a22b")}
WIDE = "-tp 8 --enable-dp-attention --enable-expert-parallel --eplb-enable"
STEPS = {"load_window_size": 1000, "rebalance_interval": 3000}


def serve(flags: str = WIDE, **eplb: object) -> str:
    config = f" --eplb-config '{json.dumps(eplb)}'" if eplb else ""
    return f"python -m atom.entrypoints.openai_server --model m {flags}{config}"


RULES = [
    # finding, launch with the fault, launch without it, what is known
    ("wrong --fake-eplb", serve(f"{WIDE} --fake-eplb"), serve(), {}),
    ("ignored --eplb-config", serve("-tp 8", num_redundant_experts=8), serve("-tp 8"), {}),
    ("ignored --eplb-enable", serve("-tp 8 --eplb-enable"), serve(), {}),
    (
        "ignored --eplb-enable",
        serve("--enable-expert-parallel --enable-eplb"),
        serve("-tp 2 --enable-expert-parallel --enable-eplb"),
        {},
    ),
    ("wasteful --tensor-parallel-size", serve(), serve(), {"devices": 16}),
    ("wrong load_window_size in eplb-config", serve(rebalance_interval=200), serve(**STEPS), {}),
    ("wrong load_window_size in eplb-config", serve(load_window_size=0), serve(**STEPS), {}),
    ("advice load_window_size in eplb-config", serve(load_window_size=9), serve(**STEPS), {}),
    (
        "wrong placement_policy in eplb-config",
        serve(placement_policy="baised"),
        serve(placement_policy=" Naive "),
        {},
    ),
    (
        "wrong rebalance_balancedness_agg in eplb-config",
        serve(rebalance_balancedness_agg="max"),
        serve(rebalance_balancedness_agg="mean"),
        {},
    ),
    (
        "wrong p2p_batch_chunk_size in eplb-config",
        serve(p2p_batch_chunk_size=0),
        serve(p2p_batch_chunk_size=32),
        {},
    ),
    (
        "ignored placement_policy in eplb-config",
        serve(placement_policy="biased"),
        serve(placement_policy="biased", num_redundant_experts=8),
        {},
    ),
    (
        "advice rebalance_min_balancedness in eplb-config",
        serve(),
        serve(rebalance_min_balancedness=0.9),
        {},
    ),
    (
        "wrong num_redundant_experts in eplb-config",
        serve(num_redundant_experts=4),
        serve(num_redundant_experts=8),
        QWEN,
    ),
    (
        "wrong num_redundant_expert in eplb-config",
        serve(num_redundant_expert=8),
        serve(num_redundant_experts=8),
        {},
    ),
]


@pytest.mark.parametrize(("finding", "faulty", "sound", "known"), RULES)
def test_a_rule_speaks_of_its_fault_only(finding, faulty, sound, known):
    assert finding in said(faulty, **known)
    assert finding not in said(sound, **known | {"devices": 8} if "devices" in known else known)


def test_without_parallel_attention_the_ranks_are_not_guessed():
    launch = serve("-tp 4 -dp 2 --enable-expert-parallel --eplb-enable", num_redundant_experts=3)
    assert not any(line.startswith("wrong") for line in said(launch, **QWEN))


def test_the_window_of_a_short_interval_is_corrected():
    fixed = corrected(serve(rebalance_interval=200))
    assert json.loads(fixed.partition("--eplb-config '")[2].rstrip("'\n")) == {
        "rebalance_interval": 200,
        "load_window_size": 200,
    }
