"""What a user can set about a plug-in: one environment variable of JSON, or a file of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from equipoise.checks import brief, check_number
from equipoise.engines._shared.hook import Planner
from equipoise.engines._shared.options_document import load_mapping
from equipoise.errors import EquipoiseError
from equipoise.plan.ahead import plan_ahead


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginOptions:
    """The options that every plug-in has, by the names users know.

    Parameters
    ----------
    max_moves_share
        Share of the slots that one rebalance may change, from 0 to 1.
    gate
        Mean rank loads that the mean peak has to sink by, or a rebalance changes nothing.
    time_budget_seconds
        Seconds that the search may take where experts are missing or ranks have changed.
    """

    max_moves_share: float = 0.5
    gate: float = 0.005
    time_budget_seconds: float = 0.5

    def max_moves(self, num_slots: int) -> int:
        """Slots that one rebalance may change, of all of these."""
        return int(self.max_moves_share * num_slots)

    def planner(self) -> Planner:
        """What plans from the slots in force.

        ``plan_ahead``, on one thread, since engines have use for the others.
        """
        return partial(plan_ahead, num_threads=1, least_gain=self.gate)


Reader = Callable[[str, Any], Any]
"""From an option's name, for messages, and its value in JSON to the value it has here."""


def read_given(value: str, variable: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The options that the environment variable gives, by name.

    Parameters
    ----------
    value
        A JSON object, or the path of a file that holds one.
    variable
        Name of the environment variable.
    readers
        Reader of each option that there is.

    Raises
    ------
    EquipoiseError
        No such object, an unknown option or a value that it cannot have.
    """
    try:
        given = load_mapping(value, "its value").values
    except EquipoiseError as error:
        raise EquipoiseError(
            f"{variable} cannot be read, as JSON or as the path of a file of it: {error}"
        ) from error
    unknown = given.keys() - readers.keys()
    if unknown:
        raise EquipoiseError(
            f"{variable} has no option {brief(min(unknown))}; there are {', '.join(readers)}."
        )
    return {name: readers[name](f"{variable}: {name}", value) for name, value in given.items()}


def _share(name: str, value: Any) -> float:
    return check_number(name, value, low=0, high=1)


def _from_zero(name: str, value: Any) -> float:
    return check_number(name, value, low=0, high=np.inf)


READERS: Mapping[str, Reader] = {
    "max_moves_share": _share,
    "gate": _from_zero,
    "time_budget_seconds": _from_zero,
}
"""Of the options that every plug-in has."""
