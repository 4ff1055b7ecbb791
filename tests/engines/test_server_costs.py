from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.engines.machines import Serving
from equipoise.engines.server_costs import Cache, cache_of, server_costs
from equipoise.engines.transformers.config import read_model_config
from equipoise.simulate.batching import NO_LIMIT
from equipoise.simulate.profiles import hardware
from equipoise.simulate.requests import Requests
from equipoise.topology import Topology
from equipoise.trace import Trace

GPU = hardware("h100")
MODEL = read_model_config("deepseek-v3")
REQUESTS = Requests(arrival_seconds=np.zeros(2), prompt_tokens=[600, 1000], output_tokens=400)


def test_a_cache_is_limited_by_hand_or_by_what_the_weights_leave():
    for gpu, model, why in (
        (None, None, "no --model is given"),
        (GPU, None, "no --model is given"),
        (None, MODEL, "give --kv-tokens or --hardware"),
    ):
        cache = cache_of(gpu, model, slots_per_rank=8, kv_tokens=None)
        assert (cache.kv_tokens, cache.slot_bytes) == (NO_LIMIT, 0)
        assert why in cache.note
    by_hand = cache_of(None, None, slots_per_rank=8, kv_tokens=1000)
    assert (by_hand.kv_tokens, by_hand.slot_bytes) == (1000, 0)
    assert "take no room" in by_hand.note
    assert cache_of(None, MODEL, slots_per_rank=8, kv_tokens=1000) == Cache(
        kv_tokens=1000, token_bytes=MODEL.kv_bytes_per_token, slot_bytes=MODEL.slot_bytes
    )


def test_a_configuration_that_leaves_the_bytes_of_a_token_open_says_why():
    glm = read_model_config("glm-5.2-fp8")
    cache = cache_of(GPU, glm, slots_per_rank=8, kv_tokens=None)
    assert cache.kv_tokens == NO_LIMIT
    assert glm.unknown["kv_bytes_per_token"] in cache.note


def test_the_weights_of_deepseek_v3_leave_half_a_million_tokens_on_32_h100():
    cache = cache_of(GPU, MODEL, slots_per_rank=8, kv_tokens=None)
    left = 0.9 * 80e9 - 8 * MODEL.slot_bytes - MODEL.own_work.weight_bytes
    assert cache.kv_tokens == int(left) // MODEL.kv_bytes_per_token
    assert 400_000 < cache.kv_tokens < 600_000
    fewer = cache_of(GPU, replace(MODEL, own_work=None), slots_per_rank=8, kv_tokens=None)
    assert fewer.kv_tokens > cache.kv_tokens


@pytest.mark.parametrize("phase", [None, "prefill"])
def test_each_pool_gets_the_machine_of_its_phase_and_the_requests_context(phase):
    counts = np.full((3, 58, 256), 32)
    recording = Trace(counts=counts, layer_ids=tuple(range(3, 61)), top_k=8)
    costs = server_costs(
        GPU,
        recording,
        MODEL,
        Topology(32, 8),
        Topology(8),
        Serving(phase=phase),
        requests=REQUESTS,
        other_seconds=0.001,
    )
    assert costs.model.phase == (phase or "decode")
    assert costs.prefill_model.phase == "prefill"
    assert costs.prefill_model.context_tokens == 400
    assert (costs.model.far is None, costs.prefill_model.far is None) == (False, True)
    assert "1000 tokens of context" in costs.facts["attention"]
