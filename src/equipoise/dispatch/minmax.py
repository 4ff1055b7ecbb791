"""The split whose busiest rank is as light as the copies allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.dispatch.quotas import minmax_quotas
from equipoise.dispatch.split import Split, checked_load
from equipoise.placement import Placement


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """Share every batch so that the busiest rank gets as little as possible.

    Exact: a maximum flow between experts and ranks, with the level of the ranks raised by discrete
    Newton steps until it is feasible. The first call compiles, or loads from numba's cache.
    """

    name: ClassVar[str] = "minmax"

    def split(self, load: ArrayLike, placement: Placement) -> Split:
        """Share a batch over the copies.

        ``quotas`` of the answer have the least peak whole numbers allow, ``ceil(bound)``.

        Parameters
        ----------
        load
            Assignments ``(L, E)``; not changed.

        Raises
        ------
        EquipoiseError
            Loads that are NaN, infinite, negative or not of the placement's shape, or whose sum in
            a layer reaches ``2**53``.
        """
        from equipoise.dispatch import _kernels  # numba takes long to import

        load_LE = checked_load(load, placement, steps=False).copy()
        shares, bottleneck_ranks = _kernels.minmax(load_LE, placement.slots, placement.num_ranks)
        return Split(
            placement=placement,
            load=load_LE,
            shares=shares,
            bottleneck_ranks=bottleneck_ranks,
            dispatch=self.name,
            rounding=minmax_quotas,
        )

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Peaks of many batches, without their splits: to score a placement.

        Parameters
        ----------
        load
            Assignments ``(T, L, E)``; not changed.

        Returns
        -------
        Assignments on the busiest rank, ``(T, L)``.

        Raises
        ------
        EquipoiseError
            As ``split``.
        """
        from equipoise.dispatch import _kernels  # numba takes long to import

        load_TLE = checked_load(load, placement, steps=True)
        return _kernels.minmax_peaks(load_TLE, placement.slots, placement.num_ranks)
