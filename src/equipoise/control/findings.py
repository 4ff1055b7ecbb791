"""Questions about the loads, and their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.weigh.gate import Decision
from equipoise.trace import Trace

_MOST_CHARACTERS = 300  # longest text of an error


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """A question of the controller about the loads.

    Parameters
    ----------
    number
        Number of the order that asks.
    current
        Placement that is served.
    previous
        Placement served before, to compare with; ``None`` for no comparison.
    plan_above
        Excess from which a plan is wanted; infinite for no plan.
    """

    number: int
    current: Placement
    previous: Placement | None
    plan_above: float


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The balance of a placement on some steps: means over steps and layers with load.

    Parameters
    ----------
    imbalance
        Peak over mean of the rank loads.
    excess
        Imbalance above the noise floor.
    balancedness
        Mean over peak of the rank loads.
    """

    imbalance: float
    excess: float
    balancedness: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Finding:
    """The answer to a question: what a look at the loads has shown.

    Parameters
    ----------
    number
        Number of the question.
    balance
        Balance of the steps of each phase; the key ``""`` is all steps together.
    sure_excess
        Excess that both halves of the window show, minus the possible effect of chance.
    assignments
        Number of assignments in the window.
    achieved
        Gain of the current placement over the previous one, if it was asked for.
    proposal, predicted
        Placement to move to, and the gate's decision on it; ``None`` if no plan was made.
    seconds
        Time until the answer, measured by the process that asked.
    rank_load
        Load of each rank over the mean rank's, in the whole window; empty if unknown.
    layer_imbalance
        Imbalance of each layer, mean over steps with load; empty if unknown.
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
    """The answer to a question that could not be answered, with the reason as a sentence."""

    number: int
    text: str
    seconds: float = 0.0


class Advisor(Protocol):
    """The protocol of advisors, which answer questions. They must be picklable for the worker."""

    def __call__(self, question: Question, window: Trace) -> Finding:
        """Look at the loads, and plan if they are out of balance. Errors become failures."""
        ...


def said(error: Exception) -> str:
    """Write an error in a line, with its type unless it is meant for users."""
    return one_line(str(error) if isinstance(error, EquipoiseError | OSError) else repr(error))


def one_line(text: str) -> str:
    """Remove line breaks from a text and cut it if it is long."""
    return " ".join(text.split())[:_MOST_CHARACTERS]
