"""Assignment of a rank's choices to slots: by quotas, by an engine's rule, on a GPU.

Letters: ``D`` tokens of this rank, ``K`` choices of a token; ``R``, ``S``, ``E`` as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from equipoise.dispatch import Dispatcher, MinMax, dispatcher
from equipoise.dispatch.gpu import GpuMinMax, GpuPlacement
from equipoise.dispatch.tokens import assign_tokens
from equipoise.placement import Placement
from equipoise.topology import Topology


@dataclass(frozen=True, eq=False)
class Assigned:
    """The slots of one batch.

    Parameters
    ----------
    slots
        Slot of each choice, ``(D, K)``, on the device of the ids; -1 for ids outside ``[0, E)``.
    quotas
        Assignments from each rank to each slot, ``(R, S)``; ``None`` if a rank knows only its own,
        so that the ranks have to tell each other.
    """

    slots: Tensor
    quotas: NDArray[np.int64] | None = None


@runtime_checkable
class TokenAssignment(Protocol):
    """Chooses the slot of each choice of the tokens, in the same way on every rank.

    Its text (``str``) has to be the same on ranks that assign in the same way.
    """

    @property
    def dispatcher(self) -> Dispatcher:
        """Dispatcher by which planners expect the copies to share a load."""
        ...

    def assign(
        self, ids_DK: Tensor, load_RE: NDArray[np.int64], placement: Placement, rank: int
    ) -> Assigned:
        """Choose slots for the tokens of one rank.

        Parameters
        ----------
        ids_DK
            Expert ids; ids outside ``[0, E)`` are padding.
        load_RE
            Assignments of all ranks in this batch.
        placement
            Placement of the layer, one row.
        rank
            Rank whose tokens these are.
        """
        ...


@dataclass(frozen=True)
class ByQuotas:
    """Gives every slot exactly its quota of a dispatcher, and keeps a token on few ranks.

    Parameters
    ----------
    dispatcher
        Dispatcher that shares each batch over the copies.
    """

    dispatcher: Dispatcher

    def assign(
        self, ids_DK: Tensor, load_RE: NDArray[np.int64], placement: Placement, rank: int
    ) -> Assigned:
        """Split the batch, then ``assign_tokens``; no rank has to ask another."""
        quota_RS = self.dispatcher.split(load_RE[None], placement).source_quotas[0]
        slot_DK = assign_tokens(ids_DK.cpu().numpy(), quota_RS[rank], placement)
        return Assigned(torch.from_numpy(slot_DK).to(ids_DK.device), quota_RS)


class SlotRule(Dispatcher, Protocol):
    """An engine's rule, as in ``equipoise.engines``; as a dispatcher it says what to expect."""

    def slots(
        self, topk_ids: ArrayLike, placement: Placement, *, rank: int = 0
    ) -> NDArray[np.int64]:
        """Choose slots for the tokens of one rank, without those of others.

        Padding gets what the engine gives it, a number outside ``[0, S)``.
        """
        ...


@dataclass(frozen=True)
class ByRule:
    """Assigns tokens as an engine's rule does: ``ByRule(SglangStatic())``.

    Parameters
    ----------
    dispatcher
        Rule of the engine.
    """

    dispatcher: SlotRule

    def assign(
        self, ids_DK: Tensor, load_RE: NDArray[np.int64], placement: Placement, rank: int
    ) -> Assigned:
        """Apply the rule, which looks at these tokens only."""
        del load_RE
        slot_DK = self.dispatcher.slots(ids_DK.cpu().numpy(), placement, rank=rank)
        slot_DK = np.where(slot_DK < placement.num_slots, slot_DK, -1)
        return Assigned(torch.from_numpy(slot_DK).to(ids_DK.device))


@dataclass(frozen=True)
class OnDevice:
    """Min-max dispatch on the tokens' device: ``GpuMinMax``, with all ranks equally fast.

    Parameters
    ----------
    backend
        See ``GpuMinMax``.
    """

    backend: Literal["triton", "torch"] | None = None
    _placed: dict[int, GpuPlacement] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def dispatcher(self) -> Dispatcher:
        """The same dispatcher on the host."""
        return MinMax()

    def assign(
        self, ids_DK: Tensor, load_RE: NDArray[np.int64], placement: Placement, rank: int
    ) -> Assigned:
        """Solve, and number the assignments of each expert in rank order."""
        solver = GpuMinMax(placement=self._on(ids_DK.device, placement), backend=self.backend)
        counts = torch.from_numpy(load_RE).to(ids_DK.device, torch.int32)
        return Assigned(solver.dispatch(ids_DK, 0, counts=counts, source=rank).long())

    def _on(self, device: torch.device, placement: Placement) -> GpuPlacement:
        """The layer's placement on the device, copied again when experts have moved."""
        (layer_id,) = placement.layer_ids
        placed = self._placed.get(layer_id)
        if placed is None or placed.host is not placement or placed.device != device:
            placed = self._placed[layer_id] = GpuPlacement(placement, device)
        return placed


def token_assignment(
    dispatch: str | Dispatcher | TokenAssignment, topology: Topology | None = None
) -> TokenAssignment:
    """Return an assignment as it is, or one by the quotas of a dispatcher.

    Parameters
    ----------
    dispatch
        Assignment, dispatcher or name of a dispatcher.
    topology
        Speeds and nodes of the ranks, for a name.

    Raises
    ------
    EquipoiseError
        There is no dispatcher of that name.
    """
    if isinstance(dispatch, TokenAssignment):
        return dispatch
    return ByQuotas(dispatcher(dispatch, topology))
