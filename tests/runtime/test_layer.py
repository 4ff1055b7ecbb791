from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from equipoise.dispatch import MinMax
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.runtime.moe.layer import ExpertParallelLayer, swiglu
from equipoise.topology import Topology

E, K, H, F = 12, 3, 10, 6
TOKENS = {1: [7], 2: [9, 4], 4: [11, 0, 5, 1]}  # of each rank; one of four is idle
DISPATCHERS = ("even", "minmax", "nearest", "fewest")


def placement(ranks: int, redundant: int = 0, seed: int = 0) -> Placement:
    """Experts anywhere; the redundant slots hold random ones."""
    rng = np.random.default_rng(seed)
    slots = np.concatenate([np.arange(E), rng.integers(0, E, redundant)])
    return Placement(rng.permutation(slots)[None], num_ranks=ranks, num_experts=E)


def experts(seed: int = 0) -> dict[str, torch.Tensor]:
    """The weights of all experts, ``(E, ...)``."""
    g = torch.Generator().manual_seed(seed)
    return {
        "gate_up_proj": torch.randn(E, 2 * F, H, generator=g),
        "down_proj": torch.randn(E, H, F, generator=g),
    }


def held(where: Placement, rank: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t[torch.from_numpy(where.by_rank[0, rank])] for name, t in weights.items()}


def batch(rank: int, tokens: int, dtype: torch.dtype = torch.float32):
    """Hidden states, choices and their weights; the last token of a long batch is padding."""
    g = torch.Generator().manual_seed(100 + rank)
    ids = torch.rand(tokens, E, generator=g).topk(K).indices
    ids[5:6] = torch.tensor([E, -1, E + 7])
    ids[4:5] = 2  # one expert chosen three times
    weights = torch.rand(tokens, K, generator=g)
    return torch.randn(tokens, H, generator=g).to(dtype), ids, weights.to(dtype)


def expected(hidden, ids, scores, weights):
    """Token by token, choice by choice."""
    out = torch.zeros_like(hidden)
    for d, token in enumerate(hidden):
        for k, e in enumerate(ids[d].tolist()):
            if 0 <= e < E:
                gate, up = (weights["gate_up_proj"][e] @ token).chunk(2)
                inner = torch.nn.functional.silu(gate) * up
                out[d] += scores[d, k] * (weights["down_proj"][e] @ inner)
    return out


def serve(group, where, dispatch, max_num_tokens, dtype=torch.float32):
    rank, ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    weights = {name: t.to(dtype) for name, t in experts().items()}
    layer = ExpertParallelLayer(
        where,
        held(where, rank, weights),
        dispatch=dispatch,
        group=group,
        max_num_tokens=max_num_tokens,
    )
    given = batch(rank, TOKENS[ranks][rank], dtype)
    got, want = layer(*given), expected(*given, weights)
    assert got.dtype == dtype
    return ((got - want).abs().max() / want.abs().max()).item() if len(got) else 0.0


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("dispatch", DISPATCHERS)
@pytest.mark.parametrize("redundant", [0, 8])
def test_answers_are_those_of_the_experts(pool, ranks, dispatch, redundant):
    errors = pool.run(serve, placement(ranks, redundant), dispatch, None, ranks=ranks)
    assert max(errors) < 1e-5


@pytest.mark.parametrize("max_num_tokens", [1, 5, 16, 1000])
def test_in_chunks_too(pool, max_num_tokens):
    assert max(pool.run(serve, placement(4, 8), "minmax", max_num_tokens)) < 1e-5


def serve_at_random(group, seeds):
    """Batches and options drawn from a seed that all ranks share."""
    rank, worst = torch.distributed.get_rank(group), 0.0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        where = placement(4, 4 * int(rng.integers(0, 7)), seed)
        layer = ExpertParallelLayer(
            where,
            held(where, rank, experts()),
            dispatch=str(rng.choice(DISPATCHERS)),
            topology=Topology(4, ranks_per_node=int(rng.choice([1, 2, 4]))),
            max_num_tokens=[None, 3, 10][rng.integers(3)],
            group=group,
        )
        for tokens in rng.integers(0, rng.choice([2, 12, 60]), (3, 4)):
            given = batch(rank, int(tokens[rank]))
            difference = layer(*given) - expected(*given, experts())
            worst = max(worst, difference.abs().max().item() if len(difference) else 0.0)
    return worst


def test_any_batch_on_any_placement(pool):
    assert max(pool.run(serve_at_random, range(12))) < 1e-4


def test_number_formats_travel(pool):
    assert max(pool.run(serve, placement(4, 8), "even", None, torch.float64)) < 1e-14
    assert max(pool.run(serve, placement(4, 8), "even", None, torch.bfloat16)) < 0.05


def scaled(rows, counts, weights):
    """Experts that round as one row does, however many rows they are given."""
    factor = torch.repeat_interleave(weights["factor"], torch.tensor(counts), dim=0)
    return torch.sin(rows) * factor


def serve_scaled(group, where, dispatch, max_num_tokens):
    rank = torch.distributed.get_rank(group)
    factor = torch.randn(E, H, generator=torch.Generator().manual_seed(1))
    layer = ExpertParallelLayer(
        where,
        held(where, rank, {"factor": factor}),
        compute=scaled,
        dispatch=dispatch,
        max_num_tokens=max_num_tokens,
        group=group,
    )
    return layer(*batch(rank, TOKENS[4][rank]))


