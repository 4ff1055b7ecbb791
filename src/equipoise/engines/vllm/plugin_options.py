"""What a user can set about the plug-in for vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.checks import brief, check_number
from equipoise.engines._shared import plugin_options as shared
from equipoise.engines.files import output_file
from equipoise.engines.map_io import read_map
from equipoise.engines.vllm.plugin import VARIABLE
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


class Then(Enum):
    """What follows the first change: the map that is given, or without one the first plan."""

    HOLD = "hold"
    BALANCE = "balance"


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginOptions(shared.PluginOptions):
    """The options of every plug-in, and vLLM's own.

    Parameters
    ----------
    gate
        Mean rank loads that the mean peak has to sink by, or a rebalance changes nothing.
    map
        Placement to start from; ``None``: whatever vLLM starts with.
    then
        What follows the first change.
    status
        File that says what became of the plans, for the server's metrics; ``None``: there is none.
    """

    max_moves_share: float = 0.5
    gate: float = 0.005
    map: Placement | None = None
    then: Then = Then.BALANCE
    status: Path | None = None


def read_options(value: str) -> PluginOptions:
    """The options from the value of the environment variable.

    Parameters
    ----------
    value
        A JSON object, or the path of a file that holds one.

    Raises
    ------
    EquipoiseError
        No such object, an unknown option, a value out of range, or options without effect.
    """
    given = shared.read_given(value, VARIABLE, _READERS)
    if "map" in given:
        given.setdefault("then", Then.HOLD)
    unread = {"max_moves_share", "gate"} & set(given)
    if unread and "map" in given and given["then"] is Then.HOLD:
        raise _error(
            f"holds the slots of a map, so {min(unread)} has no effect; leave it out, or set then "
            'to "balance".'
        )
    return PluginOptions(**given)


def _gain(name: str, value: Any) -> float:
    return check_number(name, value, low=0, high=np.inf)


def _map(name: str, value: Any) -> Placement:
    if not isinstance(value, str):
        raise EquipoiseError(f"{name} is {brief(value)}; expected the path of a file.")
    return read_map(value)


def _status(name: str, value: Any) -> Path:
    if not isinstance(value, str):
        raise EquipoiseError(f"{name} is {brief(value)}; expected the path of a file.")
    return output_file(Path(value))


def _then(name: str, value: Any) -> Then:
    for known in Then:
        if value == known.value:
            return known
    choices = " or ".join(f'"{known.value}"' for known in Then)
    raise EquipoiseError(f"{name} is {brief(value)}; expected {choices}.")


_READERS: Mapping[str, shared.Reader] = {
    **shared.READERS,
    "gate": _gain,
    "map": _map,
    "then": _then,
    "status": _status,
}


def _error(text: str) -> EquipoiseError:
    return EquipoiseError(f"{VARIABLE} {text}")
