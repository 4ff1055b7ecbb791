"""Planning for few ranks and nodes per token, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.checks import check_number
from equipoise.cli.options.planner import PlannerArguments, chosen_fields
from equipoise.cli.options.repair import RepairArguments
from equipoise.dispatch import Shares
from equipoise.errors import EquipoiseError
from equipoise.plan import Planner
from equipoise.plan.planners.registry import PLANNERS
from equipoise.trace import Trace

_COLOCATE = PLANNERS["colocate"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LocalityArguments:
    """Change the planner's copies so that tokens go to fewer ranks and nodes.

    Parameters
    ----------
    locality_price
        Move the planner's copies so that tokens go to fewer ranks and nodes: share by which the
        busiest rank may rise for it, such as 0.005, see equipoise explain locality. Needs a
        recording of
        single tokens.
    """

    locality_price: Annotated[float | None, Parameter(validator=Number(gte=0))] = None

    @property
    def uses(self) -> frozenset[str]:
        """Planner options that the search for locality takes too."""
        if self.locality_price is None:
            return frozenset()
        return frozenset(option.key for option in _COLOCATE.options)

    def check(self, planning: PlannerArguments, repairing: RepairArguments) -> None:
        """Refuse planners whose result the moves would undo, and dispatchers that it ignores."""
        if self.locality_price is None:
            return
        check_number("--locality-price", self.locality_price, low=0, high=np.inf)
        if planning.judge().shares is not Shares.EVEN:
            raise EquipoiseError(
                "--locality-price assumes an even split; leave --dispatch "
                f"{planning.dispatch_name} out."
            )
        if repairing.from_map is not None:
            raise EquipoiseError(
                "--locality-price moves copies freely, --from as few as possible; use one of them."
            )
        if planning.entry.pins_copies:
            raise EquipoiseError(
                f"--locality-price would move copies that the planner {planning.planner} needs "
                "where they are; use another planner."
            )

    def applied(self, planner: Planner, planning: PlannerArguments, fit: Trace) -> Planner:
        """The planner, followed by the search for locality if there is a price."""
        if self.locality_price is None:
            return planner
        search = chosen_fields(planning, _COLOCATE)
        return _COLOCATE.make(tokens=fit.tokens, start=planner, price=self.locality_price, **search)
