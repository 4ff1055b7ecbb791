from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.simulate.network import (
    ExchangeCost,
    Link,
    payload_bytes,
    traffic_of,
    uniform_traffic,
)

NEAR, FAR = Link(bytes_per_second=400e9), Link(latency_seconds=20e-6, bytes_per_second=40e9)
COST = ExchangeCost(copies="rank", fixed_seconds=30e-6, link_share=0.5)
SIZES = {"num_experts": 64, "top_k": 4}


def test_one_node_by_hand():
    copies = np.array([[0, 100], [300, 50]])
    # Rank 0 sends 100 and receives 300; rank 1 sends 350 and receives 150.
    seconds = COST.seconds(traffic_of(copies, 2), 1e6, NEAR)
    assert float(seconds) == pytest.approx(30e-6 + 350 * 1e6 / 200e9)


def test_two_tiers_carry_at_the_same_time():
    copies = np.zeros((4, 4))
    copies[0, 1] = 10
    copies[0, 2] = copies[1, 2] = 30
    traffic = traffic_of(copies, 2)
    assert traffic.near.tolist() == [10, 10, 0, 0]
    assert traffic.far.tolist() == [30, 30, 60, 0]
    across = 20e-6 + 60 * 1e6 / 40e9
    assert float(COST.seconds(traffic, 1e6, NEAR, FAR)) == pytest.approx(30e-6 + across)
    with pytest.raises(EquipoiseError, match="give the link between nodes"):
        COST.seconds(traffic, 1e6, NEAR)


def test_a_proxy_sends_so_many_messages_a_second_and_no_more():
    copies = np.zeros((4, 4))
    copies[0, 2] = 64
    traffic = traffic_of(copies, 2)
    slow, quick = (replace(FAR, message_seconds=s) for s in (1e-6, 1e-9))
    alone = replace(COST, copies="assignment")
    small = 40_000  # bytes: a microsecond of the link
    told = {"payload_bytes": small / 10, "near": NEAR}
    assert float(alone.seconds(traffic, far=slow, **told)) == pytest.approx(50e-6 + 64e-6)
    assert float(COST.seconds(traffic, far=slow, **told)) == pytest.approx(50e-6 + 64e-7)
    assert float(alone.seconds(traffic, far=quick, **told)) == pytest.approx(50e-6 + 64e-7)


def test_uniform_traffic_is_what_drawn_tokens_make():
    rng = np.random.default_rng(0)
    tokens, ranks = 4000, 8
    experts = np.argsort(rng.random((tokens, 64)), axis=1)[:, :4]
    rank = experts // 8
    by_rank = np.mean([len(set(row)) for row in rank])
    node = np.mean([len(set(row) - {0}) for row in rank // 2])
    sizes = {**SIZES, "num_ranks": ranks, "ranks_per_node": 2}
    once_a_rank = uniform_traffic(1.0, "rank", **sizes)
    assert float(once_a_rank.near[0]) == pytest.approx(by_rank, rel=0.02)
    assert float(once_a_rank.far[0]) == pytest.approx(node, rel=0.02)
    each_choice = uniform_traffic(1.0, "assignment", **sizes)
    assert float(each_choice.near[0] + each_choice.far[0]) == 4


@given(st.integers(0, 50), st.integers(0, 3), st.integers(0, 3))
def test_a_busier_receiver_never_takes_less(more, source, target):
    copies = np.random.default_rng(0).integers(0, 40, (4, 4))
    skewed = copies.copy()
    skewed[source, target] += more
    before = COST.seconds(traffic_of(copies, 2), 7000, NEAR, FAR)
    assert COST.seconds(traffic_of(skewed, 2), 7000, NEAR, FAR) >= before


def test_few_multiprocessors_limit_the_rate():
    cost = replace(COST, sm_bytes_per_second=10e9)
    traffic = uniform_traffic(5000.0, "rank", num_ranks=8, ranks_per_node=8, **SIZES)
    few, many = (float(cost.seconds(traffic, 7000, NEAR, sms=sms)) for sms in (2, 200))
    free = float(COST.seconds(traffic, 7000, NEAR))
    assert many == pytest.approx(free, rel=0.01)
    assert few - 30e-6 == pytest.approx((free - 30e-6) * 10, rel=0.01)


def test_what_cannot_be_is_refused():
    with pytest.raises(EquipoiseError, match="expected 'assignment' or 'rank'"):
        replace(COST, copies="node")
    with pytest.raises(EquipoiseError, match="top_k is 5; expected 1 to 4"):
        uniform_traffic(1, "rank", num_experts=4, top_k=5, num_ranks=2, ranks_per_node=2)
    with pytest.raises(EquipoiseError, match="use one of bfloat16"):
        payload_bytes(7168, "int9")
    with pytest.raises(EquipoiseError, match="expected"):
        traffic_of(np.zeros((2, 3)), 1)
