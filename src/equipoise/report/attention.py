"""How unevenly requests are spread over the ranks, where each rank has attention of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.balance import imbalance
from equipoise.showing import in_short
from equipoise.trace import Trace

_WORTH_SAYING = 1.1


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Tokens that ranks bring to a step: with data parallelism attention waits for the fullest.

    Parameters
    ----------
    imbalance
        Tokens of the rank with most over the mean rank, mean over the steps.
    busiest_rank
        The rank with most tokens over all steps.
    """

    imbalance: float
    busiest_rank: int

    __repr__ = in_short

    @property
    def headline(self) -> tuple[str, ...]:
        """A sentence, where it is uneven."""
        if self.imbalance < _WORTH_SAYING:
            return ()
        return (
            f"Requests are spread unevenly: the rank with most brings {self.imbalance:.2f}x the "
            f"mean to a step (over all, rank {self.busiest_rank}), and with data-parallel "
            "attention all wait for it. Placing experts does not change that.",
        )


def measure_attention(trace: Trace) -> Attention | None:
    """Compare the source ranks; ``None`` where they are not recorded."""
    if trace.source_counts is None:
        return None
    brought = trace.source_counts.sum(axis=3, dtype=np.float64).max(axis=2)  # (T, R)
    busy = brought[brought.any(axis=1)]
    if not len(busy):
        return None
    return Attention(
        imbalance=float(imbalance(busy).mean()), busiest_rank=int(busy.sum(axis=0).argmax())
    )
