"""The data of an answer: numbers, and series to draw."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.simulate.what_if.question import Question


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number before and after, with a sentence on its meaning.

    Parameters
    ----------
    before
        Number without balancing; ``None`` if there is only one number.
    unit
        Unit of the number, such as ``×`` or ``ms``.
    """

    key: str
    name: str
    before: float | None
    after: float
    unit: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The imbalance of each unseen batch, mean over layers, ``NUM_BATCHES`` numbers each.

    Parameters
    ----------
    eplb, chosen
        Imbalance with greedy copies, shared evenly and by the chosen dispatcher.
    lplb
        Imbalance with copies on LPLB's ring; ``None`` if the ring does not fit.
    lplb_reason
        Reason why the ring does not fit.
    """

    without: list[float]
    eplb: list[float]
    chosen: list[float]
    lplb: list[float] | None
    lplb_reason: str
    floor: float


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One layer: its ranks and its hottest experts.

    Parameters
    ----------
    ranks_before, ranks_after
        Load of each rank over the mean, mean over the batches.
    shared_after
        Part of ``ranks_after`` that comes from experts with several copies.
    experts, loads, copies
        Ids, loads over the mean, and copies of the hottest experts in the planned traffic.
    """

    layer: int
    ranks_before: list[float]
    ranks_after: list[float]
    shared_after: list[float]
    experts: list[int]
    loads: list[float]
    copies: list[int]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The time of a step by its number of tokens, all ranks together.

    Parameters
    ----------
    knee_tokens
        Number of tokens from which an expert's products take longer than reading its weights, if
        all experts have equal load.
    """

    tokens: list[int]
    before_seconds: list[float]
    after_seconds: list[float]
    knee_tokens: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a question: the deployment without and with balancing.

    Parameters
    ----------
    parts_before, parts_after
        Seconds of a mean step, by part.
    layers
        Numbers of the layers that a question can show.
    notes
        Sentences on what was assumed or left out.
    facts
        Sources of the times, by part.
    """

    question: Question
    headline: str
    figures: list[Figure]
    batches: Batches
    layer: LayerView
    curve: Curve
    parts_before: dict[str, float]
    parts_after: dict[str, float]
    layers: list[int]
    notes: list[str]
    facts: dict[str, str]
