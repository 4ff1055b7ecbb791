"""What every engine's rule keeps to."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.balance import expert_loads
from equipoise.dispatch import dispatcher
from equipoise.dispatch.tokens import expert_counts
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import evaluate
from equipoise.topology import Topology
from tests.dispatch.registered import RULES
from tests.dispatch.test_dispatchers import per_expert, placements

BY_RANK = [name for name in RULES if name != "lplb"]  # slots from ids and rank alone
ROWS = ["vllm", "ascend-mrv2", "sglang-rows"]
TWO = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3, layer_ids=(7,))


@pytest.fixture(params=RULES)
def each(request):
    return dispatcher(request.param)


@st.composite
def batches(draw):
    """At most two copies of an expert, so that every rule takes it; loads by source rank."""
    num_ranks = draw(st.integers(1, 4))
    num_slots = num_ranks * draw(st.integers(1, 3))
    num_experts = draw(st.integers(-(-num_slots // 2), num_slots))
    once_or_twice = [s % num_experts for s in range(num_slots)]
    rows = [draw(st.permutations(once_or_twice)) for _ in range(2)]
    placement = Placement(rows, num_ranks=num_ranks, num_experts=num_experts)
    size = 2 * num_ranks * num_experts
    load = draw(st.lists(st.integers(0, 40), min_size=size, max_size=size))
    return np.array(load).reshape(2, num_ranks, num_experts), placement


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25)  # for each of many rules
@given(batch=batches())
def test_shares_and_quotas_serve_every_source(name, batch):
    load, placement = batch
    split = dispatcher(name).split(load, placement)
    assert split.dispatch == name
    assert (split.source_shares >= 0).all()
    for rank in range(placement.num_ranks):
        of_rank = per_expert(split.source_shares[:, rank], placement)
        assert of_rank == pytest.approx(load[:, rank].astype(float))
        assert np.array_equal(per_expert(split.source_quotas[:, rank], placement), load[:, rank])
    assert (split.source_quotas >= 0).all()
    assert np.abs(split.source_quotas - split.source_shares).max() < 1 + 1e-9
    assert np.array_equal(split.quotas, split.source_quotas.sum(axis=1))
    assert (split.peak >= split.bound * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25)  # for each of many rules
@given(batch=batches())
def test_loads_without_sources_come_from_all_ranks_equally(name, batch):
    load, placement = batch
    rule, total = dispatcher(name), load.sum(axis=1)
    split = rule.split(total, placement)
    assert per_expert(split.shares, placement) == pytest.approx(total.astype(float))
    assert np.array_equal(per_expert(split.quotas, placement), total)
    assert rule.peaks(total[None], placement)[0] == pytest.approx(split.peak)
    with pytest.raises(EquipoiseError, match="without its source ranks"):
        _ = split.source_quotas
    spread = np.repeat(total[:, None], placement.num_ranks, axis=1)
    together = rule.split(spread / placement.num_ranks, placement)
    assert together.shares == pytest.approx(split.shares)


@pytest.mark.parametrize("name", BY_RANK)
@settings(max_examples=25)
@given(placement=placements(num_layers=2), data=st.data())
def test_ids_go_to_slots_of_their_expert(name, placement, data):
    rank = data.draw(st.integers(0, placement.num_ranks - 1))
    values = st.integers(-1, placement.num_experts)
    ids = np.array(data.draw(st.lists(values, min_size=18, max_size=18))).reshape(3, 2, 3)
    slots = dispatcher(name).slots(ids, placement, rank=rank)
    known = (ids >= 0) & (ids < placement.num_experts)
    none = placement.num_slots if name == "trtllm" else -1
    assert (slots[~known] == none).all()
    held = placement.slots[np.arange(2)[:, None], np.where(known, slots, 0)]
    assert np.array_equal(held[known], ids[known])


@pytest.mark.parametrize("name", ["trtllm", "sglang-static", "ascend"])
@settings(max_examples=25)
@given(placement=placements(num_layers=1), data=st.data())
def test_what_depends_on_counts_alone_is_told_exactly(name, placement, data):
    values = st.integers(-1, placement.num_experts - 1)
    size = 8 * placement.num_ranks
    ids = np.array(data.draw(st.lists(values, min_size=size, max_size=size)))
    ids = ids.reshape(placement.num_ranks, 4, 1, 2)
    rule = dispatcher(name)
    load = np.stack([expert_counts(of_rank, placement.num_experts) for of_rank in ids], axis=1)
    split = rule.split(load, placement)
    for rank, of_rank in enumerate(ids):
        found = expert_loads(rule.slots(of_rank, placement, rank=rank), placement.num_slots)
        assert split.source_quotas[0, rank].tolist() == found.tolist()
        assert split.source_shares[0, rank] == pytest.approx(found.astype(float))


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=25)
@given(placement=placements(num_layers=1), rows=st.integers(1, 40))
def test_row_rules_are_told_exactly_where_all_rows_are_equal(name, placement, rows):
    ids = np.tile(np.arange(placement.num_experts), (rows, 1))
    rule = type(dispatcher(name))(top_k=placement.num_experts)
    load = np.zeros((1, placement.num_ranks, placement.num_experts))
    rank = placement.num_ranks - 1
    load[:, rank] = rows
    split = rule.split(load, placement)
    found = expert_loads(rule.slots(ids, placement, rank=rank), placement.num_slots)
    assert split.source_shares[0, rank] == pytest.approx(found.astype(float))
    assert split.source_quotas[0, rank].tolist() == found.tolist()


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=25)
@given(rows=st.integers(1, 4000), copies=st.integers(1, 20))
def test_rows_are_counted_as_if_one_by_one(name, rows, copies):
    rule = dispatcher(name)
    wanted = np.bincount(rule.code(np.arange(rows)) % copies, minlength=copies)
    found = rule.times(np.array([rows]), np.array([copies]), np.arange(copies))
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("load", [10**10, 10**13, 2**52])
def test_the_largest_loads_take_no_more_memory(name, load):
    """Three copies and one: a table of the rows would be billions long."""
    placement = Placement([[0, 1, 0, 0]], num_ranks=2, num_experts=2)
    rule = type(dispatcher(name))(top_k=1)
    _ = rule.split(
        [[[1, 1], [0, 1]]], placement
    ).quotas  # loads the kernels before memory is traced
    tracemalloc.start()
    split = rule.split([[[load, 1], [0, load // 2]]], placement)
    assert per_expert(split.quotas, placement).tolist() == [[load, 1 + load // 2]]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert split.quotas[0, [0, 2, 3]] == pytest.approx(np.full(3, load / 3), rel=0.003)


def test_rules_evaluate_placements(each):
    load = np.random.default_rng(0).integers(0, 50, (5, 1, 3))
    peaks = evaluate(TWO, load, dispatch=each).peak
    assert peaks == pytest.approx(each.peaks(load, TWO))
    floor = evaluate(TWO, load, dispatch="minmax").peak
    assert (peaks >= floor * (1 - 1e-12)).all()


def test_speeds_turn_peaks_into_times(each):
    fast = type(each)(topology=Topology(2, speed=(3.0, 1.0)))
    load = np.array([[30, 20, 10]])
    split = fast.split(load, TWO)
    assert split.rank_times == pytest.approx(split.rank_loads / [1.5, 0.5])
    assert fast.peaks(load[None], TWO)[0] == pytest.approx(split.peak)


def test_largest_remainder_and_low_slots_first():
    placement = Placement([[0, 1, 0, 0]], num_ranks=2, num_experts=2)
    split = dispatcher("sglang-dynamic").__class__(from_map=False).split([[8, 1]], placement)
    assert split.quotas.tolist() == [[3, 1, 3, 2]]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ([[1, np.nan, 0]], "is nan"),
        ([[1, 2]], r"shape \(1, 2\)"),
        (np.ones((1, 3, 3)), r"\(layers, source ranks, experts\) = \(1, 2, 3\)"),
    ],
)
def test_what_is_refused(each, load, message):
    with pytest.raises(EquipoiseError, match=message):
        each.split(load, TWO)
    with pytest.raises(EquipoiseError):
        each.peaks([load, [[1]]], TWO)


def test_fractions_have_no_quotas(each):
    with pytest.raises(EquipoiseError, match=r"Layer 7, expert 0 has a load of 0\.5"):
        _ = each.split([[0.5, 1, 1]], TWO).quotas
    with pytest.raises(EquipoiseError, match=r"expert 0 has a load of 0\.5"):
        _ = each.split([[[0.5, 1, 1], [0.5, 1, 1]]], TWO).source_quotas


@pytest.mark.parametrize("name", BY_RANK)
def test_ranks_and_ids_that_are_none(name):
    rule = dispatcher(name)
    with pytest.raises(EquipoiseError, match=r"Rank 2 holds no tokens; .* ranks 0 to 1"):
        rule.slots([[0, 1]], TWO, rank=2)
    with pytest.raises(EquipoiseError, match=r"Rank 0\.5 holds no tokens"):
        rule.slots([[0, 1]], TWO, rank=0.5)
    with pytest.raises(EquipoiseError, match="type float64"):
        rule.slots([[0.0]], TWO)


def test_names():
    for name in RULES:
        assert dispatcher(name).name == name
        assert dispatcher(name).version


def test_numba_is_loaded_only_by_splitting():
    code = (
        "import sys\nfrom equipoise.dispatch import DISPATCHERS\n"
        "[entry.kind for entry in DISPATCHERS.values()]; sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
