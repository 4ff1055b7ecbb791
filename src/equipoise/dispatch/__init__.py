"""Which copy serves an assignment: one batch's load shared over the copies."""

from __future__ import annotations

from equipoise.dispatch.even import Even
from equipoise.dispatch.minmax import MinMax
from equipoise.dispatch.split import Dispatcher, Split
from equipoise.errors import EquipoiseError

DISPATCHERS: tuple[Dispatcher, ...] = (Even(), MinMax())

__all__ = ["DISPATCHERS", "Dispatcher", "Even", "MinMax", "Split", "dispatcher"]


def dispatcher(name: str) -> Dispatcher:
    """The dispatcher of that name; ``EquipoiseError`` if there is none."""
    for known in DISPATCHERS:
        if known.name == name:
            return known
    names = ", ".join(repr(known.name) for known in DISPATCHERS)
    raise EquipoiseError(f"There is no dispatcher {name!r}; use one of {names}.")
