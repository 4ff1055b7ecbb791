"""Which copy serves an assignment: one batch's load shared over the copies."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from equipoise.dispatch.auto import Auto
from equipoise.dispatch.even import Even
from equipoise.dispatch.fewest import FewestExperts
from equipoise.dispatch.minmax import MinMax
from equipoise.dispatch.nearest import Nearest
from equipoise.dispatch.split import Dispatcher, Split
from equipoise.errors import EquipoiseError
from equipoise.topology import Topology

DISPATCHERS: tuple[Dispatcher, ...] = (Even(), MinMax(), Nearest(), FewestExperts())
"""Those that need nothing but a name; ``Auto`` needs a cost besides."""

__all__ = [
    "DISPATCHERS",
    "Auto",
    "Dispatcher",
    "Even",
    "FewestExperts",
    "MinMax",
    "Nearest",
    "Split",
    "dispatcher",
    "is_scale_free",
]


def dispatcher(name: str | Dispatcher, topology: Topology | None = None) -> Dispatcher:
    """The dispatcher of that name, for these machines; a dispatcher is returned as it is.

    Parameters
    ----------
    name
        ``"even"``, ``"minmax"``, ... or an instance, which brings its own topology.
    topology
        For a name: speeds and nodes of the ranks.

    Raises
    ------
    EquipoiseError
        There is none of that name.
    """
    if not isinstance(name, str):
        return name
    for known in DISPATCHERS:
        if known.name == name:
            return known if topology is None else _on(known, topology)
    names = ", ".join(repr(known.name) for known in DISPATCHERS)
    raise EquipoiseError(f"There is no dispatcher {name!r}; use one of {names}.")


def _on(known: Any, topology: Topology) -> Dispatcher:
    takes_it = any(field.name == "topology" for field in fields(known))
    placed: Dispatcher = replace(known, topology=topology) if takes_it else known
    return placed


def is_scale_free(dispatch: Dispatcher) -> bool:
    """Whether twice the load has twice the peaks, so that the unit of loads does not matter."""
    proportional = dispatch.name in (Even.name, MinMax.name, Nearest.name)
    return proportional and getattr(dispatch, "cost", None) is None
