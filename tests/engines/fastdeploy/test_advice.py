"""Every rule about FastDeploy speaks of a fault, and not of the same launch without it."""

from __future__ import annotations

import json

import pytest

from tests.engines.doctor.said import corrected, model, said

QWEN = {"model": model("qwen3-235b-a22b")}
WIDE = "--data-parallel-size 8 --enable-expert-parallel --enable-eplb"
SECRET = {"redundant_expert_api_user": "operator", "redundant_expert_api_password": "secret"}


def serve(flags: str = WIDE, **eplb: object) -> str:
    config = f" --eplb-config '{json.dumps(eplb)}'" if eplb else ""
    return f"python -m fastdeploy.entrypoints.openai.api_server --model m {flags}{config}"


RULES = [
    # finding, launch with the fault, launch without it, what is known
    ("ignored enable_eplb in eplb-config", serve(enable_eplb=True), serve(), {}),
    (
        "ignored --eplb-config",
        serve("--data-parallel-size 8", redundant_experts_num=8),
        serve(redundant_experts_num=8),
        {},
    ),
    ("ignored --enable-eplb", serve("--data-parallel-size 8 --enable-eplb"), serve(), {}),
    ("ignored --enable-eplb", serve("--enable-expert-parallel --enable-eplb"), serve(), {}),
    ("wrong --data-parallel-size", serve(), serve("--data-parallel-size 4"), {"devices": 4}),
    (
        "ignored redundant_expert_num in eplb-config",
        serve(redundant_expert_num=8),
        serve(redundant_experts_num=8),
        {},
    ),
    (
        "ignored redundant_expert_eplb_strategy in eplb-config",
        serve(redundant_expert_eplb_strategy="balance"),
        serve(redundant_expert_eplb_strategy="balance_intra_node"),
        {},
    ),
    ("advice --enable-eplb", serve(), serve("--data-parallel-size 8"), {}),
    ("advice redundant_expert_api_password in eplb-config", serve(), serve(**SECRET), {}),
    (
        "wrong redundant_experts_num in eplb-config",
        serve(redundant_experts_num=4),
        serve(redundant_experts_num=8),
        QWEN,
    ),
]


@pytest.mark.parametrize(("finding", "faulty", "sound", "known"), RULES)
def test_a_rule_speaks_of_its_fault_only(finding, faulty, sound, known):
    assert finding in said(faulty, **known)
    assert finding not in said(sound, **known)


def test_a_switch_at_the_wrong_place_is_moved():
    launch = serve("--data-parallel-size 8 --enable-expert-parallel", enable_eplb=True)
    fixed = corrected(launch)
    assert fixed.split()[-1] == "--enable-eplb"
    assert "enable_eplb" not in fixed
