"""From one placement to the next: what every slot receives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError
from equipoise.layers import format_ids
from equipoise.placement import Placement
from equipoise.topology import Topology


class Receive(IntEnum):
    """Where a slot of the new placement gets its expert, cheapest first; the first that fits.

    ======================  ===========================================================
    ``UNCHANGED``           The slot holds the expert already.
    ``SAME_RANK``           Another slot of the rank held it: a copy within the device.
    ``FREE_RIDER``          An earlier slot of the rank fetches it: again a local copy.
    ``SAME_NODE``           A rank of the node held it: one transfer on the fast fabric.
    ``CROSS_NODE``          Only other nodes held it: one transfer between nodes.
    ======================  ===========================================================
    """

    UNCHANGED = 0
    SAME_RANK = 1
    FREE_RIDER = 2
    SAME_NODE = 3
    CROSS_NODE = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Migration:
    """What each slot of a new placement receives, and over which link.

    Parameters
    ----------
    old, new
        The placements, of equal shape.
    topology
        The devices both are for.
    receive
        The ``Receive`` of every slot, ``(L, S)``.
    """

    old: Placement
    new: Placement
    topology: Topology
    receive: NDArray[np.int8]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Slots of each layer by ``Receive``, ``(L, 5)``."""
        counts: NDArray[np.int64] = (self.receive[:, :, None] == np.array(Receive)).sum(axis=1)
        return counts

    @property
    def received(self) -> NDArray[np.int64]:
        """Experts that each rank fetches from another, each over the wire once, ``(L, R)``."""
        wire = (self.receive >= Receive.SAME_NODE).reshape(self.new.by_rank.shape)
        received: NDArray[np.int64] = wire.sum(axis=2)
        return received

    def bytes(self, expert_bytes: int) -> int:
        """Bytes that cross a wire, all layers together.

        Parameters
        ----------
        expert_bytes
            All tensors of one expert in one layer, scales included.
        """
        if expert_bytes < 0:
            raise EquipoiseError(f"expert_bytes is {expert_bytes}; expected at least 0.")
        return int(self.received.sum()) * int(expert_bytes)

    def __repr__(self) -> str:
        total = self.counts.sum(axis=0)
        parts = ", ".join(f"{total[r]} {r.name.lower().replace('_', '-')}" for r in Receive)
        return f"Migration({parts})"


def diff(old: Placement, new: Placement, topology: Topology) -> Migration:
    """What changing one placement for another moves.

    Classes as in SGLang's expert relocation, with the node taken from the topology.

    Raises
    ------
    EquipoiseError
        Placements of different shapes, or a topology of other ranks.
    """
    _check_same_shape(old, new)
    if topology.num_ranks != new.num_ranks:
        raise EquipoiseError(
            f"The topology has {topology.num_ranks} ranks, the placements {new.num_ranks}; "
            "give the topology they were made for."
        )
    L, R, N = new.num_layers, new.num_ranks, topology.num_nodes
    on_rank_LRE = old.copies_on_rank > 0
    on_node_LNE = np.asarray(on_rank_LRE.reshape(L, N, R // N, old.num_experts).any(axis=2))
    layer, rank = np.arange(L)[:, None], new.rank_of_slot
    repeated = _ordinal(new.by_rank).reshape(new.slots.shape) > 0
    first_that_fits = [
        old.slots == new.slots,
        on_rank_LRE[layer, rank, new.slots],
        repeated,
        on_node_LNE[layer, topology.node_of_rank[rank], new.slots],
        np.ones_like(new.slots, dtype=bool),
    ]
    receive = np.argmax(first_that_fits, axis=0).astype(np.int8)  # a Receive is its position
    return Migration(old=old, new=new, topology=topology, receive=receive)


def keep_slots(old: Placement, new: Placement) -> Placement:
    """The new placement with every expert that stays on its rank in the slot it had.

    Reorders slots within ranks only.  Old slots are served in order; what is new on a rank fills
    the slots left over, in ascending order.  The rule of vLLM; Ascend's runtime requires it.

    Raises
    ------
    EquipoiseError
        Placements of different shapes.
    """
    _check_same_shape(old, new)
    same = old.by_rank[..., :, None] == new.by_rank[..., None, :]
    kept = _ordinal(old.by_rank) < same.sum(axis=-1)  # old slots whose expert stays
    used = _ordinal(new.by_rank) < same.sum(axis=-2)  # new slots that such an expert came from
    slots = old.by_rank.copy()
    slots[~kept] = new.by_rank[~used]  # as many a rank on either side
    return Placement(
        slots.reshape(new.slots.shape),
        num_ranks=new.num_ranks,
        num_experts=new.num_experts,
        layer_ids=new.layer_ids,
    )


def _ordinal(by_rank_LRC: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier slots of the rank hold the same expert, ``(L, R, S / R)``."""
    same = by_rank_LRC[..., :, None] == by_rank_LRC[..., None, :]
    ordinal: NDArray[np.int64] = np.tril(same, k=-1).sum(axis=-1)
    return ordinal


def _check_same_shape(old: Placement, new: Placement) -> None:
    for name in ("layer_ids", "num_experts", "num_slots", "num_ranks"):
        a, b = getattr(old, name), getattr(new, name)
        if a != b:
            what = name.replace("num_", "").replace("_", " ")
            raise EquipoiseError(
                f"The placements differ in {what}: {_brief(a)} and {_brief(b)}; "
                "compare two of the same model and devices."
            )


def _brief(value: int | tuple[int, ...]) -> str:
    return str(value) if isinstance(value, int) else format_ids(value)
