"""The devices experts live on, and the wires between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError


@dataclass(frozen=True)
class Link:
    """A wire: every message costs its latency, every byte its share of the bandwidth.

    Parameters
    ----------
    latency_seconds
        Of one message.
    bytes_per_second
        Of one rank, in each direction.
    """

    latency_seconds: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        if not (0 <= self.latency_seconds < np.inf and 0 < self.bytes_per_second <= np.inf):
            raise EquipoiseError(
                f"A link has a latency of {self.latency_seconds} s and {self.bytes_per_second} "
                "bytes a second; expected a latency >= 0 and a bandwidth above 0."
            )


NODE_LINK = Link(1e-6, 400e9)
"""Between ranks of a node: NVLink-like, the constants of NVIDIA's Wide-EP series."""

NETWORK_LINK = Link(20e-6, 25e9)
"""Between nodes: one 400 Gbit/s adapter a rank at half its rate, from the same source."""


@dataclass(frozen=True)
class Topology:
    """``R`` expert-parallel ranks in nodes of equal size, ranks numbered node by node.

    Parameters
    ----------
    num_ranks
        ``R``, the devices that share the experts of a layer.
    ranks_per_node
        Ranks behind one fast interconnect, which also fail together; ``None`` puts all ranks in
        one node.
    speed
        Relative speed of each rank, ``R`` numbers: work of one unit takes ``1 / speed``. ``None``:
        all alike.
    room
        Experts of one layer whose weights fit into each rank's memory, ``R`` numbers. A rank with
        less room than slots repeats experts it has, which takes no memory. ``None``: every slot.
    node_link, network_link
        The wires within a node and between nodes.

    Raises
    ------
    EquipoiseError
        Counts that are not positive, nodes that do not divide the ranks, speeds or room that are
        not one positive number a rank.
    """

    num_ranks: int
    ranks_per_node: int | None = None
    speed: tuple[float, ...] | None = None
    room: tuple[int, ...] | None = None
    node_link: Link = field(default=NODE_LINK, repr=False)
    network_link: Link = field(default=NETWORK_LINK, repr=False)

    def __post_init__(self) -> None:
        if self.num_ranks < 1:
            raise EquipoiseError(f"num_ranks is {self.num_ranks}; expected at least 1.")
        self._check_nodes()
        for name in ("speed", "room"):
            values = getattr(self, name)
            if values is None:
                continue
            object.__setattr__(self, name, tuple(values))
            if len(values) != self.num_ranks or not all(0 < v < np.inf for v in values):
                raise EquipoiseError(
                    f"{name} is {values}; expected {self.num_ranks} numbers above 0, one a rank."
                )
        if self.room is not None and any(v != int(v) for v in self.room):
            raise EquipoiseError(f"room is {self.room}; expected whole numbers of experts.")

    def _check_nodes(self) -> None:
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

    def distinct_experts(self, slots_per_rank: int) -> NDArray[np.int64]:
        """Different experts of a layer that each rank can hold in so many slots, ``(R,)``."""
        room = np.full(self.num_ranks, slots_per_rank, dtype=np.int64)
        return room if self.room is None else np.minimum(room, self.room)

    @property
    def relative_speed(self) -> NDArray[np.float64]:
        """Speed of each rank over their mean, ``(R,)``: ones where all are alike."""
        if self.speed is None:
            return np.ones(self.num_ranks)
        speed = np.array(self.speed, dtype=np.float64)
        return np.asarray(speed / speed.mean())
