"""What every dispatcher keeps to."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.cost import RankCost
from equipoise.dispatch import DISPATCHERS, Even, MinMax, Shares, dispatcher
from equipoise.dispatch.base import takes
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.topology import Topology
from tests.dispatch.registered import RULES, registered

NAMES = [*DISPATCHERS]


@pytest.fixture(params=NAMES)
def each(request):
    return registered(request.param)


@st.composite
def placements(draw, num_layers=1, most_copies=None):
    num_ranks = draw(st.integers(1, 5))
    num_slots = num_ranks * draw(st.integers(1, 4))
    num_experts = draw(st.integers(-(-num_slots // (most_copies or num_slots)), num_slots))
    extra = st.lists(
        st.integers(0, num_experts - 1),
        min_size=num_slots - num_experts,
        max_size=num_slots - num_experts,
        unique=most_copies == 2,
    )
    rows = [draw(st.permutations([*range(num_experts), *draw(extra)])) for _ in range(num_layers)]
    return Placement(rows, num_ranks=num_ranks, num_experts=num_experts)


counts = st.one_of(st.integers(0, 9), st.integers(0, 10**6), st.integers(2**40, 2**44))
amounts = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), counts.map(float))


@st.composite
def batches(draw, values, num_layers=2, most_copies=None):
    placement = draw(placements(num_layers, most_copies))
    row = st.lists(values, min_size=placement.num_experts, max_size=placement.num_experts)
    return np.array([draw(row) for _ in range(num_layers)], dtype=float), placement


def per_expert(values_LS, placement):
    total = np.zeros((placement.num_layers, placement.num_experts), values_LS.dtype)
    np.add.at(total, (np.arange(placement.num_layers)[:, None], placement.slots), values_LS)
    return total


def batch_for(data, name, values):
    """Loads and a placement that the dispatcher takes: LPLB knows two copies of an expert."""
    return data.draw(batches(values, most_copies=2 if name == "lplb" else None))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)  # for each of many
@given(data=st.data())
def test_shares_serve_every_load_and_the_bound_holds(name, data):
    load, placement = batch_for(data, name, amounts)
    each = registered(name)
    before = load.copy()
    split = each.split(load, placement)
    assert (split.shares >= 0).all()
    assert per_expert(split.shares, placement) == pytest.approx(load, rel=1e-12, abs=0)
    assert split.rank_loads.sum(axis=1) == pytest.approx(load.sum(axis=1))
    assert (split.peak >= split.bound * (1 - 1e-12)).all()
    assert split.bottleneck_ranks.any(axis=1).all()
    assert split.status.endswith(".")
    assert each.peaks(load[None], placement)[0] == pytest.approx(split.peak, rel=1e-12)
    assert np.array_equal(load, before)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)  # for each of many
@given(data=st.data())
def test_quotas_sum_exactly(name, data):
    load, placement = batch_for(data, name, counts)
    quotas = registered(name).split(load, placement).quotas
    assert quotas.dtype == np.int64
    assert (quotas >= 0).all()
    assert np.array_equal(per_expert(quotas, placement), load.astype(np.int64))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sglang-static"])
@settings(max_examples=50)  # for each of many
@given(data=st.data())
def test_same_answer_alone_among_others_and_again(name, data):
    """SGLang's static table is dealt in one go through all layers.

    ``auto`` makes shares whole where the loads of all layers are.
    """
    load, placement = batch_for(data, name, counts if name == "auto" else amounts)
    each = registered(name)
    split = each.split(load, placement)
    assert np.array_equal(each.split(load, placement).shares, split.shares)
    for row in range(placement.num_layers):
        alone = Placement(
            placement.slots[[row]],
            num_ranks=placement.num_ranks,
            num_experts=placement.num_experts,
        )
        assert np.array_equal(each.split(load[[row]], alone).shares[0], split.shares[row])


@pytest.mark.parametrize("name", ["even", "minmax", "nearest", "fewest"])
@given(batch=batches(st.integers(0, 10**6)))
def test_scaling_by_powers_of_two_scales_the_shares(name, batch):
    load, placement = batch
    each = registered(name)
    plain = each.split(load, placement)
    for exponent in (-40, 20):
        scaled = each.split(np.ldexp(load, exponent), placement)
        assert np.array_equal(scaled.shares, np.ldexp(plain.shares, exponent))
        assert np.array_equal(scaled.bottleneck_ranks, plain.bottleneck_ranks)


def test_layouts_and_types_of_arrays_do_not_matter(each):
    rng = np.random.default_rng(0)
    load = rng.integers(0, 200, (3, 8))
    again = rng.permuted(np.tile(np.arange(8), (3, 1)), axis=1)[:, :4]
    slots = np.concatenate([np.tile(np.arange(8), (3, 1)), again], axis=1)
    wanted = each.split(load, Placement(slots, num_ranks=4, num_experts=8))
    columns = Placement(np.asfortranarray(slots), num_ranks=4, num_experts=8)
    for other in (np.asfortranarray(load), load.astype(np.uint8), load.tolist()):
        assert np.array_equal(each.split(other, columns).shares, wanted.shares)
        assert np.array_equal(each.split(other, columns).quotas, wanted.quotas)


def test_a_split_does_not_follow_its_callers_array(each):
    load = np.array([[3.0, 1.0]])
    split = each.split(load, Placement([[0, 1, 0, 1]], num_ranks=2, num_experts=2))
    load[:] = 0
    assert split.bound.tolist() == [2.0]
    assert split.quotas.sum() == 4
    with pytest.raises(ValueError, match="read-only"):
        split.shares[0, 0] = 5


def test_one_rank_no_load_and_idle_experts(each):
    one = each.split([[5, 0, 2]], Placement([[2, 0, 1, 0]], num_ranks=1, num_experts=3))
    assert one.peak.tolist() == [7.0]
    assert one.gap == 0.0
    assert one.quotas[0, [0, 2]].tolist() == [2, 0]
    placement = Placement([[0, 1, 2, 0], [1, 2, 0, 1]], num_ranks=2, num_experts=3)
    idle = each.split(np.zeros((2, 3)), placement)
    assert not idle.shares.any()
    assert not idle.quotas.any()
    assert not idle.bound.any()
    assert idle.gap == 0.0
    assert idle.status.startswith("No layer has load; there is nothing to share.")
    assert not each.peaks(np.zeros((3, 2, 3)), placement).any()


TWO = Placement([[0, 1, 0, 1]], num_ranks=2, num_experts=2, layer_ids=(7,))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ([[1, np.nan]], r"load at \[0, 1\] is nan; expected finite numbers >= 0"),
        ([[1, np.inf]], "is inf; expected finite"),
        ([[-1, 2]], "is -1.0; expected finite"),
        ([1, 2], r"shape \(2,\); the placement needs \(layers, experts\) = \(1, 2\)"),
        ([[1, 2, 3]], r"shape \(1, 3\); the placement needs"),
        ([[1, 2], [3, 4]], r"shape \(2, 2\); the placement needs"),
        ([[[1, 2]]], r"shape \(1, 1, 2\); the placement needs"),
        ([["a", "b"]], "expected numbers"),
        ([[1, 2], [3]], "rows of equal length"),
        ([[]], "expected at least one number"),
        ([[2**53 - 1, 1]], r"Layer 7 has 9.01e.15 assignments; expected fewer than 2\*\*53"),
        (np.array([[2**64 - 1, 0]], np.uint64), "Layer 7 has 1.84e.19 assignments"),
        ([[1e308, 1e308]], "Loads add up to infinity; scale them down"),
    ],
)
def test_what_is_refused(each, load, message):
    with pytest.raises(EquipoiseError, match=message):
        each.split(load, TWO)


@pytest.mark.parametrize("load", [[[1, 2]], [[[1, np.nan]]], [[[1, 2, 3]]], np.zeros((0, 1, 2))])
def test_what_peaks_refuse(each, load):
    with pytest.raises(EquipoiseError):
        each.peaks(load, TWO)


def test_quotas_need_whole_numbers(each):
    with pytest.raises(EquipoiseError, match=r"Layer 7, expert 1 has a load of 2.5; quotas need"):
        _ = each.split([[1, 2.5]], TWO).quotas


def test_the_most_load_still_exact(each):
    split = each.split([[2**53 - 2, 1]], TWO)
    assert int(split.quotas.sum()) == 2**53 - 1
    assert per_expert(split.quotas, TWO).tolist() == [[2**53 - 2, 1]]


def test_dispatchers_are_frozen_and_found_by_name(each):
    assert each.__dataclass_params__.frozen
    assert type(each) is DISPATCHERS[each.name].kind
    assert each.split([[1, 2]], TWO).dispatch == each.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        each.speed = 2


def test_a_batch_by_source_rank_is_its_sum(each):
    rng = np.random.default_rng(3)
    placement = Placement([[0, 1, 2, 0], [1, 2, 0, 1]], num_ranks=2, num_experts=3)
    source = rng.integers(0, 50, (2, 2, 3))
    split = each.split(source, placement)
    assert np.array_equal(split.load, source.sum(axis=1))
    assert split.peak == pytest.approx(each.split(source, placement).peak)
    assert np.array_equal(split.source_quotas.sum(axis=1), split.quotas)
    for rank in range(2):
        served = per_expert(split.source_quotas[:, rank], placement)
        assert np.array_equal(served, source[:, rank])


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ([[[1, 2], [3, np.nan]]], r"load at \[0, 1, 1\] is nan"),
        ([[[1, 2], [3, -1]]], "is -1.0; expected finite"),
        ([[[1, 2]]], r"shape \(1, 1, 2\); the placement needs .*source ranks.* = \(1, 2, 2\)"),
        ([[[1, 2], [3, 4], [5, 6]]], r"shape \(1, 3, 2\); the placement needs"),
        ([[[2**52, 2**51], [2**52, 1]]], r"Layer 7 has .* expected fewer than 2\*\*53"),
        ([[[1e308, 1e308], [1e308, 1]]], "Loads add up to infinity; scale them down"),
    ],
)
def test_what_is_refused_of_sources(each, load, message):
    with pytest.raises(EquipoiseError, match=message):
        each.split(load, TWO)


def test_quotas_of_sources_need_sources_and_whole_numbers(each):
    with pytest.raises(EquipoiseError, match="without its source ranks; give loads"):
        _ = each.split([[1, 2]], TWO).source_quotas
    halves = each.split([[[0.5, 1], [0.5, 1]]], TWO)
    with pytest.raises(EquipoiseError, match="source rank 0, expert 0 has a load of 0"):
        _ = halves.source_quotas


def test_machines_are_given_by_name_or_instance(each):
    topology = Topology(2, speed=(1, 3))
    placed = registered(each.name, topology)
    assert placed == dataclasses.replace(each, topology=topology)
    assert dispatcher(placed) is placed
    split = placed.split([[4, 4]], TWO)
    speed = np.array([1, 3]) if each.cost else np.array([0.5, 1.5])
    assert split.peak == pytest.approx((split.rank_loads / speed).max(axis=1))
    assert placed.peaks([[[4, 4]]], TWO)[0] == pytest.approx(split.peak)
    with pytest.raises(EquipoiseError, match="The topology has 3 ranks, the placement 2"):
        registered(each.name, Topology(3)).split([[4, 4]], TWO)


@pytest.mark.parametrize(
    "cost", [RankCost(token_seconds=0.5), RankCost(expert_seconds=3, token_seconds=0.5)]
)
@pytest.mark.parametrize("name", [x for x, e in DISPATCHERS.items() if takes(e.kind, "cost")])
def test_with_a_cost_peaks_are_seconds_at_the_speeds_given(name, cost):
    timed = dispatcher(name, Topology(2, speed=(1, 2)), cost=cost)
    assert timed.cost == cost
    assert not timed.scale_free
    split = timed.split([[4, 4]], TWO)
    assert split.rank_times == pytest.approx(cost.rank_seconds(split.shares, 2) / [1, 2])
    assert split.peak == pytest.approx(split.rank_times.max(axis=1))
    assert (split.bound <= split.peak * (1 + 1e-12)).all()


def test_only_ours_take_a_cost():
    able = {x for x, entry in DISPATCHERS.items() if takes(entry.kind, "cost")}
    assert able == set(NAMES) - set(RULES)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=20)  # for each of many
def test_what_is_scale_free_has_twice_the_peaks_for_twice_the_load(name, data):
    each = registered(name)
    if each.scale_free:
        load, placement = batch_for(data, name, st.integers(0, 10**6))
        twice = each.peaks(2 * load[None], placement)
        assert twice == pytest.approx(2 * each.peaks(load[None], placement))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=20)  # for each of many
def test_what_they_say_of_their_shares_is_so(name, data):
    load, placement = batch_for(data, name, st.integers(0, 10**6))
    each = registered(name)
    split = each.split(load, placement)
    if each.shares is Shares.EVEN:
        assert split.shares == pytest.approx(Even().split(load, placement).shares)
    if each.shares is Shares.FOLLOWING:  # by unlike costs, but here a token takes a second
        best = MinMax().split(load, placement)
        assert (split.peak <= np.ceil(best.peak * (1 + 1e-12))).all()


def test_numba_is_loaded_only_by_splitting():
    code = "import sys, equipoise.dispatch as d; [e.kind for e in d.DISPATCHERS.values()]"
    code += "; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
