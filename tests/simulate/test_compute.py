from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.simulate.compute import PRECISIONS, Device, ExpertShape, KernelCost
from tests.reference.rank_time import rank_seconds

DEVICE = Device(memory_bytes_per_second=3e12, flops_per_second={"bfloat16": 1e15, "fp8": 2e15})
SHAPE = ExpertShape(hidden_size=7168, inter_size=2048, num_experts=256, top_k=8, dtype="fp8_block")
COST = KernelCost(
    fixed_seconds=20e-6,
    depth_seconds=1e-9,
    slot_seconds=0.1e-6,
    memory_share=0.8,
    flops_share=0.5,
    small_flops_share=0.2,
    small_load=32,
    assignment_passes=5,
    token_passes=3,
    sharpness=2,
)
COSTS = {
    "plain": COST,
    "padded": replace(COST, token_block=128, host_seconds=300e-6),
    "sharp": replace(COST, sharpness=50, small_load=0),
}
loads = st.lists(st.integers(0, 5000), min_size=1, max_size=12)


@pytest.mark.parametrize("name", COSTS)
@given(load=loads, tokens=st.integers(0, 40_000))
def test_seconds_are_the_sum_of_the_terms(name, load, tokens):
    time = COSTS[name].on(DEVICE, SHAPE)
    assert float(time.seconds(load, tokens)) == pytest.approx(rank_seconds(time, load, tokens))


def test_many_ranks_at_once():
    time = COST.on(DEVICE, SHAPE)
    load = np.random.default_rng(0).integers(0, 900, (3, 4, 5))
    tokens = load.sum(axis=2) // 2
    one_by_one = [
        [rank_seconds(time, load[i, j].tolist(), tokens[i, j]) for j in range(4)] for i in range(3)
    ]
    assert time.seconds(load, tokens) == pytest.approx(np.array(one_by_one))


@pytest.mark.parametrize("name", COSTS)
@given(load=loads, tokens=st.integers(0, 5000), slot=st.integers(0, 11), more=st.integers(1, 500))
def test_one_more_assignment_is_never_cheaper(name, load, tokens, slot, more):
    time = COSTS[name].on(DEVICE, SHAPE)
    heavier = list(load)
    heavier[slot % len(load)] += more
    assert time.seconds(heavier, tokens) >= time.seconds(load, tokens)


@pytest.mark.parametrize("name", COSTS)
@given(load=loads, tokens=st.integers(0, 5000), cut=st.integers(1, 4999))
def test_one_more_active_expert_is_never_cheaper(name, load, tokens, cut):
    time = COSTS[name].on(DEVICE, SHAPE)
    joined, split = [sum(load), 0], [min(cut, sum(load)), max(sum(load) - cut, 0)]
    slack = 1 + 1e-12
    assert time.seconds(split, tokens) * slack >= time.seconds(joined, tokens)


@given(load=loads, tokens=st.integers(0, 5000), factor=st.floats(0.1, 10))
def test_a_faster_device_divides_all_but_the_fixed_terms(load, tokens, factor):
    faster = Device(
        memory_bytes_per_second=3e12 * factor,
        flops_per_second={"fp8": 2e15 * factor},
    )
    fixed = COST.on(DEVICE, SHAPE).seconds([0] * len(load), 0)
    before = COST.on(DEVICE, SHAPE).seconds(load, tokens) - fixed
    after = COST.on(faster, SHAPE).seconds(load, tokens) - fixed
    assert float(after * factor) == pytest.approx(float(before), rel=1e-6, abs=1e-12)


def test_terms_follow_from_bytes_and_operations():
    time = COST.on(DEVICE, SHAPE)
    weights = 3 * 7168 * 2048
    assert pytest.approx(weights * (1 + 4 / 128**2) / (0.8 * 3e12)) == time.expert_seconds
    assert pytest.approx(2 * weights / (0.5 * 2e15)) == time.product_seconds
    assert pytest.approx(20e-6 + 1e-9 * (7168 + 2048)) == time.fixed_seconds
    assert time.small_tokens == 32 * 256 / 8


def test_planners_constants_are_the_sharp_knee():
    time = replace(COSTS["sharp"], slot_seconds=0, assignment_passes=0).on(DEVICE, SHAPE)
    load = np.array([0, 5, 40, 3000])
    alone = replace(time, token_seconds=0).seconds(load, 0)
    assert time.rank_cost().rank_seconds(load, 1)[0] == pytest.approx(float(alone), rel=0.01)


def test_a_device_without_the_units_is_refused():
    shape = replace(SHAPE, dtype="nvfp4")
    with pytest.raises(EquipoiseError, match="no fp4 rate, which nvfp4 weights need"):
        COST.on(DEVICE, shape)


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_share": 0},
        {"flops_share": 1.5},
        {"fixed_seconds": -1e-6},
        {"sharpness": 0.5},
        {"token_block": 0},
        {"token_passes": float("nan")},
    ],
)
def test_impossible_constants_are_refused(wrong):
    with pytest.raises(EquipoiseError, match=next(iter(wrong))):
        replace(COST, **wrong)


def test_unknown_formats_are_refused():
    with pytest.raises(EquipoiseError, match=", ".join(PRECISIONS)):
        replace(SHAPE, dtype="int3")
