"""What can be checked of the plug-in without vLLM: being asked, options, decisions of one rank."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines._shared.hook import PlanStatus
from equipoise.engines._shared.start_map import Then
from equipoise.engines.map_io import write_map
from equipoise.engines.vllm.plugin import VARIABLE, register
from equipoise.engines.vllm.plugin_options import PluginOptions, read_options
from equipoise.engines.vllm.policy import Policy
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Situation

ROOT = Path(__file__).parents[3]
L, E, R, S = 2, 6, 2, 8
OLD = np.tile([0, 1, 2, 3, 4, 5, 0, 1], (L, 1))
MAP = Placement(np.tile([0, 1, 2, 5, 3, 4, 5, 2], (L, 1)), num_ranks=R, num_experts=E)
LOAD = torch.arange(1, L * E + 1).reshape(L, E)


def asked(slots=OLD, load=LOAD):
    return Situation(load=load, num_slots=S, num_ranks=R, slots=torch.tensor(slots))


def test_without_the_variable_nothing_is_imported(tmp_path):
    code = (
        "import sys; from equipoise.engines.vllm.plugin import register; register();"
        "print(sorted({'numpy', 'numba', 'torch', 'vllm'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.strip() == "[]"


def test_the_package_declares_the_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    where = project["entry-points"]["vllm.general_plugins"]["equipoise"]
    assert EntryPoint("equipoise", where, "vllm.general_plugins").load() is register


def test_options_left_out_have_their_defaults():
    options = read_options("{}")
    assert (options.max_moves_share, options.gate, options.time_budget_seconds) == (0.5, 0.005, 0.5)
    assert (options.map, options.then) == (None, Then.BALANCE)


def test_the_page_has_every_option():
    page = (ROOT / "docs" / "howto" / "plugins.md").read_text(encoding="utf-8")
    assert all(f"| `{option.name}` |" in page for option in fields(PluginOptions))


def test_options_are_read_from_a_file(tmp_path):
    path = tmp_path / "options.json"
    path.write_text('{"max_moves_share": 0.1, "time_budget_seconds": 2}')
    options = read_options(str(path))
    assert (options.max_moves_share, options.time_budget_seconds) == (0.1, 2)


@pytest.mark.parametrize(
    ("given", "then"),
    [({}, Then.HOLD), ({"then": "hold"}, Then.HOLD), ({"then": "balance"}, Then.BALANCE)],
)
def test_a_map_is_read_and_held_unless_told_otherwise(tmp_path, given, then):
    write_map(MAP, tmp_path / "map.json", format="equipoise")
    options = read_options(json.dumps({"map": str(tmp_path / "map.json"), **given}))
    assert (options.map.slots == MAP.slots).all()
    assert options.then is then


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "expected options as JSON, or the path of a file"),
        ("/nowhere.json", "EQUIPOISE_VLLM cannot be read.*/nowhere.json does not exist"),
        (".", "Is a directory"),
        ("[1]", "expected a mapping"),
        ("{", "is not JSON"),
        ('{"max_moves_share": 0.1, "max_moves_share": 0.2}', "twice"),
        (
            '{"max_move_share": 0.1}',
            "there are max_moves_share, gate, time_budget_seconds, map, then, status",
        ),
        ('{"max_moves_share": 30}', "expected 0 to 1"),
        ('{"time_budget_seconds": "1s"}', "expected a number"),
        ('{"time_budget_seconds": -1}', "expected 0 or more"),
        ('{"map": 3}', "expected the path of a file"),
        ('{"map": "/nowhere.json"}', "does not exist"),
        ('{"gate": -0.1}', "expected 0 or more"),
    ],
)
def test_other_values_are_refused(value, words):
    with pytest.raises(EquipoiseError, match=words):
        read_options(value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"then": "stay"}, '"hold" or "balance"'),
        ({"max_moves_share": 0.3}, "max_moves_share has no effect"),
        ({"gate": 0.01}, "gate has no effect"),
    ],
)
def test_what_does_not_go_with_a_map_is_refused(tmp_path, given, words):
    write_map(MAP, tmp_path / "map.json", format="equipoise")
    with pytest.raises(EquipoiseError, match=words):
        read_options(json.dumps({"map": str(tmp_path / "map.json"), **given}))


@given(st.text(st.characters()))
def test_no_text_is_read_with_another_error(value):
    with suppress(EquipoiseError):
        read_options(value)


def test_options_that_cannot_be_read_stop_the_start(monkeypatch):
    monkeypatch.setenv(VARIABLE, "{")
    with pytest.raises(EquipoiseError, match=VARIABLE):
        register()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_rebalance_changes_its_share_of_the_slots_at_most(share):
    decision = Policy(PluginOptions(max_moves_share=share)).decide(asked())
    assert decision.moves <= share * L * S
    assert (decision.moves > 0) == (share > 0)


def test_without_loads_the_slots_stay_and_the_map_waits():
    decision = Policy(PluginOptions(map=MAP)).decide(asked(load=0 * LOAD))
    assert (decision.slots == OLD).all()


@pytest.mark.parametrize("then", Then)
def test_a_map_comes_into_force_and_then_is_held_or_balanced(then):
    policy = Policy(PluginOptions(map=MAP, then=then))
    decision = policy.decide(asked())
    assert (decision.slots == MAP.slots).all()
    assert decision.reason == "The map comes into force: 10 of 16 slots change."
    load = torch.tensor([[9, 0, 0, 1, 1, 1]] * L)
    moves = policy.decide(asked(MAP.slots, load)).moves
    assert (moves > 0) == (then is Then.BALANCE)
    moves = policy.decide(asked(OLD, load)).moves  # the map is not brought back
    assert (moves > 0) == (then is Then.BALANCE)


def test_a_map_that_did_not_come_into_force_is_asked_for_again():
    policy = Policy(PluginOptions(map=MAP, then=Then.HOLD))
    for _ in range(2):
        assert (policy.decide(asked()).slots == MAP.slots).all()


def test_a_map_of_another_model_is_left_out_with_a_word(caplog):
    other = Placement(OLD[:1], num_ranks=R, num_experts=E)
    decision = Policy(PluginOptions(map=other, then=Then.HOLD)).decide(asked())
    assert (decision.slots == OLD).all()
    assert (
        "leaves the map out: it is for 1 layers of 6 experts in 8 slots on 2 ranks" in caplog.text
    )


def test_without_a_map_the_first_plan_can_be_held():
    policy = Policy(PluginOptions(then=Then.HOLD))
    load = torch.tensor([[9, 0, 0, 1, 1, 1]] * L)
    assert not policy.decide(asked(load=0 * LOAD)).moves  # before traffic there is no plan
    first = policy.decide(asked(load=load))
    assert first.moves
    other = torch.tensor([[1, 1, 1, 0, 0, 9]] * L)
    assert not policy.decide(asked(first.slots, other)).moves
    assert policy.decide(asked(OLD[:1], load[:1])).moves  # a draft model has a first plan, too
    assert Policy(PluginOptions()).decide(asked(first.slots, other)).moves


def test_a_rebalance_that_gains_too_little_changes_nothing():
    load = torch.tensor([[9, 0, 0, 1, 1, 1]] * L)
    assert Policy(PluginOptions()).decide(asked(load=load)).moves
    decision = Policy(PluginOptions(gate=1.0)).decide(asked(load=load))
    assert not decision.moves
    assert "though" in decision.reason


def test_a_plan_that_fails_is_a_warning_and_changes_nothing(caplog):
    def fail(situation):
        raise RuntimeError("no luck")

    decision = Policy(PluginOptions(), planner=fail).decide(asked())
    assert (decision.slots == OLD).all()
    assert "equipoise (failed" in caplog.text
    assert "no luck" in caplog.text


@pytest.mark.parametrize(
    "slots",
    [
        np.tile([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], (L, 1)),  # a third rank leaves
        np.tile([0, 1, 2, 3, -1, -1, -1, -1], (L, 1)),  # a second one comes
    ],
)
def test_ranks_come_and_go(slots):
    decision = Policy(PluginOptions(max_moves_share=0.0)).decide(asked(slots))
    assert decision.status is PlanStatus.TAKEN
    assert decision.slots.shape == (L, S)
    assert all(set(row.tolist()) == set(range(E)) for row in decision.slots)
    assert (decision.slots[:, :4] == slots[:, :4]).all()
