"""Changing one placement into another: what each slot receives, from which rank, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import as_ids, check_collection, check_type, check_whole
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.topology import Topology, check_ranks


class Receive(IntEnum):
    """The source from which a slot of the new placement gets its expert.

    The kinds are ordered from cheap to expensive; a slot has the first kind that applies.

    ======================  ============================================================
    ``UNCHANGED``           The slot already holds the expert.
    ``SAME_RANK``           Another slot of the rank holds it: a copy within the device.
    ``FREE_RIDER``          An earlier slot of the rank fetches it: a copy afterwards.
    ``SAME_NODE``           A rank of the same node holds it: a transfer within the node.
    ``CROSS_NODE``          No rank of the node holds it: a transfer between nodes.
    ======================  ============================================================
    """

    UNCHANGED = 0
    SAME_RANK = 1
    FREE_RIDER = 2
    SAME_NODE = 3
    CROSS_NODE = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Migration:
    """The transfers to a new placement: source rank, link and time of what each slot receives.

    A *move* is a slot whose content changes. A *transfer* is an expert that is sent from one rank
    to another. Some moves are local copies and need no transfer. If experts that stay keep their
    slots (``keep_slots``) and no rank holds an expert twice, each move is exactly one transfer.

    Parameters
    ----------
    old, new
        Placements before and after, of equal shape.
    topology
        Topology that both are for.
    receive
        Kind of each slot, ``(L, S)``: a ``Receive``.
    source
        Rank that sends each slot its expert, ``(L, S)``; -1 where nothing is transferred.
    """

    old: Placement
    new: Placement
    topology: Topology
    receive: NDArray[np.int8]
    source: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of slots of each ``Receive`` kind in each layer, ``(L, 5)``."""
        counts: NDArray[np.int64] = (self.receive[:, :, None] == np.array(Receive)).sum(axis=1)
        return counts

    @property
    def moves(self) -> int:
        """Number of slots whose content changes, all layers together."""
        return int((self.receive != Receive.UNCHANGED).sum())

    @property
    def transfers(self) -> NDArray[np.bool_]:
        """Mask of the slots whose expert comes from another rank, ``(L, S)``."""
        return np.greater_equal(self.source, 0)

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Mask of the slots whose expert only dead ranks held, ``(L, S)``: load it from storage."""
        return np.asarray((self.receive == Receive.CROSS_NODE) & ~self.transfers)

    @property
    def received(self) -> NDArray[np.int64]:
        """Number of experts that each rank receives from other ranks, ``(L, R)``."""
        received: NDArray[np.int64] = self.transfers.reshape(self.new.by_rank.shape).sum(axis=2)
        return received

    @property
    def sent(self) -> NDArray[np.int64]:
        """Number of experts that each rank sends to other ranks, ``(L, R)``."""
        sent = np.zeros((self.new.num_layers, self.new.num_ranks), dtype=np.int64)
        layer, slot = np.nonzero(self.transfers)
        np.add.at(sent, (layer, self.source[layer, slot]), 1)
        return sent

    @cached_property
    def round(self) -> NDArray[np.int64]:
        """Round of each slot's transfer, from 0, ``(L, S)``; -1 without a transfer.

        In one round no rank sends more than one expert or receives more than one. The number of
        rounds is the least possible (König): what the busiest rank of the layer sends or receives.
        """
        round_LS = np.full(self.new.slots.shape, -1, dtype=np.int64)
        for layer, row in enumerate(self.transfers):
            slots = np.flatnonzero(row)
            # Transfers between nodes come first: then they share rounds, and others are short.
            slots = slots[np.argsort(-self.receive[layer, slots], kind="stable")]
            pairs = zip(
                self.source[layer, slots].tolist(),
                self.new.rank_of_slot[slots].tolist(),
                strict=True,
            )
            round_LS[layer, slots] = _rounds(list(pairs))
        return round_LS

    @property
    def num_rounds(self) -> NDArray[np.int64]:
        """Number of rounds of each layer, ``(L,)``."""
        return np.asarray(self.round.max(axis=1) + 1)

    def bytes(self, expert_bytes: int) -> int:
        """Compute the bytes that ranks send to each other, all layers together.

        Parameters
        ----------
        expert_bytes
            Size of all tensors of one expert in one layer, scales included.
        """
        return int(self.transfers.sum()) * check_whole("expert_bytes", expert_bytes)

    def bytes_by_link(self, expert_bytes: int) -> dict[str, int]:
        """Split ``bytes`` by link: ``"node"`` (within nodes) and ``"network"`` (between nodes)."""
        network = self.transfers & (self.receive == Receive.CROSS_NODE)
        total, between = self.bytes(expert_bytes), int(network.sum()) * int(expert_bytes)
        return {"node": total - between, "network": between}

    def layer_seconds(self, expert_bytes: int) -> NDArray[np.float64]:
        """Compute the seconds that each layer's transfers take, round after round, ``(L,)``.

        A round takes the latency and the time for one expert's bytes on the slowest link it uses.
        Copies within a rank count as free. Loading ``lost`` experts from storage is not included.
        """
        expert_bytes = check_whole("expert_bytes", expert_bytes)
        slowest = np.zeros((len(self.round), int(self.num_rounds.max())))
        for kind, link in (
            (Receive.SAME_NODE, self.topology.node_link),
            (Receive.CROSS_NODE, self.topology.network_link),
        ):
            layer, slot = np.nonzero(self.transfers & (self.receive == kind))
            seconds = link.latency_seconds + expert_bytes / link.bytes_per_second
            np.maximum.at(slowest, (layer, self.round[layer, slot]), seconds)
        return np.asarray(slowest.sum(axis=1))

    def seconds(self, expert_bytes: int) -> float:
        """Compute the seconds that the transfers of all layers take, layer after layer."""
        return float(self.layer_seconds(expert_bytes).sum())

    def __repr__(self) -> str:
        total = self.counts.sum(axis=0)
        parts = ", ".join(f"{total[r]} {r.name.lower().replace('_', '-')}" for r in Receive)
        return f"Migration({parts})"


def diff(
    old: Placement, new: Placement, topology: Topology, *, dead_ranks: Collection[int] = ()
) -> Migration:
    """Find what has to move to change one placement into another.

    The kinds of moves are those of SGLang's expert relocation, with nodes taken from the topology.
    An expert comes from a rank of the same node if one holds it. Among the possible senders, the
    transfers are shared so that the busiest sender sends as little as possible.

    Parameters
    ----------
    old, new
        Placements before and after, of equal shape; not changed.
    topology
        Topology that both are for.
    dead_ranks
        Ranks that can neither send nor receive. Their slots count as unchanged.

    Raises
    ------
    EquipoiseError
        Placements of different shapes, a topology with another number of ranks, or a dead rank
        that does not exist.
    """
    _check_same_shape(old, new)
    check_ranks(topology, new.num_ranks)
    dead = _dead(dead_ranks, topology.num_ranks)
    L, R, N = new.num_layers, new.num_ranks, topology.num_nodes
    holds_LRE = (old.copies_on_rank > 0) & ~dead[:, None]
    on_node_LNE = np.asarray(holds_LRE.reshape(L, N, R // N, old.num_experts).any(axis=2))
    layer, rank = np.arange(L)[:, None], new.rank_of_slot
    repeated = ordinal_on_rank(new.by_rank).reshape(new.slots.shape) > 0
    first_that_fits = [
        (old.slots == new.slots) | dead[rank],
        holds_LRE[layer, rank, new.slots],
        repeated,
        on_node_LNE[layer, topology.node_of_rank[rank], new.slots],
        np.ones_like(new.slots, dtype=bool),
    ]
    receive = np.argmax(first_that_fits, axis=0).astype(np.int8)  # a Receive is its position
    source = _sources(receive, new, holds_LRE, topology)
    return Migration(old=old, new=new, topology=topology, receive=receive, source=source)


def match_ranks(old: Placement, new: Placement, topology: Topology) -> Placement:
    """Renumber the ranks of a new placement, layer by layer, so that most experts stay in place.

    An assignment problem is solved for each layer: ranks are matched within every pair of nodes,
    then the nodes are matched. The ranks of a node stay together. Only ranks of equal speed and
    room change places, so rank loads change their order and nothing else. Slots within ranks are
    ordered as by ``keep_slots``. The arguments are not changed.

    Raises
    ------
    EquipoiseError
        Placements of different shapes, or a topology with another number of ranks.
    """
    _check_same_shape(old, new)
    check_ranks(topology, new.num_ranks)
    equal = _same_ranks(topology)
    by_rank = np.empty_like(new.by_rank)
    for layer in range(new.num_layers):
        stays = _common(new.copies_on_rank[layer], old.copies_on_rank[layer])
        # This penalty exceeds any gain, so ranks of different speed or room are never exchanged.
        stays = np.where(equal, stays, -new.num_slots - 1)
        by_rank[layer, _match_nodes(stays, topology.num_nodes)] = new.by_rank[layer]
    return keep_slots(old, with_slots(new, by_rank))


def keep_slots(old: Placement, new: Placement) -> Placement:
    """Reorder the slots within each rank so that experts that stay on a rank keep their slots.

    Experts that are new on a rank fill the other slots in ascending order. vLLM follows this rule,
    and Ascend's runtime requires it. The arguments are not changed.

    Raises
    ------
    EquipoiseError
        Placements of different shapes.
    """
    _check_same_shape(old, new)
    same = old.by_rank[..., :, None] == new.by_rank[..., None, :]
    kept = ordinal_on_rank(old.by_rank) < same.sum(axis=-1)  # old slots whose expert stays
    used = ordinal_on_rank(new.by_rank) < same.sum(
        axis=-2
    )  # new slots that such an expert came from
    slots = old.by_rank.copy()
    slots[~kept] = new.by_rank[~used]  # the same number a rank on either side
    return with_slots(new, slots)


def with_slots(like: Placement, slots: NDArray[np.int64]) -> Placement:
    """Make a placement like another one from new slots, ``(L, S)`` or ``(L, R, S / R)``."""
    return Placement(
        slots.reshape(like.slots.shape),
        num_ranks=like.num_ranks,
        num_experts=like.num_experts,
        layer_ids=like.layer_ids,
    )


def ordinal_on_rank(by_rank_LRC: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the earlier slots of the same rank that hold the same expert, ``(L, R, S / R)``."""
    same = by_rank_LRC[..., :, None] == by_rank_LRC[..., None, :]
    ordinal: NDArray[np.int64] = np.tril(same, k=-1).sum(axis=-1)
    return ordinal


