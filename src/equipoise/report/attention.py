"""Imbalance of requests over ranks, for data-parallel attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.balance import imbalance
from equipoise.showing import in_short
from equipoise.trace import Trace

_WORTH_SAYING = 1.1


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The imbalance of the ranks' own tokens; data-parallel attention waits for the fullest rank.

    Parameters
    ----------
    imbalance
        Largest number of own tokens on a rank over the mean rank's, mean over steps.
    busiest_rank
        Rank with the most tokens over all steps.
    """

    imbalance: float
    busiest_rank: int

    __repr__ = in_short

    @property
    def headline(self) -> tuple[str, ...]:
        """Return a sentence if requests are spread unevenly."""
        if self.imbalance < _WORTH_SAYING:
            return ()
        return (
            f"Requests are spread unevenly: in a step the fullest rank has {self.imbalance:.2f}x "
            f"the mean number of tokens (over all steps, rank {self.busiest_rank} has most), and "
            "with data-parallel attention all ranks wait for it. Placing experts does not change "
            "that.",
        )


def measure_attention(trace: Trace) -> Attention | None:
    """Compare the source ranks; return ``None`` if they were not recorded."""
    if trace.source_counts is None:
        return None
    brought = trace.source_counts.sum(axis=3, dtype=np.float64).max(axis=2)  # (T, R)
    busy = brought[brought.any(axis=1)]
    if not len(busy):
        return None
    return Attention(
        imbalance=float(imbalance(busy).mean()), busiest_rank=int(busy.sum(axis=0).argmax())
    )
