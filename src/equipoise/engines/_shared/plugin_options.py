"""What a user can set about a plug-in: one environment variable of JSON, or a file of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.checks import brief, check_number
from equipoise.engines._shared.options_document import load_mapping
from equipoise.errors import EquipoiseError


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginOptions:
    """The options that every plug-in has, by the names users know.

    Parameters
    ----------
    max_moves_share
        Share of the slots that one rebalance may change, from 0 to 1.
    time_budget_seconds
        Seconds that the search for one plan may take.
    """

    max_moves_share: float = 0.3
    time_budget_seconds: float = 0.5

    def max_moves(self, num_slots: int) -> int:
        """Slots that one rebalance may change, of all of these."""
        return int(self.max_moves_share * num_slots)


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


def share(name: str, value: Any) -> float:
    """Read a number from 0 to 1."""
    return check_number(name, value, low=0, high=1)


def seconds(name: str, value: Any) -> float:
    """Read a time."""
    return check_number(name, value, low=0, high=np.inf)


READERS: Mapping[str, Reader] = {"max_moves_share": share, "time_budget_seconds": seconds}
"""Of the options that every plug-in has."""
