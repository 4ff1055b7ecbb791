"""What the doctor has to know of an engine; each engine's folder fills it in (``advice.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from equipoise.engines.doctor.case import Case
    from equipoise.engines.doctor.findings import Finding

Takes = Literal["switch", "size", "number", "text", "mapping"]
"""What stands after a flag; a size is 1 or more."""

Check = Callable[["Case"], Iterator["Finding"]]
"""Looks at one launch. Its docstring says what it looks at, as a noun: "Slots against ranks."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """One engine, as far as balancing and expert parallelism go.

    Parameters
    ----------
    engine
        Its folder.
    title
        Its name.
    newest
        The newest release that is known, which is assumed if none is given.
    programs
        Words that start it, next to each other: ``("vllm", "serve")``.
    image
        Part of the name of its container images, whose tags are releases.
    image_starts
        Whether its image starts the engine by itself, so that flags follow the image's name.
    flags
        Flags that are read, with what follows each; in full, without dashes.
    aliases
        Other spellings of them.
    balancing
        Parts of names that belong to balancing: a flag with such a part that is not known is
        misspelt or of another release.
    sections
        Keys of flags and entries that hold mappings, by their path.
    options_flags
        Flags that name an options file.
    file_wins
        Whether an options file holds where the command line says something else.
    underscores
        Whether names have underscores instead of hyphens.
    signs
        Variables and flags that only this engine has, where another one starts the same way.
    renames
        Checks of names and places that changed; what they find is put right before the others look.
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
        """A flag or an entry in full: ``-tp`` is ``tensor-parallel-size``."""
        name = name.lstrip("-")
        name = name.replace("-", "_") if self.underscores else name.replace("_", "-")
        return self.aliases.get(name, name)

    def shown(self, *path: str) -> str:
        """A setting as users write it."""
        return f"--{path[0]}" if len(path) == 1 else f"{path[-1]} in {'.'.join(path[:-1])}"
