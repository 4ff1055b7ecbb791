"""The decision of rank 0 in a rebuild: the expert of every slot, and its source."""

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
    """The expert that every slot is to hold, and where it comes from.

    Parameters
    ----------
    served
        Model that is served.
    topology
        Ranks of the new process group.
    slots
        Expert of each slot, ``(L, S)``.
    content
        ``Content`` of each slot, ``(L, S)``.
    source, position
        Source of each copied slot, ``(L, S)``: the rank, and its slot in the new layer, or ``C``
        plus its slot in the old layer. The rank is -1 for slots that are not copied.
    """

    served: Served
    topology: Topology
    slots: Ints
    content: NDArray[np.int8]
    source: Ints
    position: Ints

    @cached_property
    def placement(self) -> Placement:
        """The slots as a placement."""
        return Placement(
            self.slots,
            num_ranks=self.topology.num_ranks,
            num_experts=self.served.num_experts,
            layer_ids=self.served.layer_ids,
        )

    def check_served(self, row: int, layer: ExpertParallelLayer) -> None:
        """Make sure that the experts of a layer have their checksums; all ranks raise or none."""
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
    """Decide what the slots are to hold, and where it comes from."""
    served = _common(brought)
    devices, num_ranks = topology(len(brought)), len(brought)
    if devices.num_ranks != num_ranks:
        raise EquipoiseError(
            f"The topology has {devices.num_ranks} ranks, the process group has {num_ranks}."
        )
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
    """The model that ranks have served; checkpoints have to be of the same model."""
    first = next((one.served for one in brought if one.served is not None), None)
    if first is None:
        raise EquipoiseError("No rank has a model; load one on at least one rank.")
    for rank, one in enumerate(brought):
        if one.served not in (None, first):
            raise EquipoiseError(
                f"Rank {rank} has served another model than the ranks before it; restart it."
            )
        if one.checkpoint not in (None, (first.layer_ids, first.num_experts)):
            raise EquipoiseError(
                f"The checkpoint of rank {rank} does not fit the model, which has layers "
                f"{format_ids(first.layer_ids)} of {first.num_experts} experts."
            )
    return first


def _table(brought: Sequence[Brought], num_layers: int) -> Ints:
    """The expert of each slot that the ranks bring, ``(L, R, C)``, -1 for none."""
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
    """Make sure that every rank that is to reload an expert has a checkpoint."""
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
    """The source of each copied slot, as in ``Decision``: on its own rank, or the lowest rank.

    A slot that keeps or reloads the expert is preferred: nothing writes to it during the rebuild.
    There is one unless a rank gives up slots, and then the old content stays in its own memory.
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
