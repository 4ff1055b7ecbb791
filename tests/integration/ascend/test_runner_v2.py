"""vllm-ascend's own balancing, model runner V2, with its policies and with ours.

`make test-engines`
"""

from __future__ import annotations

import json
from statistics import mean, median

import pytest

from tests.integration.ascend.ranks_v2 import REBALANCES
from tests.integration.ascend.releases import run
from tests.integration.vllm.ranks import LAYERS, SLOTS

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What each policy came to, on four ranks."""
    answer = tmp_path_factory.mktemp("served") / "answer"
    run("0.30.0rc2", "tests.integration.ascend.ranks_v2", answer, seconds=1500)
    return json.loads(answer.read_text())


def test_it_is_inactive_until_asked_and_then_plans_whatever_the_policy(served):
    for name, case in served.items():
        plans = [line for line in case["log"] if "equipoise (taken" in line]
        assert (len(plans) > REBALANCES) == name.startswith("ours"), name


def test_no_slot_has_the_weights_of_another_expert(served):
    for name, case in served.items():
        assert (name, case["wrong"]) == (name, 0)
        assert len(case["moves"]) == REBALANCES
        assert sum(case["moves"][:2]) > 0


def test_the_state_learns_of_moves_and_leaves_out_loads_from_before_them(served):
    """The counter is vllm-ascend's, and it does not count."""
    assert served["STAIR"]["counted"] == 0
    assert served["ours"]["counted"] > REBALANCES


def test_at_most_half_of_the_moves_for_the_same_balance(served, capfd):
    with capfd.disabled():  # the table of docs/results/engines.md
        print()
        for name, case in served.items():
            print(
                f"{name}: {sum(case['moves'])} of {REBALANCES * LAYERS * SLOTS} slots changed, "
                f"balance {case['balancedness'][0]:.3f} before, {_balance(case):.3f} after; "
                f"{median(case['milliseconds'][1:]):.1f} ms a plan"
            )
    for name in ("ours", "ours for default"):
        assert 2 * sum(served[name]["moves"]) <= sum(served["STAIR"]["moves"])
        assert _balance(served[name]) >= _balance(served["STAIR"])


def _balance(case):
    return mean(case["balancedness"][1:])
