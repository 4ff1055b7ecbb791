"""Steps of a whole model: their parts next to what they must be, and published times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.dispatch import DISPATCHERS, Even, MinMax, dispatcher
from equipoise.dispatch.tokens import expert_counts
from equipoise.errors import EquipoiseError
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.forecast import Moving, forecast
from equipoise.simulate.machine import FOREIGN_LOG_ERROR, Machine, machine
from equipoise.simulate.network import payload_bytes, traffic_of, uniform_traffic
from equipoise.simulate.own_work import OwnWork
from equipoise.simulate.profiles import BORROWED_LOG_ERROR, calibration, hardware, link
from equipoise.simulate.routed import Routed, halves
from equipoise.simulate.routers import lognormal, sample_trace, steady
from equipoise.simulate.step import time_steps
from equipoise.trace import TokenIds

SHAPE = ExpertShape(hidden_size=7168, inter_size=2048, num_experts=256, top_k=8, dtype="fp8_block")
SMALL = replace(SHAPE, num_experts=16, top_k=2)
OWN = OwnWork(
    num_moe_layers=58,
    weight_bytes=15e9,
    token_flops=30e9,
    kv_bytes_per_token=35e3,
    decode_pair_flops=2e6,
    prefill_pair_flops=5e6,
)
INFINIBAND = link("infiniband-400g")


def made(gpu: str = "h100", shape: ExpertShape = SMALL, phase="decode", nodes=1, **values):
    told = {"own_work": OWN, "context_tokens": 2000.0} | values
    return machine(gpu, shape, phase=phase, num_nodes=nodes, link=INFINIBAND, **told)


def skewed(num_tokens: int, num_steps: int = 4, sigma: float = 1.0, seed: int = 0) -> eq.Trace:
    popularity = lognormal(16, num_layers=2, sigma=sigma, seed=seed)
    return sample_trace(
        steady(popularity, num_steps=num_steps), num_tokens=num_tokens, top_k=2, seed=seed
    )


def of_tokens(num_tokens: int, num_experts: int, top_k: int, sigma: float) -> eq.Trace:
    """One step of two layers with its tokens' choices."""
    rng = np.random.default_rng(3)
    popularity = lognormal(num_experts, num_layers=2, sigma=sigma, seed=3)
    arrival = rng.standard_exponential((num_tokens, 2, num_experts)) / popularity
    ids = np.argsort(arrival, axis=-1)[..., :top_k]
    counts = expert_counts(ids, num_experts)[None]
    tokens = TokenIds(ids, np.array([0, num_tokens]))
    return eq.Trace(counts=counts, tokens=tokens, top_k=top_k)