def _sources(
    receive_LS: NDArray[np.int8],
    new: Placement,
    holds_LRE: NDArray[np.bool_],
    topology: Topology,
) -> NDArray[np.int64]:
    """Choose the sender of every transfer, ``(L, S)``, in the same node if possible; else -1."""
    source = np.full(receive_LS.shape, -1, dtype=np.int64)
    node_of_slot = topology.node_of_rank[new.rank_of_slot]
    for layer, receive in enumerate(receive_LS):
        slots = np.flatnonzero(receive >= Receive.SAME_NODE)
        may_send = holds_LRE[layer][:, new.slots[layer, slots]].T
        near = topology.node_of_rank == node_of_slot[slots, None]
        may_send &= near | (receive[slots, None] == Receive.CROSS_NODE)
        known = may_send.any(axis=1)
        options = [np.flatnonzero(row).tolist() for row in may_send[known]]
        source[layer, slots[known]] = _share(options, new.num_ranks)
    return source


def _share(options: list[list[int]], num_ranks: int) -> list[int]:
    """Choose a sender for every transfer so that the busiest sender sends as little as possible.

    Transfers are added one after the other. Each may change the senders of earlier ones, along the
    shortest chain that ends at the least busy rank within reach. The result is an optimal
    semi-matching (Harvey et al., J. Algorithms 2006).
    """
    sender = [-1] * len(options)
    given: list[list[int]] = [[] for _ in range(num_ranks)]
    for transfer in range(len(options)):
        moves_to: dict[int, int] = {}  # rank reached, and the transfer that would go there
        queue = [transfer]
        for j in queue:
            for rank in options[j]:
                if rank not in moves_to:
                    moves_to[rank] = j
                    queue += given[rank]
        rank = min(moves_to, key=lambda r: len(given[r]))
        while rank >= 0:
            j = moves_to[rank]
            before, sender[j] = sender[j], rank
            given[rank].append(j)
            if before >= 0:
                given[before].remove(j)
            rank = before
    return sender


