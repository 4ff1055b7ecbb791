"""What an answer in time rests on, and how to start the engine with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from equipoise.engines.formats import Launch


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What comes with an answer.

    Parameters
    ----------
    launch
        How to start the engine asked for with it; ``None`` if there is none, or nothing to start.
    facts
        Where the times of the hardware came from; empty without hardware.
    prices
        Prices of planning and moving that were assumed, as a sentence; nothing if all were given.
    """

    launch: Launch | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    prices: str = ""
