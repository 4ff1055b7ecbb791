from __future__ import annotations

import numpy as np
import pytest

from equipoise.cost import RankCost
from equipoise.dispatch import dispatcher
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.problem import Problem
from equipoise.simulate.arrivals import synthetic
from equipoise.simulate.batching import NO_LIMIT
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.contest import Contest, Server, Stage, in_such_nodes
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.machine import machine
from equipoise.simulate.own_work import OwnWork
from equipoise.simulate.requests import Requests
from equipoise.simulate.routers import lognormal, sample_trace, steady
from equipoise.simulate.serving import Slo
from equipoise.simulate.serving_costs import ServingCosts
from equipoise.simulate.step_table import drawn_steps
from equipoise.topology import Topology
from equipoise.trace import Trace

RANKS, LAYERS, EXPERTS, TOP_K = 4, 3, 32, 4
TRACE = sample_trace(
    steady(lognormal(EXPERTS, sigma=1.0, num_layers=LAYERS, seed=1), num_steps=40),
    num_tokens=400,
    top_k=TOP_K,
    seed=2,
)
TOPOLOGY = Topology(RANKS)
SLO = Slo(ttft_seconds=1, tpot_seconds=0.01)

PUBLISHED = UncertainCost.published("h100-deepep-ep8")
SHAPE = ExpertShape(
    hidden_size=2048, inter_size=1024, num_experts=EXPERTS, top_k=TOP_K, dtype="fp8_block"
)
OWN = OwnWork(
    num_moe_layers=LAYERS,
    weight_bytes=1e8,
    token_flops=2e8,
    kv_bytes_per_token=5000,
    decode_pair_flops=1e5,
    prefill_pair_flops=1e5,
)


def hardware_costs() -> ServingCosts:
    decode, prefill = (
        machine("h100", SHAPE, phase=phase, num_nodes=1, own_work=OWN)
        for phase in ("decode", "prefill")
    )
    return ServingCosts.of_machines(decode, prefill, context_tokens=100, other_seconds=1e-3)


COSTS = {"rank cost": ServingCosts.of_ranks(PUBLISHED, 1e-3), "hardware": hardware_costs()}


def stage(costs: ServingCosts = COSTS["rank cost"], trace: Trace = TRACE, **limits) -> Stage:
    server = Server(**{"num_ranks": RANKS, "kv_tokens": NO_LIMIT} | limits)
    return Stage(server=server, trace=trace, topology=TOPOLOGY, top_k=TOP_K, costs=costs)


def planned(redundant: int, name: str) -> Layout:
    placement = Greedy().plan(Problem(TRACE, TOPOLOGY, EXPERTS + redundant)).placement
    return Layout(placement=placement, dispatch=dispatcher(name, TOPOLOGY))


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("layout", [Layout.unbalanced(TRACE, RANKS), planned(8, "minmax")])
def test_a_constant_batch_takes_the_step_simulators_seconds(costs, layout):
    """16 prompts of one token, then their answers: every step has 16 tokens."""
    each, steps = 4, 75
    requests = Requests(
        arrival_seconds=np.zeros(RANKS * each), prompt_tokens=1, output_tokens=steps
    )
    tried = stage(costs, max_sequences=each)
    result = tried.serve(requests, tried.timed(layout)).result
    taken = result.pools["serving"].timeline.steps

    batches = drawn_steps(TRACE, RANKS * each, top_k=TOP_K)
    assert (batches.sum(axis=2) == RANKS * each * TOP_K).all()
    tokens = taken.prefill_tokens + taken.sequences
    assert (tokens == RANKS * each).all()
    assert tokens.sum() == requests.prompt_tokens.sum() + (requests.output_tokens - 1).sum()

    [simulated] = layout.step_seconds(batches, TOPOLOGY, [costs.model])
    before_new = each * np.r_[0, np.arange(1, steps)]  # prompts have no context
    context = [
        costs.rest.seconds(0, *np.full((2, RANKS), 0), np.full(RANKS, n)) for n in before_new
    ]
    expected = simulated[np.arange(steps) % len(simulated)] + context
    assert taken.seconds == pytest.approx(expected)
    assert result.seconds == pytest.approx(expected.sum())


