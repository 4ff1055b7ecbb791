"""Helpers for recordings with one file per rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from equipoise.layer_ids import format_ids

_NAME = re.compile(r"(?:.*[^a-z])?(?:rank|TP)[_-]?(\d{1,5})(?!\d).*", re.IGNORECASE)


def rank_in_name(path: Path) -> int | None:
    """Read the rank from a file name, such as ``load_rank3.csv`` or ``run-TP3.pt``."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def part_of_rank(path: Path) -> list[str]:
    """Write a note if a file is given alone although its name says that it is one of several."""
    rank = rank_in_name(path)
    if rank is None:
        return []
    return [
        f"By its name the file is the part of rank {rank}. To read all ranks, give the folder of "
        "their files."
    ]


def missing_ranks(ranks: Sequence[int], num_ranks: int | None = None) -> list[str]:
    """Write a note about ranks without a file; ``num_ranks`` if the recording states it."""
    missing = sorted(set(range(num_ranks or max(ranks) + 1)) - set(ranks))
    if not missing:
        return []
    return [f"The files of ranks {format_ids(missing)} are missing; they count as no load."]
