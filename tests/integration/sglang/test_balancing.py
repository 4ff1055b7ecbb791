"""SGLang's own balancing with its algorithms and with ours: `make test-engines`."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest

from equipoise.plan import Answer, Outcome
from equipoise.plan.ahead import plan_ahead
from tests.integration.sglang.ranks import DENSE, EXPERTS, LAYERS, RANKS, SLOTS, Run, serve

pytestmark = pytest.mark.engines

REBALANCES = 20
ALL_SLOTS = (LAYERS - DENSE) * SLOTS
ANY_GAIN = '{"gate": 0}'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What SGLang does by its own algorithm, and by ours."""
    return {
        name: serve(
            tmp_path_factory.mktemp("served"),
            Run(algorithm=name, rebalances=REBALANCES),
        )
        for name in ("auto", "equipoise")
    }


def test_it_is_inactive_until_asked(served):
    log = served["auto"].log
    assert "Executed general plugin: equipoise" in log  # by SGLang's own loader
    assert not [line for line in log if "equipoise 0" in line or "equipoise (" in line]


def test_it_is_active_when_asked_and_says_so(served):
    (line,) = [line for line in served["equipoise"].log if "plans the placement" in line]
    assert "at most 50% of the slots" in line
    plans = [line for line in served["equipoise"].log if "equipoise (taken" in line]
    assert len(plans) == REBALANCES


def test_no_slot_ever_has_the_weights_of_another_expert(served):
    for run in served.values():
        assert run.wrong == 0
        assert len(run.moves) == REBALANCES
        assert run.moves[0] > 0


def test_at_most_half_of_the_moves_for_the_same_balance(served, capfd):
    moves = {name: sum(run.moves) for name, run in served.items()}
    balance = {name: statistics.mean(run.balancedness[1:]) for name, run in served.items()}
    with capfd.disabled():  # the table of docs/results/engines.md
        print()
        for name, run in served.items():
            print(
                f"{name}: {moves[name]} of {REBALANCES * ALL_SLOTS} slots changed in "
                f"{sum(map(bool, run.moves))} rebalances, balance {run.balancedness[0]:.3f} "
                f"before, {balance[name]:.3f} after; {statistics.median(run.milliseconds):.0f} ms "
                "a rebalance"
            )
    assert 2 * moves["equipoise"] <= moves["auto"]
    assert balance["equipoise"] >= balance["auto"]
    assert balance["equipoise"] >= served["equipoise"].balancedness[0] + 0.2


def test_a_gain_below_the_least_is_no_rebalance(tmp_path):
    run = serve(tmp_path, Run(options='{"gate": 9}', rebalances=2))
    assert run.moves == [0, 0]
    assert len([line for line in run.log if "No slot changes, though" in line]) == 2
    assert "[EPLBManager] rebalance start" in run.log
    assert "[EPLBManager] rebalance end" not in " ".join(run.log)


def raising(situation):
    raise RuntimeError("no luck today")


def hanging(situation):
    time.sleep(3600)


def rubbish(situation):
    slots = np.zeros((len(situation.slots), SLOTS), dtype=np.int64)
    return Answer(slots=slots, moves=0, outcome=Outcome.REPAIRED, reason="All is well.")


def fails_at_first(planner):
    """Plans are those of ``planner`` twice, once warmed up, then good ones."""

    def change():
        from equipoise.engines._shared import hook
        from equipoise.engines._shared.plugin_options import PluginOptions
        from equipoise.engines.sglang import policy

        calls = []

        def plan(situation):
            calls.append(situation)
            fails = 3 <= len(calls) <= 4  # after two plans of the warm-up
            return planner(situation) if fails else plan_ahead(situation, num_threads=1)

        PluginOptions.planner = lambda options: plan
        policy.Hook = lambda planner: hook.Hook(planner, grace_seconds=0.3)

    return change


@pytest.mark.parametrize(
    ("planner", "good", "words"),
    [
        (raising, 2, "equipoise (failed"),
        (rubbish, 2, "equipoise (refused"),
        (hanging, 0, "equipoise (late"),  # its thread never ends, so nothing is planned any more
    ],
)
def test_balancing_goes_on_when_plans_fail(tmp_path, planner, good, words):
    run = serve(tmp_path, Run(options=ANY_GAIN, rebalances=4, change=fails_at_first(planner)))
    assert run.wrong == 0
    assert [moves > 0 for moves in run.moves] == [False, False, good > 0, good > 0]
    faults = [line for line in run.log if words in line]
    assert len(faults) == 4 - good
    assert all("The slots stay as they are." in line for line in faults)


@pytest.mark.parametrize("options", [None, "{}"], ids=["elasticity_aware", "ours"])
def test_a_lost_rank_takes_no_expert_with_it(tmp_path, options, capfd):
    """Elastic expert parallelism accepts its own algorithm only; the variable asks for ours."""
    run = serve(
        tmp_path,
        Run(
            algorithm="elasticity_aware",
            options=options,
            rebalances=4,
            dies=RANKS - 1,
            arguments={"ep_num_redundant_experts": 16},  # three ranks hold all experts
        ),
    )
    with capfd.disabled():
        print(f"\n{run.moves} slots changed, {run.read} reads from disk, {run.balancedness}")
    assert run.wrong == 0
    assert run.read > 0
    left = run.slots[DENSE:, : run.slots.shape[1] * (RANKS - 1) // RANKS]
    assert all(set(row) == set(range(EXPERTS)) for row in left.tolist())
    assert bool([line for line in run.log if "equipoise (taken" in line]) == (options is not None)


def test_on_other_versions_it_says_so_and_changes_nothing(monkeypatch, caplog):
    from tests.integration.sglang import stand_ins

    stand_ins.install()
    import sglang.version
    from sglang.srt.plugins.hook_registry import HookRegistry

    from equipoise.engines.sglang.plugin import register

    monkeypatch.setattr(sglang.version, "__version__", "0.6.0")
    before = dict(HookRegistry._hooks)
    register()
    assert before == HookRegistry._hooks
    assert "supports SGLang 0.5.16 to 0.5.23, but this is 0.6.0" in caplog.text


def test_options_that_cannot_be_read_stop_the_start(tmp_path):
    with pytest.raises(AssertionError, match="EQUIPOISE_SGLANG cannot be read"):
        serve(tmp_path, Run(options="{", rebalances=1))


def test_a_variable_without_effect_is_a_warning(tmp_path):
    run = serve(tmp_path, Run(algorithm="deepseek", options="{}", rebalances=1))
    assert [line for line in run.log if "EQUIPOISE_SGLANG has no effect" in line]
