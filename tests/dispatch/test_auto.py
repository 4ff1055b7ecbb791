from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch.auto import Auto
from equipoise.dispatch.fewest import FewestExperts
from equipoise.dispatch.times import rank_times
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.topology import Topology
from tests.dispatch.test_dispatchers import batches, per_expert

# Reading an expert takes as long as 100 assignments.
COST = RankCost(fixed_seconds=1.0, expert_seconds=10.0, token_seconds=0.1, source="a test")
RING = Placement([[0, 3, 1, 0, 2, 1, 3, 2]], num_ranks=4, num_experts=4)


def test_below_the_knee_experts_count():
    split = Auto(cost=COST).split([[60, 30, 30, 30]], RING)
    assert split.rules == ("fewest",)
    assert split.peak.tolist() == [11.0]
    assert split.rule_seconds["minmax"].tolist() == [21.0]
    assert split.rule_seconds["even"].tolist() == [21.0]
    assert split.status.endswith(" Layers by rule: 0 minmax, 1 fewest, 0 even, 0 time.")


def test_above_the_knee_tokens_count():
    split = Auto(cost=COST).split([[6000, 2000, 2000, 2000]], RING)
    assert split.rules == ("minmax",)
    assert split.peak[0] == pytest.approx(1 + 300)
    assert split.rule_seconds["fewest"][0] > split.rule_seconds["even"][0] > split.peak[0]


def test_layers_choose_by_themselves():
    both = Placement(np.repeat(RING.slots, 2, axis=0), num_ranks=4, num_experts=4)
    split = Auto(cost=COST).split([[60, 30, 30, 30], [6000, 2000, 2000, 2000]], both)
    assert split.rules == ("fewest", "minmax")
    assert (
        split.quotas[0].tolist()
        == FewestExperts().split([[60, 30, 30, 30]], RING).quotas[0].tolist()
    )


def seconds(split, cost, topology):
    """Modelled time of the whole assignments, slot by slot."""
    p, speed = split.placement, topology.speed or [1.0] * topology.num_ranks
    worst = np.zeros(p.num_layers)
    for layer, rank in np.ndindex(p.num_layers, p.num_ranks):
        slots = split.quotas[layer].reshape(p.num_ranks, -1)[rank]
        took = cost.fixed_seconds
        for n in slots[slots > 0]:
            padded = -(-n // cost.token_block) * cost.token_block
            took += max(cost.expert_seconds, cost.token_seconds * padded)
        worst[layer] = max(worst[layer], took / speed[rank])
    return worst


costs = st.builds(
    RankCost,
    fixed_seconds=st.sampled_from([0.0, 3.0]),
    expert_seconds=st.sampled_from([0.0, 1.0, 20.0]),
    token_seconds=st.sampled_from([0.125, 1.0]),
    token_block=st.sampled_from([1, 16]),
)


@given(batch=batches(st.integers(0, 60)), cost=costs, data=st.data())
def test_never_slower_than_any_rule(batch, cost, data):
    load, placement = batch
    ranks = placement.num_ranks
    speeds = st.lists(st.sampled_from([1.0, 2.0]), min_size=ranks, max_size=ranks)
    topology = Topology(ranks, speed=data.draw(st.none() | speeds.map(tuple)))
    auto = Auto(cost=cost, topology=topology)
    split = auto.split(load, placement)
    took = seconds(split, cost, topology)
    assert split.peak == pytest.approx(took)
    for name, rule in auto.rules.items():
        other = seconds(rule.split(load, placement), cost, topology)
        assert split.rule_seconds[name] == pytest.approx(other)
        assert (took <= other * (1 + 1e-12)).all()
    assert (split.peak >= split.bound * (1 - 1e-12)).all()
    for row, name in enumerate(split.rules):
        assert split.rule_seconds[name][row] == split.peak[row]
    assert np.array_equal(per_expert(split.quotas, placement), load)
    assert np.array_equal(split.quotas, split.shares)
    again = auto.split(load, placement)
    assert np.array_equal(again.shares, split.shares)
    assert again.rules == split.rules


@given(batch=batches(st.integers(1, 200).map(lambda n: n / 4 + 1 / 8)))
def test_fractional_loads_keep_fractional_shares(batch):
    load, placement = batch
    split = Auto(cost=COST).split(load, placement)
    assert per_expert(split.shares, placement) == pytest.approx(load)
    for name, rule in Auto(cost=COST).rules.items():
        shares = rule.split(load, placement).shares
        took = rank_times(shares, placement.num_ranks, cost=COST).max(axis=1)
        assert split.rule_seconds[name] == pytest.approx(took)
        assert (split.peak <= took * (1 + 1e-12)).all()


def test_sources_topology_and_peaks():
    rng = np.random.default_rng(3)
    source = rng.integers(0, 40, (1, 4, 4))
    auto = Auto(cost=rank_cost("h100-deepep-ep8"), topology=Topology(4, 2))
    split = auto.split(source, RING)
    assert np.array_equal(split.source_quotas.sum(axis=1), split.quotas)
    assert np.array_equal(split.shares, auto.split(source.sum(axis=1), RING).shares)
    loads = rng.integers(0, 300, (3, 1, 4))
    wanted = [auto.split(load, RING).peak for load in loads]
    assert np.array_equal(auto.peaks(loads, RING), wanted)


def test_where_rules_tie_tokens_are_evened_out():
    cost = RankCost(expert_seconds=1.0, token_seconds=1e-9)
    one_copy = Placement([[0, 1, 2, 3]], num_ranks=2, num_experts=4)
    assert Auto(cost=cost).split([[1, 1, 1, 1]], one_copy).rules == ("minmax",)


def test_no_load():
    split = Auto(cost=COST).split(np.zeros((1, 4)), RING)
    assert split.status.startswith("No layer has load; there is nothing to share.")
    assert split.peak.tolist() == [1.0]


def test_what_is_refused():
    with pytest.raises(EquipoiseError, match="The topology has 8 ranks, the placement 4"):
        Auto(cost=COST, topology=Topology(8)).split(np.ones((1, 4)), RING)
    with pytest.raises(EquipoiseError, match="expected finite numbers"):
        Auto(cost=COST).peaks([[[1, np.nan, 2, 3]]], RING)
    with pytest.raises(EquipoiseError, match="quotas need whole numbers"):
        _ = Auto(cost=COST).split([[1, 2.5, 2, 3]], RING).quotas
