from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.weigh.traffic import (
    StepTime,
    latency_seconds,
    measure_traffic,
    receive_seconds,
)
from equipoise.topology import Link, Topology
from equipoise.trace import TokenIds
from tests.reference import traffic as reference

STEP = StepTime(
    cost=RankCost(fixed_seconds=3e-6, expert_seconds=2e-6, token_seconds=1e-8, token_block=16),
    step_tokens=1000,
    token_bytes=20_000,
)


def tokens(ids):
    """One step of tokens, ``(D, K)`` or ``(D, L, K)``."""
    array = np.asarray(ids)
    array = array[:, None] if array.ndim == 2 else array
    return TokenIds(array, np.array([0, len(array)]))


def placed(slots, num_ranks, num_experts):
    return Placement(np.atleast_2d(slots), num_ranks=num_ranks, num_experts=num_experts)


@st.composite
def placed_tokens(draw):
    """A placement with copies, some twice on a rank, and tokens, some without a choice."""
    num_nodes, size, per_rank = (draw(st.integers(1, 3)) for _ in range(3))
    num_ranks = num_nodes * size
    num_slots = num_ranks * per_rank
    num_experts = draw(st.integers(max(1, num_slots - 3), num_slots))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rest = rng.integers(0, num_experts, num_slots - num_experts)
    slots = rng.permutation(np.concatenate([np.arange(num_experts), rest]))
    ids = rng.integers(-1, num_experts + 1, (draw(st.integers(1, 6)), draw(st.integers(1, 4))))
    return slots, ids, num_experts, Topology(num_ranks, size)


def test_known_answers():  # K23
    ids = [[0, 1], [0, 3], [2, 3]]
    contiguous = placed([0, 1, 2, 3], 2, 4)
    assert measure_traffic(contiguous, tokens(ids), Topology(2)).ranks_per_token == pytest.approx(
        4 / 3
    )
    copies = placed([0, 1, 2, 3, 0, 2], 3, 4)
    each = [measure_traffic(copies, tokens([i]), Topology(3)).ranks_per_token[0] for i in ids]
    assert each == pytest.approx([1.5, 2.0, 1.5])


@pytest.mark.parametrize(("num_ranks", "expected"), [(8, 5.29), (32, 7.27), (256, 8.0)])
def test_fair_routers_reach_what_combinatorics_say(num_ranks, expected):
    rng = np.random.default_rng(0)
    ids = np.argpartition(rng.random((20_000, 256)), 7, axis=1)[:, :8]
    found = measure_traffic(
        placed(np.arange(256), num_ranks, 256), tokens(ids), Topology(num_ranks)
    )
    assert found.ranks_per_token[0] == pytest.approx(expected, abs=0.02)


@given(placed_tokens())
def test_agrees_with_every_choice_of_copies(case):
    slots, ids, E, topology = case
    found = measure_traffic(placed(slots, topology.num_ranks, E), tokens(ids), topology)
    rank = np.arange(len(slots)) * topology.num_ranks // len(slots)
    node = topology.node_of_rank[rank]
    expected = reference.reach(ids, slots, E, rank, topology.num_ranks)
    assert found.rank_reach[0] == pytest.approx(expected)
    expected = reference.reach(ids, slots, E, node, topology.num_nodes)
    assert found.node_reach[0] == pytest.approx(expected)
    expected = reference.same_rank_pairs(ids, slots, E, rank)
    assert found.same_rank_pairs[0] == pytest.approx(expected)


@given(placed_tokens())
def test_no_more_nodes_than_ranks_than_choices(case):
    slots, ids, E, topology = case
    found = measure_traffic(placed(slots, topology.num_ranks, E), tokens(ids), topology)
    choosing = ((ids >= 0) & (ids < E)).any()
    assert found.nodes_per_token >= choosing - 1e-12
    assert found.ranks_per_token >= found.nodes_per_token - 1e-12
    assert found.choices_per_token >= found.ranks_per_token - 1e-12
    assert found.network_sends_per_token <= found.nodes_per_token


