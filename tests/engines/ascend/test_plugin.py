"""What can be checked of the plug-in without vllm-ascend: being asked, and what it answers."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.engines._shared.start_map import StartOptions, Then
from equipoise.engines.ascend import planning_process, policy, runner_v1, runner_v2
from equipoise.engines.ascend.plugin import VARIABLE, register
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Answer, Outcome, Situation, replan

ROOT = Path(__file__).parents[3]
L, E, R, C = 2, 6, 4, 3
TABLE = torch.tensor([[[0, 1, 2], [3, 4, 5], [0, 2, 4], [1, 3, 5]]] * L)
LOAD = torch.arange(1, L * R * C + 1).reshape(L, R, C)

MAP = Placement(np.tile([5, 1, 2, 3, 4, 0, 0, 2, 4, 1, 3, 5], (L, 1)), num_ranks=R, num_experts=E)


def quick(situation):
    return replan(situation, proposals=1024, num_threads=1)


def planned(table=TABLE, load=LOAD, planner=quick, **options):
    return runner_v1.Policy(StartOptions(**options), planner).rebalance_experts(table, load)


def test_without_the_variable_nothing_is_imported(tmp_path):
    code = (
        "import sys; from equipoise.engines.ascend.plugin import register; register();"
        "print(sorted({'numpy', 'numba', 'torch', 'vllm', 'vllm_ascend'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.strip() == "[]"


def test_the_package_declares_the_entry_point_next_to_that_for_vllm():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["vllm.general_plugins"]
    assert set(points) == {"equipoise", "equipoise_ascend"}
    where = points["equipoise_ascend"]
    assert EntryPoint("equipoise_ascend", where, "vllm.general_plugins").load() is register


@pytest.mark.parametrize(
    ("value", "words"),
    [("{", "JSON"), ('{"status": "s"}', "no option"), ('{"max_moves_share": 2}', "1")],
)
def test_options_that_cannot_be_read_stop_the_start(monkeypatch, value, words):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(EquipoiseError, match=words) as error:
        register()
    assert VARIABLE in str(error.value)


def test_without_the_package_it_says_so_and_changes_nothing(caplog):
    policy.install(StartOptions())
    assert "vllm-ascend, which is not installed" in caplog.text


def test_on_other_releases_it_says_so_and_changes_nothing(caplog, monkeypatch):
    monkeypatch.setattr(policy, "version", lambda package: "0.17.0rc1")
    policy.install(StartOptions())
    assert "supports vllm-ascend 0.13.x, 0.18.x, 0.23.x, 0.30.x" in caplog.text
    assert "but this is 0.17.0rc1: vllm-ascend balances by its own policy" in caplog.text


# Model runner V1 ------------------------------------------------------------------------------


@st.composite
def situations(draw):
    """A table that vllm-ascend can have in force, and loads of its slots."""
    num_ranks, size = draw(st.sampled_from([(2, 3), (4, 2), (4, 3)]))
    num_experts = draw(st.integers(size, num_ranks * size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers = []
    while len(layers) < 2:
        flat = np.concatenate(
            [np.arange(num_experts), rng.integers(0, num_experts, num_ranks * size - num_experts)]
        )
        ranks = rng.permutation(flat).reshape(num_ranks, size)
        if all(len(set(rank)) == size for rank in ranks.tolist()):
            layers.append(ranks)
    load = draw(arrays(np.int64, (2, num_ranks, size), elements=st.integers(0, 10**9)))
    return torch.from_numpy(np.stack(layers)), torch.from_numpy(load)


@settings(max_examples=20, deadline=None)
@given(situations(), st.floats(0, 1))
def test_every_answer_passes_what_the_worker_checks(situation, share):
    table, load = situation
    changed, order, new = planned(table, load, max_moves_share=share)
    moves = (new != table.numpy()).sum(axis=(1, 2))
    assert changed == bool(moves.sum())
    assert moves.sum() <= share * table.numel()
    assert sorted(order.tolist()) == [0, 1]
    assert moves[order[0]] >= moves[order[1]]
    for before, after in zip(table.numpy(), new, strict=True):
        assert set(after.ravel()) == set(before.ravel())
        for was, now in zip(before, after, strict=True):
            assert len(set(now)) == len(now)
            assert all(was[slot] == e for slot, e in enumerate(now) if e in was)


def test_a_larger_gate_makes_fewer_moves_and_copies_suit_the_tables():
    load = torch.tensor([[[90, 9, 8], [7, 6, 5], [90, 4, 3], [2, 1, 1]]] * L)
    moves = []
    for gate in (0.0, 0.005, 0.05, 5.0):
        _, _, new = planned(load=load, planner=None, gate=gate)
        moves.append((new != TABLE.numpy()).sum())
        assert {np.bincount(row).max() for row in new.reshape(L, -1)} <= {2, 4}
    assert moves[0] >= moves[1] >= moves[2] > moves[3] == 0


@settings(max_examples=50, deadline=None)
@given(
    st.one_of(
        st.none(),
        st.integers(),
        arrays(
            np.int64, st.sampled_from([(2, 12), (1, 12), (2, 4, 3)]), elements=st.integers(-2, 7)
        ),
    )
)
def test_no_answer_of_a_planner_is_served_unless_it_can_be(slots):
    answer = Answer(slots=slots, moves=0, outcome=Outcome.REPAIRED, reason="All is well.")
    _, _, new = planned(planner=lambda situation: answer)
    for before, after in zip(TABLE.numpy(), new, strict=True):
        assert set(after.ravel()) == set(range(E))
        for was, now in zip(before, after, strict=True):
            assert len(set(now)) == C
            assert all(was[slot] == e for slot, e in enumerate(now) if e in was)


@pytest.mark.parametrize("load", [LOAD[:, :, :2], -LOAD, LOAD * torch.nan, None, "loads"])
def test_loads_that_cannot_be_read_leave_the_slots_and_a_word(load, caplog):
    changed, _, new = planned(load=load)
    assert not changed
    assert (new == TABLE.numpy()).all()
    assert "slots stay as they are" in caplog.text.lower()


def test_without_loads_the_slots_stay():
    assert planned(load=0 * LOAD)[0] == 0


def test_loads_of_copies_are_added():
    folded = runner_v1.fold(LOAD.reshape(L, -1).numpy(), TABLE.reshape(L, -1).numpy())
    assert folded[0].tolist() == [1 + 7, 2 + 10, 3 + 8, 4 + 11, 5 + 9, 6 + 12]


def test_plans_are_the_same_everywhere_since_none_ends_by_the_clock():
    seen = []

    def plan(situation):
        seen.append(situation)
        return quick(situation)

    planned(planner=plan, time_budget_seconds=0.0)
    assert seen[0].time_budget_seconds is None


def test_a_plan_that_takes_too_long_is_left_out(monkeypatch, caplog):
    from threading import Event

    monkeypatch.setattr(runner_v1, "LIMIT_SECONDS", 0.01)
    go_on = Event()
    changed, _, new = planned(planner=lambda situation: go_on.wait())
    go_on.set()
    assert (changed, (new == TABLE.numpy()).all()) == (0, True)
    assert "equipoise (late" in caplog.text


def test_only_the_first_rank_logs_a_good_plan_and_each_a_bad_one(caplog):
    caplog.set_level(logging.INFO)
    ours = runner_v1.Policy(StartOptions(), quick)
    ours.begin(1)
    assert "plans for rank 1 in process" in caplog.text
    ours.rebalance_experts(TABLE, LOAD)
    assert "equipoise (taken" not in caplog.text
    ours.rebalance_experts(TABLE, -LOAD)
    assert "equipoise (unfit" in caplog.text


def test_a_process_that_unpacks_the_policy_has_the_plug_in(monkeypatch):
    begun = []
    monkeypatch.setattr(runner_v1, "attend", lambda: begun.append(True))
    again = pickle.loads(pickle.dumps(runner_v1.Policy(StartOptions(max_moves_share=0.0), quick)))
    assert begun == [True]
    assert again.rebalance_experts(TABLE, LOAD)[0] == 0


class Updator:
    """As much of vllm-ascend's as the wrappers touch."""

    def __init__(self):
        self.shared_dict = {"expert_maps": "old"}
        self.update_info_all, self.cur_iterations = ["a plan"], 7
        self.process = type("Process", (), {"pid": 123})

    def get_update_info_flag(self):
        return True


