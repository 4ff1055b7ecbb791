"""The slots of a layer as the code that moves experts sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from equipoise.placement import Placement
from equipoise.runtime.members.agreement import ProcessGroup


class SlotStore(Protocol):
    """The slots of one layer on this rank, and the placement of all its slots.

    ``ExpertParallelLayer`` is one. An engine's plug-in wraps the engine's own tensors in one: a
    transfer reads them, and changes them only through ``commit``.
    """

    @property
    def layer_id(self) -> int:
        """The model's number of the layer."""
        ...

    @property
    def placement(self) -> Placement:
        """Current placement of this layer, with the slots of all ranks."""
        ...

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Weights in this rank's slots: tensors by name, ``(C, ...)`` each, every slot contiguous.

        Everything that belongs to an expert, with the same names, types and shapes on every rank.
        """
        ...

    @property
    def checksums(self) -> Sequence[int]:
        """``expert_checksum`` of each expert as loaded, ``E`` numbers; arrivals have to match."""
        ...

    @property
    def group(self) -> ProcessGroup:
        """Process group of the ranks of the placement, in their order."""
        ...

    @property
    def rank(self) -> int:
        """Rank of this process in ``group``."""
        ...

    def commit(
        self, placement: Placement, slots: Iterable[int], contents: Mapping[str, Tensor]
    ) -> None:
        """Hold another placement from now on; called between two forward passes.

        Parameters
        ----------
        placement
            New placement of this layer only.
        slots
            Slots of this rank that change, numbered within the rank.
        contents
            Tensors like ``weights`` with the new content of these slots; other slots hold nothing
            of use. The caller reuses their memory, so copy them, as ``write_slots`` does.
        """
        ...


@torch.no_grad()
def write_slots(
    weights: Mapping[str, Tensor], slots: Iterable[int], contents: Mapping[str, Tensor]
) -> None:
    """Copy these slots of ``contents`` into ``weights``, in place."""
    for slot in slots:
        for name, tensor in weights.items():
            tensor[slot] = contents[name][slot]


def device_of(store: SlotStore) -> torch.device:
    """Return the device of the weights."""
    return next(iter(store.weights.values())).device
