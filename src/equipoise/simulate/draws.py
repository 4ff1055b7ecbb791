"""Loads drawn the way published kernel tables draw them, and the share of the slowest rank.

A table names a distribution (uniform, or a power law with an exponent) but not the loads: each time
is that of one random draw, or the mean of five. Many new draws show which times are possible in a
cell, and how large the effect of chance is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count, check_number
from equipoise.errors import EquipoiseError

Rounding = Literal["smallest", "by rank"]
"""Rule for the assignments that clipping and rounding leave over. They go to the experts with the
smallest loads, or to the ranks in turn, each for its least loaded expert."""

_FULL = np.inf  # load that marks a rank without a free slot


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Numbers of experts, choices, ranks and slots; ``is_balanced`` places by the drawn loads."""

    num_experts: int
    top_k: int
    num_ranks: int
    num_slots: int
    is_balanced: bool = False

    def __post_init__(self) -> None:
        for name in ("num_experts", "top_k", "num_ranks", "num_slots"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        if self.num_slots % self.num_ranks or self.num_experts % self.num_ranks:
            raise EquipoiseError(
                f"{self.num_experts} experts in {self.num_slots} slots do not fill "
                f"{self.num_ranks} ranks equally; expected multiples of the ranks."
            )
        if self.num_slots < self.num_experts or self.top_k > self.num_experts:
            raise EquipoiseError(
                f"{self.num_experts} experts have {self.num_slots} slots, and a token chooses "
                f"{self.top_k}; expected no fewer slots and no more choices than experts."
            )
        if self.num_slots > self.num_experts and not self.is_balanced:
            raise EquipoiseError(
                f"{self.num_slots} slots for {self.num_experts} experts: only a balanced "
                "deployment says which experts have the copies."
            )


@dataclass(frozen=True)
class Share:
    """The share of the slowest rank in each draw.

    Parameters
    ----------
    load
        Assignments of each slot of the rank, ``(draws, S / R)``.
    tokens
        Number of different tokens with a choice on the rank, ``(draws,)``.
    """

    load: NDArray[np.float64]
    tokens: NDArray[np.int64]


def power_law_share(
    tokens: int,
    alpha: float,
    deployment: Deployment,
    *,
    rounding: Rounding,
    num_draws: int,
    seed: int = 0,
) -> Share:
    """Draw power-law loads and return the slowest rank's share (NVIDIA aiconfigurator's recipe).

    Equal arguments give equal draws. The loads do not depend on the placement, so that placements
    can be compared on the same draws.

    Parameters
    ----------
    tokens
        Number of tokens, all ranks together.
    alpha
        Exponent, other than 1. Popularity has density ``x ** -alpha`` from 1 to 0.8 times the
        tokens, or from 0.01 to 2 if there are no more assignments than experts.
    deployment
        Numbers of experts, choices, ranks and slots.
    rounding
        Rule for the assignments that clipping and rounding leave over.
    num_draws
        Number of draws.
    seed
        Random seed.
    """
    check_count("num_draws", num_draws)
    check_number("alpha", alpha, low=0, high=10)
    if alpha == 1:
        raise EquipoiseError("alpha is 1, where the inverse is not defined; use 1.01 or 0.99.")
    experts, ranks = deployment.num_experts, deployment.num_ranks
    rng = np.random.default_rng([seed, tokens, round(alpha * 1000), experts, ranks])
    assignments = tokens * deployment.top_k
    low, high = (0.01, 2.0) if assignments <= experts else (1.0, 0.8 * tokens)
    uniform = rng.random((num_draws, experts))
    a = 1 - alpha
    popularity = ((high**a - low**a) * uniform + low**a) ** (1 / a)
    share = popularity / popularity.sum(axis=1, keepdims=True)
    counts = np.rint(share * assignments).astype(np.int64)
    settle = _settle_smallest if rounding == "smallest" else _settle_by_rank
    return slowest_rank(settle(counts, tokens, deployment), tokens, deployment)


def uniform_share(tokens: int, deployment: Deployment, *, tile: int = 1) -> Share:
    """Give every expert the same load. This is a single draw, because nothing is random.

    If there are fewer assignments than experts, the first experts get one each. With a ``tile``,
    the rows of a rank are packed without padding, so that a tile has rows of several experts and is
    computed with the weights of one.
    """
    local = deployment.num_experts // deployment.num_ranks
    assignments = tokens * deployment.top_k
    each = assignments // deployment.num_experts
    load = np.zeros((1, local))
    if tile > 1:
        rows = each * local
        active = min(local, -(-rows // tile))
        load[0, :active] = rows / max(active, 1)
    elif each:
        load[:] = each
    else:
        load[0, : assignments // deployment.num_ranks] = 1
    return Share(load, np.minimum([tokens], load.sum(axis=1)).astype(np.int64))


def slowest_rank(counts: NDArray[np.int64], tokens: int, deployment: Deployment) -> Share:
    """Find the rank with the most assignments, from the loads of all experts, ``(draws, E)``.

    Without balancing, experts are on ranks in order. With balancing, each redundant slot goes to
    the expert with the largest load per copy; then slots, heaviest first, go to the least loaded
    rank with room.
    """
    ranks = deployment.num_ranks
    if deployment.is_balanced:
        load, rank_of_slot = _place_greedily(counts, deployment)
    else:
        load = counts
        rank_of_slot = np.broadcast_to(
            np.repeat(np.arange(ranks), deployment.num_slots // ranks), counts.shape
        )
    total = np.zeros((len(load), ranks))
    np.add.at(total, (np.arange(len(load))[:, None], rank_of_slot), load)
    slowest = total.argmax(axis=1)
    is_elsewhere = rank_of_slot != slowest[:, None]
    mine = np.argsort(is_elsewhere, axis=1, kind="stable")[:, : deployment.num_slots // ranks]
    return Share(
        np.take_along_axis(load, mine, axis=1).astype(np.float64),
        _distinct_tokens(load, mine, tokens),
    )


def _place_greedily(
    counts: NDArray[np.int64], deployment: Deployment
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute load and rank of each slot, ``(draws, S)`` each, in whole assignments."""
    num_draws, num_slots, ranks = len(counts), deployment.num_slots, deployment.num_ranks
    row = np.arange(num_draws)
    copies = np.ones(counts.shape, np.int64)
    expert = np.zeros((num_draws, num_slots), np.int64)
    expert[:, : deployment.num_experts] = np.arange(deployment.num_experts)
    for slot in range(deployment.num_experts, num_slots):
        expert[:, slot] = (counts / copies).argmax(axis=1)
        copies[row, expert[:, slot]] += 1
    load = np.take_along_axis(counts / copies, expert, axis=1)
    total, room = np.zeros((num_draws, ranks)), np.full((num_draws, ranks), num_slots // ranks)
    rank_of_slot = np.empty((num_draws, num_slots), np.int64)
    for slot in np.argsort(-load, axis=1, kind="stable").T:
        rank = total.argmin(axis=1)
        rank_of_slot[row, slot] = rank
        room[row, rank] -= 1
        total[row, rank] = np.where(room[row, rank] > 0, total[row, rank] + load[row, slot], _FULL)
    return _whole(load, counts.sum(axis=1)), rank_of_slot


def _whole(load: NDArray[np.float64], total: NDArray[np.int64]) -> NDArray[np.int64]:
    """Round loads down, and add the rest where the most was cut off."""
    whole = np.floor(load)
    missing = total - whole.sum(axis=1)
    order = np.argsort(whole - load, axis=1, kind="stable")
    more = (np.arange(load.shape[1]) < missing[:, None]).astype(np.float64)
    np.put_along_axis(whole, order, np.take_along_axis(whole, order, axis=1) + more, axis=1)
    return whole.astype(np.int64)


def _distinct_tokens(
    load: NDArray[np.int64], mine: NDArray[np.int64], tokens: int
) -> NDArray[np.int64]:
    """Count the tokens with a choice in the rank's slots, ``(draws,)``.

    Slots take tokens in turn around the batch, the heaviest slot first. So each slot has an
    interval of tokens on a circle, and the count is the size of the union of the rank's intervals.
    """
    order = np.argsort(-load, axis=1, kind="stable")
    by_weight = np.take_along_axis(load, order, axis=1)
    start = np.empty_like(load)
    np.put_along_axis(start, order, by_weight.cumsum(axis=1) - by_weight, axis=1)
    begin = np.take_along_axis(start, mine, axis=1) % tokens
    end = begin + np.take_along_axis(load, mine, axis=1)
    begins = np.concatenate([begin, np.zeros_like(begin)], axis=1)
    ends = np.concatenate([np.minimum(end, tokens), np.maximum(end - tokens, 0)], axis=1)
    order = np.argsort(begins, axis=1, kind="stable")
    begins, ends = (np.take_along_axis(x, order, axis=1) for x in (begins, ends))
    covered = np.maximum.accumulate(ends, axis=1)
    covered = np.concatenate([np.zeros_like(covered[:, :1]), covered[:, :-1]], axis=1)
    return np.asarray(np.maximum(0, ends - np.maximum(begins, covered)).sum(axis=1))


def _settle_smallest(
    counts: NDArray[np.int64], tokens: int, deployment: Deployment
) -> NDArray[np.int64]:
    """Clip loads at the number of tokens; change the smallest loads to make the sum exact."""
    target = tokens * deployment.top_k
    over = np.maximum(counts - tokens, 0).sum(axis=1)
    counts = np.minimum(counts, tokens)
    order, ascending = _ascending(counts)
    room = tokens - ascending
    taken_before = room.cumsum(axis=1) - room
    ascending += np.clip(over[:, None] - taken_before, 0, room)
    np.put_along_axis(counts, order, ascending, axis=1)

    missing = target - counts.sum(axis=1)
    order, ascending = _ascending(counts)
    has_room = ascending < tokens
    ascending += has_room & (has_room.cumsum(axis=1) <= np.maximum(missing, 0)[:, None])
    gives = np.arange(counts.shape[1]) < np.maximum(-missing, 0)[:, None]
    empty = (gives & (ascending == 0)).sum(axis=1)
    ascending -= gives & (ascending > 0)
    np.put_along_axis(counts, order, _lower_highest(ascending, empty), axis=1)
    return counts


def _ascending(counts: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Sort experts by ascending load, the last of equals first; also return their loads."""
    last = counts.shape[1] - 1
    order = last - np.argsort(counts[:, ::-1], axis=1, kind="stable")
    return order, np.take_along_axis(counts, order, axis=1)


def _settle_by_rank(
    counts: NDArray[np.int64], tokens: int, deployment: Deployment
) -> NDArray[np.int64]:
    """Clip loads at the number of tokens; change the ranks in turn to make the sum exact."""
    by_rank = (len(counts), deployment.num_ranks, -1)
    over = np.maximum(counts - tokens, 0).sum(axis=1)
    counts = np.minimum(counts, tokens)
    counts = _raise_lowest(counts.reshape(by_rank), _in_turn(over, deployment.num_ranks)).reshape(
        counts.shape
    )
    missing = tokens * deployment.top_k - counts.sum(axis=1)
    more = _in_turn(np.maximum(missing, 0), deployment.num_ranks)
    less = _in_turn(np.maximum(-missing, 0), deployment.num_ranks)
    raised = _raise_lowest(counts.reshape(by_rank), more)
    taken = np.minimum(less, raised.sum(axis=2))
    lowered = _lower_highest(raised, taken).reshape(counts.shape)
    return _lower_highest(lowered, (less - taken).sum(axis=1))


def _in_turn(number: NDArray[np.int64], num_ranks: int) -> NDArray[np.int64]:
    """Deal assignments to the ranks one at a time, ``(draws, R)``."""
    each, rest = np.divmod(number, num_ranks)
    return np.asarray(each[:, None] + (np.arange(num_ranks) < rest[:, None]))


def _raise_lowest(counts: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Compute the effect of adding assignments one at a time to the least of the last axis."""
    order = np.argsort(counts, axis=-1, kind="stable")
    ascending = np.take_along_axis(counts, order, axis=-1)
    ordinal = np.arange(1, counts.shape[-1] + 1)
    below = ascending.cumsum(axis=-1)
    raised = (ordinal * ascending - below <= number[..., None]).sum(axis=-1)
    total = np.take_along_axis(below, raised[..., None] - 1, axis=-1)[..., 0] + number
    level, rest = np.divmod(total, raised)
    ordinal = ordinal - 1
    filled = np.where(
        ordinal < raised[..., None], level[..., None] + (ordinal < rest[..., None]), ascending
    )
    result = np.empty_like(counts)
    np.put_along_axis(result, order, filled, axis=-1)
    return result


def _lower_highest(counts: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Compute the effect of taking assignments one at a time from the largest of the last axis."""
    return -_raise_lowest(-counts, number)
