from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality import heldout, protocols
from equipoise.cost import RankCost
from equipoise.dispatch import MinMax
from equipoise.errors import EquipoiseError
from equipoise.plan import Contiguous, Greedy, Plan, Problem, Robust, RoundRobin, evaluate
from equipoise.plan.planners.colocate import MAX_TOKENS, Colocate
from equipoise.plan.search import _colocate_kernels as kernels
from equipoise.plan.weigh.traffic import StepTime, measure_traffic
from equipoise.topology import Topology
from equipoise.trace import TokenIds, Trace
from tests.conftest import SHARED_DATA
from tests.reference import traffic as reference

TOPOLOGY = Topology(4, 2)


def pairs_of_neighbours(num_tokens=400, layers=2, seed=0):
    """Tokens that take two of the four experts 4 g to 4 g + 3, in eight groups; a trace."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, (num_tokens, layers, 1))
    two = np.argsort(rng.random((num_tokens, layers, 4)), axis=2)[..., :2]
    return Trace.from_tokens(4 * group + two, [0, num_tokens // 2, num_tokens], num_experts=16)


@dataclass(frozen=True)
class Given:
    """A planner that answers what it is made with."""

    answer: Plan

    def plan(self, problem):
        return self.answer


@st.composite
def small_layers(draw):
    """What the kernel looks at, slots to start from, and whether to lower the time."""
    num_nodes, size, per_rank = draw(st.integers(1, 2)), draw(st.integers(1, 2)), 3
    num_ranks = num_nodes * size
    num_experts = draw(st.integers(max(per_rank, 3 * num_ranks - 2), 3 * num_ranks))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    T = draw(st.integers(1, 3))
    load = rng.lognormal(0, 1, (num_experts, T)) * (rng.random((num_experts, T)) > 0.1)
    load[0] += 0.1
    plan = Greedy().plan(Problem(load.T[:, None], Topology(num_ranks), 3 * num_ranks))
    layer = kernels.Layer(
        ids_DK=rng.integers(0, num_experts + 1, (12, 3)).astype(np.int32),
        load_ET=load,
        risk_ET=0.1 * rng.random((num_experts, T)),
        weight_T=rng.dirichlet(np.ones(T)),
        speed_R=rng.uniform(0.5, 2, num_ranks),
        node_R=np.arange(num_ranks) // size,
        fixed_seconds=draw(st.sampled_from([0.0, 0.3])),
        expert_seconds=draw(st.sampled_from([0.0, 0.5])),
        token_seconds=1.0,
        token_block=draw(st.sampled_from([1.0, 0.25, 2.0])),
        node_seconds=draw(st.sampled_from([0.5, 3.0])),
        rank_seconds=draw(st.sampled_from([0.1, 2.0])),
    )
    layer.ids_DK[:, 0] %= num_experts  # every token chooses
    return layer, plan.placement.slots[0].copy(), draw(st.booleans())


@settings(max_examples=40)
@given(small_layers(), st.sampled_from([0.0, 0.05, 0.5]))
def test_kernel_keeps_the_objective_it_says_and_its_limits(case, slack):
    layer, slots, timed = case
    start = slots.copy()
    found, value = kernels.colocate(layer, slots, timed, slack, 400, 1e-1, 1e-4, 7)
    assert np.array_equal(slots, start)
    assert value == pytest.approx(reference.objective(layer, found, timed), rel=1e-9)
    assert value <= reference.objective(layer, slots, timed) * (1 + 1e-9)
    assert all(len(set(rank)) == 3 for rank in found.reshape(-1, 3).tolist())
    assert set(found.tolist()) == set(range(len(layer.load_ET)))
    if not timed:
        for limited in (reference.peak_time, lambda *of: reference.layer_time(*of, False)):
            assert limited(layer, found) <= (1 + slack) * limited(layer, slots) * (1 + 1e-9)


def test_experts_used_together_meet_on_a_node_at_no_cost():
    trace = pairs_of_neighbours()
    even = np.ones((1, 2, 16))  # nothing to balance: any placement is as good
    problem = Problem(even, TOPOLOGY, 16)
    start = RoundRobin().plan(problem).placement
    plan = Colocate(tokens=trace.tokens, start=RoundRobin(), price=0.0, proposals=20_000).plan(
        problem
    )
    before, after = (measure_traffic(p, trace.tokens, TOPOLOGY) for p in (start, plan.placement))
    assert (before.nodes_per_token > 1.5).all()
    assert after.nodes_per_token == pytest.approx(1)
    assert after.ranks_per_token == pytest.approx(1)
    assert evaluate(plan.placement, even).worst_imbalance == 1
    assert "reaches 1.00 ranks and 1.00 nodes; before, it reached" in plan.status


@pytest.mark.parametrize("num_slots", [16, 20])
@pytest.mark.parametrize("price", [0.0, 0.1])
def test_the_peak_rises_by_no_more_than_the_price(num_slots, price):
    rng = np.random.default_rng(2)
    trace = pairs_of_neighbours()
    problem = Problem(rng.lognormal(0, 0.3, (1, 2, 16)), Topology(4, 2, (1, 2, 1, 1)), num_slots)
    start = Greedy().plan(problem)
    plan = Colocate(tokens=trace.tokens, start=Greedy(), price=price, proposals=4000).plan(problem)
    speed = problem.topology.relative_speed
    before, after = (
        (np.einsum("le,lre->lr", problem.total / p.copies, p.copies_on_rank) / speed).max(axis=1)
        for p in (start.placement, plan.placement)
    )
    assert (after <= before * (1 + price) * (1 + 1e-9)).all()
    ranks = [
        measure_traffic(p, trace.tokens, TOPOLOGY).nodes_per_token.sum()
        for p in (start.placement, plan.placement)
    ]
    assert ranks[1] < ranks[0]


def test_dear_wires_gather_and_cheap_ones_spread():
    trace = pairs_of_neighbours()
    load = np.ones((1, 2, 16))
    load[:, :, :4] = 4  # all of one group: together on a node they are too much for it
    problem = Problem(load, TOPOLOGY, 16)
    nodes, seconds = [], []
    for token_bytes in (1, 10_000, 10_000_000):
        step = StepTime(
            cost=RankCost(token_seconds=1e-6), step_tokens=1000, token_bytes=token_bytes
        )
        planner = Colocate(tokens=trace.tokens, start=Greedy(), price=step, proposals=20_000)
        plans = Greedy().plan(problem).placement, planner.plan(problem).placement
        found = [measure_traffic(p, trace.tokens, TOPOLOGY) for p in plans]
        nodes.append(found[1].nodes_per_token.mean())
        seconds.append(
            [
                step.layer_seconds(p, load, f, TOPOLOGY).mean()
                for p, f in zip(plans, found, strict=True)
            ]
        )
    assert nodes[2] < nodes[0]
    assert nodes[2] == pytest.approx(1)
    assert seconds[0][1] <= seconds[0][0] * 1.001
    assert seconds[2][1] < seconds[2][0] * 0.8


def test_same_answer_for_any_thread_count():
    trace = pairs_of_neighbours(layers=3)
    problem = Problem(trace, TOPOLOGY, 20)
    base = Colocate(tokens=trace.tokens, start=Greedy(), price=0.2, proposals=2000, num_threads=1)
    plans = [replace(base, num_threads=n).plan(problem).placement for n in (1, 2, 5)]
    assert plans[0] == plans[1] == plans[2]
    assert replace(base, seed=1).plan(problem).placement != plans[0]


def test_of_many_tokens_an_even_selection_counts():
    trace = pairs_of_neighbours(num_tokens=2 * MAX_TOKENS + 10, layers=1)
    problem = Problem(trace, TOPOLOGY, 16)
    kept = np.linspace(0, 2 * MAX_TOKENS + 9, MAX_TOKENS).round().astype(int)
    part = TokenIds(trace.tokens.ids[kept], np.array([0, MAX_TOKENS]))
    base = Colocate(tokens=trace.tokens, start=Greedy(), proposals=200)
    found = replace(base, tokens=part).plan(problem).placement
    assert found == base.plan(problem).placement


def test_layers_without_load_or_tokens_stay_as_they_are():
    trace = pairs_of_neighbours(layers=3)
    ids = trace.tokens.ids.copy()
    ids[:, 1] = -1
    load = trace.counts.astype(float)
    load[:, 2] = 0
    problem = Problem(load, TOPOLOGY, 16)
    planner = Colocate(tokens=TokenIds(ids, trace.tokens.offsets), start=Greedy(), proposals=2000)
    start, plan = Greedy().plan(problem).placement, planner.plan(problem).placement
    assert np.array_equal(start.slots[1:], plan.slots[1:])
    assert not np.array_equal(start.slots[0], plan.slots[0])


def test_one_rank_has_no_wires():
    trace = pairs_of_neighbours()
    problem = Problem(trace, Topology(1), 16)
    plan = Colocate(tokens=trace.tokens, start=Contiguous()).plan(problem)
    assert plan.placement == Contiguous().plan(problem).placement


def test_starts_that_do_not_fit():
    trace = pairs_of_neighbours()
    problem = Problem(trace, TOPOLOGY, 20)
    twice = Contiguous().plan(Problem(trace, TOPOLOGY, 20))
    slots = twice.placement.slots.copy()
    slots[0, 4] = slots[0, 3]
    doubled = replace(twice, placement=problem.placement(slots))
    with pytest.raises(EquipoiseError, match="puts an expert twice on a rank"):
        Colocate(tokens=trace.tokens, start=Given(doubled)).plan(problem)
    with pytest.raises(EquipoiseError, match="start from a plan for an even split"):
        Colocate(tokens=trace.tokens, start=Given(replace(twice, dispatcher=MinMax()))).plan(
            problem
        )
    small = Problem(trace, Topology(4, 2, room=(5, 4, 5, 5)), 20)
    with pytest.raises(EquipoiseError, match="room for 4 experts of a layer and 5 slots"):
        Colocate(tokens=trace.tokens, start=Contiguous()).plan(small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": None}, "no token ids, only counts"),
        ({"tokens": TokenIds(np.zeros((3, 5, 2), int), np.array([0, 3]))}, "2 layers, top_k"),
        ({"price": -0.1}, "price is -0.1; expected 0 or more"),
        ({"price": float("inf")}, "price is inf"),
        ({"proposals": -1}, "proposals is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"num_threads": 0}, "num_threads is 0"),
    ],
)
def test_what_is_refused(options, message):
    trace = pairs_of_neighbours()
    with pytest.raises(EquipoiseError, match=message):
        Colocate(**{"tokens": trace.tokens, "start": Greedy(), **options}).plan(
            Problem(trace, TOPOLOGY, 20)
        )


@pytest.mark.shared_data
def test_unseen_tokens_of_a_real_model_travel_less_at_equal_balance():
    split = heldout.thin(protocols.esft(protocols.read_esft(SHARED_DATA)), 2)
    topology, held = Topology(16, 4), split.tests["known domains"]
    problem = Problem(split.fit, topology, 80)
    start = Robust(proposals=100_000).plan(problem)
    plan = Colocate(tokens=split.fit.tokens, start=Given(start), price=0.005, proposals=20_000)
    placements = start.placement, plan.plan(problem).placement
    before, after = (measure_traffic(p, held.tokens, topology) for p in placements)
    assert after.nodes_per_token.mean() < 0.97 * before.nodes_per_token.mean()
    assert after.ranks_per_token.mean() < before.ranks_per_token.mean()
    imbalance = [evaluate(p, held).mean_imbalance for p in placements]
    assert imbalance[1] < imbalance[0] * 1.03
