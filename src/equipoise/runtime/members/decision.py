"""What rank 0 decides of a rebuild: what every slot shall hold, and from where it has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import check_count
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.plan.problem import Problem
from equipoise.plan.weigh.failover import Content, refit
from equipoise.runtime.members.holdings import Brought, Served
from equipoise.runtime.moe.layer import ExpertParallelLayer
from equipoise.topology import Topology

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Decision:
    """What every slot shall hold and where it has it from.

    Parameters
    ----------
    served
        The model.
    topology
        The ranks there are now.
    slots
        The expert of each slot, ``(L, S)``.
    content
        The ``Content`` of each slot, ``(L, S)``.
    source, position
        For what is copied, the rank that has it and where, ``(L, S)``: a slot of the new layer, or
        ``C`` and a slot of the old one. The rank is -1 for all else.
    """

    served: Served
    topology: Topology
    slots: Ints
    content: NDArray[np.int8]
    source: Ints
    position: Ints

    @cached_property
    def placement(self) -> Placement:
        """The same as a placement."""
        return Placement(
            self.slots,
            num_ranks=self.topology.num_ranks,
            num_experts=self.served.num_experts,
            layer_ids=self.served.layer_ids,
        )

    def check_served(self, row: int, layer: ExpertParallelLayer) -> None:
        """Make sure that a layer has the experts that it had; on every rank alike."""
        for expert, known in enumerate(self.served.checksums[row]):
            if layer.checksums[expert] != known:
                raise EquipoiseError(
                    f"Layer {layer.layer_id}: expert {expert} has changed on its way between "
                    "ranks; rebuild again."
                )


def decide(
    brought: Sequence[Brought],
    topology: Callable[[int], Topology],
    load_LE: ArrayLike | None,
    slots_per_rank: int | None,
) -> Decision:
    """What the slots shall hold, and from where."""
    served = _common(brought)
    devices, num_ranks = topology(len(brought)), len(brought)
    if devices.num_ranks != num_ranks:
        raise EquipoiseError(f"The topology has {devices.num_ranks} ranks, the group {num_ranks}.")
    if slots_per_rank is not None:
        check_count("slots_per_rank", slots_per_rank)
    held = _table(brought, len(served.layer_ids))
    wanted = max(slots_per_rank or held.shape[2], -(-served.num_experts // num_ranks))
    problem = Problem(
        _load(load_LE, served), devices, num_ranks * wanted, layer_ids=served.layer_ids
    )
    placement, content = refit(held, problem)
    _check_lost(placement, content, brought)
    source, position = _sources(held, placement, content)
    return Decision(served, devices, placement.slots, content, source, position)


def _common(brought: Sequence[Brought]) -> Served:
    """What those who have served the model know of it; checkpoints have to be of it."""
    first = next((one.served for one in brought if one.served is not None), None)
    if first is None:
        raise EquipoiseError("No rank has a model that it has served; load one.")
    for rank, one in enumerate(brought):
        if one.served not in (None, first):
            raise EquipoiseError(
                f"Rank {rank} has served another model than the ranks before it; start it anew."
            )
        if one.checkpoint not in (None, (first.layer_ids, first.num_experts)):
            raise EquipoiseError(
                f"The checkpoint of rank {rank} is not that of the model, which has layers "
                f"{format_ids(first.layer_ids)} of {first.num_experts} experts."
            )
    return first


def _table(brought: Sequence[Brought], num_layers: int) -> Ints:
    """The expert of each slot that ranks bring along, ``(L, R, C)``, -1 for none."""
    most = max(len(slots) for one in brought for slots in one.held)
    table = np.full((num_layers, len(brought), most), -1)
    for rank, one in enumerate(brought):
        for row, slots in enumerate(one.held):
            table[row, rank, : len(slots)] = slots
    return table


def _load(load_LE: ArrayLike | None, served: Served) -> NDArray[np.float64]:
    shape = (len(served.layer_ids), served.num_experts)
    load = np.ones(shape) if load_LE is None else np.asarray(load_LE, dtype=np.float64)
    if load.shape != shape:
        raise EquipoiseError(
            f"Loads have shape {load.shape}; expected {shape[0]} layers of {shape[1]} experts."
        )
    return load if load.any() else np.ones(shape)


def _check_lost(
    placement: Placement, content: NDArray[np.int8], brought: Sequence[Brought]
) -> None:
    """Who is to reload an expert needs a checkpoint."""
    without = np.array([one.checkpoint is None for one in brought])
    lost = (content == Content.RELOADED) & without[placement.rank_of_slot]
    if lost.any():
        where = "; ".join(
            f"layer {layer_id}: {format_ids(sorted(slots[at].tolist()))}"
            for layer_id, slots, at in zip(placement.layer_ids, placement.slots, lost, strict=True)
            if at.any()
        )
        raise EquipoiseError(
            f"No rank has these experts any more, and there is no checkpoint: {where}."
        )


def _sources(held_LRC: Ints, placement: Placement, content: NDArray[np.int8]) -> tuple[Ints, Ints]:
    """Where what is copied comes from, as in ``Decision``: the slot's own rank, or the lowest.

    From a slot that keeps or reloads the expert if there is one: it is not written meanwhile. There
    is one unless a rank gives up slots, whose content then has a memory of its own.
    """
    C = placement.slots_per_rank
    source, position = np.full(content.shape, -1), np.full(content.shape, -1)
    for row, slot in np.argwhere(content == Content.COPIED):
        expert = placement.slots[row, slot]
        stays = np.flatnonzero((placement.slots[row] == expert) & (content[row] != Content.COPIED))
        options = [divmod(int(s), C) for s in stays]
        if not options:
            options = [(rank, C + at) for rank, at in np.argwhere(held_LRC[row] == expert).tolist()]
        source[row, slot], position[row, slot] = min(
            options, key=lambda option: (option[0] != slot // C, option)
        )
    return source, position
