"""Known answers, brute force, integer programming and a plain twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.cost import RankCost
from equipoise.dispatch import Even, MinMax
from equipoise.dispatch._fewest_kernels import lighten
from equipoise.dispatch.fewest import FewestExperts, active_slots
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.topology import Topology
from tests.dispatch.instances import random_instances
from tests.dispatch.test_dispatchers import batches, counts, per_expert
from tests.reference import active as reference

# Hosts {0}, {0}, {0, 1}, {1, 2}; then the third on rank 0 only.
K37 = Placement([[0, 1, 2, 2, 3, 3, 3, 3, 3]], num_ranks=3, num_experts=4)
K37_ALONE = Placement([[0, 1, 2, 3, 3, 3, 3, 3, 3]], num_ranks=3, num_experts=4)


def test_known_answer():
    split = FewestExperts().split([[5, 4, 3, 2]], K37)
    assert split.active_bound.tolist() == [2]
    assert split.active_experts.max() == 2
    assert split.shares[0, :2].tolist() == [5, 4]
    assert set(np.flatnonzero(split.active.bottleneck_experts[0])) >= {0, 1}
    assert split.status == (
        "Optimal: at most 2 active experts on a rank, in every layer as few as whole experts allow."
    )


def test_known_answer_with_a_bottleneck():
    split = FewestExperts().split([[5, 4, 3, 2]], K37_ALONE)
    assert split.active_experts.max() == 3
    assert split.active_bound.tolist() == [3]
    assert split.active.bottleneck_ranks.tolist() == [[True, False, False]]
    assert split.status == (
        "Optimal: at most 3 active experts on a rank. In layer 0 it is 3 where 2 would do, set by "
        "the 3 experts whose copies are all on ranks 0; only copies elsewhere help."
    )


def test_idle_experts_are_not_active():
    split = FewestExperts().split([[0, 4, 0, 2]], K37)
    assert split.active_experts.sum() == 2
    assert split.active_bound.tolist() == [1]


@given(batch=batches(st.integers(0, 6), num_layers=1))
def test_number_is_the_cut_and_what_trying_all_finds(batch):
    load, placement = batch
    load[0, np.flatnonzero(load[0])[7:]] = 0
    slots, num_ranks = placement.slots[0].tolist(), placement.num_ranks
    split = FewestExperts().split(load, placement)
    fewest, least_load = reference.best_assignment(load[0], slots, num_ranks)
    assert split.active_experts.max() == fewest
    assert split.active_bound[0] == fewest == reference.cut_bound(load[0], slots, num_ranks)
    assert split.peak[0] >= least_load


@given(batch=batches(counts))
def test_each_expert_is_served_whole_by_one_copy(batch):
    load, placement = batch
    split = FewestExperts().split(load, placement)
    assert np.array_equal(per_expert(split.shares, placement), load)
    assert np.array_equal(per_expert((split.shares > 0).astype(int), placement), load > 0)
    assert np.array_equal(split.quotas, split.shares)
    assert (split.active_experts.max(axis=1) == split.active_bound).all()
    again = FewestExperts().split(load, placement)
    assert np.array_equal(again.shares, split.shares)


@given(batch=batches(st.integers(0, 50)))
def test_no_dispatcher_has_fewer(batch):
    load, placement = batch
    fewest = FewestExperts().split(load, placement).active_bound
    for other in (Even(), MinMax()):
        quotas = other.split(load, placement).quotas
        assert (active_slots(quotas, placement.num_ranks).max(axis=1) >= fewest).all()


@given(batch=batches(st.integers(0, 40), num_layers=1), data=st.data())
def test_kernel_and_twin_move_the_same_homes(batch, data):
    load, placement = batch
    slots, num_ranks = placement.slots[0].tolist(), placement.num_ranks
    speed = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=num_ranks,
                               max_size=num_ranks))  # fmt: skip
    table = placement.slots_of_experts()[0]
    home = {
        e: data.draw(st.sampled_from([s for s in table[e].tolist() if s >= 0]))
        for e in np.flatnonzero(load[0]).tolist()
    }
    serving = np.zeros((1, placement.num_slots), np.int64)
    serving[0, list(home.values())] = 1
    most = active_slots(serving, num_ranks).max(axis=1)
    shares = lighten(
        load, serving, most, placement.slots, placement.slots_of_experts(), np.array(speed)
    )
    wanted = reference.lighten(load[0], home, int(most[0]), slots, speed)
    assert {slots[s]: s for s in np.flatnonzero(shares[0]).tolist()} == wanted


def test_kernel_and_twin_agree_where_chains_are_long():
    """Eight ranks with six slots, half of them copies, homes drawn at random."""
    rng, moved = np.random.default_rng(0), 0
    for _ in range(12):
        slots = rng.permutation(np.append(np.arange(24), rng.integers(0, 24, 24)))[None]
        placement = Placement(slots, num_ranks=8, num_experts=24)
        load = rng.integers(0, 30, (1, 24)).astype(float)
        table = placement.slots_of_experts()
        home = {e: int(rng.choice(table[0, e][table[0, e] >= 0])) for e in np.flatnonzero(load[0])}
        serving = np.zeros((1, 48), np.int64)
        serving[0, list(home.values())] = 1
        most = active_slots(serving, 8).max(axis=1)
        shares = lighten(load, serving, most, slots, table, np.ones(8))
        wanted = reference.lighten(load[0], home, int(most[0]), slots[0].tolist(), [1.0] * 8)
        assert {int(slots[0, s]): s for s in np.flatnonzero(shares[0]).tolist()} == wanted
        moved += sum(home[e] != s for e, s in wanted.items())
    assert moved > 30


def test_integer_programming_on_random_instances():
    """The number is exact on every instance; the load is a heuristic's, and close."""
    over = []
    for name, load, placement in random_instances(126, seed=5):
        slots, num_ranks = placement.slots[0], placement.num_ranks
        if placement.num_slots > 128 or name.endswith("huge counts"):
            continue
        split = FewestExperts().split(load, placement)
        fewest = reference.highs_fewest(load[0], slots, num_ranks)
        assert split.active_experts.max() == split.active_bound[0] == fewest, name
        unit = load.sum()
        least = reference.highs_least_load(load[0] / unit, slots, num_ranks, fewest) * unit
        assert split.peak[0] >= least * (1 - 1e-6), name
        over.append(split.peak[0] / least - 1)
    assert len(over) > 40
    assert np.mean(over) < 0.005


