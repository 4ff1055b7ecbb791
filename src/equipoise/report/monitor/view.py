"""The content of the monitor, before it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.report.bars import Bar
from equipoise.report.monitor.look import Heat


@dataclass(frozen=True)
class Moment:
    """One point of the curve.

    Parameters
    ----------
    imbalance, noise_floor
        Imbalance and noise floor; ``None`` if the look did not say.
    map_changed
        Flag that the map has changed since the point before.
    """

    imbalance: float | None
    noise_floor: float | None = None
    map_changed: bool = False


@dataclass(frozen=True)
class HotExpert:
    """A hot expert: its recent load over the mean of its layer, and over its load before."""

    layer: int
    expert: int
    multiple: float
    trend: float


@dataclass(frozen=True)
class Event:
    """An event, and its time in seconds after the first look."""

    seconds: float
    text: str


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything that the monitor shows.

    Parameters
    ----------
    title, facts
        Name of the source, and facts about it, the most important first.
    troubles
        Sentences on what is wrong now.
    curve_title, curve
        Curve of the imbalance over time.
    ranks_title, ranks
        Bars of the ranks, in the order in which they are shown.
    layers
        Bars of the layers, worst first, if single ranks of layers are unknown.
    experts
        Hot experts, hottest first.
    events
        Events, the latest last.
    notice
        Answer to the last key; empty if there is none.
    """

    title: str
    facts: tuple[str, ...]
    troubles: tuple[str, ...]
    curve_title: str
    curve: tuple[Moment, ...]
    ranks_title: str
    ranks: tuple[Bar, ...] = ()
    heat: Heat | None = None
    layers: tuple[Bar, ...] = ()
    experts: tuple[HotExpert, ...] = ()
    events: tuple[Event, ...] = ()
    notice: str = ""


def squeezed(curve: Sequence[Moment], columns: int) -> list[Moment]:
    """Reduce a curve to at most one point per column; points in a column are averaged."""
    if len(curve) <= columns:
        return list(curve)
    parts = np.array_split(np.arange(len(curve)), columns)
    return [_joined([curve[i] for i in part]) for part in parts]


def _joined(moments: Sequence[Moment]) -> Moment:
    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return Moment(
        mean([m.imbalance for m in moments if m.imbalance is not None]),
        mean([m.noise_floor for m in moments if m.noise_floor is not None]),
        any(m.map_changed for m in moments),
    )
