from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError
from equipoise.plan import Greedy, Problem, Robust, evaluate
from equipoise.plan.planners.survivable import Survivable, covered_layout
from equipoise.plan.weigh.coverage import coverage, failure_domain_of_rank
from equipoise.topology import Topology
from tests.conftest import SHARED_DATA
from tests.reference import coverage as reference

QUICK = Survivable(proposals=20_000, num_threads=2)


def windows(num_experts, seed=0, steps=4, layers=2):
    return np.random.default_rng(seed).lognormal(0, 1.2, (steps, layers, num_experts))


@st.composite
def problems(draw):
    """A small problem with ranks in nodes of two, some with less room than slots."""
    num_ranks, size = draw(st.sampled_from([4, 6])), draw(st.integers(2, 4))
    num_experts, room = draw(st.integers(size, num_ranks * size)), None
    if draw(st.booleans()):
        room = draw(st.lists(st.integers(1, size), min_size=num_ranks, max_size=num_ranks))
        num_experts = min(num_experts, sum(room))
    load = windows(num_experts, draw(st.integers(0, 999)))
    return Problem(load, Topology(num_ranks, 2, room=room), num_ranks * size)


def reached(slots_LS, topology, domain, num_experts, most):
    """Homes of every layer, each expert's counted up to ``most``; slots of -1 hold nothing."""
    of_rank, found = failure_domain_of_rank(topology, domain), []
    for row in slots_LS:
        hosts = reference.homes(row, topology.num_ranks, of_rank)
        found.append(sum(min(len(hosts.get(e, ())), most) for e in range(num_experts)))
    return found


@given(problems(), st.sampled_from(["rank", "node"]), st.integers(1, 3))
def test_a_layout_has_all_homes_there_can_be(problem, domain, homes):
    topology, num_experts = problem.topology, problem.num_experts
    size = problem.num_slots // topology.num_ranks
    room = np.full(topology.num_ranks, size)
    if topology.room is not None:
        room = np.minimum(room, topology.room)
    of_rank = failure_domain_of_rank(topology, domain)
    homes = min(homes, int(of_rank[-1]) + 1)
    slots = covered_layout(problem.total, problem.num_slots, topology, domain, homes)
    by_rank = slots.reshape(len(slots), topology.num_ranks, size)
    assert ((by_rank >= 0).sum(axis=2) == np.minimum(room, num_experts)).all()
    for rank in by_rank.reshape(-1, size):
        held = rank[rank >= 0]
        assert len(set(held.tolist())) == len(held)
    capacity = np.minimum(np.bincount(of_rank, weights=room), num_experts).sum()
    most = min(homes * num_experts, capacity)
    assert reached(slots, topology, domain, num_experts, homes) == [most] * len(slots)


@pytest.mark.parametrize("capacities", [(3, 3, 3), (4, 2, 1), (1, 3, 4), (2, 2, 3)])
def test_that_many_homes_are_most(capacities):
    for homes in (2, 3):
        topology = Topology(3, room=capacities)
        slots = covered_layout(windows(5)[0], 12, topology, "rank", homes)
        best = reference.best_covered(5, capacities, homes)
        assert reached(slots, topology, "rank", 5, homes) == [best] * 2


