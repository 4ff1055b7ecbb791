"""What vLLM asks for new slots: its balancing policy, planned on one rank and told to the others.

vLLM calls the policy on every rank with the same loads. One rank plans, since a search with a time
budget ends differently on each, and the others take its slots through the process group that vLLM
itself balances with. That exchange is the only thing here that can raise: if the process group is
broken, ranks that went on would disagree about who holds what.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from equipoise import __version__
from equipoise.checks import as_array
from equipoise.engines._shared.hook import Decision, Hook, Planner, PlanStatus
from equipoise.engines._shared.plugin_log import (
    balancing_words,
    log_decision,
    log_unknown_release,
    make_ready,
)
from equipoise.engines.vllm.plugin_options import PluginOptions, Then
from equipoise.engines.vllm.windows import RecordedWindows, forget_loads_of_moved_layers
from equipoise.placement import Placement
from equipoise.plan import Answer, Outcome, Situation
from equipoise.plan.ahead import plan_ahead

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

    ours = policy.EPLB_POLICIES["default"] = Policy(options)
    ours.windows.watch(eplb_state)
    forget_loads_of_moved_layers(eplb_state)
    if options.status is not None:
        from equipoise.engines.vllm.plan_metrics import PlanMetrics

        PlanMetrics(options.status).register()


class Policy:
    """The policy object; vLLM calls ``rebalance_experts`` and nothing else.

    Parameters
    ----------
    options
        What the user set.
    planner
        What plans from the slots in force; by default ``plan_ahead`` for an even split over the
        copies, which is how vLLM splits, on one thread, since the engine has use for the others.

    Attributes
    ----------
    windows
        Where the loads by windows of time are, if vLLM's state leaves them there.
    """

    def __init__(self, options: PluginOptions, planner: Planner | None = None) -> None:
        self.windows = RecordedWindows()
        self._options = options
        usual = partial(plan_ahead, dispatch="even", num_threads=1, least_gain=options.gate)
        self._balance = Hook(planner or usual)
        self._start = None if options.map is None else StartMap(options.map)
        self._to_start = Hook(self._start) if self._start is not None else self._balance
        self._record = _record_at(options.status)
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
        """The slots that vLLM shall bring into force.

        Parameters
        ----------
        weight
            Loads, ``(L, E)``; all zero when vLLM only measures memory.
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
        slots = torch.zeros((len(weight), num_replicas), dtype=torch.int64)
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
        """Slots for a situation, logged."""
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
        """Write what became of the plan; no file, no metrics, and that is all."""
        if self._record is None:
            return
        try:
            self._record.add(situation, decision)
        except Exception as error:
            _log.warning("equipoise keeps no record of its plans any more: %s", error)
            self._record = None

    def _max_moves(self, situation: Situation) -> int:
        """None any more where the map or the first plan is held."""
        num_layers = np.shape(situation.load)[-2]
        first = self._start is None and (num_layers, situation.num_slots) not in self._balanced
        if self._options.then is Then.HOLD and not first:
            return 0
        return int(self._options.max_moves_share * num_layers * situation.num_slots)

    def _warm_up(self, situation: Situation) -> None:
        """Compile in vLLM's memory run, which comes before serving and has no loads.

        Only now it is said that the plug-in is there: where the options are read, in the first
        process, vLLM has not yet set up its log, and forked processes do not read them again.
        """
        if self._is_warm:
            return
        self._is_warm = True
        words = _words(self._options)
        _log.info("equipoise %s plans the placement of experts: %s", __version__, words)
        make_ready(_log, self._balance, situation)


class StartMap:
    """A stored placement as a planner: vLLM has no way to start from one.

    Parameters
    ----------
    placement
        Its layers are the model's MoE layers, in order.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._was_in_force = False

    def is_next(self, situation: Situation) -> bool:
        """Whether the placement fits and has yet to come into force; not without traffic."""
        load, slots = as_array(situation.load, "Loads"), situation.slots
        if slots is None or not load.any() or self._was_in_force:
            return False
        held = as_array(slots, "The slots in force")
        own = self._placement
        if held.shape != own.slots.shape or (load.shape[-1], situation.num_ranks) != (
            own.num_experts,
            own.num_ranks,
        ):
            _log.warning(
                "equipoise leaves the map out: it is for %d layers of %d experts in %d slots on %d "
                "ranks, the model has %d layers of %d experts in %d slots on %d ranks.",
                *(own.num_layers, own.num_experts, own.num_slots, own.num_ranks),
                *(len(held), load.shape[-1], situation.num_slots, situation.num_ranks),
            )
            return False
        self._was_in_force = bool((held == own.slots).all())
        return not self._was_in_force

    def __call__(self, situation: Situation) -> Answer:
        """The placement, however many slots change; ``is_next`` has found that it fits."""
        assert situation.slots is not None
        slots = self._placement.slots
        moves = int((slots != as_array(situation.slots, "The slots in force")).sum())
        return Answer(
            slots=slots,
            moves=moves,
            outcome=Outcome.REPAIRED,
            reason=f"The map comes into force: {moves} of {slots.size} slots change.",
        )


def _planning_group() -> Any:
    """The process group, on CPUs, of the ranks that balance together; ``None`` if there is none."""
    from vllm.distributed import parallel_state

    coordinator = parallel_state._EPLB  # its accessor asserts that there is one
    return None if coordinator is None else coordinator.cpu_group


def _record_at(path: Path | None) -> PlanRecord | None:
    if path is None:
        return None
    from equipoise.engines.vllm.plan_metrics import PlanRecord

    return PlanRecord(path)


def _words(options: PluginOptions) -> str:
    balancing = (
        f"{balancing_words(options)} Nothing moves unless the mean peak sinks by more than "
        f"{options.gate:g} mean rank loads."
    )
    if options.map is None:
        once = " The slots of the first plan then stay." if options.then is Then.HOLD else ""
        return balancing + once
    if options.then is Then.HOLD:
        return "the map that was given comes into force and stays."
    return f"the map that was given comes into force; then {balancing}"
