"""Measures of load and imbalance, each defined once.

Symbols and units: ``equipoise explain concepts``.

Loads are counted in assignments, one for each (token, chosen expert) pair. Every function takes
lists or arrays, changes none of them, and returns float64: an array, or a scalar for a single row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_ids, as_loads, brief, check_count, check_type
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


def expert_loads(topk_ids: ArrayLike, num_experts: int) -> NDArray[np.int64]:
    """Count the assignments that each expert receives from the tokens' choices.

    A token that names an expert twice counts twice. An id outside ``[0, E)`` marks padding or a
    missing choice and is not counted.

    Parameters
    ----------
    topk_ids
        Integer expert ids of any shape, usually ``(D, K)``: one row per token. Not changed.
    num_experts
        Number of logical experts, ``E``.

    Returns
    -------
    Assignments per expert, ``(E,)`` int64.

    Raises
    ------
    EquipoiseError
        Ids that are not integers, or a ``num_experts`` that is not a positive whole number.
    """
    num_experts = check_count("num_experts", num_experts)
    ids = as_ids(topk_ids, "Expert ids")
    known = ids[(ids >= 0) & (ids < num_experts)].astype(np.int64)
    return np.bincount(known, minlength=num_experts).astype(np.int64)


def imbalance(loads: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Compute max / mean along ``axis``: the straggler factor gamma.

    A value of 1.3 says that the busiest rank has 30 % more load than the average one.

    Parameters
    ----------
    loads
        Loads in any unit, finite and >= 0, of any shape; not changed.
    axis
        Axis over which ranks (or experts, or slots) are compared. It is removed from the result.

    Returns
    -------
    float64 >= 1, and 1 where there is no load: an array, or a scalar for a single row.

    Raises
    ------
    EquipoiseError
        Loads that are empty, negative or not finite, or an axis they do not have.
    """
    peak, mean = _peak_and_mean(loads, axis)
    return _divide(peak, mean, where_empty=1.0)


