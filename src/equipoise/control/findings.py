"""What is asked about the loads, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.weigh.gate import Decision
from equipoise.trace import Trace

_MOST_CHARACTERS = 300  # of an error that is told


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """What the controller wants to know of the loads.

    Parameters
    ----------
    number
        Number of the order that asks.
    current
        Placement that is served.
    previous
        Placement served before, to be compared; ``None``: no comparison.
    plan_above
        Excess from which a plan is wanted; infinite: none.
    """

    number: int
    current: Placement
    previous: Placement | None
    plan_above: float


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How well a placement serves some steps, means over steps and layers with load.

    Parameters
    ----------
    imbalance
        Peak over mean of the ranks.
    excess
        The same above the noise floor.
    balancedness
        Mean over peak.
    """

    imbalance: float
    excess: float
    balancedness: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Finding:
    """What a look at the loads has shown.

    Parameters
    ----------
    number
        Number of the question.
    balance
        Balance of the steps of each phase, and under ``""`` of all steps.
    sure_excess
        Excess that both halves of the window show, less what chance may have added.
    assignments
        Assignments in the window.
    achieved
        What the current placement gains on the previous one, where that was asked.
    proposal, predicted
        A placement to move to, and whether the gate would; ``None`` if no plan was wanted.
    seconds
        It took, as the process that asked has seen it.
    rank_load
        Load of each rank over that of the mean rank, in the window as a whole; empty if unknown.
    layer_imbalance
        Peak over mean of the ranks by layer, mean over steps with load; empty if unknown.
    layer_rank_load
        Load of each rank over the layer's mean rank, in the window as a whole, by layer; empty if
        unknown.
    """

    number: int
    balance: Mapping[str, Balance]
    sure_excess: float
    assignments: int
    achieved: Decision | None = None
    proposal: Placement | None = None
    predicted: Decision | None = None
    seconds: float = 0.0
    rank_load: tuple[float, ...] = ()
    layer_imbalance: Mapping[int, float] = field(default_factory=dict)
    layer_rank_load: Mapping[int, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no finding, in a sentence."""

    number: int
    text: str
    seconds: float = 0.0


class Advisor(Protocol):
    """Answers questions. Has to be picklable: it travels to the worker process."""

    def __call__(self, question: Question, window: Trace) -> Finding:
        """Look at the loads and, if they are out of balance, plan. Errors become failures."""
        ...


def said(error: Exception) -> str:
    """An error in a line; one that is not meant for users with its type."""
    return one_line(str(error) if isinstance(error, EquipoiseError | OSError) else repr(error))


def one_line(text: str) -> str:
    """The text without line breaks, cut where it is long."""
    return " ".join(text.split())[:_MOST_CHARACTERS]
