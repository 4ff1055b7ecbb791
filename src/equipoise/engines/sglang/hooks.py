"""SGLang's own hooks: the one that decides whether to rebalance, and the one that asks for slots.

Every rank is asked with the same loads. The first one that is alive plans, since a search with a
time budget ends differently on each, and the others take its slots. Only that exchange can raise:
if the process group is broken, ranks that continued would disagree about the map.

The plan is made when SGLang asks whether to rebalance. A plan that changes nothing then costs
nothing, not even the tables that SGLang builds for each rebalance.
"""

from __future__ import annotations

import logging
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from equipoise import __version__
from equipoise.engines._shared.plugin_log import log_unknown_release
from equipoise.engines.sglang.plugin import ALGORITHM, RELEASES, STAND_INS, VARIABLE

if TYPE_CHECKING:
    from equipoise.engines.sglang.policy import Ints, Policy
    from equipoise.plan import Situation

_EPLB = "sglang.srt.eplb"

_log = logging.getLogger("sglang.equipoise")


def install() -> None:
    """Register the hooks; SGLang puts them in place once all plug-ins are loaded."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks = Hooks()
    manager = f"{_EPLB}.eplb_manager.EPLBManager"
    recorder = f"{_EPLB}.expert_distribution._ExpertDistributionRecorderReal"
    for target, hook, kind in (
        (f"{manager}.__init__", hooks.get_ready, HookType.AFTER),
        (f"{recorder}.dump_record", hooks.hear_loads, HookType.AFTER),
        (f"{manager}._check_rebalance_needed", hooks.check_rebalance_needed, HookType.AROUND),
        (f"{_EPLB}.eplb_algorithms.compute_algorithm", hooks.compute_algorithm, HookType.AROUND),
        (f"{_EPLB}.eplb_algorithms.rebalance_experts", hooks.rebalance_experts, HookType.AROUND),
    ):
        HookRegistry.register(target, hook, kind)


def warn_of_release(version: str) -> None:
    """Log that a version is not known."""
    known = " to ".join(".".join(map(str, release)) for release in RELEASES)
    log_unknown_release(_log, "SGLang", known, version)


class Hooks:
    """The hooks of one process, and the state that one hook leaves for the next."""

    def __init__(self) -> None:
        self._passes: Any = None  # a tensor of loads, between its dump and the plan from it
        self._planned: Ints | None = None  # slots, between their plan and SGLang's use of them

    @cached_property
    def policy(self) -> Policy:
        """The policy that the user set; raises ``EquipoiseError`` if the options cannot be read."""
        from equipoise.engines._shared.plugin_options import READERS, PluginOptions, read_given
        from equipoise.engines.sglang.policy import Policy

        given = read_given(os.environ.get(VARIABLE, "{}"), VARIABLE, READERS)
        return Policy(PluginOptions(**given))

    def get_ready(self, _result: None, _manager: Any, **_collaborators: Any) -> None:
        """Read the options and compile when SGLang's balancing starts, before it serves.

        Raises
        ------
        EquipoiseError
            The options cannot be read. SGLang then does not start.
        """
        name = _algorithm()
        if not _means_us(name):
            if VARIABLE in os.environ:
                _log.warning(
                    "%s has no effect: --eplb-algorithm %s is SGLang's own; give equipoise or "
                    "auto.",
                    *(VARIABLE, name),
                )
            return
        _log.info("equipoise %s plans the placement of experts: %s", __version__, self.policy.words)
        if _plans():
            self.policy.make_ready(_situation([[0] * _metadata().num_logical_experts]))

    def hear_loads(self, output: Any, _recorder: Any, output_mode: str = "file") -> None:
        """Keep the loads that SGLang's balancing has taken from its recorder."""
        if output_mode == "object" and _means_us(_algorithm()):
            self._passes = output["logical_count"]

    def check_rebalance_needed(self, original: Any, manager: Any, utilization: Any) -> bool:
        """Plan if SGLang's threshold is reached; return whether the plan changes anything."""
        needed: bool = original(manager, utilization)
        passes, self._passes, self._planned = self._passes, None, None
        if passes is None or not needed:
            return needed
        self._planned = self._agreed(passes)
        return _differs_from_slots_in_force(self._planned)

    def compute_algorithm(self, original: Any, raw_algorithm: str, **others: Any) -> Any:
        """Return the name by which ``rebalance_experts`` knows us, or one of SGLang's own."""
        if _means_us(raw_algorithm):
            return ALGORITHM
        return original(raw_algorithm, **others)

    def rebalance_experts(self, original: Any, **given: Any) -> Any:
        """Return SGLang's tables of the planned slots, in the form that ``deepseek`` returns.

        At start-up, from a file of loads, nothing is in force and nothing was planned: then each
        rank plans by itself, and nothing depends on the clock.
        """
        if given["algorithm"] != ALGORITHM:
            return original(**given)
        import torch

        from equipoise.engines.sglang.policy import tables
        from equipoise.plan import Situation

        slots, self._planned = self._planned, None
        passes, num_slots = given["tokens_per_expert"], given["num_physical_experts"]
        if slots is None:
            start = Situation(
                load=passes.cpu(),
                num_slots=num_slots,
                num_ranks=num_slots // given["num_local_physical_experts"],
                num_nodes=given["num_nodes"],
            )
            situation = start if _metadata() is None else _situation(start.load)
            slots = self.policy.decide(situation, with_clock=False).slots
        return tuple(map(torch.from_numpy, tables(slots, passes.shape[-1])))

    def _agreed(self, passes: Any) -> Ints:
        """Return on every rank the slots that the planning rank has chosen, ``(L, S)``.

        The others add zeros. SGLang has just summed the loads with the same operation over the
        same ranks, so it works wherever balancing does, ranks that died included.
        """
        import torch

        in_force = _metadata().physical_to_logical_map
        slots = torch.zeros(in_force.shape, dtype=torch.int32, device=in_force.device)
        if _plans():
            decision = self.policy.decide(_situation(passes.cpu()), with_clock=True)
            slots += torch.from_numpy(decision.slots).to(slots)
        torch.distributed.all_reduce(slots)
        return slots.cpu().numpy().astype("int64")


