"""Time of a layer of a deployment, where its parts are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.layer_time import LayerTime
from equipoise.simulate.profiles import hardware, link

SHAPE = ExpertShape(hidden_size=7168, inter_size=2048, num_experts=256, top_k=8, dtype="fp8_block")
LAYER = LayerTime(
    shape=SHAPE,
    hardware=hardware("h100"),
    num_ranks=32,
    ranks_per_node=8,
    link=link("infiniband-400g").link,
)


def test_even_experts_are_the_experts_of_equal_loads():
    assignments = 100 * 32 * 8 / 256
    equal = LAYER.expert_seconds(np.full(8, assignments), "low latency")
    assert LAYER.even_seconds(100, "low latency") == pytest.approx(float(equal))


def test_of_few_tokens_only_some_experts_are_active():
    one, many = (LAYER.on(8).even_seconds(n, "low latency") for n in (0.125, 16))
    assert one < many / 3


def test_a_layer_is_its_experts_and_its_exchanges():
    for mode in ("low latency", "high throughput"):
        parts = LAYER.even_seconds(64, mode) + LAYER.exchange_seconds(64, mode)
        assert LAYER.layer_seconds(64, mode) == pytest.approx(parts)


def test_few_tokens_want_low_latency_and_many_high_throughput():
    assert LAYER.on(8).faster_mode(16) == "low latency"
    assert LAYER.on(8).faster_mode(4096) == "high throughput"


def test_the_crossover_is_where_the_published_kernels_cross():
    """DeepEP on one H100 node: 210 to 250 tokens by the tables, both exchanges together."""
    for op in ("dispatch", "combine"):
        assert 120 < LAYER.crossover(op) < 300


def test_a_slow_link_between_nodes_makes_exchanges_longer():
    slow = replace(LAYER, link=replace(LAYER.link, bytes_per_second=5e9))
    slow, fast = (x.exchange_seconds(128, "low latency") for x in (slow, LAYER))
    assert slow > 5 * fast


def test_kernels_are_those_of_the_gpu_then_of_the_framework():
    assert "deepepmoe, good" in LAYER.source
    assert "wideep_compute_cutlass, good" in replace(LAYER, framework="trtllm").source
    assert "wideep_compute_cutlass, good" in replace(LAYER, hardware=hardware("gb200")).source
    lent = replace(LAYER, hardware=hardware("mi300x")).source
    assert "borrowed from the H100, good to" in lent
    assert lent.endswith("DeepEP's, borrowed from the H100.")


def test_what_is_refused():
    with pytest.raises(EquipoiseError, match="257 ranks share 256 experts"):
        LAYER.on(257)
    with pytest.raises(EquipoiseError, match="no fp4 rate"):
        replace(LAYER, shape=replace(SHAPE, dtype="nvfp4"))
