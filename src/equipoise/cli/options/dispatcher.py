"""Choosing a dispatcher on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from equipoise.cost import RankCost
from equipoise.dispatch import DISPATCHERS, Dispatcher, dispatcher
from equipoise.engines._shared.rules import ENGINE_RULES, engine_rule
from equipoise.errors import EquipoiseError
from equipoise.topology import Topology


def find_dispatcher(
    name: str,
    topology: Topology | None = None,
    *,
    top_k: int | None = None,
    cost: RankCost | None = None,
) -> Dispatcher:
    """The dispatcher or engine's rule of that name, told of the machines, the router and the cost.

    Parameters
    ----------
    top_k
        Choices per token, for rules that go by rows; theirs if ``None``.
    """
    known = _known(name, topology)
    told: dict[str, Any] = {"topology": topology} if name in ENGINE_RULES else {}
    if top_k is not None and hasattr(known, "top_k"):
        told["top_k"] = top_k
    if cost is not None:
        if not hasattr(known, "cost"):
            raise EquipoiseError(
                f"The dispatcher {name} knows no times; leave --rank-cost out, or use one of "
                f"{', '.join(other.name for other in DISPATCHERS if hasattr(other, 'cost'))}."
            )
        told["cost"] = cost
    found: Dispatcher = replace(known, **told)  # type: ignore[type-var]
    return found


def _known(name: str, topology: Topology | None) -> Dispatcher:
    if name in ENGINE_RULES:
        return engine_rule(name)
    names = [known.name for known in DISPATCHERS]
    if name not in names:
        raise EquipoiseError(
            f"There is no dispatcher {name!r}; use one of {', '.join([*names, *ENGINE_RULES])}."
        )
    return dispatcher(name, topology)
