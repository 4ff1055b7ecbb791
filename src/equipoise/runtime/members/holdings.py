"""The contributions of ranks to a rebuild: the model as they know it, and their slots' content.

The bytes of a slot say what it holds, not the placement: moves that were under way when a rank died
may be complete on some ranks and not on others.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from equipoise.errors import EquipoiseError
from equipoise.runtime.moe.layer import ExpertParallelLayer
from equipoise.runtime.moe.model import ExpertParallelModel
from equipoise.runtime.moving.checksum import expert_checksum

logger = logging.getLogger("equipoise.runtime")


@dataclass(frozen=True)
class Served:
    """A rank's knowledge of the model that it has served; the same on every such rank.

    Parameters
    ----------
    layer_ids, num_experts
        MoE layers of the model, and experts of each.
    checksums
        Checksum of each expert of each layer.
    tensors
        Shape and type of the tensors of one expert, by name, for each layer.
    """

    layer_ids: tuple[int, ...]
    num_experts: int
    checksums: tuple[tuple[int, ...], ...]
    tensors: tuple[dict[str, tuple[tuple[int, ...], str]], ...]

    @property
    def slot_bytes(self) -> int:
        """Bytes that one more slot in every layer takes."""
        return sum(
            math.prod(shape) * dtype_of(dtype).itemsize
            for of_layer in self.tensors
            for shape, dtype in of_layer.values()
        )


@dataclass(frozen=True)
class Brought:
    """The contribution of a rank to a rebuild.

    Parameters
    ----------
    served
        Model that the rank has served; ``None`` on a new rank.
    held
        Expert of each slot of each layer, -1 if its bytes are those of no expert.
    wrong
        Slots that do not hold the expert they should, one sentence each.
    checkpoint
        Layers and number of experts in the checkpoint; ``None`` without one.
    """

    served: Served | None
    held: list[list[int]]
    wrong: list[str]
    checkpoint: tuple[tuple[int, ...], int] | None


def held_by(layer: ExpertParallelLayer) -> tuple[list[int], list[str]]:
    """The expert of each slot by its bytes, -1 if none; and a sentence on each wrong slot."""
    expert_of = {checksum: expert for expert, checksum in enumerate(layer.checksums)}
    supposed = layer.placement.by_rank[0, layer.rank].tolist()
    sums = torch.stack([expert_checksum(layer.weights, slot) for slot in range(len(supposed))])
    held, wrong = [], []
    for slot, (expert, checksum) in enumerate(zip(supposed, sums.tolist(), strict=True)):
        found = expert if layer.checksums[expert] == checksum else expert_of.get(checksum, -1)
        held.append(found)
        if found != expert:
            what = "bytes of no expert" if found < 0 else f"expert {found}"
            wrong.append(f"layer {layer.layer_id}, slot {slot}: {what} instead of expert {expert}.")
            logger.warning("A slot is not used: %s", wrong[-1])
    return held, wrong


def served_by(model: ExpertParallelModel) -> Served:
    """Describe the model that this rank has served."""
    return Served(
        layer_ids=tuple(layer.layer_id for layer in model.layers),
        num_experts=model.layers[0].placement.num_experts,
        checksums=tuple(layer.checksums for layer in model.layers),
        tensors=tuple(
            {
                name: (tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
                for name, tensor in layer.weights.items()
            }
            for layer in model.layers
        ),
    )


def dtype_of(name: str) -> torch.dtype:
    """The torch type with a name that another rank has sent."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise EquipoiseError(f"Another rank has served tensors of type {name!r}, unknown here.")
    return found