@settings(max_examples=25)
@given(
    st.integers(0, 99), st.sampled_from(["even", "minmax"]), st.sampled_from(["rank", "node"]),
    st.integers(1, 2), st.integers(5, 12),
)  # fmt: skip
def test_what_is_guaranteed_holds_for_every_loss(seed, dispatch, domain, losses, num_experts):
    problem = Problem(windows(num_experts, seed, steps=1), Topology(6, 2), 24)
    planner = replace(
        QUICK, dispatch=dispatch, failure_domain=domain, losses=losses, proposals=2000
    )
    plan = planner.plan(problem)
    placement = plan.placement
    assert not placement.duplicates.any()
    of_rank = failure_domain_of_rank(problem.topology, domain)
    layers = [reference.homes(row, 6, of_rank) for row in placement.slots]
    num_failure_domains = int(of_rank[-1]) + 1
    safe = min(losses, 24 // num_experts - 1)
    survived = [reference.survival(layers, num_failure_domains, k) for k in range(1, losses + 1)]
    assert all(share == 1 for share in survived[:safe])
    if safe == losses:
        assert plan.status.startswith("The loss of any")
    else:
        assert f"{losses * num_experts} redundant slots, {losses} an expert" in plan.status
    assert planner.plan(problem).placement == placement


def test_the_status_says_what_is_guaranteed():
    problem = Problem(windows(8, steps=1), Topology(4, 2), 16)
    assert QUICK.plan(problem).status.startswith("The loss of any rank leaves every expert alive.")
    by_node = replace(QUICK, failure_domain="node").plan(problem).status
    assert by_node.startswith("The loss of any node leaves every expert alive.")
    two = replace(QUICK, losses=2).plan(problem).status
    assert two.startswith(
        "The loss of any rank leaves every expert alive; 16 redundant slots, 2 an expert, would do "
        "so for 2, and there are 8."
    )
    few = QUICK.plan(Problem(windows(8, steps=1), Topology(4, 2), 12)).status
    assert few.startswith(
        "4 of 8 experts of a layer live on a single rank, as few as these slots allow: a lost rank "
        "takes 1.0 of them on average; 8 redundant slots, 1 an expert, would keep all alive."
    )
    both = replace(QUICK, losses=2).plan(Problem(windows(8, steps=1), Topology(4), 24)).status
    assert both.startswith("The loss of any 2 ranks leaves every expert alive.")


def test_more_slots_never_lose_more():
    for domain in ("rank", "node"):
        lost = []
        for num_slots in range(12, 49, 6):
            topology = Topology(6, 2)
            plan = replace(QUICK, failure_domain=domain).plan(
                Problem(windows(12, steps=1), topology, num_slots)
            )
            lost.append(coverage(plan.placement, topology, failure_domain=domain).expected_lost(1))
        assert (np.diff(lost, axis=0) <= 0).all()
        assert not lost[-1].any()


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
def test_slots_to_spare_cost_no_balance_to_speak_of(dispatch):
    problem = Problem(windows(16, steps=8), Topology(4), 48)
    robust = Robust(dispatch=dispatch, proposals=60_000).plan(problem)
    plan = replace(QUICK, dispatch=dispatch, proposals=60_000).plan(problem)
    scores = [evaluate(p.placement, problem.load, dispatch=dispatch) for p in (robust, plan)]
    assert scores[1].mean_imbalance < scores[0].mean_imbalance * 1.05
    assert coverage(plan.placement, problem.topology).guaranteed_losses >= 1


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
def test_mirrored_ranks_are_twins(dispatch):
    problem = Problem(windows(16), Topology(8, 2), 56, layer_ids=(3, 7))
    planner = replace(QUICK, mirrored=True, failure_domain="node", dispatch=dispatch)
    plan = planner.plan(problem)
    halves = plan.placement.by_rank.reshape(2, 2, 4, 7)
    assert np.array_equal(halves[:, 0], halves[:, 1])
    assert plan.placement.layer_ids == (3, 7)
    assert plan.planner == repr(planner)
    found = coverage(plan.placement, problem.topology, failure_domain="node")
    assert found.guaranteed_losses == 1
    assert found.survival(2).model == pytest.approx(1 - 2 / 6)  # but for a node and its twin
    assert plan.status.startswith(
        "The loss of any node leaves every expert alive, and so does any loss that leaves one of "
        "every 2 twins."
    )
    half = Robust(dispatch=dispatch, proposals=20_000).plan(
        Problem(problem.load, Topology(4, 2), 28, layer_ids=(3, 7))
    )
    assert plan.peak == pytest.approx(half.peak / 2)


def test_three_twins():
    problem = Problem(windows(8, steps=1), Topology(6, speed=(1, 2) * 3), 24)
    plan = replace(QUICK, mirrored=True, losses=2).plan(problem)
    assert coverage(plan.placement, problem.topology).survival(3).model == pytest.approx(18 / 20)


def test_balance_is_searched_not_only_dealt():
    problem = Problem(windows(16, steps=8), Topology(4), 36)
    dealt = replace(QUICK, proposals=0).plan(problem).placement
    found = QUICK.plan(problem).placement
    assert (
        evaluate(found, problem.load).mean_imbalance < evaluate(dealt, problem.load).mean_imbalance
    )
    for placement in (dealt, found):
        assert coverage(placement, problem.topology).guaranteed_losses == 1


def test_room_is_kept():
    topology = Topology(4, room=(8, 8, 5, 3))
    problem = Problem(windows(12, steps=1), topology, 32)
    placement = QUICK.plan(problem).placement
    assert ((placement.copies_on_rank > 0).sum(axis=2) <= topology.room).all()
    assert coverage(placement, topology).guaranteed_losses == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": 0}, "losses is 0; expected 1"),
        ({"losses": 1.5}, "losses is 1.5; expected a whole number"),
        ({"failure_domain": "rack"}, "failure_domain is 'rack'; expected 'rank' or 'node'"),
        ({"dispatch": "nowhere"}, "no dispatcher 'nowhere'"),
        (
            {"mirrored": True, "cost": RankCost(token_seconds=1e-6)},
            "Mirrored plans balance assignments; leave out cost or mirrored",
        ),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(EquipoiseError, match=message):
        Survivable(**options)


@pytest.mark.parametrize(
    ("options", "topology", "message"),
    [
        ({"losses": 4}, Topology(4), "losses is 4 of 4 ranks; expected fewer"),
        ({"failure_domain": "node"}, Topology(4), "losses is 1 of 1 nodes; .*ranks_per_node"),
        (
            {"mirrored": True, "losses": 2},
            Topology(4),
            "16 slots cannot hold 8 experts 3 times",
        ),
        (
            {"mirrored": True, "failure_domain": "node"},
            Topology(4),
            "1 nodes must divide into 2 equal parts",
        ),
        (
            {"mirrored": True},
            Topology(4, speed=(1, 2, 2, 1)),
            "4 ranks must divide into 2 equal parts, speed and room included",
        ),
        ({}, Topology(4, room=(2, 2, 2, 1)), "have room for 7 experts of a layer, the model has 8"),
    ],
)
def test_problems_that_are_refused(options, topology, message):
    with pytest.raises(EquipoiseError, match=message):
        replace(QUICK, **options).plan(Problem(windows(8), topology, 16))


@pytest.mark.shared_data
def test_real_routing_outlives_a_node_at_little_cost():
    with np.load(SHARED_DATA / "glm52" / "windows.npz") as archive:
        counts, domains = archive["counts"][:, :, ::25].astype(np.int64), archive["domains"]
    fit, held = counts[:, :7].reshape(49, -1, 256), counts[:, 7]
    problem = Problem(fit, Topology(32, 8), 512, traffic_groups=domains.repeat(7))
    base = Greedy(allow_same_rank_copies=True).plan(problem).placement
    plan = Survivable(failure_domain="node", proposals=130_000).plan(problem).placement
    nodes = [coverage(p, problem.topology, failure_domain="node") for p in (base, plan)]
    assert (nodes[0].expected_lost(1) > 20).all()
    assert nodes[1].guaranteed_losses == 1
    before, after = (evaluate(p, held).mean_imbalance for p in (base, plan))
    assert after < before


def test_the_page_runs():
    page = (Path(__file__).parents[3] / "docs" / "howto" / "failure.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "failure.md", "exec"), names)
    assert names["plan"].status.startswith("The loss of any node leaves every expert alive.")
