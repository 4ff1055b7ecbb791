"""What the library's arguments are called on the command line."""

from __future__ import annotations

from equipoise.errors import named

OPTIONS = {
    "allow_pickle": "--allow-pickle",
    "columns": "--columns",
    "cost": "--rank-cost",
    "drop_experts": "a range for --experts",
    "first_axis": "--first-axis",
    "format": "--format (validate: --for)",
    "hold_out": "--hold-out",
    "layer_ids": "--layers",
    "losses": "--losses",
    "mirrored": "--mirrored",
    "model_key": "--model-key",
    "num_experts": "--experts",
    "num_hidden_layers": "--hidden-layers",
    "num_ranks": "--ranks",
    "num_redundant": "--redundant",
    "placement": "--run-map",
    "ranks_per_node": "--ranks-per-node",
    "room": "--room",
    "speed": "--speed",
    "step_assignments": "--step-assignments",
    "top_k": "--top-k",
    "window_tokens": "--window-tokens",
}
"""The options by the arguments that messages name."""


def in_options(message: str) -> str:
    """A message of the library with the command's options in place of arguments."""
    return named(message, OPTIONS)


def option_name(argument: str) -> str:
    """``run_map`` as it is typed: ``--run-map``."""
    return f"--{argument.replace('_', '-')}"
