"""What recordings of a file a rank have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.layers import format_ids
from equipoise.trace import Trace

_NAME = re.compile(r"(?:.*[^a-z])?(?:rank|TP)[_-]?(\d{1,5})(?!\d).*", re.IGNORECASE)
_NEAR_TIES = 0.05
"""Of the difference that ranks with tokens of their own would show."""


def rank_in_name(path: Path) -> int | None:
    """The rank that a file name states: ``load_rank3.csv``, ``run-TP3.pt``."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def part_of_rank(path: Path) -> list[str]:
    """The sentence for a file given alone, though its name says that it is one of several."""
    rank = rank_in_name(path)
    if rank is None:
        return []
    return [
        f"By its name the file is the part of rank {rank}. To read all ranks, give the folder of "
        "their files."
    ]


def missing_ranks(ranks: Sequence[int], num_ranks: int | None = None) -> list[str]:
    """The sentence for ranks without a file; ``num_ranks`` where the recording states it."""
    missing = sorted(set(range(num_ranks or max(ranks) + 1)) - set(ranks))
    if not missing:
        return []
    return [f"The files of ranks {format_ids(missing)} are missing; they count as no load."]


def counted_once(trace: Trace) -> Trace:
    """The trace without source ranks, and of one rank only, if all ranks saw the same tokens.

    They do without attention data parallelism; where two experts nearly tie they may differ.
    """
    cube = trace.source_counts
    if cube is None or cube.shape[1] < 2:
        return replace(trace, source_counts=None)
    if not all(_saw_the_same(cube[:, 0], cube[:, rank]) for rank in range(1, cube.shape[1])):
        return trace
    return replace(trace, counts=cube[:, 0], source_counts=None).with_notes(
        f"All {cube.shape[1]} ranks recorded the same tokens, which were counted once; the "
        "recording does not say which rank they came from."
    )


def _saw_the_same(a: NDArray[np.integer], b: NDArray[np.integer]) -> bool:
    """Whether two ranks' counts differ far less than those of independent tokens."""
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    difference = float(np.abs(wide_a - wide_b).sum())
    independent = float(np.sqrt((wide_a + wide_b) * (2 / np.pi)).sum())
    return difference <= _NEAR_TIES * independent