@pytest.mark.shared_data
def test_load_is_close_to_the_least_on_real_batches(shared_data):
    """512 tokens of seven domains, 32 ranks, 64 redundant slots: five layers each."""
    with np.load(shared_data / "glm52" / "windows.npz") as archive:
        counts = archive["counts"][:, :, ::15].astype(float)
    rng, over = np.random.default_rng(0), []
    problem = Problem(counts[:, :7].sum(axis=(0, 1)), Topology(32), 320)
    placement = Greedy(allow_same_rank_copies=True).plan(problem).placement
    for held in counts[:, 7]:
        load = rng.multinomial(4096, held / held.sum(axis=1, keepdims=True))
        split = FewestExperts().split(load, placement)
        for row, slots in enumerate(placement.slots):
            most = split.active_bound[row]
            over.append(split.peak[row] / reference.highs_least_load(load[row], slots, 32, most))
    assert min(over) > 1 - 1e-6
    assert np.mean(over) < 1.04


def test_peaks_sources_speeds_and_costs():
    rng = np.random.default_rng(1)
    loads = rng.integers(0, 9, (3, 1, 4))
    for each in (
        FewestExperts(),
        FewestExperts(topology=Topology(3, speed=(1, 2, 4))),
        FewestExperts(cost=RankCost(expert_seconds=2.0, token_seconds=0.5)),
    ):
        wanted = [each.split(load, K37).peak for load in loads]
        assert np.array_equal(each.peaks(loads, K37), wanted)
    source = rng.integers(0, 9, (1, 3, 4))
    split = FewestExperts().split(source, K37)
    assert np.array_equal(split.shares, FewestExperts().split(source.sum(axis=1), K37).shares)
    assert np.array_equal(split.source_quotas.sum(axis=1), split.quotas)


def test_heavy_experts_go_to_fast_ranks():
    both = Placement([[0, 1, 1, 0]], num_ranks=2, num_experts=2)
    fast = FewestExperts(topology=Topology(2, speed=(1, 3)))
    assert fast.split([[9, 3]], both).shares.tolist() == [[0, 3, 0, 9]]
    slow = FewestExperts(topology=Topology(2, speed=(3, 1)))
    assert slow.split([[9, 3]], both).shares.tolist() == [[9, 0, 3, 0]]


def test_what_is_refused():
    with pytest.raises(EquipoiseError, match="The topology has 8 ranks, the placement 3"):
        FewestExperts(topology=Topology(8)).split([[1, 2, 3, 4]], K37)
    with pytest.raises(EquipoiseError, match="quotas need whole numbers"):
        _ = FewestExperts().split([[1, 2, 2.5, 4]], K37).quotas


def test_no_load():
    split = FewestExperts().split(np.zeros((1, 4)), K37)
    assert split.status == "No layer has load; there is nothing to share."
    assert split.active_bound.tolist() == [0]
    assert not split.active_experts.any()
