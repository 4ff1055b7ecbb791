"""The quantities of the field, each defined once. Symbols and units: ``docs/concepts.md``."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


def imbalance(loads: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Max over mean along ``axis``: the straggler factor, >= 1; 1 where there is no load."""
    x = np.asarray(loads, dtype=np.float64)
    mean = x.mean(axis=axis)
    return np.divide(x.max(axis=axis), mean, out=np.ones_like(mean), where=mean > 0)


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
    x = np.asarray(load, dtype=np.float64)
    wanted = (placement.num_layers, placement.num_experts)
    if x.ndim not in (2, 3) or x.shape[-2:] != wanted:
        raise EquipoiseError(
            f"Loads have shape {x.shape}; the placement needs (steps, layers, experts) "
            f"ending in {wanted}."
        )
    share = placement.copies_on_rank / placement.copies[:, None, :]
    return np.einsum("...le,lre->...lr", x, share, optimize=True)
