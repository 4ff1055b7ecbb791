"""What the ``launch`` functions of all engines share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

Release = TypeVar("Release")


def choose_release(
    engine: str, version: str | None, releases: Mapping[str, Release]
) -> tuple[str, Release]:
    """The named release and what is known of it; the first one if ``version`` is ``None``.

    Raises
    ------
    EquipoiseError
        A version whose flags are not known.
    """
    name = next(iter(releases)) if version is None else version
    if name not in releases:
        raise EquipoiseError(
            f"The flags of {engine} {name} are not known; known versions: {', '.join(releases)}."
        )
    return name, releases[name]


def check_expert_parallel(engine: str, placement: Placement, consequence: str) -> None:
    """Raise ``EquipoiseError`` for a placement on one rank: there is no expert parallelism then."""
    if placement.num_ranks == 1:
        raise EquipoiseError(
            f"The placement is for 1 rank and {engine} {consequence}; "
            "plan for the expert-parallel size of the deployment, at least 2."
        )


def same_rank_copy(placement: Placement) -> tuple[int, int, int] | None:
    """Layer id, rank and expert of the first expert that has two slots on one rank, if any."""
    found = np.argwhere(placement.copies_on_rank > 1)
    if not len(found):
        return None
    row, rank, expert = found[0].tolist()
    return placement.layer_ids[row], rank, expert


def same_rank_notes(placement: Placement) -> tuple[str, ...]:
    """A note on slots wasted on second copies of an expert on its own rank, if there are any."""
    first = same_rank_copy(placement)
    if first is None:
        return ()
    layer, rank, expert = first
    return (
        f"{int(placement.duplicates.sum())} slots hold a second copy of an expert on its own rank, "
        f"which balances nothing; the first is expert {expert} in layer {layer} on rank {rank}.",
    )
