"""Detection of ranks that are slow for their load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.checks import check_number
from equipoise.control.speeds import in_steps
from equipoise.errors import EquipoiseError
from equipoise.report.measured import Layout, rank_loads
from equipoise.trace import Trace


def straggler_text(trace: Trace, layout: Layout, seconds: Sequence[float]) -> str:
    """Write which ranks are slow for their load, and the speeds to plan with.

    Parameters
    ----------
    trace
        Trace of the routing during the measurement.
    layout
        Layout of the experts during the measurement.
    seconds
        Time that each rank spent on experts, ``R`` numbers.

    Raises
    ------
    EquipoiseError
        Another number of ranks, or times that are not above 0.
    """
    ranks = layout.num_ranks
    if len(seconds) != ranks:
        raise EquipoiseError(
            f"{len(seconds)} times were given for {ranks} ranks; give one number a rank."
        )
    for number in seconds:
        check_number("the time of a rank", number, low=1e-12, high=1e12)
    rows = rank_loads(trace.counts, layout).sum(axis=(0, 1))
    active = (trace.counts > 0).sum(axis=0)[:, None, :] * (layout.copies_on_rank > 0)
    speeds = in_steps(np.stack([rows, active.sum(axis=(0, 2)), seconds], axis=1).tolist())
    slow = [rank for rank, speed in enumerate(speeds) if speed < 1]
    if not slow:
        return "No rank is slow for its load: what ranks wait for is load, not a slow device."
    named = ", ".join(f"{rank} ({1 / speeds[rank]:.2f}x the time)" for rank in slow)
    one = len(slow) == 1
    return (
        f"Rank{'' if one else 's'} {named} {'is' if one else 'are'} slow for the load: a "
        "straggler, whatever the placement. Look at the device; until it is mended, plan with "
        f"--speed {','.join(f'{speed:g}' for speed in np.round(speeds, 3))}."
    )
