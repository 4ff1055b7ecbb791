"""What the library's arguments are called on the command line."""

from __future__ import annotations

from equipoise.errors import named

OPTIONS = {
    "across_nodes": "--across-nodes",
    "a2a_backend": "--a2a-backend",
    "allow_pickle": "--allow-pickle",
    "architecture": "--architecture",
    "backend": "--backend",
    "columns": "--columns",
    "cost": "--rank-cost",
    "dispatch": "--ep-dispatch",
    "drop_experts": "a range for --experts",
    "expert_bytes": "--expert-bytes",
    "first_axis": "--first-axis",
    "format": "--format (validate: --for)",
    "gpu": "--hardware",
    "hold_out": "--hold-out",
    "layer_ids": "--layers",
    "link": "--link",
    "least_gain": "--least-gain",
    "losses": "--losses",
    "interference": "--interference",
    "kv_tokens": "--kv-tokens",
    "max_sequences": "--max-sequences",
    "max_tokens": "--chunked-prefill",
    "mirrored": "--mirrored",
    "model": "--model",
    "model_key": "--model-key",
    "num_experts": "--experts",
    "num_hidden_layers": "--hidden-layers",
    "num_ranks": "--ranks",
    "num_redundant": "--redundant",
    "online": "--online",
    "other_seconds": "--other-seconds",
    "per_expert": "--per_expert",
    "phase_label": "--phase",
    "placement": "--run-map",
    "plan_seconds": "--plan-seconds",
    "ranks_per_node": "--ranks-per-node",
    "redundant": "--redundant",
    "room": "--room",
    "serve": "--serve",
    "speed": "--speed",
    "stall_seconds": "--stall-seconds",
    "target": "--for",
    "step_assignments": "--step-assignments",
    "step_tokens": "--step-tokens",
    "step_interval": "--step-interval",
    "top_k": "--top-k",
    "use_async": "--use-async",
    "version": "--engine-version",
    "window_size": "--window-size",
    "window_tokens": "--window-tokens",
}
"""The options by the arguments that messages name."""


def in_options(message: str) -> str:
    """A message of the library with the command's options in place of arguments."""
    return named(message, OPTIONS)


def option_name(argument: str) -> str:
    """``run_map`` as it is typed: ``--run-map``."""
    return f"--{argument.replace('_', '-')}"
