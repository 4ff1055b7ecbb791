"""Planning for few ranks and nodes per token, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.checks import check_number
from equipoise.cli.options.planner import PlannerArguments
from equipoise.cli.options.repair import RepairArguments
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Plan, Planner
from equipoise.plan.evaluate import ranks_without_balancing
from equipoise.plan.planners.colocate import Colocate
from equipoise.plan.weigh.traffic import measure_traffic
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How many ranks and nodes a token goes to, means over layers; ``plain`` without balancing."""

    ranks_per_token: float
    nodes_per_token: float
    plain_ranks_per_token: float
    plain_nodes_per_token: float

    @property
    def text(self) -> str:
        """The same in a sentence."""
        return (
            f"An unseen token reaches {self.ranks_per_token:.2f} ranks and "
            f"{self.nodes_per_token:.2f} nodes, without balancing "
            f"{self.plain_ranks_per_token:.2f} and {self.plain_nodes_per_token:.2f}."
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LocalityArguments:
    """Change the planner's copies so that tokens go to fewer ranks and nodes.

    Parameters
    ----------
    locality_price
        Move the planner's copies so that tokens go to fewer ranks and nodes: share by which the
        busiest rank may rise for it, such as 0.005, see docs/locality.md. Needs a recording of
        single tokens.
    """

    locality_price: Annotated[float | None, Parameter(validator=Number(gte=0))] = None

    @property
    def uses(self) -> frozenset[str]:
        """Planner options that the search for locality takes too."""
        return frozenset() if self.locality_price is None else frozenset({"moves", "seed"})

    def check(self, planning: PlannerArguments, repairing: RepairArguments) -> None:
        """Refuse what moving copies would undo, and dispatchers that it cannot look at."""
        if self.locality_price is None:
            return
        check_number("--locality-price", self.locality_price, low=0, high=np.inf)
        if planning.dispatch_name != "even":
            raise EquipoiseError(
                "--locality-price counts on an even split; leave --dispatch "
                f"{planning.dispatch_name} out."
            )
        if repairing.from_map is not None:
            raise EquipoiseError(
                "--locality-price moves whatever helps, --from as little as it can; leave one out."
            )
        if planning.planner in ("survivable", "fixed-graph"):
            raise EquipoiseError(
                f"--locality-price would move the copies that the planner {planning.planner} has "
                "put where they must be; use another planner."
            )

    def applied(self, planner: Planner, planning: PlannerArguments, fit: Trace) -> Planner:
        """The planner, followed by the search for locality if there is a price."""
        if self.locality_price is None:
            return planner
        search = {name: getattr(planning, name) for name in given(planning) & self.uses}
        return Colocate(tokens=fit.tokens, start=planner, price=self.locality_price, **search)

    def reach(self, result: Plan, held: Trace | None) -> Reach | None:
        """Where tokens that were not planned on go; ``None`` if nobody asked or there are none."""
        if self.locality_price is None or held is None:
            return None
        topology = result.problem.topology
        plain = _without_balancing(held, topology.num_ranks)
        before, after = (
            measure_traffic(p, held.tokens, topology) for p in (plain, result.placement)
        )
        return Reach(
            ranks_per_token=float(after.ranks_per_token.mean()),
            nodes_per_token=float(after.nodes_per_token.mean()),
            plain_ranks_per_token=float(before.ranks_per_token.mean()),
            plain_nodes_per_token=float(before.nodes_per_token.mean()),
        )


def _without_balancing(trace: Trace, num_ranks: int) -> Placement:
    """Every expert once, in order; slots that stay empty hold experts that the model has not."""
    rank_E = ranks_without_balancing(trace.num_experts, num_ranks)
    size = -(-trace.num_experts // num_ranks)
    missing = np.repeat(np.arange(num_ranks), size - np.bincount(rank_E, minlength=num_ranks))
    row = np.argsort(np.concatenate([rank_E, missing]), kind="stable")
    return Placement(
        np.tile(row, (trace.num_layers, 1)),
        num_ranks=num_ranks,
        num_experts=len(row),
        layer_ids=trace.layer_ids,
    )
