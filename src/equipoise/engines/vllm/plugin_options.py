"""What a user can set about the plug-in for vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from equipoise.checks import brief
from equipoise.engines._shared import plugin_options as shared
from equipoise.engines.map_io import read_map
from equipoise.engines.vllm.plugin import VARIABLE
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


class Then(Enum):
    """What follows once the slots of a map are in force."""

    HOLD = "hold"
    BALANCE = "balance"


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginOptions(shared.PluginOptions):
    """The options of every plug-in, and vLLM's own.

    Parameters
    ----------
    map
        Placement to start from; ``None``: whatever vLLM starts with.
    then
        What follows once it is in force.
    """

    map: Placement | None = None
    then: Then = Then.BALANCE


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
    if "then" in given and "map" not in given:
        raise _error("says what follows a map, but names none; add map, or leave then out.")
    if "map" in given:
        given.setdefault("then", Then.HOLD)
    if given.get("then") is Then.HOLD and "max_moves_share" in given:
        raise _error(
            "holds the slots of a map, so max_moves_share has no effect; leave it out, or set then "
            'to "balance".'
        )
    return PluginOptions(**given)


def _map(name: str, value: Any) -> Placement:
    if not isinstance(value, str):
        raise EquipoiseError(f"{name} is {brief(value)}; expected the path of a file.")
    return read_map(value)


def _then(name: str, value: Any) -> Then:
    for known in Then:
        if value == known.value:
            return known
    choices = " or ".join(f'"{known.value}"' for known in Then)
    raise EquipoiseError(f"{name} is {brief(value)}; expected {choices}.")


_READERS: Mapping[str, shared.Reader] = {**shared.READERS, "map": _map, "then": _then}


def _error(text: str) -> EquipoiseError:
    return EquipoiseError(f"{VARIABLE} {text}")
