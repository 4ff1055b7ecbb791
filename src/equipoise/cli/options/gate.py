"""Deciding on the command line whether a migration pays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from equipoise.cli.options.groups import MOVING
from equipoise.cli.options.limits import AtLeastZero
from equipoise.cli.options.names import option_name
from equipoise.cli.options.recording import kept_steps, recording_path
from equipoise.cli.options.units import Seconds
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher, dispatcher
from equipoise.dispatch.registry import needs_cost
from equipoise.engines.formats import given
from equipoise.engines.trace_io import read_trace
from equipoise.errors import EquipoiseError
from equipoise.migration import Migration
from equipoise.plan.scores import WholeSteps
from equipoise.plan.weigh.gate import Decision, Gate
from equipoise.simulate.machine import Machine
from equipoise.simulate.named_cost import cost_model
from equipoise.simulate.whole import weigh_whole
from equipoise.topology import Topology
from equipoise.trace import Trace

PRICES = ("dwell_steps", "stall_seconds", "interference", "delay_steps")
"""What a move costs, apart from its bytes; none has a default."""


@Parameter(name="*", group=MOVING)
@dataclass(frozen=True, kw_only=True)
class GateArguments:
    """Whether moving pays: what it saves on a recording, against what it costs.

    Parameters
    ----------
    trace
        Recording of steps that the new map was not planned on, one row for each step: decides
        whether moving pays. Exit status 1 if it does not. The options below need it.
    phase
        Decide by the steps of this phase, such as prefill or decode.
    domain
        Decide by the steps of this domain.
    rank_cost
        Time that ranks take: the name of published constants, such as h100-deepep-ep32 (equipoise
        explain costs lists them). --hardware gives it too.
    dispatch
        Dispatcher that runs, as for equipoise plan.
    dwell_steps
        Steps until the loads have drifted away from those that the new map was made for.
    stall_seconds
        Seconds for which serving stops during the change.
    interference
        Seconds of serving lost for each second of transfers, usually from 0 to 1.
    delay_steps
        Steps until the new map is in force.
    """

    trace: Annotated[Path | None, Parameter(converter=recording_path)] = None
    phase: str | None = None
    domain: str | None = None
    rank_cost: str | None = None
    dispatch: str = "even"
    dwell_steps: AtLeastZero = None
    stall_seconds: Annotated[float | None, Seconds] = None
    interference: AtLeastZero = None
    delay_steps: AtLeastZero = None

    def check(self, expert_bytes: int | None, timed: bool) -> None:
        """Refuse a decision without the values it needs, and values without a decision.

        Parameters
        ----------
        timed
            Whether hardware says what ranks take.
        """
        if self.trace is None:
            if given(self):
                names = ", ".join(sorted(map(option_name, given(self))))
                raise EquipoiseError(f"{names}: only with --trace, to decide whether to move.")
            return
        needed = PRICES if timed else ("rank_cost", *PRICES)
        missing = [_asked(name) for name in needed if getattr(self, name) is None]
        missing += ["--expert-bytes (or --model)"] if expert_bytes is None else []
        if missing:
            raise EquipoiseError(
                f"To decide whether to move, give {', '.join(missing)} as well: they have no "
                "default, since none fits every system."
            )
        if self.rank_cost is not None:
            self._runs(cost_model(self.rank_cost).planning_cost)

    def steps(self) -> Trace | None:
        """The steps to decide by; ``None`` if no decision was asked for."""
        if self.trace is None:
            return None
        return kept_steps(read_trace(self.trace), phase=self.phase, domain=self.domain)

    def decide(
        self, migration: Migration, steps: Trace, expert_bytes: int | None, timed: Machine | None
    ) -> tuple[Decision, WholeSteps | None]:
        """The decision, and what becomes of whole steps where hardware times them.

        Parameters
        ----------
        timed
            What steps take, if hardware says it: whole steps then decide.
        """
        assert expert_bytes is not None  # checked
        prices: dict[str, Any] = {name: getattr(self, name) for name in PRICES}

        def gate(cost: RankCost) -> Gate:
            runs = self._runs(cost, migration.topology, steps.top_k)
            return Gate(cost=cost, expert_bytes=expert_bytes, dispatch=runs, **prices)

        if timed is not None:
            return weigh_whole(gate(timed.planning_cost), migration, steps, timed)
        assert self.rank_cost is not None  # checked
        return gate(cost_model(self.rank_cost).planning_cost).decide(migration, steps), None

    def _runs(
        self, cost: RankCost, topology: Topology | None = None, top_k: int | None = None
    ) -> Dispatcher:
        told = cost if needs_cost(self.dispatch) else None
        return dispatcher(self.dispatch, topology, cost=told, top_k=top_k)


def _asked(name: str) -> str:
    return "--rank-cost (or --hardware)" if name == "rank_cost" else option_name(name)
