"""SGLang: the rules by which it chooses the copy for a token."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch.times import nodes_of_ranks
from equipoise.engines._shared.rules import (
    RowRule,
    TableRule,
    TokenRule,
    copies_of_slots,
    with_remainder,
)
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

_SEED = 42  # the engine's own


@dataclass(frozen=True, kw_only=True)
class SglangStatic(TableRule):
    """SGLang 0.5.23, ``--ep-dispatch-algorithm static``: one copy for each source rank and expert.

    A copy on the rank itself; else the first one on its node, if some copy is elsewhere; the other
    ranks are dealt the copies evenly, shuffled by Python's generator with seed 42. The first copy
    on the node takes all of the node's assignments, whatever its siblings there do. Shuffles follow
    on one another through the layers: only for a placement of all layers that the engine's map has,
    dense ones included, are they the engine's very own.

    Parameters
    ----------
    from_map
        True if the engine was started with a map file. Each rank then drops the copies that it
        prefers not to use before the table is made, so that ranks shuffle different lists, and the
        deal is no longer even. False if the engine planned by itself from recorded loads.
    """

    name: ClassVar[str] = "sglang-static"
    version: ClassVar[str] = "SGLang 0.5.23, all-to-all backend other than none"

    from_map: bool = True

    def table(self, placement: Placement) -> NDArray[np.int64]:
        """Return the slot that each rank uses for each expert, ``(R, L, E)``."""
        nodes = nodes_of_ranks(self.topology, placement.num_ranks)
        return _static_table(placement, tuple(nodes.tolist()), self.from_map)


@dataclass(frozen=True, kw_only=True)
class SglangDynamic(TokenRule):
    """SGLang 0.5.23, ``--ep-dispatch-algorithm dynamic`` with an all-to-all: a copy at random.

    The engine draws on the GPU, and its numbers cannot be repeated here; ``slots`` draws its own.

    Parameters
    ----------
    from_map
        True if the engine was started with a map file: a rank with a copy on it or on its node
        always uses the copy that ``SglangStatic`` chooses, and only other ranks draw.
    seed
        Random seed of the draws in ``slots``, used together with the rank.
    """

    name: ClassVar[str] = "sglang-dynamic"
    version: ClassVar[str] = "SGLang 0.5.23, all-to-all backend other than none"

    from_map: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or self.seed < 0:
            raise EquipoiseError(f"seed is {self.seed!r}; expected a whole number >= 0.")

    def pick(
        self, ids_DLK: NDArray[np.int64], placement: Placement, rank: int
    ) -> NDArray[np.int64]:
        """Return a copy that the rank may use, drawn as the engine draws it."""
        layer = np.arange(placement.num_layers)[:, None]
        draw = np.random.default_rng((self.seed, rank)).integers(0, 2**16, ids_DLK.shape)
        copy = draw % placement.copies[layer, ids_DLK]
        slots = placement.slots_of_experts()[layer, ids_DLK, copy]
        near = self._near(placement)[rank][layer, ids_DLK]
        return np.asarray(np.where(near >= 0, near, slots))

    def slot_shares(
        self, load_LRE: NDArray[np.float64], placement: Placement
    ) -> NDArray[np.float64]:
        """Return equal shares for the copies that a rank may use."""
        del load_LRE
        near_RLS = np.take_along_axis(self._near(placement), placement.slots[None], axis=2)
        fixed = near_RLS == np.arange(placement.num_slots)
        shares_RLS = np.where(near_RLS >= 0, fixed, 1 / copies_of_slots(placement))
        return np.moveaxis(shares_RLS, 0, 1)

    def _near(self, placement: Placement) -> NDArray[np.int64]:
        nodes = nodes_of_ranks(self.topology, placement.num_ranks)
        near = _near_slots(placement, tuple(nodes.tolist()))
        return near if self.from_map else np.where(placement.copies == 1, near, -1)


@dataclass(frozen=True, kw_only=True)
class SglangRows(RowRule):
    """SGLang 0.5.23, ``dynamic`` with all-to-all backend ``none``: the row modulo the copies.

    Every rank then sees all tokens, and all ranks agree. Rows are those of the whole batch, sources
    do not matter. Releases before #32962 drew at random here and corrupted the output.
    """

    name: ClassVar[str] = "sglang-rows"
    version: ClassVar[str] = "SGLang 0.5.23, all-to-all backend none"

    @staticmethod
    def code(row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row."""
        return row

    @staticmethod
    def times(
        rows: NDArray[np.int64], copies: NDArray[np.int64], value: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Count the rows: they take turns."""
        return with_remainder(rows, copies, value)

    def _rows(self, load_LRE: NDArray[np.float64]) -> NDArray[np.int64]:
        together = load_LRE.sum(axis=1, keepdims=True)
        return np.broadcast_to(super()._rows(together), load_LRE.shape[:2])


@lru_cache(maxsize=8)
def _near_slots(placement: Placement, node_of_rank: tuple[int, ...]) -> NDArray[np.int64]:
    """The slot that nearness decides on for each rank and expert, ``(R, L, E)``; -1 if it does not.

    The only slot; else the first on the rank; else the first on its node, if not all are there.
    """
    L, R, E = placement.num_layers, placement.num_ranks, placement.num_experts
    node = np.array(node_of_rank)
    near = np.full((R, L, E), -1, np.int64)
    layer = np.arange(L)
    copies_on_node = np.zeros((node[-1] + 1, L, E), np.int64)
    np.add.at(copies_on_node, node, np.moveaxis(placement.copies_on_rank, 1, 0))
    for slot in reversed(range(placement.num_slots)):  # so that the first one stays
        on_node = np.flatnonzero(node == node[slot // placement.slots_per_rank])
        near[on_node[:, None], layer, placement.slots[:, slot]] = slot
    near[copies_on_node[node] == placement.copies] = -1
    for slot in reversed(range(placement.num_slots)):
        near[slot // placement.slots_per_rank, layer, placement.slots[:, slot]] = slot
    first = placement.slots_of_experts()[:, :, 0]
    near = np.where(placement.copies == 1, first, near)
    near.flags.writeable = False
    return near


@lru_cache(maxsize=8)
def _static_table(
    placement: Placement, node_of_rank: tuple[int, ...], from_map: bool
) -> NDArray[np.int64]:
    """Return ``SglangStatic.table``: choices that nearness leaves open are dealt by layer."""
    near = _near_slots(placement, node_of_rank)
    table = near.copy()
    if from_map:  # each rank deals for all, from a list without what it decided for itself
        for rank in range(placement.num_ranks):
            table[rank] = _dealt(placement, near, near[rank] < 0)[rank]
    else:
        table = _dealt(placement, near, np.asarray((near < 0).any(axis=0)))
    table.flags.writeable = False
    return table


def _dealt(
    placement: Placement, near: NDArray[np.int64], open_LE: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the table with copies dealt to the ranks that have no near one."""
    generator = random.Random(_SEED)
    slots_LEX, table = placement.slots_of_experts(), near.copy()
    for layer, expert in np.argwhere(open_LE).tolist():
        slots = [s for s in slots_LEX[layer, expert].tolist() if s >= 0]
        ranks = np.flatnonzero(near[:, layer, expert] < 0)
        rounds, rest = divmod(len(ranks), len(slots))
        dealt = slots * rounds + generator.sample(slots, rest)
        generator.shuffle(dealt)
        table[ranks, layer, expert] = dealt
    return table