def test_a_plan_that_is_not_everybodys_is_left_out(monkeypatch, caplog):
    updator = Updator()
    planning_process._wake(lambda self: None, updator)
    updator.shared_dict["expert_maps"] = "new"
    monkeypatch.setattr(planning_process, "_is_the_same_everywhere", lambda maps: True)
    planning_process._take(lambda self: None, updator)
    assert (updator.shared_dict["expert_maps"], updator.cur_iterations) == ("new", 7)
    monkeypatch.setattr(planning_process, "_is_the_same_everywhere", lambda maps: False)
    planning_process._take(lambda self: None, updator)
    assert (updator.shared_dict["expert_maps"], updator.update_info_all) == ("old", [])
    assert updator.cur_iterations == 0
    assert "different plans" in caplog.text


@pytest.mark.parametrize(("said", "words"), [(123, "has said"), (None, "has not said")])
def test_the_server_looks_who_made_the_first_plan(said, words, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(planning_process, "_is_the_same_everywhere", lambda maps: True)
    updator = Updator()
    updator.shared_dict[planning_process.ACKNOWLEDGED] = said
    for _ in range(2):
        planning_process._take(lambda self: None, updator)
    assert caplog.text.count(words) == 1


def test_a_plan_has_one_entry_per_layer_and_begins_from_what_is_in_force():
    class Worker:
        old_expert_maps = "what the last plan wanted"

    twice = [([], [], "map", "table", 0), ([], [], "map", "table", 0), (["s"], [], "m", "t", 1)]
    found = planning_process._update(lambda worker: twice, Worker)
    assert found == [twice[0], twice[2]]
    assert Worker.old_expert_maps is None
    assert planning_process._update(lambda worker: None, Worker) is None


# Model runner V2 ------------------------------------------------------------------------------


def test_runner_v2_plans_from_windows_within_its_share():
    load = np.tile([9.0, 9, 9, 1, 1, 1], (3, L, 1))
    ours = runner_v2.Policy(StartOptions(max_moves_share=0.25), quick)
    situation = Situation(load=load, num_slots=R * C, num_ranks=R, slots=TABLE.reshape(L, -1))
    decision = ours.decide(situation)
    assert 0 < decision.moves <= 0.25 * L * R * C


@pytest.mark.parametrize("options", [{"map": MAP}, {"then": Then.HOLD}])
def test_runner_v1_has_no_use_for_a_map(options):
    with pytest.raises(EquipoiseError, match=r"map and then are for .* V2, and this is V1"):
        runner_v1.Policy(StartOptions(**options))


def test_runner_v2_starts_from_a_map_and_holds_it():
    ours = runner_v2.Policy(StartOptions(map=MAP, then=Then.HOLD), quick)
    load = torch.ones((3, L, E))
    situation = Situation(load=load, num_slots=R * C, num_ranks=R, slots=TABLE.reshape(L, -1))
    for _ in range(2):
        decision = ours.decide(situation)
        assert (decision.slots == MAP.slots).all()
        situation = replace(situation, slots=decision.slots)
