"""Options of plug-ins: JSON in an environment variable, or in a file that it names."""

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
    """The options that every plug-in has, by their public names.

    Parameters
    ----------
    max_moves_share
        Largest share of the slots that one rebalance may change, from 0 to 1.
    gate
        Least drop of the mean peak, in mean rank loads, for which a rebalance changes anything.
    time_budget_seconds
        Longest time for a search where experts are missing or ranks have changed.
    """

    max_moves_share: float = 0.5
    gate: float = 0.005
    time_budget_seconds: float = 0.5

    def max_moves(self, num_slots: int) -> int:
        """Compute the largest number of slots that one rebalance may change."""
        return int(self.max_moves_share * num_slots)

    def planner(self) -> Planner:
        """Make the planner: ``plan_ahead``, on one thread, because the engine needs the others."""
        return partial(plan_ahead, num_threads=1, least_gain=self.gate)


Reader = Callable[[str, Any], Any]
"""Function from an option's name (for messages) and its JSON value to its value here."""


def read_given(value: str, variable: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Read the options in the environment variable, by name.

    Parameters
    ----------
    value
        Text of a JSON object, or the path of a file with one.
    variable
        Name of the environment variable.
    readers
        Reader of each known option.

    Raises
    ------
    EquipoiseError
        Text that is not a JSON object, an unknown option, or a value out of range.
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
"""Readers of the options that every plug-in has."""
