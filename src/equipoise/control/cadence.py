"""The layers that move in each step, by TensorRT-LLM's rule."""

from __future__ import annotations

from equipoise.checks import check_count


def layers_by_step(num_layers: int, layers_per_step: int) -> tuple[tuple[int, ...], ...]:
    """Distribute the layers over the fewest steps with at most ``layers_per_step`` each.

    As in TensorRT-LLM, layer ``l`` belongs to step ``l mod n`` of ``n`` steps.  If all steps have
    the same number of layers, an empty step follows, in which nothing is updated.

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