def _means_us(algorithm: str) -> bool:
    return algorithm == ALGORITHM or (algorithm in STAND_INS and VARIABLE in os.environ)


def _algorithm() -> str:
    from sglang.srt import runtime_context

    if hasattr(runtime_context, "get_exec"):
        return str(runtime_context.get_exec().moe.eplb_algorithm)
    return str(runtime_context.get_server_args().eplb_algorithm)  # until 0.5.18


def _metadata() -> Any:
    """Return SGLang's tables in force, the same on all ranks."""
    from sglang.srt.eplb.expert_location import get_global_expert_location_metadata

    return get_global_expert_location_metadata()


def _elastic_state() -> Any:
    """Return the state of the ranks; ``None`` without elastic expert parallelism."""
    from sglang.srt.elastic_ep.elastic_ep import ElasticEPStateManager

    return ElasticEPStateManager.instance()


def _plans() -> bool:
    """Return whether this rank is the first that is alive."""
    import torch

    state = _elastic_state()
    first = 0 if state is None else int(state.active_ranks_cpu.nonzero()[0])
    return bool(torch.distributed.get_rank() == first)


def _situation(load: Any) -> Situation:
    """Return the situation: the slots in force, and the loads to plan for."""
    from sglang.srt.runtime_context import get_server_args

    from equipoise.plan import Situation

    metadata, state = _metadata(), _elastic_state()
    has_grown = getattr(state, "has_scaled", False)  # new ranks may be on any node
    return Situation(
        load=load,
        num_slots=metadata.num_physical_experts,
        num_ranks=metadata.ep_size,
        num_nodes=1 if has_grown else get_server_args().nnodes,
        slots=metadata.physical_to_logical_map_cpu.numpy(),
        alive=None if state is None else state.active_ranks_cpu[: metadata.ep_size].numpy(),
    )


def _differs_from_slots_in_force(slots: Ints) -> bool:
    return bool((slots != _metadata().physical_to_logical_map_cpu.numpy()).any())
