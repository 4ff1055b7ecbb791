"""The options of vLLM for balancing: its ``EPLBConfig``."""

from __future__ import annotations

from equipoise.engines._shared.options import MAP, PLANNER, REDUNDANT, Options, offline, sets

_METRICS = "the metrics always tell the balance"

OPTIONS: Options = {
    "window_size": sets("window"),
    "step_interval": sets("update_interval"),
    "num_redundant_experts": REDUNDANT,
    "use_async": sets("background"),
    "disable_online_rebalancing": offline,
    "initial_mapping_path": MAP,
    "initial_expert_map_path": MAP,
    "expert_map_path": MAP,
    "policy": PLANNER,
    "communicator": "experts travel over the process groups of the layers",
    "enable_migration_batching": "layers_per_step says how many layers move",
    "log_balancedness": _METRICS,
    "log_balancedness_interval": _METRICS,
}
"""By option: how it is read, or why it has no effect."""
