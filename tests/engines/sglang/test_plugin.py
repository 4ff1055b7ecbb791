"""What can be checked of the plug-in without SGLang: options, decisions from arrays, tables."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.engines._shared.hook import PlanStatus
from equipoise.engines.sglang.plugin import register
from equipoise.engines.sglang.plugin_options import PluginOptions, read_options
from equipoise.engines.sglang.policy import Policy, tables, windows
from equipoise.errors import EquipoiseError
from equipoise.plan import Answer, Outcome, Situation

ROOT = Path(__file__).parents[3]
L, E, R, S = 3, 6, 3, 9
OLD = np.tile(np.arange(S) % E, (L, 1))
DENSE = 0
HOT = np.array([30, 30, 30, 1, 1, 1])
PASSES = np.tile(HOT, (5, L, 1))
PASSES[:, DENSE] = 0
PASSES[2] = 0


def asked(load=PASSES, slots=OLD, **given):
    return Situation(load=load, num_slots=S, num_ranks=R, slots=slots, **given)


def decide(situation, planner=None, with_clock=False, **options):
    options = {"time_budget_seconds": 60.0, **options}  # a busy machine ends no search early
    return Policy(PluginOptions(**options), planner).decide(situation, with_clock=with_clock)


def test_the_package_declares_the_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    where = project["entry-points"]["sglang.srt.plugins"]["equipoise"]
    assert EntryPoint("equipoise", where, "sglang.srt.plugins").load() is register


def test_options_left_out_have_their_defaults():
    options = read_options("{}")
    assert (options.max_moves_share, options.time_budget_seconds) == (0.3, 0.5)
    assert options.min_gain == 0.01


def test_options_are_read_from_a_file(tmp_path):
    path = tmp_path / "options.json"
    path.write_text(json.dumps({"max_moves_share": 0.1, "min_gain": 0}))
    options = read_options(str(path))
    assert (options.max_moves_share, options.min_gain) == (0.1, 0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1", "EQUIPOISE_SGLANG cannot be read.* 1 does not exist"),
        ("{", "is not JSON"),
        ('{"map": "m.json"}', "there are max_moves_share, time_budget_seconds, min_gain"),
        ('{"min_gain": 2}', "EQUIPOISE_SGLANG: min_gain.*expected 0 to 1"),
    ],
)
def test_other_values_are_refused(value, words):
    with pytest.raises(EquipoiseError, match=words):
        read_options(value)


@given(st.text(st.characters()))
def test_no_text_is_read_with_another_error(value):
    with suppress(EquipoiseError):
        read_options(value)


@given(
    arrays(
        np.int32, st.tuples(st.integers(0, 30), st.just(2), st.just(4)), elements=st.integers(0, 3)
    )
)
def test_windows_keep_every_assignment_and_the_order(passes):
    found = windows(passes)
    assert 1 <= len(found) <= 4
    assert (found.sum(axis=0) == passes.sum(axis=0)).all()
    busy = passes[passes.any(axis=(1, 2))]
    assert len(found) == max(1, min(4, len(busy)))
    if 0 < len(busy) <= 4:
        assert (found == busy).all()


def test_a_sum_without_time_axis_is_one_window():
    assert (windows(HOT[None]) == HOT).all()


def test_layers_without_load_keep_their_slots_and_the_others_are_balanced():
    decision = decide(asked())
    assert decision.status is PlanStatus.TAKEN
    assert (decision.slots[DENSE] == OLD[DENSE]).all()
    assert (decision.slots != OLD).any()
    assert "mean peak goes from" in decision.reason


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_rebalance_changes_its_share_of_the_slots_of_layers_with_load(share):
    decision = decide(asked(), max_moves_share=share)
    assert decision.moves <= share * (L - 1) * S
    assert (decision.moves > 0) == (share > 0)


def test_a_small_gain_is_not_worth_its_moves():
    moved = decide(asked(), min_gain=0.0)
    assert moved.moves > 0
    kept = decide(asked(), min_gain=0.9)
    assert (kept.slots == OLD).all()
    assert kept.status is PlanStatus.TAKEN
    assert "min_gain is 90.0%" in kept.reason


def test_without_load_nothing_moves():
    decision = decide(asked(0 * PASSES))
    assert (decision.slots == OLD).all()
    assert decision.status is PlanStatus.TAKEN


def test_at_start_up_a_plan_is_made_from_the_sum():
    decision = decide(asked(slots=None))
    assert decision.status is PlanStatus.TAKEN
    assert all(set(row) == set(range(E)) for row in decision.slots.tolist())


def test_experts_of_a_lost_rank_are_placed_on_the_others_in_every_layer():
    """Also in layers that recorded nothing, and however small the gain and the allowance."""
    decision = decide(asked(alive=[1, 0, 1]), min_gain=1.0, max_moves_share=0.0)
    assert decision.status is PlanStatus.TAKEN
    lost, left = decision.slots[:, 3:6], decision.slots[:, [0, 1, 2, 6, 7, 8]]
    assert (lost == -1).all()
    assert all(set(row) == set(range(E)) for row in left.tolist())


def test_new_slots_get_experts():
    wider = np.concatenate([OLD[:, :6], np.full((L, 3), -1)], axis=1)
    decision = decide(asked(slots=wider))
    assert decision.status is PlanStatus.TAKEN
    assert (decision.slots >= 0).all()
    decision = decide(asked(slots=OLD[:, :6]))
    assert decision.slots.shape == (L, S)


def raising(situation):
    raise RuntimeError("no luck")


def rubbish(situation):
    slots = np.zeros((len(situation.slots), S), dtype=np.int64)
    return Answer(slots=slots, moves=1, outcome=Outcome.REPAIRED, reason="All is well.")


@pytest.mark.parametrize(
    ("planner", "status"),
    [(raising, PlanStatus.FAILED), (rubbish, PlanStatus.REFUSED), (print, PlanStatus.FAILED)],
)
def test_a_planner_that_fails_changes_nothing(planner, status, caplog):
    decision = decide(asked(), planner)
    assert (decision.slots == OLD).all()
    assert decision.status is status
    assert f"equipoise ({status.value}" in caplog.text


@pytest.mark.parametrize("load", [PASSES[..., None], PASSES[:, :1], -PASSES, "loads", None])
def test_loads_that_do_not_fit_change_nothing(load):
    assert (decide(asked(load)).slots == OLD).all()


def test_decisions_without_the_clock_are_the_same_everywhere():
    first, second = (decide(asked()) for _ in range(2))
    assert (first.slots == second.slots).all()


@st.composite
def served(draw):
    """Slots in which every expert has one on a rank that is alive."""
    alive = draw(
        st.lists(st.booleans(), min_size=R + 1, max_size=R + 1).filter(lambda a: sum(a) > 1)
    )
    places = np.repeat(alive, 4)
    num = int(places.sum())
    rows = np.full((2, len(places)), -1)
    for row in rows:
        others = draw(st.lists(st.integers(0, E - 1), min_size=num - E, max_size=num - E))
        row[places] = draw(st.permutations([*range(E), *others]))
    return rows


@settings(max_examples=50)
@given(served())
def test_tables_name_every_copy_that_serves_once(slots):
    experts, slots_of, copies = tables(slots, E)
    assert (experts[slots >= 0] == slots[slots >= 0]).all()
    assert (experts[slots < 0] == 0).all()
    assert slots_of.shape == (2, E, copies.max())
    for layer, row in enumerate(slots):
        for expert in range(E):
            held = np.flatnonzero(row == expert)
            assert copies[layer, expert] == len(held)
            assert slots_of[layer, expert, : len(held)].tolist() == held.tolist()
            assert (slots_of[layer, expert, len(held) :] == -1).all()