def _rounds(pairs: list[tuple[int, int]]) -> list[int]:
    """Choose a round for every transfer ``(sender, receiver)``, in the fewest rounds possible.

    This is edge colouring of a bipartite multigraph (König, 1916). Where sender and receiver have
    no free round in common, two rounds are swapped along a chain of earlier transfers.
    """
    busiest = max((max(Counter(end).values()) for end in zip(*pairs, strict=True)), default=0)
    sends: dict[tuple[int, int], int] = {}  # (rank, round): the transfer
    takes: dict[tuple[int, int], int] = {}
    ends = ((takes, 0), (sends, 1))  # at a receiver, a transfer leads to its sender; and back
    rounds: list[int] = []
    for sender, receiver in pairs:
        start, end = (sends, sender), (takes, receiver)
        here = there = _first_free(busiest, start, end)
        if here == busiest:
            here, there = _first_free(busiest, start), _first_free(busiest, end)
        chain: list[int] = []
        rank, at = receiver, here
        while (transfer := ends[len(chain) % 2][0].get((rank, at))) is not None:
            rank, at = pairs[transfer][len(chain) % 2], here + there - at
            chain.append(transfer)
        for transfer in chain:
            del sends[pairs[transfer][0], rounds[transfer]]
            del takes[pairs[transfer][1], rounds[transfer]]
            rounds[transfer] = here + there - rounds[transfer]
        rounds.append(here)
        for transfer in [*chain, len(rounds) - 1]:
            sends[pairs[transfer][0], rounds[transfer]] = transfer
            takes[pairs[transfer][1], rounds[transfer]] = transfer
    return rounds


