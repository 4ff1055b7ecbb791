"""What an answer consists of: numbers, and what a page draws."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.simulate.what_if.question import Question


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number before and after, and what it means in a sentence.

    Parameters
    ----------
    before
        The number without balancing; ``None`` where there is only one.
    unit
        What follows the number, such as ``×`` or ``ms``.
    """

    key: str
    name: str
    before: float | None
    after: float
    unit: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Imbalance of each unseen batch, mean over layers, ``NUM_BATCHES`` numbers each.

    Parameters
    ----------
    eplb, chosen
        The greedy copies, shared evenly and by the dispatcher that was asked for.
    lplb
        Copies on LPLB's ring, split by every batch; ``None`` where the ring does not fit.
    lplb_reason
        Why it does not fit.
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
        The part of ``ranks_after`` that is of experts with several copies.
    experts, loads, copies
        The hottest experts of the traffic that was planned on: ids, load over the mean, copies.
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
    """Time of a step against its tokens, all ranks together.

    Parameters
    ----------
    knee_tokens
        Tokens from which on an expert's products take longer than reading its weights, if all are
        equally popular.
    """

    tokens: list[int]
    before_seconds: list[float]
    after_seconds: list[float]
    knee_tokens: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a question's deployment does without balancing, and with it.

    Parameters
    ----------
    parts_before, parts_after
        Seconds of a mean step, by what they are spent on.
    layers
        Numbers of the layers that a question can show.
    notes
        What was assumed or left out, in sentences.
    facts
        Where the times come from, by part.
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
