"""Sharing of load that may go to any rank: a shared expert, or one with copies everywhere."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads
from equipoise.dispatch.base import TOO_MUCH_LOAD
from equipoise.errors import EquipoiseError

Floats = NDArray[np.float64]


def pour(
    base: ArrayLike,
    amount: ArrayLike,
    speed: ArrayLike | None = None,
    *,
    candidates: ArrayLike | None = None,
) -> Floats:
    """Share an amount over ranks so that the slowest is as fast as possible (water filling).

    Afterwards all ranks that received something have the same load over speed, and no other
    candidate is below them. This is optimal for the given loads. It is also optimal for the
    placement if the loads are those of a min-max split and every rank is a candidate.

    Parameters
    ----------
    base
        Load that the ranks already have, ``(..., R)``, e.g. ``split.rank_loads``; not changed.
    amount
        Amount to share, one number or ``(...)``.
    speed
        Speed of each rank, ``(R,)``; ``None`` for equal speeds.
    candidates
        Mask of the ranks that may receive load, ``(R,)`` or ``(..., R)``; ``None`` for all.

    Returns
    -------
    Load added to each rank, ``(..., R)`` float64, which sums to the amount.

    Raises
    ------
    EquipoiseError
        Loads or amounts that are negative or not finite, speeds that are not positive, shapes that
        do not fit, or an amount without a candidate.
    """
    load, wanted, v, allowed = _checked(base, amount, speed, candidates)
    time = np.where(allowed, load / v, np.inf)
    order = np.argsort(time, axis=-1, kind="stable")
    level = _levels(load, wanted, v, allowed, order)
    room = np.where(allowed, np.maximum(0.0, level[..., None] * v - load), 0.0)
    # Filled in order until the sum is the amount, so that rounding neither adds nor loses load.
    filled = np.minimum(np.cumsum(np.take_along_axis(room, order, axis=-1), axis=-1), wanted)
    part = np.diff(filled, axis=-1, prepend=0.0)
    part[..., 0] += wanted[..., 0] - filled[..., -1]
    poured = np.empty_like(load)
    np.put_along_axis(poured, order, part, axis=-1)
    return poured


def pour_whole(
    base: ArrayLike,
    amount: ArrayLike,
    speed: ArrayLike | None = None,
    *,
    candidates: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Share an amount like ``pour``, but in whole assignments, with the least possible peak.

    Shares are rounded down; the rest goes one by one to the rank that finishes it first. Parameters
    are those of ``pour``.

    Returns
    -------
    Load added to each rank, ``(..., R)`` int64, which sums to the amount.

    Raises
    ------
    EquipoiseError
        Whatever ``pour`` refuses, or amounts that are not whole or reach ``2**53``.
    """
    load, wanted, v, allowed = _checked(base, amount, speed, candidates)
    if (wanted != np.floor(wanted)).any() or wanted.max() >= TOO_MUCH_LOAD:
        raise EquipoiseError(
            f"The amounts go up to {wanted.max()}; expected whole numbers below 2**53."
        )
    # One less than rounded down: rounding must not have made it more than the best has.
    poured = np.maximum(0.0, np.floor(pour(load, wanted[..., 0], v, candidates=allowed)) - 1.0)
    missing = wanted[..., 0] - poured.sum(axis=-1)
    while missing.any():
        done = np.where(allowed, (load + poured + 1.0) / v, np.inf)
        soonest = done.argmin(axis=-1)[..., None]
        one = (missing > 0)[..., None]
        np.put_along_axis(poured, soonest, np.take_along_axis(poured, soonest, -1) + one, -1)
        missing -= one[..., 0]
    return poured.astype(np.int64)


def _levels(
    load: Floats, wanted: Floats, v: Floats, allowed: NDArray[np.bool_], order: NDArray[np.int64]
) -> Floats:
    """Compute the water levels, ``(...)``: the least over the number of ranks that share."""
    below = np.cumsum(np.take_along_axis(np.where(allowed, load, 0.0), order, axis=-1), axis=-1)
    speed = np.cumsum(np.take_along_axis(np.where(allowed, v, 0.0), order, axis=-1), axis=-1)
    level = np.divide(wanted + below, speed, out=np.zeros_like(below), where=speed > 0)
    return np.asarray(level.min(axis=-1))


def _checked(
    base: ArrayLike, amount: ArrayLike, speed: ArrayLike | None, candidates: ArrayLike | None
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Check and return loads ``(..., R)``, amounts ``(..., 1)``, speeds and candidates."""
    load = as_loads(base)
    rows, num_ranks = load.shape[:-1], load.shape[-1]
    v = np.ones(num_ranks) if speed is None else as_loads(speed)
    if v.shape != (num_ranks,) or not (v > 0).all():
        raise EquipoiseError(f"Speeds are {v}; expected {num_ranks} numbers above 0.")
    given = as_loads(cast(ArrayLike, [amount]))[0]
    try:
        wanted = np.broadcast_to(given, rows)
        allowed = np.broadcast_to(
            True if candidates is None else np.asarray(candidates), load.shape
        )
    except ValueError as error:
        raise EquipoiseError(
            f"Amounts of shape {np.shape(given)} and the candidates do not fit loads of shape "
            f"{load.shape}; expected one amount for each row and one candidate for each rank."
        ) from error
    if allowed.dtype != np.bool_:
        raise EquipoiseError(f"Candidates have type {allowed.dtype}; expected true or false.")
    if ((wanted > 0) & ~allowed.any(axis=-1)).any():
        raise EquipoiseError("An amount has no candidate; expected at least one rank to take it.")
    return load, wanted[..., None], v, allowed
