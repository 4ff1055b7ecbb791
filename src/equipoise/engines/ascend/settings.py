"""The options of vllm-ascend's SwiftBalancer for balancing, old names and new."""

from __future__ import annotations

from equipoise.engines._shared.options import MAP, PLANNER, REDUNDANT, Options, online, sets

_HEAT = sets("window", "update_interval")
_WAIT = sets("wait_steps")
_PHASES = "both phases are counted, each by itself"

OPTIONS: Options = {
    "dynamic_eplb": online,
    "expert_heat_collection_interval": _HEAT,
    "num_iterations_eplb_update": _HEAT,
    "algorithm_execution_interval": _WAIT,
    "num_wait_worker_iterations": _WAIT,
    "num_redundant_experts": REDUNDANT,
    "init_redundancy_expert": REDUNDANT,
    "gate_eplb": sets("once"),
    "expert_map_path": MAP,
    "expert_map_record_path": "write the placement that is served with write_map",
    "eplb_policy_type": PLANNER,
    "eplb_heat_collection_stage": _PHASES,
    "load_collection_phase": _PHASES,
}
"""By option: how it is read, or why it has no effect."""
