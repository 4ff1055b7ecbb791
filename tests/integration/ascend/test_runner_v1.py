"""vllm-ascend's own balancing, model runner V1, with Swift and with ours: `make test-engines`."""

from __future__ import annotations

import json
import re

import pytest

from tests.integration.ascend.releases import RELEASES, run

pytestmark = pytest.mark.engines

REBALANCES = 20
ROUGH = ("raising", "rubbish", "hanging")


@pytest.fixture(scope="module", params=RELEASES)
def release(request):
    return request.param


@pytest.fixture(scope="module")
def served(release, tmp_path_factory):
    """What every case came to, each on four ranks of its own."""
    folder = tmp_path_factory.mktemp("cases")
    failing = {"options": "{}", "rebalances": 4}
    cases = [
        {"name": "stock, R = 8", "rebalances": REBALANCES},
        {"name": "ours, R = 8", "rebalances": REBALANCES, "options": "{}"},
        {"name": "stock, R = 4", "rebalances": REBALANCES, "redundant": 4},
        {"name": "ours, R = 4", "rebalances": REBALANCES, "redundant": 4, "options": "{}"},
        {"name": "spawned", "rebalances": 2, "options": "{}", "method": "spawn"},
        {"name": "policy 1", "rebalances": 1, "options": "{}", "policy": 1, "redundant": 4},
        *({"name": name, "planner": name, **failing} for name in (*ROUGH, "one_raising")),
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    run(release, "tests.integration.ascend.ranks", folder / "cases.json", folder / "answer.json")
    return json.loads((folder / "answer.json").read_text())


def lines(case, words):
    return [line for line in case["log"] if words in line]


def test_it_is_inactive_until_asked(served):
    assert served["stock, R = 8"]["policy"] != "Policy"
    assert not lines(served["stock, R = 8"], "equipoise")


def test_it_leaves_other_policies_and_says_so(served):
    assert served["policy 1"]["policy"] != "Policy"
    assert len(lines(served["policy 1"], "plans where eplb_policy_type is 2, and it is 1")) == 4


@pytest.mark.parametrize("case", ["ours, R = 8", "spawned"])
def test_planning_processes_have_it_and_prove_it(served, case):
    found = served[case]
    for pid in found["planners"]:
        assert any(line.startswith(f"[{pid}]") for line in lines(found, f"in process {pid}."))
        assert lines(found, f"The planning process {pid} has said that equipoise plans in it.")
    (first, *_) = lines(found, "equipoise (taken")
    assert int(re.match(r"\[(\d+)\]", first)[1]) == found["planners"][0]


def test_no_slot_has_the_weights_of_another_expert(served):
    for name, case in served.items():
        if not name.startswith("stock"):
            assert (name, case["wrong"], case["lost"]) == (name, 0, 0)


@pytest.mark.parametrize("redundant", ["R = 8", "R = 4"])
def test_balance_and_experts_sent(release, served, redundant, capfd):
    ours, stock = (served[f"{whose}, {redundant}"] for whose in ("ours", "stock"))
    with capfd.disabled():  # the table of docs/plugins.md
        print()
        for name, found in (("stock", stock), ("ours", ours)):
            after = found["imbalance"][1:]
            print(
                f"{release}, {redundant}, {name}: {found['imbalance'][0]:.3f} before, "
                f"{sum(after) / len(after):.3f} after, {sum(found['sent'])} experts sent, "
                f"{found['wrong']} wrong slots in all steps, {found['lost']} wrong routes"
            )
    assert len(ours["sent"]) == REBALANCES
    mean = sum(ours["imbalance"][1:]) / REBALANCES
    assert mean < ours["imbalance"][0] - 0.2
    assert mean < sum(stock["imbalance"][1:]) / REBALANCES + 0.05


@pytest.mark.parametrize(
    ("case", "words", "good"),
    [
        ("raising", "equipoise (failed", [True, True]),
        ("rubbish", "equipoise (refused", [True, True]),
        ("hanging", "equipoise (late", [False, False]),  # its thread never ends
        ("one_raising", "The ranks came to different plans", [True, True]),
    ],
)
def test_balancing_goes_on_when_plans_fail(served, case, words, good):
    assert [sent > 0 for sent in served[case]["sent"]] == [False, False, *good]
    told = lines(served[case], words)
    assert len(told) == 4 * (4 - sum(good))
    assert all("The slots stay as they are." in line for line in told)
