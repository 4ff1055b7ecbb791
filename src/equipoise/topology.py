"""The devices experts live on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError


@dataclass(frozen=True)
class Topology:
    """``R`` expert-parallel ranks in nodes of equal size, ranks numbered node by node.

    Parameters
    ----------
    num_ranks
        ``R``, the devices that share the experts of a layer.
    ranks_per_node
        Ranks behind one fast interconnect; ``None`` puts all ranks in one node.

    Raises
    ------
    EquipoiseError
        Counts that are not positive, or nodes that do not divide the ranks.
    """

    num_ranks: int
    ranks_per_node: int | None = None

    def __post_init__(self) -> None:
        if self.num_ranks < 1:
            raise EquipoiseError(f"num_ranks is {self.num_ranks}; expected at least 1.")
        if self.ranks_per_node is None:
            return
        if self.ranks_per_node < 1 or self.num_ranks % self.ranks_per_node:
            raise EquipoiseError(
                f"{self.num_ranks} ranks do not divide into nodes of {self.ranks_per_node}; "
                "give a ranks_per_node that divides num_ranks."
            )

    @property
    def num_nodes(self) -> int:
        """``N``, the nodes."""
        return 1 if self.ranks_per_node is None else self.num_ranks // self.ranks_per_node

    @property
    def node_of_rank(self) -> NDArray[np.int64]:
        """The node of each rank, ``(R,)``."""
        return np.arange(self.num_ranks, dtype=np.int64) * self.num_nodes // self.num_ranks
