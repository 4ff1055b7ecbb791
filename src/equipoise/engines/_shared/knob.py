"""An option of an engine, and its effect."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Knob:
    """An option or variable, as it is written, and its effect in a few words."""

    name: str
    moves: str
