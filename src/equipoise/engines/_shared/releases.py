"""Helpers for the ``launch`` functions of all engines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from equipoise.engines.formats import Launch
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

Facts = TypeVar("Facts")

_VERSION = re.compile(
    r"v?(\d+(?:\.\d+)*)(?:[-._+]?(?:a|b|rc|post|dev|alpha|beta)[-._]?\d*)*(?:\+\S+)?"
)


@dataclass(frozen=True, kw_only=True)
class Releases(Generic[Facts]):
    """The known releases and builds of an engine, with facts about each.

    Parameters
    ----------
    engine
        Name of the engine, for messages.
    since
        Facts by the first release for which they hold, the newest first.
    newest
        Last release with which the facts were compared.
    builds
        Facts about builds that have a name instead of a number.
    default
        Default release or build.
    """

    engine: str
    since: Mapping[str, Facts]
    newest: str
    default: str
    builds: Mapping[str, Facts] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the releases and builds that differ, the default first."""
        return tuple(dict.fromkeys((self.default, self.newest, *self.since, *self.builds)))

    @property
    def known(self) -> str:
        """Known releases and builds, in words."""
        releases = f"{list(self.since)[-1]} to {self.newest}"
        return ", ".join((releases, *self.builds))

    def choose(self, version: str | None) -> tuple[str, Facts | None]:
        """Choose a release or build, and return it with its facts, or ``None`` if unexamined.

        Versions are accepted as people write them: 1.3.0rc5, v0.33.0, 0.23.0.post1.

        Raises
        ------
        EquipoiseError
            A text that is neither a version nor the name of a build.
        """
        name = self.default if version is None else version
        if name in self.builds:
            return name, self.builds[name]
        asked = number(name)
        if asked is None:
            raise EquipoiseError(
                f"{self.engine} has no release {name[:60]!r}; known: {self.known}, with any "
                "suffix such as rc1."
            )
        newest = number(self.newest) or ()
        if asked[: len(newest)] > newest:
            return name, None
        firsts = ((number(first) or (), facts) for first, facts in self.since.items())
        return name, next((facts for first, facts in firsts if asked >= first), None)

    def unknown(self, folder: str, name: str, placement: Placement) -> Launch:
        """Make the launch of a release with unknown flags: with a map, and without advice."""
        return Launch(
            engine=folder,
            version=name,
            command=(),
            notes=(
                f"The flags of {self.engine} {name} are not known here (known: {self.known}), so "
                "none are given and nothing that this release may refuse or ignore was checked. "
                f"Start it for {placement.num_ranks} expert-parallel ranks and "
                f"{placement.num_redundant} redundant experts, with the map where its "
                "documentation says.",
                *same_rank_notes(placement),
            ),
        )


def number(version: str) -> tuple[int, ...] | None:
    """Read the number of a version, without its suffix; ``None`` if it has none."""
    found = _VERSION.fullmatch(version) if len(version) <= 60 else None
    return tuple(map(int, found[1].split("."))) if found else None


def check_expert_parallel(engine: str, placement: Placement, consequence: str) -> None:
    """Raise ``EquipoiseError`` for a placement on one rank, which has no expert parallelism."""
    if placement.num_ranks == 1:
        raise EquipoiseError(
            f"The placement is for 1 rank and {engine} {consequence}; "
            "plan for the expert-parallel size of the deployment, at least 2."
        )


def same_rank_copy(placement: Placement) -> tuple[int, int, int] | None:
    """Find layer id, rank and id of the first expert with two slots on one rank, if any."""
    found = np.argwhere(placement.copies_on_rank > 1)
    if not len(found):
        return None
    row, rank, expert = found[0].tolist()
    return placement.layer_ids[row], rank, expert


def same_rank_notes(placement: Placement) -> tuple[str, ...]:
    """Write a note on slots wasted on second copies on the same rank, if there are any."""
    first = same_rank_copy(placement)
    if first is None:
        return ()
    layer, rank, expert = first
    return (
        f"{int(placement.duplicates.sum())} slots hold a second copy of an expert on its own rank, "
        f"which balances nothing; the first is expert {expert} in layer {layer} on rank {rank}.",
    )
