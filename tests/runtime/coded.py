"""Layers whose weights say what they are, to see that every byte of an expert goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from equipoise.placement import Placement
from equipoise.runtime.moe.layer import ExpertParallelLayer
from equipoise.runtime.moving import transfer
from equipoise.runtime.moving.checksum import slot_bytes

L, E, H = 3, 10, 4
SHAPES = {  # quantised weights, their scales by block and by expert, and another number format
    "weight": (torch.uint8, (5, 7)),
    "block_scale": (torch.float32, (3,)),
    "scale": (torch.float64, ()),
    "half": (torch.bfloat16, (2, 3)),
}


def code(layer: int, expert: int) -> dict[str, torch.Tensor]:
    """The tensors of an expert: all elements of all experts differ as far as the format allows."""
    made = {}
    for number, (name, (dtype, shape)) in enumerate(SHAPES.items()):
        index = torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)
        value = index + 37 * number + 1000 * expert + 20_000 * layer
        made[name] = (value % 251 if dtype == torch.uint8 else value).to(dtype)
    return made


def coded(where: Placement, row: int, rank: int) -> dict[str, torch.Tensor]:
    """What a rank's slots of a layer hold."""
    experts = [code(row, expert) for expert in where.by_rank[row, rank].tolist()]
    return {name: torch.stack([one[name] for one in experts]) for name in SHAPES}


def compute(rows: torch.Tensor, counts: Any, weights: Any) -> torch.Tensor:
    """Something that takes all tensors to compute."""
    factor = sum(tensor.double().reshape(len(tensor), -1).sum(1) for tensor in weights.values())
    return rows * torch.repeat_interleave(factor, torch.tensor(counts))[:, None]


def make_layers(where: Placement, group: Any) -> list[ExpertParallelLayer]:
    rank = dist.get_rank(group)
    return [
        ExpertParallelLayer(
            where.rows([row]),
            coded(where, row, rank),
            compute=compute,
            group=group,
            dispatch="minmax",
        )
        for row in range(where.num_layers)
    ]


def holds(layer: ExpertParallelLayer, where: Placement, row: int) -> bool:
    """Whether a layer serves its layer of a placement, bit for bit."""
    wanted = coded(where, row, layer.rank)
    same = all(torch.equal(tensor, wanted[name]) for name, tensor in layer.weights.items())
    return same and layer.placement == where.rows([row])


def answers_right(layer: ExpertParallelLayer, row: int) -> bool:
    """Whether a forward pass, with unequal ranks, answers what the experts say."""
    tokens = (3, 0, 5, 1)[layer.rank]
    generator = torch.Generator().manual_seed(layer.rank)
    hidden = torch.randint(1, 9, (tokens, H), generator=generator).double()
    ids = torch.randint(0, E, (tokens, 2), generator=generator)
    of_expert = torch.stack([_factor(row, expert) for expert in range(E)])
    wanted = hidden * of_expert[ids].sum(dim=1)[:, None]
    return torch.equal(layer(hidden, ids, torch.ones(tokens, 2, dtype=torch.float64)), wanted)


def _factor(row: int, expert: int) -> torch.Tensor:
    return torch.stack([tensor.double().sum() for tensor in code(row, expert).values()]).sum()


@contextmanager
def spoiled(layer: ExpertParallelLayer, how: str) -> Iterator[None]:
    """Let rank 0 hold or send one bit of a layer wrong."""
    whole = transfer._messages

    def messages(weights: dict[str, torch.Tensor], slot: int) -> list[torch.Tensor]:
        chunks = whole(weights, slot)
        if weights["weight"].data_ptr() == layer.weights["weight"].data_ptr():  # to be sent
            chunks = [chunk.clone() for chunk in chunks]
            chunks[-1][-1] ^= 1
        return chunks

    if layer.rank == 0 and how == "weights":
        for slot in range(layer.placement.slots_per_rank):
            slot_bytes(layer.weights["block_scale"], slot)[2] ^= 1
    if layer.rank == 0 and how == "wire":
        with mock.patch.object(transfer, "_messages", messages):
            yield
    else:
        yield


def any_placement(seed: int, redundant: int = 6, ranks: int = 4) -> Placement:
    """Experts anywhere, copies of one on one rank too."""
    rng = np.random.default_rng(seed)
    slots = [np.concatenate([np.arange(E), rng.integers(0, E, redundant)]) for _ in range(L)]
    return Placement([rng.permutation(s) for s in slots], num_ranks=ranks, num_experts=E)
