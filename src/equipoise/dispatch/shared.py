"""Load that may go to any rank: a shared expert, or one whose copies are everywhere."""

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
    """Share an amount so that the slowest rank is as fast as possible: as water finds its level.

    Of all ways to share it, the ranks that get any are level afterwards, in load over speed, and no
    candidate that gets none is below them. That is optimal for the given loads; and for the
    placement too, if they are those of a min-max split and every rank is a candidate.

    Parameters
    ----------
    base
        What the ranks carry already, ``(..., R)``: e.g. ``split.rank_loads``.
    amount
        What there is to share, one number or ``(...)``.
    speed
        Speed of each rank, ``(R,)``; ``None``: all equal.
    candidates
        Ranks that may get some, bool ``(R,)`` or ``(..., R)``; ``None``: all.

    Returns
    -------
    ``(..., R)`` float64, which sums to the amount.

    Raises
    ------
    EquipoiseError
        Loads or amounts that are NaN, infinite or negative, speeds that are not positive, shapes
        that do not fit, an amount without a candidate.
    """
    load, wanted, v, allowed = _checked(base, amount, speed, candidates)
    time = np.where(allowed, load / v, np.inf)
    order = np.argsort(time, axis=-1, kind="stable")
    level = _levels(load, wanted, v, allowed, order)
    room = np.where(allowed, np.maximum(0.0, level[..., None] * v - load), 0.0)
    # Filled in that order to where the sum is the amount: rounding neither adds nor loses any.
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
    """As ``pour``, in whole assignments, with the least peak that these allow.

    Rounded down, then one by one to the rank that is done with it soonest, the lowest of equals.

    Returns
    -------
    ``(..., R)`` int64, which sums to the amount.

    Raises
    ------
    EquipoiseError
        As ``pour``; amounts that are not whole or reach ``2**53``.
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
    """Water levels, ``(...)``: the least over how many ranks, soonest first, share the amount."""
    below = np.cumsum(np.take_along_axis(np.where(allowed, load, 0.0), order, axis=-1), axis=-1)
    speed = np.cumsum(np.take_along_axis(np.where(allowed, v, 0.0), order, axis=-1), axis=-1)
    level = np.divide(wanted + below, speed, out=np.zeros_like(below), where=speed > 0)
    return np.asarray(level.min(axis=-1))


def _checked(
    base: ArrayLike, amount: ArrayLike, speed: ArrayLike | None, candidates: ArrayLike | None
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Loads ``(..., R)``, amounts ``(..., 1)``, speeds ``(R,)`` and candidates ``(..., R)``."""
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
            f"{load.shape}; expected one amount a row and one candidate a rank."
        ) from error
    if allowed.dtype != np.bool_:
        raise EquipoiseError(f"Candidates have type {allowed.dtype}; expected true or false.")
    if ((wanted > 0) & ~allowed.any(axis=-1)).any():
        raise EquipoiseError("An amount has no candidate; expected at least one rank to take it.")
    return load, wanted[..., None], v, allowed
