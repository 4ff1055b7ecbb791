"""The balancing policy that vLLM asks for new slots; one rank plans and tells the others.

vLLM calls the policy on every rank with the same loads. One rank plans, since a search with a time
budget ends differently on each, and the others take its slots through the process group that vLLM
itself balances with. That exchange is the only thing here that can raise: if the process group is
broken, ranks that went on would disagree about who holds what.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from equipoise import __version__
from equipoise.checks import as_array
from equipoise.engines._shared.hook import Decision, Hook, Planner, PlanStatus
from equipoise.engines._shared.plugin_log import log_decision, log_unknown_release, make_ready
from equipoise.engines._shared.start_map import StartMap, StartOptions, Then, words
from equipoise.engines.vllm.plugin_options import PluginOptions
from equipoise.engines.vllm.windows import RecordedWindows, forget_loads_of_moved_layers
from equipoise.plan import Situation

if TYPE_CHECKING:
    from equipoise.engines.vllm.plan_metrics import PlanRecord

RELEASES = ("0.32.", "0.33.")
"""Beginnings of the versions whose inside is known."""

_log = logging.getLogger("vllm.equipoise")  # below "vllm", whose handlers show it


def install(options: PluginOptions) -> None:
    """Make vLLM use the policy; on a version that is not known, say so and change nothing."""
    import vllm

    if not vllm.__version__.startswith(RELEASES):
        known = " and ".join(f"{release}x" for release in RELEASES)
        log_unknown_release(_log, "vLLM", known, vllm.__version__)
        return
    from vllm.distributed.eplb import eplb_state, policy

    record = None
    if options.status is not None:
        from equipoise.engines.vllm.plan_metrics import PlanMetrics, PlanRecord

        PlanMetrics(options.status).register()
        record = PlanRecord(options.status)
    ours = policy.EPLB_POLICIES["default"] = Policy(options, record=record)
    ours.windows.watch(eplb_state)
    forget_loads_of_moved_layers(eplb_state)


class Policy:
    """The policy object; vLLM calls ``rebalance_experts`` and nothing else.

    Parameters
    ----------
    options
        Options that the user set.
    planner
        Planner that starts from the slots in force; by default that of the options.
    record
        Record that keeps the outcome of the plans, if any.

    Attributes
    ----------
    windows
        Loads by windows of time, if vLLM's state hands them over.
    """

    def __init__(
        self,
        options: StartOptions,
        planner: Planner | None = None,
        *,
        record: PlanRecord | None = None,
    ) -> None:
        self.windows = RecordedWindows()
        self._options = options
        self._balance = Hook(planner or options.planner())
        self._start = None if options.map is None else StartMap(options.map, _log)
        self._to_start = Hook(self._start) if self._start is not None else self._balance
        self._record = record
        self._is_warm = False
        self._balanced: set[tuple[int, ...]] = set()  # by shape: a draft model has its own plans

    def rebalance_experts(
        self,
        weight: torch.Tensor,
        num_replicas: int,
        num_groups: int,  # noqa: ARG002  plans are not bound to groups of experts
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the slots that vLLM is to bring into force.

        Parameters
        ----------
        weight
            Loads, ``(L, E)`` or by windows of time ``(T, L, E)``; all zero when vLLM only measures
            memory.
        num_replicas
            Slots of a layer, ``S``.
        old_global_expert_indices
            Expert ids in force, ``(L, S)``; of another width when ranks come or go.

        Returns
        -------
        Expert ids ``(L, S)``, int64 on the CPU.
        """
        situation = Situation(
            load=weight,
            num_slots=num_replicas,
            num_ranks=num_ranks,
            num_nodes=num_nodes,
            slots=old_global_expert_indices,
        )
        group = _planning_group()
        if group is None:  # each rank by itself, so nothing may depend on the clock
            return torch.from_numpy(self.decide(situation).slots)
        slots = torch.zeros((weight.shape[-2], num_replicas), dtype=torch.int64)
        if group.rank() == 0:
            situation = replace(
                situation,
                load=self.windows.of(weight),
                time_budget_seconds=self._options.time_budget_seconds,
            )
            slots += torch.from_numpy(self.decide(situation).slots)
        # The others add zeros. vLLM calls the same operation on this group, so it works wherever
        # balancing does; a broadcast would need the group to be known to torch by its ranks.
        torch.distributed.all_reduce(slots, group=group)
        return slots

    def decide(self, situation: Situation) -> Decision:
        """Decide on slots for a situation, and log the decision."""
        self._warm_up(situation)
        if self._start is not None and self._start.is_next(situation):
            decision = self._to_start(situation)
        else:
            decision = self._balance(replace(situation, max_moves=self._max_moves(situation)))
            has_traffic = bool(as_array(situation.load, "Loads").any())
            if decision.status is PlanStatus.TAKEN and has_traffic:
                self._balanced.add(decision.slots.shape)
        log_decision(_log, decision)
        self._keep_record(situation, decision)
        return decision

    def _keep_record(self, situation: Situation, decision: Decision) -> None:
        """Write the outcome of the plan; a failure only leaves the metrics without it."""
        if self._record is None:
            return
        try:
            self._record.add(situation, decision)
        except Exception as error:
            _log.warning("equipoise keeps no record of its plans any more: %s", error)
            self._record = None

    def _max_moves(self, situation: Situation) -> int:
        """Return the most moves: 0 once the map or the first plan is to be kept."""
        num_layers = np.shape(situation.load)[-2]
        first = self._start is None and (num_layers, situation.num_slots) not in self._balanced
        if self._options.then is Then.HOLD and not first:
            return 0
        return self._options.max_moves(num_layers * situation.num_slots)

    def _warm_up(self, situation: Situation) -> None:
        """Compile in vLLM's memory run, which comes before serving and has no loads.

        The plug-in reports itself in the log only now. When the first process reads the options,
        vLLM has not yet set up its log, and forked processes do not read them again.
        """
        if self._is_warm:
            return
        self._is_warm = True
        asked = words(self._options)
        _log.info("equipoise %s plans the placement of experts: %s", __version__, asked)
        make_ready(_log, self._balance, situation)


def _planning_group() -> Any:
    """Return the CPU process group of the ranks that balance together, or ``None``."""
    from vllm.distributed import parallel_state

    coordinator = parallel_state._EPLB  # its accessor asserts that there is one
    return None if coordinator is None else coordinator.cpu_group
