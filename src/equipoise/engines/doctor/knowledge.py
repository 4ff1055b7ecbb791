"""The doctor's knowledge about an engine, which each engine's ``advice.py`` provides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from equipoise.engines.doctor.case import Case
    from equipoise.engines.doctor.findings import Finding

Takes = Literal["switch", "size", "number", "text", "mapping"]
"""Kind of value that follows a flag; a size is 1 or more."""

Check = Callable[["Case"], Iterator["Finding"]]
"""Looks at one launch. Its docstring says what it looks at, as a noun: "Slots against ranks."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """The knowledge about an engine's launch, for balancing and expert parallelism.

    Parameters
    ----------
    engine
        Name of the engine's folder.
    title
        Name of the engine.
    newest
        Newest known release, which is assumed if none is given.
    programs
        Consecutive words that start the engine: ``("vllm", "serve")``.
    image
        Part of the name of its container images, whose tags are releases.
    image_starts
        Flag that its image starts the engine itself, so that flags follow the image's name.
    flags
        Flags that are read, with the kind of value that follows, in full and without dashes.
    aliases
        Other spellings of the flags.
    balancing
        Parts of names that belong to balancing. An unknown flag with such a part is misspelt or
        belongs to another release.
    sections
        Keys of flags and entries that hold mappings, by path.
    options_flags
        Flags that name an options file.
    file_wins
        Flag that an options file overrides the command line.
    underscores
        Flag that names have underscores instead of hyphens.
    signs
        Variables and flags that only this engine has, if another engine starts the same way.
    renames
        Checks of changed names and places; their fixes are applied before the other checks.
    checks
        All other checks, in order.
    """

    engine: str
    title: str
    newest: str
    programs: tuple[tuple[str, ...], ...]
    image: str
    image_starts: bool = False
    flags: Mapping[str, Takes]
    aliases: Mapping[str, str] = field(default_factory=dict)
    balancing: tuple[str, ...]
    sections: Mapping[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    options_flags: tuple[str, ...] = ()
    file_wins: bool = False
    underscores: bool = False
    signs: frozenset[str] = frozenset()
    renames: tuple[Check, ...]
    checks: tuple[Check, ...]

    def full_name(self, name: str) -> str:
        """Return the full name of a flag or entry: ``-tp`` is ``tensor-parallel-size``."""
        name = name.lstrip("-")
        name = name.replace("-", "_") if self.underscores else name.replace("_", "-")
        return self.aliases.get(name, name)

    def shown(self, *path: str) -> str:
        """Write a setting as users do."""
        return f"--{path[0]}" if len(path) == 1 else f"{path[-1]} in {'.'.join(path[:-1])}"
