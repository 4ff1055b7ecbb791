"""How the options of an engine for balancing become fields of ``Settings``.

An engine's ``settings.py`` is a table by option: a reader, which says what the option sets, or the
reason why it has no effect here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from equipoise.checks import check_whole
from equipoise.errors import EquipoiseError

Reader = Callable[[Any, int], dict[str, Any]]
"""From an option's value and the number of experts: fields of ``Settings``."""

Options = Mapping[str, Reader | str]
"""An engine's table."""


def sets(*names: str) -> Reader:
    """A reader for an option that sets these fields to its value."""
    return lambda value, _num_experts: dict.fromkeys(names, value)


def online(value: Any, _num_experts: int) -> dict[str, Any]:
    """Read a switch that turns balancing on."""
    return {} if _flag(value) else {"layers_per_step": 0}


def offline(value: Any, num_experts: int) -> dict[str, Any]:
    """Read a switch that turns balancing off."""
    return online(not _flag(value), num_experts)


def slots(value: Any, num_experts: int) -> dict[str, Any]:
    """Read the number of all slots of a layer."""
    return {"num_redundant": check_whole("num_slots", value, low=num_experts) - num_experts}


REDUNDANT = sets("num_redundant")
MAP = sets("map_path")
PLANNER = "plans are made by this package's own planner"


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise EquipoiseError(f"{value!r} was given; expected true or false.")
    return value
