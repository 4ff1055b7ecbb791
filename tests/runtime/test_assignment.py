"""The layer serves by whatever gives its tokens their slots, and answers the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.dispatch import MinMax, Nearest
from equipoise.engines.sglang.rules import SglangStatic
from equipoise.engines.trtllm.rules import Trtllm
from equipoise.engines.vllm.rules import Vllm
from equipoise.errors import EquipoiseError
from equipoise.runtime.moe.assignment import (
    Assigned,
    ByQuotas,
    ByRule,
    OnDevice,
    TokenAssignment,
    token_assignment,
)
from equipoise.runtime.moe.layer import ExpertParallelLayer
from equipoise.topology import Topology
from tests.runtime.test_layer import TOKENS, E, batch, expected, experts, held, placement

WHERE = placement(4, 8)
NODES = Topology(4, ranks_per_node=2)
ASSIGNMENTS = {
    "table rule": ByRule(SglangStatic(topology=NODES)),
    "row rule": ByRule(Vllm(top_k=3)),
    "rule of blocks": ByRule(Trtllm()),  # gives padding the number S
    "on device": OnDevice(),
    "quotas": ByQuotas(MinMax()),
}
BATCHES = [batch(rank, tokens)[1] for rank, tokens in enumerate(TOKENS[4])]


def slot_loads(assignment: TokenAssignment) -> np.ndarray:
    """Assignments of each slot, as each rank by itself would have them."""
    counts = [np.bincount(ids[(ids >= 0) & (ids < E)], minlength=E) for ids in BATCHES]
    slots = [
        assignment.assign(ids, np.stack(counts), WHERE, rank).slots
        for rank, ids in enumerate(BATCHES)
    ]
    known = torch.cat([one.flatten() for one in slots])
    return np.bincount(known[known >= 0], minlength=WHERE.num_slots)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_slots_hold_the_experts_chosen(name):
    counts = np.stack([np.bincount(i[(i >= 0) & (i < E)], minlength=E) for i in BATCHES])
    for rank, ids in enumerate(BATCHES):
        assigned = ASSIGNMENTS[name].assign(ids, counts, WHERE, rank)
        served = assigned.slots >= 0
        assert torch.equal(served, (ids >= 0) & (ids < E))
        held_by = torch.from_numpy(WHERE.slots[0].copy())[assigned.slots[served]]
        assert torch.equal(held_by, ids[served])


def test_rules_send_tokens_where_the_engine_does():
    rule = SglangStatic(topology=NODES)
    for rank, ids in enumerate(BATCHES):
        slots = ByRule(rule).assign(ids, np.zeros((4, E), np.int64), WHERE, rank).slots
        np.testing.assert_array_equal(slots, rule.slots(ids.numpy(), WHERE, rank=rank))


def test_the_device_finds_the_peak_of_the_host():
    on_device, by_quotas = (
        slot_loads(ASSIGNMENTS[name]).reshape(4, -1).sum(axis=1).max()
        for name in ("on device", "quotas")
    )
    assert on_device == by_quotas


def serve(group: Any, name: str, max_num_tokens: int | None) -> tuple[float, list[int], float]:
    """Differences from the reference, before and after experts moved; what ranks computed."""
    rank, weights = torch.distributed.get_rank(group), experts()
    layer = ExpertParallelLayer(
        WHERE,
        held(WHERE, rank, weights),
        dispatch=ASSIGNMENTS[name],
        group=group,
        max_num_tokens=max_num_tokens,
    )
    computed = np.zeros(4, np.int64)

    def meter(load_R: np.ndarray) -> None:
        computed.__iadd__(load_R)

    layer.meter = meter
    given = batch(rank, TOKENS[4][rank])
    wanted = expected(*given, weights)
    first = layer(*given) - wanted
    computed_first = computed.tolist()
    other = placement(4, 8, seed=7)
    layer.commit(other, range(other.slots_per_rank), held(other, rank, weights))
    second = layer(*given) - wanted
    worst = [abs(d).max().item() if len(d) else 0.0 for d in (first, second)]
    return worst[0], computed_first, worst[1]


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_answers_are_those_of_the_experts_whatever_gives_the_slots(pool, name):
    said = pool.run(serve, name, None)
    assert max(first for first, _, _ in said) < 1e-4
    assert max(second for _, _, second in said) < 1e-4
    wanted = slot_loads(ASSIGNMENTS[name]).reshape(4, -1).sum(axis=1).tolist()
    assert [computed for _, computed, _ in said] == [wanted] * 4


@pytest.mark.parametrize("name", ["table rule", "on device"])
def test_in_chunks_too(pool, name):
    assert max(max(said[0], said[2]) for said in pool.run(serve, name, 5)) < 1e-4


@dataclass(frozen=True)
class FirstSlot:
    """A third-party assignment: the first slot of every expert."""

    dispatcher: Nearest = field(default_factory=Nearest)

    def assign(self, ids_DK: Any, load_RE: Any, placement: Any, rank: int) -> Assigned:
        first = torch.from_numpy(placement.slots_of_experts()[0, :, 0].copy())
        known = (ids_DK >= 0) & (ids_DK < E)
        return Assigned(torch.where(known, first[torch.where(known, ids_DK, 0)], -1))


def test_what_is_given_is_taken_for_what_it_is():
    mine = FirstSlot()
    assert token_assignment(mine) is mine
    assert token_assignment("minmax", NODES) == ByQuotas(MinMax(topology=NODES))
    assert token_assignment(Vllm()) == ByQuotas(Vllm())  # what the rule is expected to do
    with pytest.raises(EquipoiseError, match="There is no dispatcher 'maxmin'"):
        token_assignment("maxmin")


def disagree(group: Any) -> str:
    rank = torch.distributed.get_rank(group)
    mine = FirstSlot() if rank else ByQuotas(Nearest())
    with pytest.raises(EquipoiseError) as told:
        ExpertParallelLayer(WHERE, held(WHERE, rank, experts()), dispatch=mine, group=group)
    return str(told.value)


def test_ranks_that_differ_are_told(pool):
    assert all("FirstSlot" in text and "ByQuotas" in text for text in pool.run(disagree))
