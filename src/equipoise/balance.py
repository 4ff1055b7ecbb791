"""The quantities of the field, each defined once.

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
    """Assignments each expert receives from the tokens' choices.

    A token that names an expert twice counts twice; an id outside ``[0, E)`` (padding, no choice)
    counts for nothing.

    Parameters
    ----------
    topk_ids
        Integer expert ids of any shape, usually ``(D, K)``: a row a token.

    Returns
    -------
    ``(E,)`` int64.
    """
    num_experts = check_count("num_experts", num_experts)
    ids = as_ids(topk_ids, "Expert ids")
    known = ids[(ids >= 0) & (ids < num_experts)].astype(np.int64)
    return np.bincount(known, minlength=num_experts).astype(np.int64)


def imbalance(loads: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Max over mean along ``axis``: the straggler factor, >= 1; 1 where there is no load."""
    peak, mean = _peak_and_mean(loads, axis)
    return _divide(peak, mean, where_empty=1.0)


def imbalance_ratio(loads: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """(Max - mean) over mean along ``axis``, >= 0: ``imbalance - 1``; 0 where there is no load."""
    peak, mean = _peak_and_mean(loads, axis)
    return _divide(peak - mean, mean, where_empty=0.0)


def balancedness(loads: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Mean over max along ``axis``, in (0, 1]: ``1 / imbalance``; 1 where there is no load."""
    peak, mean = _peak_and_mean(loads, axis)
    return _divide(mean, peak, where_empty=1.0)


@dataclass(frozen=True, kw_only=True)
class BarrierAverages:
    """Many barriers in single numbers. Averages do not convert into each other: name the one shown.

    Parameters
    ----------
    mean_imbalance
        Mean of max/mean over the barriers.
    max_imbalance
        The worst of them.
    mean_imbalance_ratio
        Mean of (max - mean)/mean.
    mean_balancedness
        Mean of mean/max.
    ratio_of_sums
        Sum of the means over sum of the maxima: the share of device time that does work.
    num_barriers
        Barriers with load, which all of the above are about.
    num_without_load
        Barriers left out because nothing was routed there.
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
        """Sum of the maxima over sum of the means: 1.3 means a step 30 % longer than balanced."""
        return 1.0 / self.ratio_of_sums

    @property
    def idle_share(self) -> float:
        """Share of device time spent waiting at the barriers: 23.1 % at a step time of 1.3."""
        return 1.0 - self.ratio_of_sums


def average_over_barriers(loads: ArrayLike) -> BarrierAverages:
    """Average over layers and steps, each a barrier of its own; those without load are left out.

    Without any load at all everything reads as balanced and ``num_barriers`` is 0.

    Parameters
    ----------
    loads
        Assignments per rank, ``(L, R)``, ``(T, L, R)`` or one row ``(R,)``.
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
    """Assignments on each rank when every copy of an expert takes an equal share.

    Parameters
    ----------
    load
        Assignments per expert, ``(L, E)`` or ``(T, L, E)``; not changed.

    Returns
    -------
    ``(L, R)`` or ``(T, L, R)`` float64.
    """
    x = _as_loads_of(placement, load)
    of_copy = x / placement.copies
    layer = np.arange(placement.num_layers)[:, None]
    on_rank = np.zeros((*x.shape[:-1], placement.num_ranks))
    for expert_LR in np.moveaxis(placement.by_rank, 2, 0):
        on_rank += of_copy[..., layer, expert_LR]
    return on_rank


def active_experts(load: ArrayLike, placement: Placement) -> NDArray[np.int64]:
    """Slots of each rank whose expert receives anything; the most over ranks drives decode.

    In decode a rank spends its time reading the weights of its active experts, however few
    assignments each has. An expert with fewer assignments than copies cannot use all of them, so
    for it this is an upper bound.

    Parameters
    ----------
    load
        Assignments per expert, ``(L, E)`` or ``(T, L, E)``.

    Returns
    -------
    ``(L, R)`` or ``(T, L, R)`` int64.
    """
    used = _as_loads_of(placement, load) > 0
    slots: NDArray[np.int64] = np.einsum(
        "...le,lre->...lr", used.astype(np.int64), placement.copies_on_rank, optimize=True
    )
    return slots


def peak_tokens(load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
    """Most assignments a rank receives in any one step: what its buffers must hold.

    The unit is assignments under an even split, not tokens: a token that chose two experts of one
    rank counts twice.

    Parameters
    ----------
    load
        Assignments per expert, ``(T, L, E)``, or ``(L, E)`` for a single step.

    Returns
    -------
    ``(L,)``.
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
    return ratio[()]  # of a single row a scalar, which rounds and prints like a number
