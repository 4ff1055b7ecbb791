"""Every dispatcher that has a name, with what it cannot do without."""

from __future__ import annotations

from equipoise.cost import RankCost
from equipoise.dispatch import DISPATCHERS, dispatcher

RULES = [name for name, entry in DISPATCHERS.items() if entry.engine]
"""Names of the engines' rules."""


def registered(name, topology=None):
    """The dispatcher of that name; a cost that makes seconds of assignments for those that time."""
    cost = RankCost(token_seconds=1.0) if DISPATCHERS[name].needs_cost else None
    return dispatcher(name, topology, cost=cost)
