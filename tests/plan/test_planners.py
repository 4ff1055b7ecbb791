"""What every planner keeps to."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.plan import Contiguous, Greedy, Problem
from equipoise.plan.planners.registry import PLANNERS, find_planner, planner_names
from equipoise.topology import Topology
from equipoise.trace import TokenIds, Trace

FAST = {"proposals": 2000}
CASES = [
    (name, flags)
    for name, entry in PLANNERS.items()
    for flags in [(), *((o.field,) for o in entry.options if entry.type_of(o) is bool)]
]


def tokens_of(problem):
    """Choices of 64 tokens, two experts each."""
    shape = (64, problem.num_layers, 1)
    first = np.random.default_rng(0).integers(0, problem.num_experts, shape)
    return TokenIds(np.concatenate([first, (first + 1) % problem.num_experts], axis=2), [0, 64])


GIVEN = {
    "current": lambda problem: Contiguous().plan(problem).placement,
    "tokens": tokens_of,
    "start": lambda problem: Greedy(),
}
"""What planners need that no option says, by the name of the field."""


def made(case, problem):
    """The planner of a case, with few proposals and all that it needs."""
    name, flags = case
    entry = PLANNERS[name]
    fast = {o.field: FAST[o.field] for o in entry.options if o.field in FAST}
    needs = {field: GIVEN[field](problem) for field in entry.needs}
    return entry.make(**entry.example, **fast, **needs, **dict.fromkeys(flags, True))


def planned(case, problem):
    """Its plan; the test is skipped where the planner refuses the problem in a sentence."""
    try:
        return made(case, problem).plan(problem)
    except EquipoiseError as error:
        pytest.skip(str(error))


LOADS = {
    "equal": np.ones((2, 12)),
    "one hot": np.eye(12)[[3, 7]] * 1000,
    "a layer without load": np.vstack([np.zeros(12), np.arange(12)]),
    "skewed": np.geomspace(1, 1e6, 24).reshape(2, 12),
    "steps": np.arange(72).reshape(3, 2, 12),
}


@pytest.fixture(params=CASES, ids=lambda case: "-".join((case[0], *case[1])))
def case(request):
    return request.param


@pytest.mark.parametrize("num_slots", [12, 16, 24])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_plans_are_valid_and_certified(case, load, num_slots):
    problem = Problem(load, Topology(4, 2), num_slots, layer_ids=(3, 5))
    before = problem.load.copy()
    plan = planned(case, problem)
    planner = made(case, problem)
    assert plan.placement.layer_ids == (3, 5)
    assert plan.placement.num_slots == num_slots
    assert plan.planner == repr(planner)
    assert plan.dispatch == PLANNERS[case[0]].dispatch
    assert np.array_equal(plan.load, problem.total)
    assert (plan.peak >= plan.bound * (1 - 1e-12)).all()
    assert [b.layer for b in plan.binding] == [3, 5]
    assert plan.status.endswith(".")
    if not getattr(planner, "allow_same_rank_copies", case[0] == "trtllm"):
        assert not plan.placement.duplicates.any()
    assert np.array_equal(problem.load, before)
    assert planner.plan(problem).placement == plan.placement


def test_scaling_by_powers_of_two_changes_nothing(case):
    load = np.random.default_rng(0).lognormal(0, 1, (3, 12))
    plain = planned(case, Problem(load, Topology(4, 2), 16))
    for exponent in (-40, 3, 60):
        scaled = planned(case, Problem(np.ldexp(load, exponent), Topology(4, 2), 16))
        assert scaled.placement == plain.placement
        assert (scaled.bound == np.ldexp(plain.bound, exponent)).all()


def test_experts_that_do_not_divide_over_the_ranks(case):
    plan = planned(case, Problem([[5, 4, 3, 2, 1, 1, 1]], Topology(3), 9))
    assert sorted(set(plan.placement.slots[0].tolist())) == list(range(7))


def test_trace_carries_its_layers(case):
    trace = Trace(counts=np.ones((2, 2, 12), np.int64), layer_ids=(3, 4))
    plan = planned(case, Problem(trace, Topology(4, 2), 16))
    assert plan.placement.layer_ids == (3, 4)


# What a planner looks at --------------------------------------------------------------------------

STEPS = np.random.default_rng(3).lognormal(0, 1, (6, 2, 12)).round(3)


def test_only_planners_that_see_windows_tell_them_apart(case):
    if "windows" in PLANNERS[case[0]].sees:
        pytest.skip("sees windows")
    steps = Problem(STEPS, Topology(4, 2), 16)
    assert (
        planned(case, steps).placement
        == planned(case, Problem(STEPS.sum(axis=0), Topology(4, 2), 16)).placement
    )


def test_only_planners_that_see_speeds_tell_ranks_apart(case):
    plain = planned(case, Problem(STEPS, Topology(4, 2), 16)).placement
    uneven = planned(case, Problem(STEPS, Topology(4, 2, speed=(1, 1, 1, 9)), 16)).placement
    if "speeds" in PLANNERS[case[0]].sees:
        assert uneven != plain
    else:
        assert uneven == plain


def test_room_is_kept_by_planners_that_see_it(case):
    plain = planned(case, Problem(STEPS, Topology(4, 2), 16)).placement
    tight = planned(case, Problem(STEPS, Topology(4, 2, room=(3, 4, 4, 4)), 16)).placement
    if "room" in PLANNERS[case[0]].sees:
        assert (tight.copies_on_rank[:, 0] > 0).sum(axis=1).max() <= 3
    else:
        assert tight == plain


# The registry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", PLANNERS.values(), ids=PLANNERS)
def test_the_registry_says_what_the_class_says(entry):
    fields = {field.name: field for field in dataclasses.fields(entry.kind)}
    told = {*entry.told, *entry.needs, *(option.field for option in entry.options)}
    assert told <= fields.keys()
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING}  # fmt: skip
    assert required <= {*entry.needs, *entry.example}
    for option in entry.options:
        assert entry.describe(option).endswith(".")
    assert entry.summary
    assert entry.time


def test_options_of_one_name_are_alike():
    known = {}
    for name in planner_names():
        for option in PLANNERS[name].options:
            told = (PLANNERS[name].type_of(option), option.limits)
            assert known.setdefault(option.key, told) == told


def test_an_unknown_planner_is_refused():
    with pytest.raises(EquipoiseError, match="no planner 'best'; use one of robust, surv"):
        find_planner("best")
    with pytest.raises(EquipoiseError, match="needs the placement in force; use equipoise repair"):
        find_planner("repair")


@pytest.mark.parametrize(
    ("load", "num_slots", "message"),
    [
        ([[1, np.nan]], 2, "is nan; expected finite numbers >= 0"),
        ([[1, -2]], 2, "is -2.0; expected finite numbers >= 0"),
        ([[0, 0]], 2, "zero everywhere; record some traffic"),
        ([[1, 2]], 3, "3 slots do not divide over 2 ranks"),
        ([[1, 2, 3]], 2, "2 slots cannot hold 3 experts"),
        ([[1, 2]], 10**12, "num_slots is 1000000000000; expected 1 to 65536"),
        ([[1, 2]], 2.5, "num_slots is 2.5; expected a whole number"),
    ],
)
def test_what_a_problem_refuses(load, num_slots, message):
    with pytest.raises(EquipoiseError, match=message):
        Problem(load, Topology(2), num_slots)


def test_planners_are_frozen_and_keyword_only(case):
    planner = made(case, Problem(np.ones((2, 12)), Topology(4), 24))
    assert dataclasses.is_dataclass(planner)
    assert planner.__dataclass_params__.frozen
    with pytest.raises(TypeError):
        type(planner)(4)


def test_numba_is_loaded_only_by_planning():
    code = "import sys, equipoise.plan; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
