"""Forecasts for a checklist: the same as ``equipoise forecast --planner greedy`` makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from equipoise.engines.machines import Serving, assignments_of, machine_of
from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError
from equipoise.simulate.forecast import Forecast, forecast, quickest
from equipoise.simulate.kinds import loaded_steps
from equipoise.simulate.layer_time import LayerTime
from equipoise.simulate.own_work import Phase
from equipoise.trace import Trace

_PHASES: tuple[Phase, ...] = ("decode", "prefill")


def dispatchers_to_try(rule: str | None) -> list[str]:
    """List the dispatchers that a forecast tries if none is named: ours, and an engine's rule."""
    return list(dict.fromkeys(["even", "minmax", *([] if rule is None else [rule])]))


def quick_forecasts(
    recording: Trace,
    layer: LayerTime,
    config: ModelConfig,
    *,
    rule: str | None = None,
    step_tokens: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Forecast | str]:
    """Forecast each phase of a recording, or say why there is no forecast.

    Parameters
    ----------
    layer
        Ranks, GPU and link.
    config
        Model that is served.
    rule
        Dispatcher of the engine, the only one that can be recommended; ``None`` for any.
    step_tokens
        Number of tokens of a mean step, all ranks together; ``None`` takes the rows as steps.
    progress
        Function that is called before each plan with the number of plans made and of all.

    Returns
    -------
    Forecasts, or sentences for phases without one; nothing for a recording without load.
    """
    found: list[Forecast | str] = []
    if not loaded_steps(recording).any():
        return found
    for phase, steps in _by_phase(recording, layer, step_tokens):
        assignments = None if step_tokens is None else assignments_of(step_tokens, steps, config)
        serving = Serving(phase=phase, link=layer.link)
        try:
            model = machine_of(layer.hardware, steps, config, layer.topology, serving)
            result = forecast(
                steps,
                layer.topology,
                model,
                dispatch=dispatchers_to_try(rule),
                engine_dispatch=rule,
                planner=quickest,
                step_assignments=assignments,
                progress=progress,
            )
        except EquipoiseError as error:  # too few steps, or no load
            found.append(str(error))
        else:
            found.append(result)
    return found


def _by_phase(
    recording: Trace, layer: LayerTime, step_tokens: float | None
) -> Iterator[tuple[Phase, Trace]]:
    """Yield the steps of each phase; steps without a known phase have that of their size."""
    labels = recording.labels.get("phase")
    known = [] if labels is None else [phase for phase in _PHASES if phase in labels]
    if labels is None or len(known) < len(set(labels.tolist())):
        yield layer.phase(_tokens_per_rank(recording, layer, step_tokens)), recording
        return
    for phase in known:
        yield phase, recording.select(phase=phase)


def _tokens_per_rank(recording: Trace, layer: LayerTime, step_tokens: float | None) -> float:
    if step_tokens is None:
        counts = recording.counts[loaded_steps(recording)]
        top_k = recording.top_k or layer.shape.top_k
        step_tokens = float(counts.sum(axis=2).mean()) / top_k
    return step_tokens / layer.num_ranks
