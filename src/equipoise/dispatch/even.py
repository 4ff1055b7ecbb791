"""Equal shares for all copies, whatever else their ranks carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import rank_loads
from equipoise.dispatch.quotas import even_quotas
from equipoise.dispatch.split import Split, checked_load
from equipoise.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Even:
    """Give each copy of an expert the same: what most engines aim at, blind to the batch.

    Its bound is that of the best split over the same copies, so ``gap`` is what ``MinMax`` gains.
    """

    name: ClassVar[str] = "even"

    def split(self, load: ArrayLike, placement: Placement) -> Split:
        """Share a batch over the copies.

        In ``quotas`` the lower slots of an expert get the odd assignments.

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
        shares = np.take_along_axis(load_LE / placement.copies, placement.slots, axis=1)
        _, bottleneck_ranks = _kernels.minmax(load_LE, placement.slots, placement.num_ranks)
        return Split(
            placement=placement,
            load=load_LE,
            shares=shares,
            bottleneck_ranks=bottleneck_ranks,
            dispatch=self.name,
            rounding=even_quotas,
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
        return np.asarray(
            rank_loads(checked_load(load, placement, steps=True), placement).max(axis=2)
        )
