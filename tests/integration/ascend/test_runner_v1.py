"""vllm-ascend's own balancing, model runner V1, with Swift and with ours: `make test-engines`."""

from __future__ import annotations

import json

import pytest

from tests.integration.ascend.releases import RELEASES, run

pytestmark = pytest.mark.engines

REBALANCES = 20
THRIFTY = {"0.23.0.post1": {8: 0.06, 4: 0.06}, "0.30.0rc2": {8: 0.15, 4: 0.03}}
"""Gates, by redundant experts, that come to the balance of Swift, which moves little since 0.23."""

ROUGH = ("raising", "rubbish", "hanging")


@pytest.fixture(scope="module", params=RELEASES)
def release(request):
    return request.param


@pytest.fixture(scope="module")
def served(release, tmp_path_factory):
    """What every case came to, each on four ranks of its own."""
    folder = tmp_path_factory.mktemp("cases")
    failing = {"options": "{}", "rebalances": 4}
    thrifty = [
        {
            "name": f"thrifty-{redundant}",
            "rebalances": REBALANCES,
            "redundant": redundant,
            "options": json.dumps({"gate": gate}),
        }
        for redundant, gate in THRIFTY.get(release, {}).items()
    ]
    cases = [
        *([{"name": "stock-8", "rebalances": REBALANCES}] if release >= "0.23" else []),
        {"name": "ours-8", "rebalances": REBALANCES, "options": "{}"},
        {"name": "stock-4", "rebalances": REBALANCES, "redundant": 4},
        {"name": "ours-4", "rebalances": REBALANCES, "redundant": 4, "options": "{}"},
        *thrifty,
        {"name": "spawned", "rebalances": 2, "options": "{}", "method": "spawn"},
        {"name": "policy-1", "rebalances": 1, "options": "{}", "policy": 1, "redundant": 4},
        *({"name": name, "planner": name, **failing} for name in (*ROUGH, "one_raising")),
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    run(release, "tests.integration.ascend.ranks", folder / "cases.json", folder / "answer.json")
    return json.loads((folder / "answer.json").read_text())


def lines(case, words):
    return [line for line in case["log"] if words in line]


def test_it_is_inactive_until_asked(served):
    assert served["stock-4"]["policy"] != "Policy"
    assert not lines(served["stock-4"], "equipoise")


def test_it_leaves_other_policies_and_says_so(served):
    assert served["policy-1"]["policy"] != "Policy"
    assert len(lines(served["policy-1"], "plans where eplb_policy_type is 2, and it is 1")) == 4


@pytest.mark.parametrize("case", ["ours-8", "spawned"])
def test_planning_processes_have_it_and_the_server_says_so(served, case):
    assert all(served[case]["sent"][:1])
    for pid in served[case]["planners"]:
        assert lines(served[case], f"The planning process {pid} has said that equipoise plans in")


def test_planning_processes_that_are_forked_log_it_themselves(served):
    """In one that is spawned vLLM's log is not set up, so that it shows warnings alone."""
    for pid in served["ours-8"]["planners"]:
        (line,) = lines(served["ours-8"], f"in process {pid}.")
        assert line.startswith(f"[{pid}]")
    plans = lines(served["ours-8"], "equipoise (taken")
    assert {line.split()[0] for line in plans} == {f"[{served['ours-8']['planners'][0]}]"}


def test_no_slot_has_the_weights_of_another_expert(served):
    for name, case in served.items():
        if not name.startswith("stock"):
            assert (name, case["wrong"], case["lost"]) == (name, 0, 0)


@pytest.mark.parametrize("redundant", [8, 4])
def test_balance_and_experts_sent(release, served, redundant, capfd):
    """Before 0.23 Swift takes at most one redundant expert a rank: its process ends with 8 here."""
    names = ("stock", "ours", "thrifty")
    found = {whose: served.get(f"{whose}-{redundant}") for whose in names}
    with capfd.disabled():  # the table of docs/results/engines.md
        print()
        for whose, case in found.items():
            print(f"{release}, {redundant} redundant, {whose}: {_words(case)}")
    stock = found["stock"]
    assert len(found["ours"]["sent"]) == REBALANCES
    assert _after(found["ours"]) < found["ours"]["imbalance"][0] - 0.2
    if stock is not None:
        assert _after(found["ours"]) <= _after(stock)
        few = found["thrifty"] or found["ours"]
        assert _after(few) <= _after(stock)
        assert 2 * sum(few["sent"]) <= sum(stock["sent"])


def _after(case):
    return sum(case["imbalance"][1:]) / REBALANCES


def _words(case):
    if case is None:
        return "not run"
    return (
        f"{case['imbalance'][0]:.3f} before, {_after(case):.3f} after, {sum(case['sent'])} experts "
        f"sent, {case['wrong']} wrong slots in all steps, {case['lost']} wrong routes"
    )


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
    assert len(told) >= 4 * (4 - sum(good))  # the next plan may have begun on some rank
    assert all("The slots stay as they are." in line for line in told)
