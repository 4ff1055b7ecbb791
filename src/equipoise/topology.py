"""The devices that hold the experts, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import MAX_COUNT, as_array, brief, check_count, check_number, check_type
from equipoise.errors import EquipoiseError, argument

_LONGEST_SECONDS = 1e9
_MOST_BYTES = 1e30  # a second
_LOWEST_SPEED, _HIGHEST_SPEED = 1e-100, 1e100
_MOST_UNEQUAL = 1e12  # largest ratio of speeds; beyond it a sum of both loses the smaller


@dataclass(frozen=True)
class Link:
    """A link between ranks. A message takes the latency plus its bytes over the bandwidth.

    Parameters
    ----------
    latency_seconds
        Time that each message takes in addition to its bytes.
    bytes_per_second
        Bandwidth of one rank in each direction; infinity if bytes take no time.
    """

    latency_seconds: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        latency, bandwidth = self.latency_seconds, self.bytes_per_second
        latency = check_number("latency_seconds", latency, low=0, high=_LONGEST_SECONDS)
        if not (isinstance(bandwidth, float) and bandwidth == np.inf):
            bandwidth = check_number("bytes_per_second", bandwidth, low=1, high=_MOST_BYTES)
        object.__setattr__(self, "latency_seconds", latency)
        object.__setattr__(self, "bytes_per_second", bandwidth)


NODE_LINK = Link(1e-6, 400e9)
"""Link between ranks of a node: like NVLink, with the constants of NVIDIA's Wide-EP series."""

NETWORK_LINK = Link(20e-6, 25e9)
"""Link between nodes: one 400 Gbit/s adapter per rank at half its rate, from the same source."""


@dataclass(frozen=True)
class Topology:
    """The ``R`` expert-parallel ranks, grouped into nodes of equal size.

    Ranks are numbered node by node: the first ``ranks_per_node`` ranks are node 0.

    Parameters
    ----------
    num_ranks
        Number of ranks ``R``: the devices that share the experts of a layer.
    ranks_per_node
        Number of ranks that share one fast interconnect and fail together; ``None`` puts all ranks
        in one node.
    speed
        Relative speed of each rank, ``R`` numbers: a unit of work takes ``1 / speed``. ``None`` for
        equal speeds.
    room
        Number of experts of one layer that fit into each rank's memory, ``R`` numbers. A rank with
        less room than slots holds some experts in several slots, which takes no extra memory.
        ``None`` if all slots fit.
    node_link, network_link
        Links within a node and between nodes.

    Raises
    ------
    EquipoiseError
        Numbers that are not positive and whole, a ``ranks_per_node`` that does not divide
        ``num_ranks``, a ``speed`` or ``room`` without one positive number per rank, or speeds that
        differ by more than a factor of 1e12.
    """

    num_ranks: int
    ranks_per_node: int | None = None
    speed: tuple[float, ...] | None = None
    room: tuple[int, ...] | None = None
    node_link: Link = field(default=NODE_LINK, repr=False)
    network_link: Link = field(default=NETWORK_LINK, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_ranks", check_count("num_ranks", self.num_ranks))
        if self.ranks_per_node is not None:
            size = check_count("ranks_per_node", self.ranks_per_node)
            object.__setattr__(self, "ranks_per_node", size)
            if self.num_ranks % size:
                raise EquipoiseError(
                    f"{self.num_ranks} ranks do not divide into nodes of {size}; "
                    f"give a {argument('ranks_per_node')} that divides {argument('num_ranks')}."
                )
        if self.speed is not None:
            object.__setattr__(self, "speed", self._checked_speed(self.speed))
        if self.room is not None:
            object.__setattr__(self, "room", self._checked_room(self.room))
        check_type("node_link", self.node_link, Link)
        check_type("network_link", self.network_link, Link)

    def _checked_speed(self, values: ArrayLike) -> tuple[float, ...]:
        speed = self._one_a_rank("speed", values).astype(np.float64)
        slowest, fastest = speed.min(), speed.max()
        if not _LOWEST_SPEED <= slowest <= fastest <= _HIGHEST_SPEED:
            raise EquipoiseError(
                f"{argument('speed')} goes from {slowest} to {fastest}; expected {_LOWEST_SPEED} "
                f"to {_HIGHEST_SPEED}. Give 1 to a rank of usual speed."
            )
        if fastest > _MOST_UNEQUAL * slowest:
            raise EquipoiseError(
                f"{argument('speed')} goes from {slowest} to {fastest}; expected no rank more than "
                f"{_MOST_UNEQUAL:.0e} times as fast as another."
            )
        return tuple(speed.tolist())

    def _checked_room(self, values: ArrayLike) -> tuple[int, ...]:
        room = self._one_a_rank("room", values)
        if (room != np.floor(room)).any():
            raise EquipoiseError(
                f"{argument('room')} is {brief(values)}; expected whole numbers of experts."
            )
        # No layer has more than MAX_COUNT experts, so more room than that makes no difference.
        return tuple(np.minimum(room, MAX_COUNT).astype(np.int64).tolist())

    def _one_a_rank(self, name: str, values: ArrayLike) -> NDArray[Any]:
        numbers = as_array(values, name)
        fits = numbers.shape == (self.num_ranks,) and numbers.dtype.kind in "iuf"
        if not fits or not (numbers.min() > 0 and numbers.max() < np.inf):  # false for NaN as well
            raise EquipoiseError(
                f"{argument(name)} is {brief(values)}; "
                f"expected {self.num_ranks} numbers above 0, one for each rank."
            )
        return numbers

    @property
    def num_nodes(self) -> int:
        """Number of nodes, ``N``."""
        return 1 if self.ranks_per_node is None else self.num_ranks // self.ranks_per_node

    @property
    def node_of_rank(self) -> NDArray[np.int64]:
        """Node that each rank is in, ``(R,)``."""
        return np.arange(self.num_ranks, dtype=np.int64) * self.num_nodes // self.num_ranks

    def __repr__(self) -> str:
        said = [f"{_counted(self.num_ranks, 'rank')} on {_counted(self.num_nodes, 'node')}"]
        for name, values in (("speed", self.speed), ("room", self.room)):
            if values is not None:
                said.append(f"{name} {min(values):g} to {max(values):g}")
        return f"Topology({', '.join(said)})"

    def distinct_experts(self, slots_per_rank: int) -> NDArray[np.int64]:
        """Count the different experts of a layer that each rank can hold, ``(R,)``."""
        room = np.full(self.num_ranks, slots_per_rank, dtype=np.int64)
        return room if self.room is None else np.minimum(room, self.room)

    @property
    def relative_speed(self) -> NDArray[np.float64]:
        """Speed of each rank over the mean speed, ``(R,)``; all 1 where speeds are equal."""
        if self.speed is None:
            return np.ones(self.num_ranks)
        speed = np.array(self.speed, dtype=np.float64)
        return np.asarray(speed / speed.mean())


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_ranks(topology: Topology, num_ranks: int) -> None:
    """Raise ``EquipoiseError`` unless the topology has this number of ranks."""
    check_type("topology", topology, Topology)
    if topology.num_ranks != num_ranks:
        raise EquipoiseError(
            f"The topology has {topology.num_ranks} ranks, the placement {num_ranks}; "
            "give the topology the placement was made for."
        )