def test_layers_that_were_not_recorded_take_what_the_others_take():
    layout = Layout.unbalanced(TRACE, RANKS)
    once, twice = (
        Stage(
            server=Server(num_ranks=RANKS, kv_tokens=NO_LIMIT, max_tokens=256),
            trace=TRACE,
            topology=TOPOLOGY,
            top_k=TOP_K,
            costs=COSTS["rank cost"],
            layers_factor=factor,
        ).timed(layout)
        for factor in (1.0, 2.0)
    )
    assert all(twice.table[n] == pytest.approx(2 * once.table[n]) for n in once.table)


def test_redundant_experts_take_room_of_the_cache_and_requests_wait_for_it():
    tried = stage(kv_tokens=8_000, token_bytes=1000, slot_bytes=3_000_000, max_sequences=64)
    requests = synthetic(
        requests_per_second=400, seconds=3, prompt_tokens=500, output_tokens=100, seed=1
    )
    results = {}
    for redundant in (0, 8):
        layout = planned(redundant, "even")
        assert tried.kv_tokens(layout) == 8_000 - 3_000 * redundant // RANKS
        results[redundant] = tried.serve(requests, tried.timed(layout)).result
    assert results[8].ttft_p50 > 2 * results[0].ttft_p50
    with pytest.raises(EquipoiseError, match="use fewer"):
        tried.serve(requests, tried.timed(planned(12, "even")))


def test_a_plan_for_a_skewed_router_is_better_and_a_bad_map_worse():
    """Tokens alone take time, so what is even in assignments is even in seconds."""
    cost = UncertainCost(name="tokens", planning_cost=RankCost(token_seconds=4e-5), error=0)
    requests = synthetic(
        requests_per_second=80, seconds=5, prompt_tokens=60, output_tokens=40, seed=3
    )
    heavy_first = np.argsort(-TRACE.counts.sum(axis=0), axis=1)
    bad = Placement(heavy_first, num_ranks=RANKS, num_experts=EXPERTS)
    layouts = {
        8: planned(8, "minmax"),
        0: Layout(placement=bad, dispatch=dispatcher("even", TOPOLOGY)),
        4: Layout.unbalanced(TRACE, RANKS),
    }
    contest = Contest(
        stage(ServingCosts.of_ranks(cost, 1e-3)), lambda number, name, told: layouts[number], SLO
    )
    better, worse, same = (
        contest.run(requests, redundant=number, dispatch="") for number in (8, 0, 4)
    )
    assert better.before is worse.before  # served once
    assert (better.kind, worse.kind, same.kind) == ("better", "worse", "no difference")
    assert better.step_gain > 0.1 > -0.1 > worse.step_gain
    assert better.text.startswith("better: mean TTFT")
    assert "longer" in worse.text


def test_ranks_for_prompts_take_the_steps_of_that_phase():
    labels = {"phase": np.repeat(["prefill", "decode"], 20)}
    trace = Trace(counts=TRACE.counts, top_k=TOP_K, labels=labels)
    tried = stage(trace=trace, prefill_ranks=2, max_tokens=512)
    assert tried.decoded.counts.tolist() == TRACE.counts[20:].tolist()
    prefill = tried.prefill_time()
    requests = synthetic(requests_per_second=50, seconds=2, prompt_tokens=99, output_tokens=9)
    layout = Layout.unbalanced(trace, RANKS)
    result = tried.serve(requests, tried.timed(layout), prefill=prefill).result
    assert set(result.pools) == {"prefill", "decode"}
    assert result.pools["prefill"].pool.num_ranks == 2
    assert result.pools["prefill"].pool.step_time is prefill
    assert stage(trace=trace).prefill_time() is None


def test_other_ranks_stand_in_nodes_of_the_same_size():
    nodes = Topology(16, 8)
    assert [in_such_nodes(nodes, n).num_nodes for n in (4, 8, 32)] == [1, 1, 4]
    assert in_such_nodes(Topology(16), 40).num_nodes == 1
    with pytest.raises(EquipoiseError, match="ranks_per_node"):
        in_such_nodes(nodes, 12)


def test_a_topology_of_other_ranks_is_refused():
    with pytest.raises(EquipoiseError, match="expected the same"):
        Stage(
            server=Server(num_ranks=8, kv_tokens=NO_LIMIT),
            trace=TRACE,
            topology=TOPOLOGY,
            top_k=TOP_K,
            costs=COSTS["rank cost"],
        )