def test_long_traces_are_measured_in_blocks():
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 6, (5000, 2, 2))
    placement = placed(np.tile(np.arange(6), (2, 1)), 3, 6)
    whole = measure_traffic(placement, tokens(ids), Topology(3))
    parts = [measure_traffic(placement, tokens(p), Topology(3)) for p in (ids[:1000], ids[1000:])]
    for name in ("rank_reach", "same_rank_pairs"):
        early, late = (getattr(part, name) for part in parts)
        assert getattr(whole, name) == pytest.approx(0.2 * early + 0.8 * late)


def test_wires_by_hand():
    topology = Topology(
        4, 2, node_link=Link(1.0, 100.0), network_link=Link(10.0, 5.0)
    )  # two nodes of two ranks
    # Half the tokens are there, two adapters; half of those for a rank came in over its own.
    assert receive_seconds(topology) == pytest.approx((0.5 / 2 / 5, 0.5 / 100))
    assert latency_seconds(topology) == 2 * (10.0 + 1.0)
    found = measure_traffic(placed([0, 1, 2, 3], 4, 4), tokens([[0, 1], [0, 2]]), topology)
    assert found.rank_reach[0] == pytest.approx([1, 0.5, 0.5, 0])
    assert found.node_reach[0] == pytest.approx([1, 0.5])
    step = StepTime(cost=RankCost(token_seconds=1.0), step_tokens=100, token_bytes=2)
    assert step.wire_seconds(found, topology)[0] == pytest.approx(
        22 + np.array([10 + 1, 10 + 0.5, 5 + 0.5, 5]), abs=1e-12
    )


def test_one_rank_or_node_has_no_wire_beyond():
    assert receive_seconds(Topology(1)) == (0.0, 0.0)
    assert latency_seconds(Topology(1)) == 0
    assert receive_seconds(Topology(4))[0] == 0
    assert receive_seconds(Topology(4, 1))[1] == 0


@given(placed_tokens(), st.integers(0, 2**32))
def test_layer_seconds_of_the_slowest_rank(case, seed):
    slots, ids, E, topology = case
    R = topology.num_ranks
    rng = np.random.default_rng(seed)
    topology = Topology(R, topology.num_ranks // topology.num_nodes, speed=rng.uniform(0.5, 2, R))
    placement, load = placed(slots, R, E), rng.integers(0, 50, (2, 1, E))
    found = measure_traffic(placement, tokens(ids), topology)
    seconds = STEP.layer_seconds(placement, load, found, topology)
    wires = STEP.wire_seconds(found, topology)[0]
    for step in range(2):
        scale = STEP.step_tokens * found.choices_per_token[0] / max(load[step, 0].sum(), 1)
        ranks = np.full(R, STEP.cost.fixed_seconds)
        for s, e in enumerate(slots):
            share = scale * load[step, 0, e] / list(slots).count(e)
            padded = np.ceil(share / 16) * 16
            ranks[s * R // len(slots)] += max(2e-6, 1e-8 * padded) if share > 0 else 0
        slowest = (ranks / topology.relative_speed + wires).max()
        assert seconds[step, 0] == pytest.approx(slowest)


def test_what_is_refused():
    two = placed([0, 1], 2, 2)
    with pytest.raises(EquipoiseError, match="no token ids, only counts"):
        measure_traffic(two, None, Topology(2))
    with pytest.raises(EquipoiseError, match=r"shape \(1, 2, 1\); expected \(tokens, 1 layers"):
        measure_traffic(two, tokens(np.zeros((1, 2, 1), int)), Topology(2))
    with pytest.raises(EquipoiseError, match="type float64; expected integers"):
        measure_traffic(two, tokens(np.zeros((1, 1))), Topology(2))
    with pytest.raises(EquipoiseError, match="topology has 4 ranks, the placement 2"):
        measure_traffic(two, tokens([[0]]), Topology(4))
    with pytest.raises(EquipoiseError, match="token_bytes is -1"):
        StepTime(cost=STEP.cost, step_tokens=1, token_bytes=-1)
    with pytest.raises(EquipoiseError, match="step_tokens is nan"):
        StepTime(cost=STEP.cost, step_tokens=float("nan"), token_bytes=1)
    found = measure_traffic(two, tokens([[0]]), Topology(2))
    with pytest.raises(EquipoiseError, match=r"Loads have shape \(2,\)"):
        STEP.layer_seconds(two, [1, 2], found, Topology(2))
