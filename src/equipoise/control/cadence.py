"""Which layers take their turn in which step: TensorRT-LLM's rule, kept for those who know it."""

from __future__ import annotations

from equipoise.checks import check_count


def layer_groups(num_layers: int, layers_per_step: int) -> tuple[tuple[int, ...], ...]:
    """Rows of the layers, dealt to as few groups as hold at most so many, one group a step.

    As TensorRT-LLM does: layer ``l`` goes to group ``l mod G``, and where all groups are equally
    large an empty one follows, a step in which nothing is updated.

    Raises
    ------
    EquipoiseError
        Numbers that are not positive.
    """
    check_count("num_layers", num_layers)
    check_count("layers_per_step", layers_per_step)
    size = -(-num_layers // layers_per_step)
    groups = tuple(tuple(range(first, num_layers, size)) for first in range(size))
    return (*groups, ()) if len(groups[0]) == len(groups[-1]) else groups
