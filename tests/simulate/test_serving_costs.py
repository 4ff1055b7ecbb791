from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.expert_time import UncertainCost
from equipoise.simulate.machine import machine
from equipoise.simulate.own_work import OwnWork
from equipoise.simulate.profiles import hardware
from equipoise.simulate.serving_costs import MEMORY_SHARE, ServingCosts, memory_for_cache

SHAPE = ExpertShape(hidden_size=2048, inter_size=1024, num_experts=32, top_k=4, dtype="fp8_block")
OWN = OwnWork(
    num_moe_layers=10,
    weight_bytes=1e8,
    token_flops=2e8,
    kv_bytes_per_token=50_000,
    decode_pair_flops=1e5,
    prefill_pair_flops=1e5,
)
NOTHING = np.zeros(4, np.int64)


def of_machines(own_work: OwnWork | None, context_tokens: float = 1000.0) -> ServingCosts:
    decode, prefill = (
        machine(
            "h100",
            SHAPE,
            phase=phase,
            num_nodes=1,
            own_work=own_work,
            context_tokens=context_tokens,
        )
        for phase in ("decode", "prefill")
    )
    return ServingCosts.of_machines(
        decode, prefill, context_tokens=context_tokens, other_seconds=0.002
    )


def test_a_rank_cost_is_that_of_all_steps():
    model = UncertainCost.published("h100-deepep-ep8")
    costs = ServingCosts.of_ranks(model, 0.01)
    assert costs.model is costs.prefill_model is model
    assert costs.rest.seconds(0, NOTHING, NOTHING, NOTHING + 500) == 0.01
    assert costs.facts == {}


def test_the_context_of_a_step_takes_what_the_machine_gives_for_it():
    """Of 4 sequences with 1,000 tokens each: once as an average, once as the step has it."""
    costs = of_machines(OWN)
    assert costs.model.context_tokens == 0
    device = costs.model.device
    with_context, without = (
        10 * float(OWN.layer_seconds(4.0, device, "decode", tokens)) for tokens in (1000, 0)
    )
    rest = costs.rest.seconds(0, NOTHING, NOTHING + 4, NOTHING + 4000)
    assert rest == pytest.approx(0.002 + with_context - without)
    assert costs.prefill_rest.seconds(0, NOTHING, NOTHING, NOTHING + 4000) == 0.002
    assert costs.facts == costs.model.facts


def test_sparse_attention_reads_no_more_than_it_looks_at():
    sparse = of_machines(replace(OWN, most_context_tokens=250))
    whole = of_machines(OWN)
    of_context = [
        c.rest.seconds(0, NOTHING, NOTHING, NOTHING + 4000) - 0.002 for c in (sparse, whole)
    ]
    assert of_context[0] == pytest.approx(of_context[1] / 4)


def test_a_machine_without_attention_adds_no_time_for_context():
    assert of_machines(None).rest.seconds(0, NOTHING, NOTHING, NOTHING + 4000) == 0.002


def test_the_cache_gets_what_the_weights_leave():
    gpu = hardware("h100")
    left = memory_for_cache(gpu, slot_bytes=10**9, slots_per_rank=8, other_weight_bytes=5e9)
    assert left == int(MEMORY_SHARE * gpu.memory_bytes.value - 13e9)
    with pytest.raises(EquipoiseError, match="take more ranks"):
        memory_for_cache(gpu, slot_bytes=10**9, slots_per_rank=80, other_weight_bytes=5e9)
