"""Routed batches: what every rank computes, receives and sends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, check_count
from equipoise.dispatch import Dispatcher
from equipoise.dispatch.tokens import assign_tokens, checked_ids, expert_counts
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.simulate.network import Copies, Traffic
from equipoise.topology import Topology

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Routed:
    """Batches shared over slots, and the tokens that each rank and node receives.

    Every rank is assumed to be the source of the same number of tokens.

    Parameters
    ----------
    slot_load
        Assignments of each slot, ``(..., S)``.
    tokens
        Number of tokens, all ranks together, ``(...)``.
    on_rank, on_node
        Number of different tokens with a choice there, ``(..., R)`` and ``(..., N)``.
    """

    slot_load: Floats
    tokens: Floats
    on_rank: Floats
    on_node: Floats

    @classmethod
    def expected(cls, slot_load: ArrayLike, top_k: int, topology: Topology) -> Routed:
        """Estimate from loads: a token's choices are different slots, otherwise independent."""
        load = as_loads(slot_load)
        R, N = topology.num_ranks, topology.num_nodes
        if load.shape[-1] % R:
            raise EquipoiseError(
                f"Slot loads have shape {load.shape}; expected a multiple of {R} slots."
            )
        tokens = load.sum(axis=-1) / check_count("top_k", top_k)
        chosen = load / np.where(tokens > 0, tokens, 1)[..., None]
        free = np.maximum(1 - chosen, 0).reshape(*tokens.shape, R, -1).prod(axis=-1)
        on_node = free.reshape(*tokens.shape, N, -1).prod(axis=-1)
        reached = (
            tokens[..., None] * (1 - missed ** _sharper(load.shape[-1], places, top_k))
            for missed, places in ((free, R), (on_node, N))
        )
        return cls(slot_load=load, tokens=tokens, on_rank=next(reached), on_node=next(reached))

    @classmethod
    def followed(
        cls, topk_ids: ArrayLike, placement: Placement, dispatch: Dispatcher, topology: Topology
    ) -> Routed:
        """Count from one step's expert ids ``(D, L, K)``: every choice is followed to its slot."""
        ids = checked_ids(topk_ids, placement)
        quotas = dispatch.split(expert_counts(ids, placement.num_experts), placement).quotas
        slot_DLK = assign_tokens(ids, quotas, placement)
        rank_DLK = slot_DLK // placement.slots_per_rank  # -1 (no choice) stays -1
        nodes = np.append(topology.node_of_rank, -1)
        return cls(
            slot_load=quotas.astype(np.float64),
            tokens=(ids >= 0).any(axis=-1).sum(axis=0).astype(np.float64),
            on_rank=_distinct(rank_DLK, topology.num_ranks),
            on_node=_distinct(nodes[rank_DLK], topology.num_nodes),
        )

    @classmethod
    def stacked(cls, steps: list[Routed]) -> Routed:
        """Stack several steps of the same layers, ``(T, L, ...)``."""
        names = ("slot_load", "tokens", "on_rank", "on_node")
        return cls(**{name: np.stack([getattr(s, name) for s in steps]) for name in names})

    def part(self, load: Floats) -> Routed:
        """Scale to another load of each slot: tokens change in proportion to loads."""
        scale = _ratio(load.sum(axis=-1), self.slot_load.sum(axis=-1))
        return Routed(
            slot_load=load,
            tokens=self.tokens * scale,
            on_rank=self.on_rank * scale[..., None],
            on_node=self.on_node * scale[..., None],
        )

    def rank_loads(self, num_ranks: int) -> Floats:
        """Assignments of each rank, ``(..., R)``."""
        by_rank = self.slot_load.reshape(*self.slot_load.shape[:-1], num_ranks, -1)
        return np.asarray(by_rank.sum(axis=-1))

    def traffic(self, copies: Copies, topology: Topology, source_imbalance: float = 1.0) -> Traffic:
        """Compute what each rank sends or receives, whichever is more, in each tier.

        Parameters
        ----------
        source_imbalance
            Largest number of own tokens on a rank over the mean; that rank sends more.
        """
        R, N = topology.num_ranks, topology.num_nodes
        node, inside = topology.node_of_rank, 1 / N
        own = (source_imbalance * self.tokens / R)[..., None]
        if copies == "assignment":
            received = self.rank_loads(R)
            on_node = received.reshape(*received.shape[:-1], N, -1).sum(axis=-1)
            sent = own * _ratio(on_node, self.tokens[..., None])[..., node]
            sent_far = own * _ratio(on_node.sum(axis=-1), self.tokens)[..., None] - sent
            near = np.maximum(sent, received * inside)
            far = np.maximum(sent_far, received * (1 - inside))
        else:  # a token is sent to a node once, then forwarded within it
            reached = _ratio(self.on_node, self.tokens[..., None])
            sent_far = own * (reached.sum(axis=-1, keepdims=True) - reached)[..., node]
            near = self.on_rank
            far = np.maximum(sent_far, (self.on_node * (1 - inside) * N / R)[..., node])
        return Traffic(near, np.maximum(far, 0) * (N > 1), R)


def halves(load: Floats) -> tuple[Floats, Floats]:
    """Split into two micro-batches: whole assignments go to one half or the other."""
    larger = np.minimum(np.ceil(load / 2), load)
    first = np.arange(load.shape[-1]) % 2 == 0
    half = np.where(first, larger, load - larger)
    return half, load - half


def _sharper(num_slots: int, places: int, top_k: int) -> float:
    """Compute the exponent that corrects the chance to miss a place for different choices.

    A token with ``K`` different choices misses a place less often than with independent ones. The
    exponent makes the chance exact for slots of equal load.
    """
    here = num_slots // places
    if top_k >= num_slots or top_k > num_slots - here:
        return np.inf  # a token must choose here: there are too few other slots
    i = np.arange(top_k)
    exact = np.log((num_slots - here - i) / (num_slots - i)).sum()
    return float(exact / (here * np.log(1 - top_k / num_slots)))


def _distinct(place_DLK: NDArray[np.int64], num_places: int) -> Floats:
    """Count the tokens with a choice at each place, ``(L, places)``; -1 means no place."""
    place = np.sort(place_DLK, axis=-1)
    is_new = (np.diff(place, axis=-1, prepend=-1) > 0) & (place >= 0)
    return np.stack(
        [
            np.bincount(row[new], minlength=num_places).astype(np.float64)
            for row, new in zip(np.moveaxis(place, 1, 0), np.moveaxis(is_new, 1, 0), strict=True)
        ]
    )


def _ratio(a: Floats, b: Floats) -> Floats:
    """Compute ``a / b``, and 0 where ``b`` is 0."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    return np.divide(a, b, out=np.zeros(shape), where=np.broadcast_to(b > 0, shape))