# Parts of a step ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.sampled_from([1, 40, 5000]),
    phase=st.sampled_from(["decode", "prefill"]),
    batches=st.integers(1, 2),
    chunk=st.sampled_from([None, 64, 3000]),
    nodes=st.sampled_from([1, 2, 4]),
    imbalance=st.sampled_from([1.0, 1.3]),
    slow=st.booleans(),
    seed=st.integers(0, 99),
)
def test_parts_are_none_below_zero_and_add_up(
    tokens, phase, batches, chunk, nodes, imbalance, slow, seed
):
    trace = skewed(tokens, seed=seed)
    topology = eq.Topology(4, 4 // nodes, speed=(1, 1, 0.5, 1) if slow else None)
    told = {"micro_batches": batches, "max_tokens": chunk, "source_imbalance": imbalance}
    costs = made(phase=phase, nodes=nodes, **told)
    layout = Layout.unbalanced(trace, 4)
    parts = time_steps(trace, layout, topology, costs, seed=seed)
    total = layout.step_seconds(trace.counts.astype(float), topology, [costs])[0]
    assert parts.total == pytest.approx(total)
    assert all(seconds >= -1e-12 for seconds in parts.means.values())
    named = sum(v for name, v in parts.means.items() if name != "hidden")
    assert parts.total.mean() == pytest.approx(named)
    assert (parts.imbalance >= 1).all()
    if batches == 1:
        assert not parts.hidden.any()
        if chunk is None:
            assert parts.rereading == pytest.approx(0, abs=1e-12)


def test_a_step_by_hand():
    """Two ranks with one expert each: what is not attention follows from the terms."""
    shape = replace(SHAPE, num_experts=2, top_k=1)
    costs = made(shape=shape, own_work=None)
    load = np.array([[[300.0, 100.0]]])
    parts = costs.step(Routed.expected(load, 1, eq.Topology(2)), eq.Topology(2))
    ranks = costs.time.seconds([[300], [100]], [300, 100])
    assert parts.experts[0] == pytest.approx(ranks.mean())
    assert parts.skew[0] == pytest.approx(ranks.max() - ranks.mean())
    # Rank 0 receives 300 of 400 tokens, its own 150 of 200 included; both send 200.
    copies = np.array([[150, 50], [150, 50]])
    exchange = sum(
        float(cost.seconds(traffic_of(copies, 2), payload_bytes(7168, dtype), costs.near))
        for cost, dtype in ((costs.dispatch, "fp8"), (costs.combine, "bfloat16"))
    )
    assert parts.exposed[0] == pytest.approx(exchange)
    assert not parts.own.any()


def test_chance_is_what_a_fair_router_waits_too():
    topology = eq.Topology(4)
    costs = made()
    fair, hot = (skewed(400, 30, sigma=sigma) for sigma in (0.01, 1.2))
    parts = [time_steps(t, Layout.unbalanced(t, 4), topology, costs) for t in (fair, hot)]
    waits = [p.chance.sum() + p.skew.sum() for p in parts]
    assert parts[0].chance.sum() > 0.6 * waits[0]
    assert parts[1].skew.sum() > 0.7 * waits[1]


def test_a_topology_of_other_ranks_is_refused():
    trace = skewed(400)
    with pytest.raises(EquipoiseError, match="The topology has 8 ranks, the placement 4"):
        time_steps(trace, Layout.unbalanced(trace, 4), eq.Topology(8), made())


def test_a_busy_attention_rank_is_a_wait_of_its_own():
    trace = skewed(4000)
    layout, topology = Layout.unbalanced(trace, 4), eq.Topology(4)
    even, uneven = (
        time_steps(trace, layout, topology, made(source_imbalance=x)) for x in (1.0, 1.5)
    )
    assert not even.own_wait.any()
    assert (uneven.own_wait > 0).all()
    assert uneven.own == pytest.approx(even.own)
    assert uneven.skew == pytest.approx(even.skew)


def test_attention_reads_caches_in_decode_and_multiplies_in_prefill():
    device = hardware("h100").device
    bare = replace(OWN, weight_bytes=0, token_flops=0)
    decode = bare.layer_seconds(64, device, "decode", 4000)
    assert decode == pytest.approx(64 * 4000 * 35e3 / (0.8 * 3.35e12) / 58)
    prefill = bare.layer_seconds(8192, device, "prefill", 4000)
    assert prefill == pytest.approx(8192 * 4000 * 5e6 / (0.5 * 989e12) / 58)
    assert OWN.layer_seconds(1, device, "decode", 0) == pytest.approx(15e9 / (0.8 * 3.35e12) / 58)


# Overlap, chunks, speed --------------------------------------------------------------------------


def test_overlap_hides_exchanges_in_prefill_and_loses_in_memory_bound_decode():
    """A half still reads all weights: what it costs is more than what it hides."""
    topology = eq.Topology(8)
    for phase, tokens, wins in (("prefill", 60_000, True), ("decode", 256, False)):
        trace = sample_trace(
            steady(lognormal(256, num_layers=2, sigma=0.5, seed=1), num_steps=2),
            num_tokens=tokens,
            top_k=8,
        )
        layout = Layout.unbalanced(trace, 8)
        costs = made(shape=SHAPE, phase=phase)
        alone = time_steps(trace, layout, topology, costs)
        both = time_steps(trace, layout, topology, replace(costs, micro_batches=2))
        assert both.exposed.sum() < 0.2 * alone.exposed.sum()
        assert both.hidden.sum() > 0.8 * alone.exposed.sum()
        assert (both.total.mean() < alone.total.mean()) == wins
        assert both.rereading.sum() > 0


def test_what_the_other_half_does_not_cover_stays_exposed():
    trace = skewed(5000)
    layout, topology = Layout.unbalanced(trace, 4), eq.Topology(4, 1)
    slow = replace(INFINIBAND.link, bytes_per_second=1e8)
    costs = replace(made(nodes=4), far=slow, micro_batches=2)
    parts = time_steps(trace, layout, topology, costs)
    assert (parts.exposed > 10 * parts.hidden).all()
    busy = parts.experts + parts.rereading + parts.chance + parts.skew + parts.own + parts.own_wait
    assert parts.hidden == pytest.approx(busy)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_halves_are_whole_and_share_every_load(loads):
    load = np.array(loads, dtype=float)
    first, second = halves(load)
    assert np.array_equal(first + second, load)
    assert (np.abs(first - second) <= 1).all()
    assert np.array_equal(first, np.rint(first))


def test_chunks_read_the_weights_again():
    trace = skewed(4000)
    layout, topology = Layout.unbalanced(trace, 4), eq.Topology(4)
    whole, cut = (
        time_steps(trace, layout, topology, made(max_tokens=most)) for most in (4000, 1000)
    )
    assert not whole.rereading.any()
    assert (cut.rereading > 0).all()
    assert (cut.exposed > whole.exposed).all()


# Who receives what -------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", ["assignment", "rank"])
@pytest.mark.parametrize("per_node", [2, 4, 8])
def test_even_loads_make_uniform_traffic(copies, per_node):
    topology = eq.Topology(8, per_node)
    routed = Routed.expected(np.full((1, 1, 64), 50.0), 4, topology)
    found = routed.traffic(copies, topology)
    sizes = {"num_experts": 64, "top_k": 4, "num_ranks": 8, "ranks_per_node": per_node}
    expected = uniform_traffic(100.0, copies, **sizes)
    assert found.near.max() == pytest.approx(float(expected.near[0]), rel=1e-6)
    assert found.far.max() == pytest.approx(float(expected.far[0]), rel=1e-6)


def test_the_busiest_rank_receives_most_in_both_tiers_by_hand():
    """Four ranks in two nodes, one slot each, 100 tokens of top-1 from every rank."""
    topology = eq.Topology(4, 2)
    routed = Routed.expected(np.array([[[220.0, 60.0, 80.0, 40.0]]]), 1, topology)
    # Of the 220 for rank 0 half come from its own node; the rest crosses. Every rank sends 70 to
    # node 0 and 30 to node 1, so that rank 3 receives 20 of node 0 and sends it 70.
    each = routed.traffic("assignment", topology)
    assert each.near[0, 0] == pytest.approx([110, 70, 40, 30])
    assert each.far[0, 0] == pytest.approx([110, 30, 70, 70])
    # Once a node: a rank of node 0 receives what its peer sends, 140 of node 1 by two ranks.
    once = routed.traffic("rank", topology)
    assert once.near[0, 0] == pytest.approx([220, 60, 80, 40])
    assert once.far[0, 0] == pytest.approx([70, 70, 70, 70], rel=0.03)  # expected tokens
    uneven = routed.traffic("assignment", topology, source_imbalance=2.0)
    assert uneven.far[0, 0] == pytest.approx([110, 60, 140, 140])


@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_expected_tokens_are_near_those_that_are_followed(sigma):
    trace = of_tokens(3000, 64, 4, sigma)
    placement = Layout.unbalanced(trace, 8).placement
    topology = eq.Topology(8, 4)
    followed = Routed.followed(trace.tokens.of_step(0), placement, Even(), topology)
    expected = Routed.expected(followed.slot_load, 4, topology)
    assert followed.tokens == pytest.approx(expected.tokens)
    assert followed.on_rank == pytest.approx(expected.on_rank, rel=0.05)
    assert followed.on_node == pytest.approx(expected.on_node, rel=0.05)


def test_tokens_are_followed_as_a_plain_loop_would():
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((50, 1, 8)), axis=-1)[..., :3]
    ids[0, 0, 0] = -1
    placement = eq.Placement([[0, 1, 2, 3, 4, 5, 6, 7]], num_ranks=4, num_experts=8)
    topology = eq.Topology(4, 2)
    routed = Routed.followed(ids, placement, Even(), topology)
    for rank in range(4):
        on_rank = sum(any(e // 2 == rank for e in row if e >= 0) for row in ids[:, 0].tolist())
        assert routed.on_rank[0, rank] == on_rank
    for node in range(2):
        on_node = sum(any(e // 4 == node for e in row if e >= 0) for row in ids[:, 0].tolist())
        assert routed.on_node[0, node] == on_node
    assert routed.tokens.tolist() == [50]


@pytest.mark.parametrize("name", [n for n, entry in DISPATCHERS.items() if not entry.needs_cost])
def test_every_dispatcher_serves_counts_and_tokens(name):
    trace = of_tokens(200, 16, 2, 1.0)
    topology = eq.Topology(4, 2)
    slots = np.concatenate([np.arange(16), [3, 5, 7, 9]])
    placement = eq.Placement([slots, slots], num_ranks=4, num_experts=16)
    layout = Layout(placement=placement, dispatch=dispatcher(name, topology, top_k=2))
    costs = made(nodes=2)
    for given_trace in (trace, replace(trace, tokens=None)):
        parts = time_steps(given_trace, layout, topology, costs)
        assert (parts.total > 0).all()
        assert np.isfinite(parts.total).all()


def test_a_balanced_split_receives_less_and_waits_less():
    trace = sample_trace(
        steady(lognormal(256, num_layers=1, sigma=1.0, seed=0), num_steps=3),
        num_tokens=30_000,
        top_k=8,
    )
    topology = eq.Topology(16, 8)
    plan = eq.Greedy().plan(eq.Problem(trace, topology, 288))
    costs = made(shape=SHAPE, phase="prefill", nodes=2)
    before = time_steps(trace, Layout.unbalanced(trace, 16), topology, costs)
    layout = Layout(placement=plan.placement, dispatch=MinMax())
    after = time_steps(trace, layout, topology, costs)
    assert after.skew.sum() < 0.2 * before.skew.sum()
    assert after.exposed.sum() < before.exposed.sum()
    assert after.own == pytest.approx(before.own)


# Published times, and what they are borrowed for --------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "dispatch", "combine"), [(16, 118, 195), (32, 155, 273), (64, 173, 314)]
)
def test_low_latency_exchanges_between_nodes_are_near_deepeps_own(ranks, dispatch, combine):
    """DeepEP V1's own figures: 128 tokens a rank, width 7168, top-8, H800 with 400 Gb/s InfiniBand.

    The fit saw one node only.
    """
    topology = eq.Topology(ranks, 8)
    costs = made(shape=SHAPE, nodes=topology.num_nodes)
    routed = Routed.expected(np.full((1, 1, 256), ranks * 128 * 8 / 256), 8, topology)
    for cost, dtype, micros in (
        (costs.dispatch, "fp8", dispatch),
        (costs.combine, "bfloat16", combine),
    ):
        traffic = routed.traffic(cost.copies, topology)
        seconds = cost.seconds(traffic, payload_bytes(7168, dtype), costs.near, costs.far)
        assert seconds.item() * 1e6 == pytest.approx(micros, rel=0.1)


def spread_of(costs: Machine) -> float:
    """Deviation of the logarithm of the experts' time over draws."""
    load = np.full((1, 1, 256), 100.0)
    times = [m.rank_seconds(load, 8).max() for m in costs.draws(200, 0)]
    return float(np.log(times).std())


def test_draws_widen_with_what_is_borrowed():
    fit = calibration().nearest(
        table="deepep", phase="decode", kernel="deepepmoe", dtype="fp8_block", gpu="H100"
    )
    own, cousin, foreign = (spread_of(made(g, SHAPE)) for g in ("h100", "h200", "mi300x"))
    assert 0.5 * fit.log_error < own < 2 * fit.log_error
    assert own < 0.5 * cousin < cousin < 0.7 * foreign
    assert 0.6 * BORROWED_LOG_ERROR < cousin < 1.3 * BORROWED_LOG_ERROR
    assert 0.6 * FOREIGN_LOG_ERROR < foreign < 1.3 * FOREIGN_LOG_ERROR
    assert made("h100", SHAPE).draws(3, 1)[0].time == made("h100", SHAPE).draws(3, 1)[0].time


def test_where_the_parts_came_from_is_said():
    assert made("h100", SHAPE).facts == {
        "GPU": "H100 SXM, NVIDIA data sheet, H100 SXM, dense rates, 2023-03",
        "experts": "deepepmoe (sglang, decode steps) fitted on H100",
        "exchanges": "deepep_ll (sglang) fitted on H100",
    }
    assert "deepep_normal" in made("h100", SHAPE, "prefill").facts["exchanges"]
    amd = made("mi300x", SHAPE, nodes=2).facts
    assert "another maker's GPU: 50% less sure" in amd["experts"]
    assert amd["between nodes"].startswith("InfiniBand NDR, 400 Gb/s a GPU, DeepEP")
    assert "no fp8 units, the rate of bfloat16" in made("ascend-910c", SHAPE).facts["GPU"]
    nvlink = made("gb200", replace(SHAPE, dtype="nvfp4"))
    assert "wideep_compute_cutlass" in nvlink.facts["experts"]
    assert "GB200" in nvlink.facts["exchanges"]


def test_the_exchange_kernel_can_be_chosen():
    by_phase, chosen = made(phase="prefill"), made(phase="prefill", exchange="low-latency")
    assert by_phase.dispatch.copies == "rank"
    assert chosen.dispatch.copies == "assignment"


# In a forecast -----------------------------------------------------------------------------------


def test_a_forecast_takes_a_machine_and_counts_the_whole_step():
    trace = skewed(20_000, 40)
    costs = made(phase="prefill")
    answer = forecast(
        trace, eq.Topology(4), costs, dispatch=["even"], planner=lambda name: eq.Greedy()
    )
    layout = Layout.unbalanced(trace, 4)
    held = trace.counts[-answer.unseen_steps :].astype(float)
    parts = layout.step_seconds(held, eq.Topology(4), [costs])[0]
    assert answer.options[0].plain_seconds == pytest.approx(parts.mean())
    assert "than with no balancing, counting whole steps; " in answer.verdict.text
    experts = forecast(
        trace,
        eq.Topology(4),
        replace(costs, own_work=None, dispatch=None, combine=None),
        dispatch=["even"],
        planner=lambda name: eq.Greedy(),
    )
    assert experts.best.gain > answer.best.gain > 0


def test_a_move_is_paid_back_by_whole_steps():
    trace, topology = skewed(20_000, 40), eq.Topology(4)
    costs = made(phase="prefill")
    current = eq.Contiguous().plan(eq.Problem(trace, topology, 16)).placement
    prices = Moving(
        expert_bytes=44_000_000,
        dwell_steps=10_000,
        stall_seconds=0.01,
        interference=0.1,
        delay_steps=2,
    )
    answer = forecast(
        trace,
        topology,
        costs,
        redundant=[0],
        dispatch=["even"],
        planner=lambda name: eq.Greedy(),
        current=current,
        moving=prices,
    )
    best = answer.best
    saved = best.step_seconds * best.gain / (1 - best.gain)
    assert answer.decision.gain_seconds == pytest.approx(saved)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"micro_batches": 3}, "micro_batches is 3; expected 1 to 2"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"source_imbalance": 0.5}, "source_imbalance is 0.5"),
        ({"context_tokens": float("nan")}, "context_tokens is nan"),
    ],
)
def test_what_cannot_be_is_refused(values, said):
    with pytest.raises(EquipoiseError, match=said):
        made(**values)


def test_nodes_without_a_link_are_refused():
    with pytest.raises(EquipoiseError, match="2 nodes need the link between them; give link"):
        machine("h100", SHAPE, phase="decode", num_nodes=2)
