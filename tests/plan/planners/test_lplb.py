from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.plan import Problem, Robust, evaluate
from equipoise.plan.planners.lplb import GRAPHS, FixedGraph, owners
from equipoise.topology import Topology


def test_published_graphs():
    assert owners("cube", Topology(8)).T.tolist() == [
        [3, 0, 1, 2, 7, 4, 5, 6],
        [6, 7, 4, 5, 0, 1, 2, 3],
    ]
    assert owners("hypercube", Topology(16))[:, 1].tolist() == [12, 13, 14, 15, *range(12)]
    assert owners("torus", Topology(4, 2)).tolist() == [[2, 1], [3, 0], [0, 3], [1, 2]]
    assert owners("ring", Topology(3)).tolist() == [[1], [2], [0]]


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_edge_is_a_permutation_without_fixed_points(graph):
    owner = owners(graph, Topology(32, 8))
    for column in owner.T:
        assert sorted(column) == list(range(32))
        assert (column != np.arange(32)).all()


@given(st.sampled_from(GRAPHS), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2**32))
def test_copies_lie_on_the_edges(graph, layers, per_edge, seed):
    topology = Topology(16, 8)
    owner = owners(graph, topology)
    D = owner.shape[1]
    load = np.random.default_rng(seed).lognormal(0, 1, (layers, 64))
    plan = FixedGraph(graph=graph, across_nodes="price").plan(
        Problem(load, topology, 64 + 16 * D * per_edge)
    )
    by_rank = plan.placement.by_rank
    assert not plan.placement.duplicates.any()
    home, copied = by_rank[:, :, :4], by_rank[:, :, 4:]
    assert (np.sort(home.reshape(layers, -1)) == np.arange(64)).all()
    for layer in range(layers):
        for rank in range(16):
            for i, expert in enumerate(copied[layer, rank]):
                assert expert in home[layer, owner[rank, i // per_edge]]
    assert (plan.peak >= plan.bound * (1 - 1e-12)).all()


@pytest.mark.parametrize("graph", GRAPHS)
def test_without_redundant_slots_nothing_is_copied(graph):
    load = np.random.default_rng(0).lognormal(0, 1, (2, 64))
    plan = FixedGraph(graph=graph, across_nodes="price").plan(Problem(load, Topology(16, 8), 64))
    assert (plan.placement.copies == 1).all()


def test_heaviest_experts_are_copied():
    load = np.arange(16.0)[None]
    placement = FixedGraph(graph="ring").plan(Problem(load, Topology(4), 20)).placement
    for home, copied in zip(
        np.roll(placement.by_rank[0], -1, axis=0), placement.by_rank[0, :, 4], strict=True
    ):
        assert copied == home[:4].max()


def test_free_copies_beat_the_graph_at_equal_memory():
    load = np.random.default_rng(0).lognormal(0, 1, (4, 64))
    problem = Problem(load, Topology(16, 8), 96)
    free = Robust(dispatch="minmax", proposals=1 << 15).plan(problem)
    for graph in ("cube", "hypercube", "torus"):
        fixed = FixedGraph(graph=graph, across_nodes="price").plan(problem)
        assert free.peak.sum() < fixed.peak.sum()
        score = evaluate(fixed.placement, load, dispatch="minmax")
        assert score.peak[0] == pytest.approx(fixed.peak)


@pytest.mark.parametrize(
    ("graph", "topology", "num_slots", "says"),
    [
        ("star", Topology(8), 64, "no graph 'star'"),
        ("cube", Topology(12), 60, "12 ranks in 1 node do not form a cube"),
        ("torus", Topology(8), 64, "do not form a torus"),
        ("cube", Topology(8), 40, "multiples of 16"),
        ("ring", Topology(3), 33, "divide over the ranks"),
    ],
)
def test_refuses(graph, topology, num_slots, says):
    with pytest.raises(EquipoiseError, match=says):
        FixedGraph(graph=graph).plan(Problem(np.ones((1, 32)), topology, num_slots))


@pytest.mark.parametrize(
    ("graph", "topology", "crossed"),
    [
        ("cube", Topology(8, 4), "8 of 16 edges of the cube cross nodes of 4 ranks"),
        ("hypercube", Topology(32, 8), "16 of 64 edges of the hypercube cross nodes of 8 ranks"),
        ("ring", Topology(16, 8), "2 of 16 edges of the ring cross nodes of 8 ranks"),
    ],
)
def test_a_graph_that_does_not_fit_the_nodes_is_refused(graph, topology, crossed):
    load = np.random.default_rng(0).lognormal(0, 1, (1, 64))
    num_slots = 64 + owners(graph, topology).size
    with pytest.raises(EquipoiseError, match=crossed):
        FixedGraph(graph=graph).plan(Problem(load, topology, num_slots))


def test_a_graph_in_its_nodes_is_not():
    load = np.random.default_rng(0).lognormal(0, 1, (1, 64))
    for topology in (Topology(16), Topology(16, 8)):
        assert FixedGraph(graph="cube").plan(Problem(load, topology, 96)).note == ""


def test_edges_across_nodes_are_priced():
    """One expert holds nearly all: its copy, on the other node, takes half of it."""
    load = np.array([[1e6, 1, 1, 1]])
    plan = FixedGraph(graph="ring", across_nodes="price").plan(Problem(load, Topology(2, 1), 6))
    assert plan.note == (
        "2 of 2 edges cross nodes and carry 50.0% of the load, over links where a byte takes 16 "
        "times as long as within a node."
    )


def test_a_torus_is_made_to_cross_nodes_and_says_what_that_carries():
    load = np.random.default_rng(0).lognormal(0, 1, (2, 64))
    plan = FixedGraph(graph="torus").plan(Problem(load, Topology(16, 8), 96))
    assert plan.note.startswith("16 of 32 edges cross nodes and carry ")


def test_another_answer_to_edges_across_nodes_is_refused():
    with pytest.raises(EquipoiseError, match="expected refuse or price"):
        FixedGraph(graph="ring", across_nodes="ignore")