def imbalance_ratio(loads: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Compute (max - mean) / mean along ``axis``: ``imbalance - 1``, and 0 without load."""
    peak, mean = _peak_and_mean(loads, axis)
    return _divide(peak - mean, mean, where_empty=0.0)


def balancedness(loads: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Compute mean / max along ``axis``: ``1 / imbalance``, in (0, 1], and 1 without load."""
    peak, mean = _peak_and_mean(loads, axis)
    return _divide(mean, peak, where_empty=1.0)


@dataclass(frozen=True, kw_only=True)
class BarrierAverages:
    """Averages over many barriers, in all conventions of the field.

    One average cannot be computed from another, so always say which one is shown.

    Parameters
    ----------
    mean_imbalance
        Mean of max/mean over the barriers.
    max_imbalance
        Largest max/mean of any barrier.
    mean_imbalance_ratio
        Mean of (max - mean)/mean.
    mean_balancedness
        Mean of mean/max.
    ratio_of_sums
        Sum of the means over sum of the maxima: the share of device time that does work.
    num_barriers
        Number of barriers with load. Only these enter the averages above.
    num_without_load
        Number of barriers left out because nothing was routed there.
    """

    mean_imbalance: float
    max_imbalance: float
    mean_imbalance_ratio: float
    mean_balancedness: float
    ratio_of_sums: float
    num_barriers: int
    num_without_load: int

    @property
    def relative_step_time(self) -> float:
        """Sum of the maxima over sum of the means: 1.3 is a step 30 % longer than balanced."""
        return 1.0 / self.ratio_of_sums

    @property
    def idle_share(self) -> float:
        """Share of device time spent waiting at the barriers: 23.1 % at a step time of 1.3."""
        return 1.0 - self.ratio_of_sums


def average_over_barriers(loads: ArrayLike) -> BarrierAverages:
    """Average imbalance over barriers: each layer of each step is one barrier.

    Barriers without load are left out. If no barrier has load, every average is that of perfect
    balance and ``num_barriers`` is 0.

    Parameters
    ----------
    loads
        Assignments per rank, ``(L, R)``, ``(T, L, R)`` or one row ``(R,)``; not changed.

    Raises
    ------
    EquipoiseError
        Loads that are empty, negative or not finite.
    """
    x = as_loads(loads)
    rows = x.reshape(-1, x.shape[-1])
    busy = rows[rows.any(axis=1)]
    counts = {"num_barriers": len(busy), "num_without_load": len(rows) - len(busy)}
    if not len(busy):
        busy = np.ones_like(rows)
    gamma = imbalance(busy)
    return BarrierAverages(
        mean_imbalance=float(gamma.mean()),
        max_imbalance=float(gamma.max()),
        mean_imbalance_ratio=float(imbalance_ratio(busy).mean()),
        mean_balancedness=float(balancedness(busy).mean()),
        ratio_of_sums=float(busy.mean(axis=1).sum() / busy.max(axis=1).sum()),
        **counts,
    )


def rank_loads(load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
    """Compute the load of each rank when every copy of an expert takes an equal share.

    Parameters
    ----------
    load
        Assignments per expert, ``(L, E)`` or ``(T, L, E)``; not changed.
    placement
        Placement that says which ranks hold which experts.

    Returns
    -------
    Assignments per rank, ``(L, R)`` or ``(T, L, R)`` float64.

    Raises
    ------
    EquipoiseError
        Loads whose layers or experts are not those of the placement.
    """
    x = _as_loads_of(placement, load)
    of_copy = x / placement.copies
    layer = np.arange(placement.num_layers)[:, None]
    on_rank = np.zeros((*x.shape[:-1], placement.num_ranks))
    for expert_LR in np.moveaxis(placement.by_rank, 2, 0):
        on_rank += of_copy[..., layer, expert_LR]
    return on_rank


def active_experts(load: ArrayLike, placement: Placement) -> NDArray[np.int64]:
    """Count the slots of each rank whose expert receives at least one assignment.

    In decode a rank spends its time on reading the weights of its active experts, however few
    assignments each has. The rank with the most active experts therefore sets the pace. An expert
    with fewer assignments than copies cannot use all its copies; for it the count is an upper
    bound.

    Parameters
    ----------
    load
        Assignments per expert, ``(L, E)`` or ``(T, L, E)``; not changed.
    placement
        Placement that says which ranks hold which experts.

    Returns
    -------
    Active slots per rank, ``(L, R)`` or ``(T, L, R)`` int64.
    """
    used = _as_loads_of(placement, load) > 0
    slots: NDArray[np.int64] = np.einsum(
        "...le,lre->...lr", used.astype(np.int64), placement.copies_on_rank, optimize=True
    )
    return slots


def peak_tokens(load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
    """Compute the largest load of any rank in any step, which a rank's buffers must hold.

    Every copy of an expert takes an equal share. The unit is assignments, not tokens: a token that
    chose two experts of one rank counts twice.

    Parameters
    ----------
    load
        Assignments per expert, ``(T, L, E)``, or ``(L, E)`` for a single step; not changed.
    placement
        Placement that says which ranks hold which experts.

    Returns
    -------
    Assignments per layer, ``(L,)`` float64.
    """
    on_rank = rank_loads(load, placement)
    return np.asarray(on_rank.reshape(-1, *on_rank.shape[-2:]).max(axis=(0, 2)))


def _as_loads_of(placement: Placement, load: ArrayLike) -> NDArray[np.float64]:
    check_type("placement", placement, Placement)
    x = as_loads(load)
    wanted = (placement.num_layers, placement.num_experts)
    if x.ndim not in (2, 3) or x.shape[-2:] != wanted:
        raise EquipoiseError(
            f"Loads have shape {x.shape}; the placement needs (steps, layers, experts) "
            f"ending in {wanted}."
        )
    return x


def _peak_and_mean(loads: ArrayLike, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = as_loads(loads)
    known = isinstance(axis, (int, np.integer)) and not isinstance(axis, bool)
    if not known or not -x.ndim <= axis < x.ndim:
        raise EquipoiseError(f"Loads of shape {x.shape} have no axis {brief(axis)}.")
    return np.asarray(x.max(axis=axis)), np.asarray(x.mean(axis=axis))


def _divide(
    over: NDArray[np.float64], under: NDArray[np.float64], *, where_empty: float
) -> NDArray[np.float64]:
    ratio = np.full(under.shape, where_empty)
    np.divide(over, under, out=ratio, where=under > 0)
    return ratio[()]  # a single row becomes a scalar, which rounds and prints like a number
