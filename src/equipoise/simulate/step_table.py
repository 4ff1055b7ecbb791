"""Step times of a placement for batches of every size, from a recording of one size.

A serving engine's batches grow and shrink, and small ones are less balanced. So steps of several
sizes are drawn from the recording and timed once, and the serving simulator looks them up:

    seconds = layout_seconds(layout, topology, model)
    table = step_table(trace, seconds, top_k=8, most_tokens=65_536)
    TabulatedStepTime(by_tokens=table, rest=LinearStepTime(fixed_seconds=0.012))
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count, check_type, check_whole
from equipoise.dispatch.base import TOO_MUCH_LOAD
from equipoise.errors import EquipoiseError
from equipoise.simulate.expert_time import ComputeModel, Layout
from equipoise.simulate.gathered import drawn, enough
from equipoise.simulate.progress import Progress
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]
StepSeconds = Callable[[Floats], Floats]
"""Function from the assignments of steps, ``(T, L, E)``, to their times, ``(T,)`` seconds."""
Table = dict[int, Floats]
"""Times of steps, ``(T,)`` seconds, by their number of tokens, for ``TabulatedStepTime``."""

NUM_DRAWS = 32
"""Number of steps of each size; a few suffice, because a step's time sums over layers."""

_FEW_TOKENS = 32  # steps below this are rare, so their sizes are spaced wider
_MOST_TOKENS = 1 << 40


def step_table(
    trace: Trace,
    seconds: StepSeconds,
    *,
    top_k: int,
    most_tokens: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Table:
    """Time steps of all sizes that a pool can have.

    Equal seeds draw equal steps, so that placements are compared on the same batches.

    Parameters
    ----------
    trace
        Recording whose routing the steps have.
    seconds
        Function that times steps on a placement, such as ``layout_seconds``.
    top_k
        Number of choices of a token in a layer.
    most_tokens
        Number of tokens of the largest step, all ranks together.
    seed
        Random seed.
    progress
        Function that is called before each size with the number of sizes done and of all.

    Returns
    -------
    Seconds of ``NUM_DRAWS`` steps of each size.
    """
    sizes = table_sizes(most_tokens)
    table = {}
    for number, size in enumerate(sizes):
        if progress is not None:
            progress(number, len(sizes))
        table[size] = seconds(drawn_steps(trace, size, top_k=top_k, seed=seed))
    return table


def layout_seconds(layout: Layout, topology: Topology, model: ComputeModel) -> StepSeconds:
    """Make a function that times the experts of all layers on a placement."""
    return lambda load: layout.step_seconds(load, topology, [model])[0]


def table_sizes(most_tokens: int) -> list[int]:
    """List the sizes of a table: each is 1.4 times the one before it, or twice if small."""
    most = check_whole("most_tokens", most_tokens, low=1, high=_MOST_TOKENS)
    powers = [float(1 << n) for n in range(most.bit_length())]
    between = [power * 2**0.5 for power in powers if power >= _FEW_TOKENS]
    sizes = {round(size) for size in (*powers, *between)}
    return sorted({size for size in sizes if size < most} | {most})


def drawn_steps(
    trace: Trace, num_tokens: int, *, top_k: int, number: int = NUM_DRAWS, seed: int = 0
) -> Floats:
    """Draw steps of one size with the routing of a recording, ``(number, L, E)``.

    Each step is drawn from consecutive recorded steps that together have enough tokens, and no
    assignment is drawn twice. So a large batch has the noise of a large batch, although the
    recorded steps are small. If the whole recording has too few tokens, its noise counts as
    popularity. A layer without load in the recording has none here.

    Parameters
    ----------
    number
        Number of steps to draw, from places at equal distances in the recording.
    """
    counts = check_type("trace", trace, Trace).counts
    wanted = check_whole("num_tokens", num_tokens, low=1, high=_MOST_TOKENS)
    wanted *= check_count("top_k", top_k)
    rng = np.random.default_rng(check_whole("seed", seed))
    size_T = counts.sum(axis=2, dtype=np.float64).max(axis=1)
    if not size_T.any():
        raise EquipoiseError("The recording has no load; record some traffic.")
    if size_T.max() >= TOO_MUCH_LOAD:
        raise EquipoiseError(
            "A layer has 2**53 assignments or more in a step; give the counts of one step, or "
            "scale them down."
        )
    load = np.empty((number, *counts.shape[1:]))
    starts = np.arange(number) * counts.shape[0] // number
    for step, start in zip(load, starts.tolist(), strict=True):
        source_LE = enough(counts, size_T, start, wanted)
        for layer, source in zip(step, source_LE, strict=True):
            layer[:] = drawn(rng, source, wanted)
    return load


def parts_of_recording(seconds: Floats, trace: Trace, num_tokens: int, *, top_k: int) -> Floats:
    """Average the times of drawn steps by the part of the recording they come from, ``(parts,)``.

    There are no more parts than recorded steps, and no more than such batches in the recording,
    because steps drawn from the same assignments are not independent.

    Parameters
    ----------
    seconds
        Times of steps that ``drawn_steps`` drew, in their order.
    """
    recorded = float(trace.counts.sum(axis=2, dtype=np.float64).max(axis=1).sum())
    parts = min(trace.num_steps, len(seconds), max(int(recorded / (num_tokens * top_k)), 1))
    return np.array([part.mean() for part in np.array_split(seconds, parts)])
