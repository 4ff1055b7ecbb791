"""Which layers take their turn in which step: TensorRT-LLM's rule, kept for those who know it."""

from __future__ import annotations

from equipoise.checks import check_count


def layers_by_step(num_layers: int, layers_per_step: int) -> tuple[tuple[int, ...], ...]:
    """Rows of the layers of each step: all layers in the fewest steps of ``layers_per_step``.

    As TensorRT-LLM does: of ``n`` steps, layer ``l`` has its turn in step ``l mod n``.  Where all
    steps have equally many layers an empty one follows, in which nothing is updated.

    Raises
    ------
    EquipoiseError
        Numbers that are not positive.
    """
    check_count("num_layers", num_layers)
    check_count("layers_per_step", layers_per_step)
    num_steps = -(-num_layers // layers_per_step)
    steps = tuple(tuple(range(first, num_layers, num_steps)) for first in range(num_steps))
    return (*steps, ()) if len(steps[0]) == len(steps[-1]) else steps
