"""Least-loaded expert parallelism: batches so skewed that weights travel with the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, check_count, check_number
from equipoise.errors import EquipoiseError


@dataclass(frozen=True, kw_only=True)
class Llep:
    """Spill what is above a rank's share to the least loaded ranks, copying weights there.

    The rule of LLEP (arXiv 2601.17111). No placement holds copies: experts live in equal contiguous
    blocks, and a rank that gets foreign tokens fetches the expert for this batch. It pays for large
    batches only.

    Parameters
    ----------
    threshold
        Busiest over mean expert from which anything is spilled.
    capacity
        Most load that a rank may take, relative to the mean rank.
    min_chunk
        Fewest assignments worth sending elsewhere, unless an expert's rest is smaller.
    """

    threshold: float = 1.3
    capacity: float = 1.0
    min_chunk: int = 1024

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, low=1, high=np.inf)
        check_number("capacity", self.capacity, low=1, high=np.inf)
        check_number("min_chunk", self.min_chunk, low=1, high=np.inf)

    def spill(self, load: ArrayLike, num_ranks: int) -> NDArray[np.int64]:
        """Choose where the assignments of every expert of one layer are served.

        Heavier experts first; of equal ones the lower id, of equally loaded ranks the lower one.

        Parameters
        ----------
        load
            Whole assignments ``(E,)``; not changed.
        num_ranks
            ``R``; divides ``E``.

        Returns
        -------
        ``(R, E)``; sums over ranks to the load.

        Raises
        ------
        EquipoiseError
            Loads that are not whole numbers >= 0, ranks that do not divide the experts.
        """
        n = _checked(load, num_ranks)
        home = np.arange(len(n)) * num_ranks // len(n)
        flow = np.zeros((num_ranks, len(n)), np.int64)
        if n.max() * len(n) < self.threshold * n.sum():
            flow[home, np.arange(len(n))] = n
            return flow
        room = int(np.ceil(self.capacity * n.sum() / num_ranks))
        load_of_rank = np.bincount(home, n, num_ranks).astype(np.int64)  # assigned and pending
        for e in np.argsort(-n, kind="stable"):
            load_of_rank[home[e]] -= n[e]
            kept = int(np.clip(room - load_of_rank[home[e]], 0, n[e]))
            flow[home[e], e] += kept
            load_of_rank[home[e]] += kept
            self._spill(int(e), int(n[e]) - kept, int(home[e]), room, load_of_rank, flow)
        return flow

    def _spill(
        self,
        expert: int,
        rest: int,
        home: int,
        room: int,
        load_of_rank: NDArray[np.int64],
        flow: NDArray[np.int64],
    ) -> None:
        """Send the rest of an expert away, in chunks that are worth a copy of its weights."""
        while rest:
            by_load = [int(r) for r in np.argsort(load_of_rank, kind="stable") if r != home]
            chunk, rank = rest, by_load[0] if by_load else home  # if no rank has room for a chunk
            for r in by_load:
                fits = min(rest, room - int(load_of_rank[r]))
                if fits == rest or fits >= self.min_chunk:
                    chunk, rank = fits, r
                    break
            flow[rank, expert] += chunk
            load_of_rank[rank] += chunk
            rest -= chunk


def _checked(load: ArrayLike, num_ranks: int) -> NDArray[np.int64]:
    check_count("num_ranks", num_ranks)
    x = as_loads(load)
    if x.ndim != 1 or len(x) % num_ranks:
        raise EquipoiseError(
            f"Loads have shape {x.shape}; expected one number an expert, a multiple of {num_ranks}."
        )
    if (x != np.floor(x)).any() or x.sum() >= 2**53:
        raise EquipoiseError("Loads are not whole numbers below 2**53; give assignments.")
    return x.astype(np.int64)
