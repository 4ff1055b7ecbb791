"""Steps with known loads, in the sizes of other steps: they tell drift from skew."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.simulate.gathered import drawn, drawn_from_shares, enough
from equipoise.simulate.kinds import kind_names, loaded_steps
from equipoise.trace import Trace


def familiar_steps(
    known: Trace,
    kinds: NDArray[np.str_],
    sizes_TL: NDArray[np.float64],
    *,
    of_rows: bool = False,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Draw steps of given kinds and sizes with the loads of known steps, ``(T, L, E)``.

    Each step is drawn from known steps of its kind, at equal distances; if there are none of its
    kind, from known steps of all kinds.

    Parameters
    ----------
    known
        Steps with known loads, for example those that a placement was made for.
    kinds
        Kinds of the steps to draw, as ``kind_names`` returns them, ``(T,)``.
    sizes_TL
        Assignments of the steps to draw, ``(T, L)``.
    of_rows
        Flag that each step is drawn from the shares of one row. Otherwise it is gathered from
        consecutive rows with enough assignments, so that it has the noise of its size.
    """
    rng = np.random.default_rng(seed)
    counts, names = known.counts[loaded_steps(known)], kind_names(known)
    load = np.zeros((*sizes_TL.shape, counts.shape[-1]))
    for kind in dict.fromkeys(kinds.tolist()):
        rows = counts[names == kind] if kind in names else counts
        size_T = rows.sum(axis=2, dtype=np.float64).max(axis=1)
        steps = np.flatnonzero(kinds == kind)
        starts = np.arange(len(steps)) * len(rows) // len(steps)
        for t, start in zip(steps.tolist(), starts.tolist(), strict=True):
            wanted_L = np.rint(sizes_TL[t]).astype(np.int64).tolist()
            source_LE = rows[start] if of_rows else enough(rows, size_T, start, max(wanted_L))
            draw = drawn_from_shares if of_rows else drawn
            for layer, source, wanted in zip(load[t], source_LE, wanted_L, strict=True):
                layer[:] = draw(rng, source, wanted)
    return load
