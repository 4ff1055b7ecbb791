"""What the monitor shows, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.report.monitor.look import Heat


@dataclass(frozen=True)
class Moment:
    """One point of the curve.

    Parameters
    ----------
    imbalance, noise_floor
        ``None`` where the look did not say it.
    map_changed
        Whether another map is served than at the point before.
    """

    imbalance: float | None
    noise_floor: float | None = None
    map_changed: bool = False


@dataclass(frozen=True)
class Bar:
    """A rank or a layer: its name, and its number, in which 1 is the mean."""

    name: str
    value: float


@dataclass(frozen=True)
class HotExpert:
    """An expert, its load over the mean of its layer lately, and over what it was before."""

    layer: int
    expert: int
    multiple: float
    trend: float


@dataclass(frozen=True)
class Event:
    """Something that has happened, and its seconds after the first look."""

    seconds: float
    text: str


@dataclass(frozen=True, kw_only=True)
class View:
    """All that is shown.

    Parameters
    ----------
    title, facts
        What is watched, and what is known of it, in the order of weight.
    troubles
        What is wrong now, a sentence each.
    curve_title, curve
        Imbalance over time.
    ranks_title, ranks
        A bar a rank, in the order in which they are shown.
    layers
        A bar a layer, worst first, where single ranks of layers are not known.
    experts
        The hottest first.
    events
        The last one last.
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
    """At most a point a column: those that share a column are averaged, and its marks are kept."""
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
