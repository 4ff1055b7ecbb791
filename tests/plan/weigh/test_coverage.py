from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.plan.weigh.coverage import Coverage, chance_lost, coverage
from equipoise.topology import Topology
from tests.reference import coverage as reference

PAIRED = [0, 1, 0, 1, 2, 3, 2, 3]  # K32: hosts {0, 1} and {2, 3}
RING = [0, 3, 0, 1, 1, 2, 2, 3]  # hosts {0, 1}, {1, 2}, {2, 3}, {3, 0}


def measured(slots, num_ranks=4, num_experts=4, **options):
    placement = Placement(np.atleast_2d(slots), num_ranks=num_ranks, num_experts=num_experts)
    return coverage(placement, Topology(num_ranks), **options)


@st.composite
def placements(draw):
    """A small placement and its topology: four or six ranks in nodes of two."""
    num_ranks, size = draw(st.sampled_from([4, 6])), draw(st.integers(2, 4))
    num_experts = draw(st.integers(size, num_ranks * size))
    load = np.random.default_rng(draw(st.integers(0, 2**32))).lognormal(0, 1.5, (2, num_experts))
    topology = Topology(num_ranks, 2)
    return Greedy().plan(Problem(load, topology, num_ranks * size)).placement, topology


def test_paired_hosts_survive_twice_as_many_pairs_as_a_ring():
    for slots, survived in ((PAIRED, 4 / 6), (RING, 2 / 6)):
        found = measured(slots).survival(2)
        assert found.model == pytest.approx(survived)
        assert found.by_layer == pytest.approx([survived])
        assert (found.standard_error, found.method) == (0, "inclusion-exclusion")


def test_four_experts_with_two_hosts_lose_two_thirds_of_an_expert():
    for slots in (PAIRED, RING):
        assert measured(slots).expected_lost(2) == pytest.approx([4 / 6])


@given(placements(), st.sampled_from(["rank", "node"]), st.integers(1, 3))
def test_all_agrees_with_brute_force(case, domain, losses):
    placement, topology = case
    found = coverage(placement, topology, failure_domain=domain)
    of_rank = topology.node_of_rank if domain == "node" else np.arange(topology.num_ranks)
    num_failure_domains = int(of_rank.max()) + 1
    losses = min(losses, num_failure_domains)
    layers = [reference.homes(row, topology.num_ranks, of_rank) for row in placement.slots]
    for row, hosts in enumerate(layers):
        assert found.homes[row].tolist() == [len(hosts[e]) for e in range(placement.num_experts)]
        assert found.expected_lost(losses)[row] == pytest.approx(
            reference.expected_lost(hosts, num_failure_domains, losses)
        )
        assert found.endangered(losses)[row] == sum(len(h) <= losses for h in hosts.values())
        survived = reference.survival([hosts], num_failure_domains, losses)
        assert found.survival(losses).by_layer[row] == pytest.approx(survived)
    whole = found.survival(losses)
    assert whole.model == pytest.approx(reference.survival(layers, num_failure_domains, losses))
    assert (whole.model == 1) == (found.guaranteed_losses >= losses)


def random_hosts(num_failure_domains, num_experts, homes, seed=0):
    rng = np.random.default_rng(seed)
    hosts = np.zeros((1, num_failure_domains, num_experts), bool)
    for expert in range(num_experts):
        hosts[0, rng.choice(num_failure_domains, homes, replace=False), expert] = True
    return Coverage(failure_domain="rank", hosts=hosts)


def test_the_exact_ways_agree():
    for losses in (2, 3):
        few = random_hosts(12, 10, 2)
        crowd = random_hosts(12, 10, 2).hosts.repeat(2, axis=0)
        crowd[1] = random_hosts(12, 10, 2, seed=1).hosts[0]
        together = Coverage(failure_domain="rank", hosts=crowd).survival(losses)
        alone = few.survival(losses)
        assert (alone.method, together.method) == ("inclusion-exclusion", "enumeration")
        assert together.by_layer[0] == pytest.approx(alone.model)
        assert together.model <= together.by_layer.min()


def test_sampling_is_within_its_error_of_the_truth():
    # One expert on every rank: 40 host sets of one; disjoint pairs have a closed form.
    hosts = np.zeros((1, 80, 40), bool)
    for expert in range(40):
        hosts[0, [2 * expert, 2 * expert + 1], expert] = True
    found = Coverage(failure_domain="rank", hosts=hosts).survival(4)
    truth = comb(40, 4) * 2**4 / comb(80, 4)
    assert found.method == "sampling"
    assert 0 < found.standard_error < 0.01
    assert abs(found.model - truth) < 4 * found.standard_error
    again = Coverage(failure_domain="rank", hosts=hosts)
    assert again.survival(4).model == found.model
    assert again.survival(4, seed=1).model != found.model


def test_certain_survival_needs_no_samples():
    found = random_hosts(40, 300, 5).survival(4)
    assert (found.model, found.standard_error) == (1, 0)


def test_a_node_is_one_home():
    placement = Placement([[0, 1, 0, 2, 3, 2, 3, 1]], num_ranks=4, num_experts=4)
    topology = Topology(4, 2)
    assert coverage(placement, topology).homes.tolist() == [[2, 2, 2, 2]]
    nodes = coverage(placement, topology, failure_domain="node")
    assert nodes.homes.tolist() == [[1, 2, 2, 1]]
    assert nodes.guaranteed_losses == 0
    assert nodes.expected_lost(1) == pytest.approx([1])
    assert nodes.survival(1).model == 0


def test_losing_everything_takes_everything():
    found = measured(RING)
    assert found.expected_lost(4) == pytest.approx([4])
    assert found.survival(4).model == 0


def test_chance_lost():
    assert chance_lost(4, 2) == pytest.approx([1, 1 / 2, 1 / 6, 0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: measured(RING, failure_domain="rack"),
            "failure_domain is 'rack'; expected 'rank' or 'node'",
        ),
        (lambda: measured(RING).expected_lost(0), "losses is 0; expected 1"),
        (lambda: measured(RING).endangered(1.5), "losses is 1.5; expected a whole number"),
        (lambda: measured(RING).survival(5), "losses is 5; there are 4 ranks to lose"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call()


def test_a_topology_of_other_ranks():
    placement = Placement([[0, 1]], num_ranks=2, num_experts=2)
    with pytest.raises(EquipoiseError, match="has 4 ranks, the placement 2"):
        coverage(placement, Topology(4))
