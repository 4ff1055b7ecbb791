"""Capacity limits of training systems: the choices that an expert has no room for.

A serving system must not drop any choice, because that changes the output.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import expert_loads
from equipoise.checks import check_number
from equipoise.dispatch.tokens import as_integers, earlier_equal
from equipoise.errors import EquipoiseError


def expert_capacity(num_assignments: int, num_experts: int, capacity_factor: float) -> int:
    """Compute the capacity of every expert: ``ceil(capacity_factor * assignments / E)``."""
    check_number("capacity_factor", capacity_factor, low=0, high=np.inf)
    # Round first: 2.1 * (10 / 3) = 7.000000000000001 must not become a capacity of 8.
    return math.ceil(round(capacity_factor * (num_assignments / num_experts), 9))


def dropped_choices(
    topk_ids: ArrayLike, num_experts: int, capacity_factor: float
) -> NDArray[np.bool_]:
    """Find the choices that come when their expert is already full: first come, first served.

    Tokens are served in order, and each token's choices in their order. ``dropped_tokens`` gives
    the number of these choices.

    Parameters
    ----------
    topk_ids
        Expert ids of one layer, ``(D, K)`` integers; ids outside ``[0, E)`` (padding) take no room
        and are not dropped. Not changed.
    num_experts
        Number of logical experts, ``E``.
    capacity_factor
        Capacity of an expert over the mean load of an expert, >= 0.

    Returns
    -------
    Mask of the dropped choices, ``(D, K)``.

    Raises
    ------
    EquipoiseError
        Ids that are not integers or not ``(D, K)``, a factor that is not a number >= 0.
    """
    ids = as_integers(topk_ids, "Expert ids")
    loads = expert_loads(ids, num_experts)
    if ids.ndim != 2:
        raise EquipoiseError(f"Expert ids have shape {ids.shape}; expected (tokens, top_k).")
    capacity = expert_capacity(int(loads.sum()), num_experts, capacity_factor)
    known = (ids >= 0) & (ids < num_experts)
    dropped = np.zeros(ids.shape, dtype=np.bool_)
    dropped[known] = earlier_equal(ids[known].astype(np.int64)) >= capacity
    return dropped
