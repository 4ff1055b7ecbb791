"""One option of an engine, and what it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Knob:
    """An option or a variable, as it is written, and what it moves in a few words."""

    name: str
    moves: str
