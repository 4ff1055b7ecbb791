"""Time of a layer of a deployment, where its parts are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.layer_time import MODES, LayerTime
from equipoise.simulate.profiles import hardware, link

SHAPE = ExpertShape(hidden_size=7168, inter_size=2048, num_experts=256, top_k=8, dtype="fp8_block")
LAYER = LayerTime(
    shape=SHAPE,
    hardware=hardware("h100"),
    num_ranks=32,
    ranks_per_node=8,
    link=link("infiniband-400g"),
)


def test_even_experts_are_the_experts_of_equal_loads():
    equal = np.full((1, 1, 256), 100 * 32 * 8 / 256)
    machine = LAYER.machines["low-latency"]
    seconds = machine.rank_seconds(equal, 32)
    assert LAYER.even_seconds(100, "low-latency") == pytest.approx(float(seconds.max()))


def test_of_few_tokens_only_some_experts_are_active():
    one, many = (LAYER.on(8).even_seconds(n, "low-latency") for n in (0.125, 16))
    assert one < many / 3


def test_a_layer_is_its_experts_and_its_exchanges():
    for mode in ("low-latency", "high-throughput"):
        parts = LAYER.even_seconds(64, mode) + LAYER.exchange_seconds(64, mode)
        assert LAYER.layer_seconds(64, mode) == pytest.approx(parts)


def test_few_tokens_want_low_latency_and_many_high_throughput():
    assert LAYER.on(8).faster_mode(16) == "low-latency"
    assert LAYER.on(8).faster_mode(4096) == "high-throughput"


def test_the_crossover_is_where_the_published_kernels_cross():
    """DeepEP on one H100 node: 210 to 250 tokens by the tables, both exchanges together."""
    assert 120 < LAYER.crossover() < 300
    low, high = (LAYER.on(8).exchange_seconds(LAYER.crossover(), mode) for mode in MODES)
    assert high == pytest.approx(low, rel=0.02)


def test_micro_batches_hide_exchanges_and_read_the_weights_again():
    on_node = LAYER.on(8)
    for tokens in (16, 8192):
        parts = [
            (on_node.even_seconds(tokens, m), on_node.exchange_seconds(tokens, m)) for m in MODES
        ]
        assert on_node.overlapped_seconds(tokens) > min(map(max, parts))
    assert on_node.overlapped_seconds(16) > on_node.layer_seconds(16, "low-latency")
    assert on_node.overlapped_seconds(8192) < on_node.layer_seconds(8192, "high-throughput")


def test_ranks_that_do_not_divide_the_experts_share_all_assignments():
    layer = replace(LAYER, num_ranks=24)
    load = layer._even(np.array([0.125, 100.0])).reshape(2, 24, -1)
    assert load.sum(axis=(1, 2)) == pytest.approx(np.array([0.125, 100]) * 24 * 8)
    assert (load[1] > 0).sum() == 256


def test_a_slow_link_between_nodes_makes_exchanges_longer():
    slow = replace(LAYER, link=link("aws-efa"))
    slow, fast = (x.exchange_seconds(128, "low-latency") for x in (slow, LAYER))
    assert slow > 1.3 * fast


def test_kernels_are_those_of_the_gpu_then_of_the_framework():
    assert "deepepmoe (sglang, decode steps) fitted on H100 and deepepmoe" in LAYER.source
    ours = replace(LAYER, framework="trtllm").source
    assert "wideep_compute_cutlass (trtllm, any steps) fitted on H100, good to" in ours
    assert "wideep_compute_cutlass" in replace(LAYER, hardware=hardware("gb200")).source
    lent = replace(LAYER, hardware=hardware("mi300x")).source
    assert "fitted on H100, another maker's GPU: 50% less sure" in lent


def test_what_is_refused():
    with pytest.raises(EquipoiseError, match="264 ranks share 256 experts"):
        LAYER.on(264)
    with pytest.raises(EquipoiseError, match="33 ranks do not divide into nodes of 8"):
        LAYER.on(33)
