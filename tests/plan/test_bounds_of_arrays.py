"""Compiled planners on hostile loads, with every index checked by numba."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.plan import (
    Colocate,
    Contiguous,
    FixedGraph,
    Greedy,
    Hierarchical,
    Repair,
    Robust,
    RoundRobin,
    Survivable,
    TrtllmGreedy,
    failover_maps,
)
from equipoise.plan.problem import Problem
from equipoise.topology import Topology
from equipoise.trace import TokenIds

SHORT = {"proposals": 600, "num_threads": 1}
INFINITE = np.full((3, 2, 8), 1.7e308)
EDGES = [
    0.0,
    -0.0,
    5e-324,
    1e-310,
    1e-300,
    1.0,
    2.0**53,
    1e300,
    1e307,
    1.7e308,
    np.nan,
    np.inf,
    -1.0,
]


def planners(num_layers, num_experts, placement=None):
    ids = np.arange(16 * num_layers * 2).reshape(16, num_layers, 2) % num_experts
    tokens = TokenIds(ids, np.array([0, 16]))
    yield from (Contiguous(), RoundRobin(), Greedy(), Greedy(allow_same_rank_copies=True))
    yield from (
        TrtllmGreedy(),
        Hierarchical(num_expert_groups=1),
        Hierarchical(num_expert_groups=2),
    )
    yield from (
        FixedGraph(graph="ring", across_nodes="price"),
        Robust(**SHORT),
        Robust(dispatch="minmax", **SHORT),
    )
    yield from (Survivable(**SHORT), Colocate(tokens=tokens, start=Greedy(), **SHORT))
    if placement is not None:
        yield Repair(current=placement, proposals=600, num_threads=1)


@pytest.mark.parametrize("planner", list(planners(2, 8)), ids=lambda p: type(p).__name__)
def test_loads_whose_sum_is_infinite_are_refused_before_any_kernel(planner):
    with pytest.raises(EquipoiseError, match="Loads add up to infinity; scale them down"):
        planner.plan(Problem(INFINITE, Topology(4, 2), 12))


@pytest.mark.parametrize(
    ("load", "topology", "says"),
    [
        ([[1e307] * 8], Topology(4), "add up to 8e.307, too large to be shared"),
        ([[1e300] * 8], Topology(4, speed=(1, 1, 1, 1e-11)), "add up to 8e.300, too large"),
        ([[5e-324] * 8], Topology(4), "layer 0 add up to 4e-323; expected 0, or 9e-302 or more"),
        ([[1.0] * 8, [0] * 7 + [1e-310]], Topology(4), "The loads of layer 1 add up to 1e-310"),
        ([[0.0] * 8], Topology(4), "zero everywhere"),
    ],
)
def test_loads_whose_shares_would_be_no_numbers_are_refused(load, topology, says):
    with pytest.raises(EquipoiseError, match=says):
        Problem(load, topology, 12)


def test_loads_stay_what_they_were_when_checked():
    mine = np.ones((2, 8))
    problem = Problem(mine, Topology(4), 12)
    mine[0, 0] = np.nan
    assert (problem.load == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        problem.load[0, 0, 0] = np.nan


def test_zeros_have_no_sign():
    signed, plain = (Problem([[1, zero, 3, zero]], Topology(2), 4) for zero in (-0.0, 0.0))
    assert not np.signbit(signed.load).any()
    for planner in (Greedy(), TrtllmGreedy()):
        assert planner.plan(signed).placement == planner.plan(plain).placement


@st.composite
def problems(draw):
    """Sizes down to a single rank, expert and slot, and any float for a load."""
    R = draw(st.integers(1, 5))
    E = draw(st.integers(1, 9))
    S = R * draw(st.integers(-(-E // R), max(-(-E // R), E)))
    T, L = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    values = draw(st.lists(st.sampled_from(EDGES[:10]), min_size=1, max_size=6))
    load = np.resize(np.array(values), (T, L, E))
    if draw(st.booleans()):
        load[:, :, 1:] = 0  # all in one expert
    load[draw(st.integers(0, T - 1)), 0, draw(st.integers(0, E - 1))] = draw(st.sampled_from(EDGES))
    speed = draw(st.sampled_from([None, (1.0,) * R, tuple(10.0**i for i in range(R))]))
    return load, Topology(R, speed=speed), S


def plan_with_all(load, topology, num_slots):
    try:
        problem = Problem(load, topology, num_slots)
    except EquipoiseError:
        return
    placement = None
    for planner in planners(problem.num_layers, problem.num_experts):
        try:
            plan = planner.plan(problem)
        except EquipoiseError:
            continue  # a shape this planner cannot have
        assert np.isfinite(plan.peak).all()
        assert np.isfinite(plan.bound).all()
        assert plan.gap >= -1e-9
        assert plan.status.endswith(".")
        placement = None if plan.placement.duplicates.any() else plan.placement
    if placement is not None:
        Repair(current=placement, proposals=600, num_threads=1).plan(problem)
        if topology.num_ranks > 1:
            failover_maps(placement, problem)


@given(problems())
def test_no_planner_leaves_its_arrays(case):
    plan_with_all(*case)


@pytest.mark.long
def test_every_index_of_the_kernels_is_within_its_array(tmp_path):
    """The same in a process in which numba checks each index, and compiles for it again."""
    checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    name = f"{Path(__file__)}::test_no_planner_leaves_its_arrays"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    done = subprocess.run(
        command, env={**os.environ, **checked}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