def test_where_experts_are_does_not_change_a_bit(pool):
    first = pool.run(serve_scaled, placement(4), "even", None)
    assert any(len(answer) and answer.abs().sum() > 0 for answer in first)
    for dispatch in DISPATCHERS:
        for redundant, chunk in ((8, None), (20, 6)):
            again = pool.run(serve_scaled, placement(4, redundant, seed=3), dispatch, chunk)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def serve_nobody(group, max_num_tokens):
    rank = torch.distributed.get_rank(group)
    where = placement(4)
    layer = ExpertParallelLayer(
        where, held(where, rank, experts()), group=group, max_num_tokens=max_num_tokens
    )
    return layer(*batch(rank, 0)).shape


@pytest.mark.parametrize("max_num_tokens", [None, 8])
def test_a_step_without_tokens(pool, max_num_tokens):
    assert pool.run(serve_nobody, max_num_tokens) == [(0, H)] * 4


def serve_masked(group):
    rank = torch.distributed.get_rank(group)
    where, weights = placement(4, 4), experts()
    layer = ExpertParallelLayer(where, held(where, rank, weights), group=group)
    hidden, ids, scores = batch(rank, 6)
    layer.real = torch.arange(6) % 2 == 0
    want = expected(hidden, ids, scores, weights)
    want[1::2] = 0
    return (layer(hidden, ids, scores) - want).abs().max().item()


def test_tokens_that_are_none_get_nothing(pool):
    assert max(pool.run(serve_masked)) < 1e-4


def rows_computed(group, dispatch):
    """Rows each rank computes when every token of every rank wants experts 0 and 1."""
    rank = torch.distributed.get_rank(group)
    rows = []

    def count(given, counts, weights):
        rows.append(sum(counts))
        return swiglu(given, counts, weights)

    slots = np.array([[0, 2, 3, 4, 0, 5, 6, 7, 1, 8, 9, 10, 1, 11, 0, 1]])
    where = Placement(slots, num_ranks=4, num_experts=E)
    layer = ExpertParallelLayer(
        where, held(where, rank, experts()), compute=count, dispatch=dispatch, group=group
    )
    tokens = (40, 0, 8, 24)[rank]
    ids = torch.tensor([[0, 1]]).repeat(tokens, 1)
    layer(torch.randn(tokens, H), ids, torch.ones(tokens, 2))
    return rows[0]


def test_copies_are_used_as_the_dispatcher_says(pool):
    load = np.array([[40, 40] + [0] * 10, [0] * E, [8, 8] + [0] * 10, [24, 24] + [0] * 10])
    slots = np.array([[0, 2, 3, 4, 0, 5, 6, 7, 1, 8, 9, 10, 1, 11, 0, 1]])
    where = Placement(slots, num_ranks=4, num_experts=E)
    assert pool.run(rows_computed, "minmax") == [36] * 4
    quotas = MinMax().split(load[None], where).quotas
    assert quotas.reshape(4, 4).sum(axis=1).tolist() == [36] * 4
    assert sum(pool.run(rows_computed, "nearest")) == 144
    assert max(pool.run(rows_computed, "nearest")) > 36


def make(group, change):
    """What making a layer says if rank 1 makes another."""
    rank = torch.distributed.get_rank(group)
    where, weights = placement(4, 4), experts()
    own = held(where, rank, weights)
    options = {"dispatch": "even"}
    if rank == 1 and change == "placement":
        where = placement(4, 4, seed=5)
        own = held(where, rank, weights)
    if rank == 1 and change == "dispatch":
        options["dispatch"] = MinMax(topology=Topology(4, speed=(1, 1, 1, 2)))
    if change == "copy":
        slot = twice(where)
        if rank == slot // where.slots_per_rank:
            own["down_proj"][slot % where.slots_per_rank, 3, 2] += 1e-6
    try:
        ExpertParallelLayer(where, own, group=group, **options)
    except EquipoiseError as error:
        return str(error)
    return None


def twice(where: Placement) -> int:
    """A slot whose expert another slot holds too."""
    return int(np.flatnonzero(where.copies[0, where.slots[0]] > 1)[0])


@pytest.mark.parametrize("change", ["placement", "dispatch"])
def test_ranks_that_differ_are_told(pool, change):
    said = pool.run(make, change)
    assert all(text.startswith("Ranks disagree on layer 0") for text in said)


def test_copies_that_differ_are_told(pool):
    said = pool.run(make, "copy")
    assert said == [said[0]] * 4
    assert f"expert {placement(4, 4).slots[0, twice(placement(4, 4))]}." in said[0]
    assert pool.run(make, None) == [None] * 4


def refused(group, what):
    where = placement(4, 4)
    weights = held(where, torch.distributed.get_rank(group), experts())
    if what == "ranks":
        where = placement(2, 4)
    if what == "slots":
        weights["down_proj"] = weights["down_proj"][1:]
    if what == "layers":
        where = Placement(where.slots.repeat(2, axis=0), num_ranks=4, num_experts=E)
    if what == "nothing":
        weights = {}
    chunks = 0 if what == "chunks" else None
    given = torch.zeros(3, H), torch.zeros(4, K, dtype=torch.long), torch.zeros(4, K)
    with pytest.raises(EquipoiseError) as told:
        ExpertParallelLayer(where, weights, group=group, max_num_tokens=chunks)(*given)
    return str(told.value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("ranks", "for 2 ranks, the process group has 4"),
        ("slots", "'down_proj' have shape .* a first axis of 4"),
        ("layers", "2 layers; expected one"),
        ("nothing", "No weights"),
        ("chunks", "max_num_tokens is 0"),
        ("tokens", "have shapes .3, 10., .4, 3. and .4, 3.;"),
    ],
)
def test_what_does_not_fit_is_refused(pool, what, message):
    for text in pool.run(refused, what):
        assert re.search(message, text)
