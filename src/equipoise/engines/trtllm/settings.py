"""The options of TensorRT-LLM for balancing: its ``MoeLoadBalancerConfig``."""

from __future__ import annotations

from equipoise.engines._shared.options import Options, sets, slots

OPTIONS: Options = {
    "num_slots": slots,
    "layer_updates_per_iter": sets("layers_per_step"),
    "initial_global_assignments": "leave the map in its file and give map_path",
}
"""By option: how it is read, or why it has no effect."""