def _first_free(limit: int, *ends: tuple[dict[tuple[int, int], int], int]) -> int:
    """Find the first round in which all these ends are free, or return the limit."""
    free = (at for at in range(limit) if all((rank, at) not in taken for taken, rank in ends))
    return next(free, limit)


def _common(a_RE: NDArray[np.int64], b_RE: NDArray[np.int64]) -> NDArray[np.float64]:
    """Count the slots that can stay if rank ``i`` of ``a`` becomes rank ``j`` of ``b``."""
    common = np.zeros((len(a_RE), len(b_RE)))
    for copy in range(int(max(a_RE.max(), b_RE.max()))):
        common += (a_RE > copy).astype(np.float64) @ (b_RE > copy).T
    return common


def _match_nodes(gain_RR: NDArray[np.float64], num_nodes: int) -> NDArray[np.int64]:
    """Choose each rank's new number, ``(R,)``, for the largest total gain; nodes stay whole."""
    from scipy.optimize import linear_sum_assignment  # takes long to import

    size = len(gain_RR) // num_nodes
    blocks = gain_RR.reshape(num_nodes, size, num_nodes, size).swapaxes(1, 2)
    names = np.empty((num_nodes, num_nodes, size), dtype=np.int64)
    gain = np.empty((num_nodes, num_nodes))
    for i, j in np.ndindex(gain.shape):
        rows, names[i, j] = linear_sum_assignment(blocks[i, j], maximize=True)
        gain[i, j] = blocks[i, j][rows, names[i, j]].sum()
    rows, node = linear_sum_assignment(gain, maximize=True)
    return np.asarray(node[:, None] * size + names[rows, node]).ravel()


def _same_ranks(topology: Topology) -> NDArray[np.bool_]:
    """Tell which ranks may be exchanged: those of equal speed and room, ``(R, R)``."""
    equal = np.ones((topology.num_ranks, topology.num_ranks), dtype=bool)
    for values in (topology.speed, topology.room):
        if values is not None:
            equal &= np.equal.outer(np.array(values), np.array(values))
    return equal


def _dead(dead_ranks: Collection[int], num_ranks: int) -> NDArray[np.bool_]:
    dead = np.zeros(num_ranks, dtype=bool)
    for rank in as_ids(check_collection("dead_ranks", dead_ranks), "Dead ranks").ravel():
        if not 0 <= rank < num_ranks:
            raise EquipoiseError(
                f"There is no rank {rank} to be dead; expected numbers from 0 to {num_ranks - 1}."
            )
        dead[rank] = True
    return dead


def _check_same_shape(old: Placement, new: Placement) -> None:
    check_type("old", old, Placement)
    check_type("new", new, Placement)
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
