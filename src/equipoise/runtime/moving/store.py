"""What holds the experts of a layer, as those who move them see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from equipoise.placement import Placement
from equipoise.runtime.members.agreement import ProcessGroup


class SlotStore(Protocol):
    """The slots of one layer on this rank, and who holds the others.

    ``ExpertParallelLayer`` is one. An engine's plug-in makes its own around the tensors that the
    engine has: movers read them, and change nothing but through ``commit``.
    """

    @property
    def layer_id(self) -> int:
        """The model's number of the layer."""
        ...

    @property
    def placement(self) -> Placement:
        """What all ranks hold now, a placement of this layer alone."""
        ...

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """What this rank's slots hold: tensors by name, ``(C, ...)`` each, every slot contiguous.

        All that belongs to an expert, with the same names, types and shapes on every rank.
        """
        ...

    @property
    def checksums(self) -> Sequence[int]:
        """``expert_checksum`` of each expert as it was loaded, ``E`` numbers, for what arrives."""
        ...

    @property
    def group(self) -> ProcessGroup:
        """The ranks of the placement, in their order."""
        ...

    @property
    def rank(self) -> int:
        """Of this process among them."""
        ...

    def commit(
        self, placement: Placement, slots: Iterable[int], contents: Mapping[str, Tensor]
    ) -> None:
        """Hold another placement from now on; called between two forward passes.

        Parameters
        ----------
        placement
            Of this layer alone.
        slots
            Slots of this rank that change, numbered within the rank.
        contents
            What they are to hold, in tensors like ``weights`` whose other slots hold nothing. Their
            memory is used again after the call, so copy them, as ``write_slots`` does.
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
    """Where its weights are."""
    return next(iter(store.weights.values())).device
