"""vLLM's own balancing with its policy and with ours: `make test-engines`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

from equipoise.engines.map_io import write_map
from equipoise.placement import Placement
from equipoise.plan import Answer, Outcome
from equipoise.plan.ahead import plan_ahead
from tests.integration.vllm import RELEASE
from tests.integration.vllm.ranks import EXPERTS, LAYERS, RANKS, SLOTS, serve

pytestmark = pytest.mark.engines

REBALANCES = 20
ALL_SLOTS = LAYERS * SLOTS


def test_the_release_that_was_asked_for_runs():
    import vllm

    assert vllm.__version__ == RELEASE


@pytest.fixture(scope="module", params=["sync", "async"])
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def served(mode, tmp_path_factory):
    """What vLLM does without the plug-in, and with it."""
    return {
        name: serve(
            tmp_path_factory.mktemp(name),
            options=options,
            rebalances=REBALANCES,
            use_async=mode == "async",
        )
        for name, options in (("stock", None), ("ours", "{}"))
    }


def test_it_is_inactive_until_asked(served):
    assert served["stock"].policy == "DefaultEplbPolicy"
    assert not [line for line in served["stock"].log if "equipoise" in line]


def test_it_is_active_when_asked_and_says_so(served):
    assert served["ours"].policy == "Policy"
    (line,) = [line for line in served["ours"].log if "plans the placement" in line]
    assert "at most 50% of the slots" in line
    plans = [line for line in served["ours"].log if "equipoise (taken" in line]
    assert len(plans) == REBALANCES + 1  # and one when vLLM measured its memory


def test_no_slot_ever_has_the_weights_of_another_expert(served):
    for run in served.values():
        assert run.wrong == 0
        assert len(run.moves) == REBALANCES
        assert all(run.moves[:1])


def test_in_the_background_no_loads_are_left_from_before_a_layer_moved(mode, served):
    assert served["stock"].stale > 0
    assert (served["ours"].stale == 0) == (mode == "async")


def test_at_most_half_of_the_moves_for_the_same_balance(mode, served, capfd):
    moves = {name: sum(run.moves) for name, run in served.items()}
    balance = {name: statistics.mean(run.balancedness[1:]) for name, run in served.items()}
    with capfd.disabled():  # the table of docs/results/engines.md
        print()
        for name, run in served.items():
            print(
                f"{mode}, {name}: {moves[name]} of {REBALANCES * ALL_SLOTS} slots changed, balance "
                f"{run.balancedness[0]:.3f} before, {balance[name]:.3f} after; "
                f"{statistics.median(run.milliseconds[1:]):.1f} ms a plan, first call "
                f"{run.milliseconds[0]:.0f} ms"
            )
    assert 2 * moves["ours"] <= moves["stock"]
    assert balance["ours"] >= balance["stock"]
    assert balance["ours"] >= served["ours"].balancedness[0] + 0.2


@pytest.mark.parametrize("then", ["hold", "balance"])
def test_a_map_comes_into_force_and_then_is_held_or_balanced(tmp_path, then):
    rng = np.random.default_rng(3)
    rows = [rng.permutation(np.arange(SLOTS) % EXPERTS) for _ in range(LAYERS)]
    placement = Placement(np.stack(rows), num_ranks=RANKS, num_experts=EXPERTS)
    write_map(placement, tmp_path / "map.json", format="equipoise")
    options = json.dumps({"map": str(tmp_path / "map.json"), "then": then})
    run = serve(tmp_path, options=options, rebalances=4)
    first = np.arange(SLOTS) % EXPERTS
    assert run.wrong == 0
    assert run.moves[0] == (placement.slots != first).sum()
    assert (sum(run.moves[1:]) > 0) == (then == "balance")


def raising(situation):
    raise RuntimeError("no luck today")


def hanging(situation):
    time.sleep(3600)


def rubbish(situation):
    slots = np.zeros((LAYERS, SLOTS), dtype=np.int64)
    return Answer(slots=slots, moves=0, outcome=Outcome.REPAIRED, reason="All is well.")


def fails_at_first(planner):
    """A policy whose plans are those of ``planner`` twice, once warmed up, then good ones."""

    def change():
        from vllm.distributed.eplb.policy import EPLB_POLICIES

        from equipoise.engines._shared.hook import Hook
        from equipoise.engines.vllm.plugin_options import PluginOptions
        from equipoise.engines.vllm.policy import Policy

        calls = []

        def plan(situation):
            calls.append(situation)
            fails = 4 <= len(calls) <= 5  # after two plans of the warm-up and the memory run
            return planner(situation) if fails else plan_ahead(situation, num_threads=1)

        policy = Policy(PluginOptions(time_budget_seconds=0.2), planner=plan)
        policy._balance = Hook(plan, grace_seconds=0.3)
        EPLB_POLICIES["default"] = policy

    return change


@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("planner", "good", "words"),
    [
        (raising, 2, "equipoise (failed"),
        (rubbish, 2, "equipoise (refused"),
        (hanging, 0, "equipoise (late"),  # its thread never ends, so nothing is planned any more
    ],
)
def test_balancing_goes_on_when_plans_fail(tmp_path, planner, good, words, use_async):
    run = serve(
        tmp_path,
        options="{}",
        rebalances=4,
        use_async=use_async,
        change=fails_at_first(planner),
    )
    assert run.wrong == 0
    assert len(run.moves) == 4  # vLLM came to every rebalance
    assert [moves > 0 for moves in run.moves] == [False, False, good > 0, good > 0]
    faults = [line for line in run.log if words in line]
    assert len(faults) == 4 - good
    assert all("The slots stay as they are." in line for line in faults)


def test_on_other_versions_it_says_so_and_changes_nothing(tmp_path):
    code = (
        "import vllm; vllm.__version__ = '0.31.4'\n"
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "from vllm.distributed.eplb.policy import EPLB_POLICIES; print(EPLB_POLICIES['default'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"EQUIPOISE_VLLM": "{}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "DefaultEplbPolicy" in run.stdout
    assert "supports vLLM 0.32.x and 0.33.x, but this is 0.31.4" in run.stdout + run.stderr
