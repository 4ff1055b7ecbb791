"""Communication: the ranks and nodes that tokens go to, and the time that this takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, check_count, check_number
from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.showing import in_short
from equipoise.topology import Topology, check_ranks
from equipoise.trace import TokenIds

Floats = NDArray[np.float64]

_BLOCK_TOKENS = 4096


@dataclass(frozen=True, eq=False, kw_only=True)
class Traffic:
    """Expected destinations of tokens when each choice goes to a random copy of its expert.

    All are means over the tokens that chose an expert in the layer, and 0 if no token did.

    Parameters
    ----------
    rank_reach
        Share of the tokens that go to each rank, ``(L, R)``.
    node_reach
        Share of the tokens that go to each node, ``(L, N)``.
    same_rank_pairs
        Share of the pairs of a token's choices that go to the same rank, ``(L,)``.
    choices_per_token
        Number of choices per token, ``(L,)``: ``K``, or less if choices are missing.
    """

    rank_reach: Floats
    node_reach: Floats
    same_rank_pairs: Floats
    choices_per_token: Floats

    __repr__ = in_short

    @property
    def ranks_per_token(self) -> Floats:
        """Expected number of different ranks that a token goes to, ``(L,)``."""
        return np.asarray(self.rank_reach.sum(axis=1))

    @property
    def nodes_per_token(self) -> Floats:
        """Expected number of different nodes that a token goes to, ``(L,)``."""
        return np.asarray(self.node_reach.sum(axis=1))

    @property
    def network_sends_per_token(self) -> Floats:
        """Expected number of other nodes that a token is sent to, ``(L,)``.

        All ranks are assumed to send the same number of tokens.
        """
        return np.asarray(self.nodes_per_token * (1 - 1 / self.node_reach.shape[1]))


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """A model of a layer's time with two-stage dispatch: one message per node, then to the ranks.

    The time is that of the slowest rank, from the first token received to the last result returned,
    without overlap.  All ranks send the same number of tokens, and the adapters of a node share
    what it receives.

    Parameters
    ----------
    cost
        Time of the experts on a rank.
    step_tokens
        Number of tokens in one step, all ranks together.  Loads are scaled to it, so only their
        distribution over experts matters.
    token_bytes
        Bytes of one token to one destination and back: 7,392 + 14,336 for DeepSeek-V3 (FP8 to the
        experts, BF16 back).

    Raises
    ------
    EquipoiseError
        Numbers that are not positive.
    """

    cost: RankCost
    step_tokens: int
    token_bytes: float

    __repr__ = in_short

    def __post_init__(self) -> None:
        check_number("step_tokens", self.step_tokens, low=1, high=np.inf)
        check_number("token_bytes", self.token_bytes, low=0, high=np.inf)

    def wire_seconds(self, traffic: Traffic, topology: Topology) -> Floats:
        """Compute the seconds that each rank spends on receiving and returning, ``(L, R)``."""
        on_node, on_rank = receive_seconds(topology)
        reach = (
            on_node * traffic.node_reach[:, topology.node_of_rank] + on_rank * traffic.rank_reach
        )
        return latency_seconds(topology) + self.step_tokens * self.token_bytes * reach

    def layer_seconds(
        self, placement: Placement, load: ArrayLike, traffic: Traffic, topology: Topology
    ) -> Floats:
        """Compute the seconds of each layer, ``(T, L)``, under an even split.

        Parameters
        ----------
        placement, topology
            Placement and its ranks.
        load
            Assignments, ``(T, L, E)``; only their distribution over the experts matters. A layer
            without load takes the communication and the fixed time. Not changed.
        traffic
            Traffic of the same placement.
        """
        x = as_loads(load)
        if x.ndim != 3 or x.shape[1:] != placement.copies.shape:
            raise EquipoiseError(
                f"Loads have shape {x.shape}; the placement needs (steps, layers, experts) ending "
                f"in {placement.copies.shape}."
            )
        total = x.sum(axis=-1, keepdims=True)
        share = np.divide(x, total, out=np.zeros_like(x), where=total > 0) / placement.copies
        slots = np.broadcast_to(placement.slots, (len(x), *placement.slots.shape))
        assignments = self.step_tokens * traffic.choices_per_token[:, None]
        slot_load = np.take_along_axis(share, slots, axis=-1) * assignments
        compute = self.cost.rank_seconds(slot_load, topology.num_ranks) / topology.relative_speed
        return np.asarray((compute + self.wire_seconds(traffic, topology)).max(axis=-1))


def measure_traffic(placement: Placement, tokens: TokenIds | None, topology: Topology) -> Traffic:
    """Compute the exact expected traffic from the choices of recorded tokens.

    Each choice goes to one of its expert's copies, uniformly and independently. If the chosen
    experts have shares ``p_x`` of their copies on a rank, the token does not go to the rank with
    probability ``prod (1 - p_x)``.

    Parameters
    ----------
    placement, topology
        Placement and its ranks.
    tokens
        Choices of the tokens: ``Trace.tokens``; not changed.

    Raises
    ------
    EquipoiseError
        Missing token ids, or a placement with other layers or ranks.
    """
    ids = checked_ids(tokens, placement.num_layers, placement.num_experts)
    check_ranks(topology, placement.num_ranks)
    share_LRE = placement.copies_on_rank / placement.copies[:, None, :]
    by_node = share_LRE.reshape(placement.num_layers, topology.num_nodes, -1, share_LRE.shape[2])
    rows = [
        _layer_traffic(ids[:, layer], share_LRE[layer], by_node[layer].sum(axis=1))
        for layer in range(placement.num_layers)
    ]
    rank_reach, node_reach, pairs, choices = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return Traffic(
        rank_reach=rank_reach,
        node_reach=node_reach,
        same_rank_pairs=pairs,
        choices_per_token=choices,
    )


def receive_seconds(topology: Topology) -> tuple[float, float]:
    """Compute a rank's seconds for each byte sent to its node, and for each byte sent to itself.

    Of the tokens for a node, ``1 / N`` are there already; the others arrive over all its adapters.
    Of the tokens for a rank, ``1 / (R / N)`` arrived over its own adapter.
    """
    num_nodes, size = topology.num_nodes, topology.num_ranks // topology.num_nodes
    network = (1 - 1 / num_nodes) / size / topology.network_link.bytes_per_second
    within = (1 - 1 / size) / topology.node_link.bytes_per_second
    return network, within


def latency_seconds(topology: Topology) -> float:
    """Compute the seconds of latency of one message to every peer on both links, there and back."""
    num_nodes, size = topology.num_nodes, topology.num_ranks // topology.num_nodes
    network = (num_nodes - 1) * topology.network_link.latency_seconds
    return 2 * (network + (size - 1) * topology.node_link.latency_seconds)


def checked_ids(tokens: TokenIds | None, num_layers: int, num_experts: int) -> NDArray[np.integer]:
    """Return expert ids ``(D, L, K)`` with at least one token, or raise ``EquipoiseError``."""
    if tokens is None:
        raise EquipoiseError(
            "The trace has no token ids, only counts; record the tokens' own choices."
        )
    check_count("num_experts", num_experts)
    ids = np.asarray(tokens.ids)
    if ids.ndim != 3 or not ids.size or ids.shape[1] != num_layers:
        raise EquipoiseError(
            f"Token ids have shape {ids.shape}; expected (tokens, {num_layers} layers, top_k), "
            "none of them 0."
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise EquipoiseError(f"Token ids have type {ids.dtype}; expected integers.")
    return ids


def known_ids(ids: NDArray[np.integer], num_experts: int) -> NDArray[np.int64]:
    """Replace ids outside ``[0, E)`` by ``E``."""
    known = ids.astype(np.int64)
    known[(known < 0) | (known >= num_experts)] = num_experts
    return known


def _layer_traffic(
    ids_DK: NDArray[np.integer], rank_share: Floats, node_share: Floats
) -> tuple[Floats, Floats, float, float]:
    """Compute the four fields of ``Traffic`` for one layer."""
    num_experts = rank_share.shape[1]
    on_rank, on_node = (np.pad(share.T, ((0, 1), (0, 0))) for share in (rank_share, node_share))
    reach = np.zeros(len(rank_share)), np.zeros(len(node_share))
    together, pairs, chosen, choosing = 0.0, 0, 0, 0
    for start in range(0, len(ids_DK), _BLOCK_TOKENS):
        ids = known_ids(ids_DK[start : start + _BLOCK_TOKENS], num_experts)
        choices = (ids < num_experts).sum(axis=1)
        chosen, choosing = chosen + int(choices.sum()), choosing + int((choices > 0).sum())
        for total, share in zip(reach, (on_rank, on_node), strict=True):
            total += (1 - np.prod(1 - share[ids], axis=1)).sum(axis=0)
        picked = on_rank[ids]
        together += float(picked.sum(axis=1).ravel() @ picked.sum(axis=1).ravel())
        together -= float(picked.ravel() @ picked.ravel())
        pairs += int((choices * (choices - 1)).sum())
    tokens = max(choosing, 1)
    return reach[0] / tokens, reach[1] / tokens, together / max(pairs, 1), chosen / tokens
