"""Fitting of a recording to the layers and experts that the user states."""

from __future__ import annotations

from equipoise.engines.formats import TraceOptions
from equipoise.errors import EquipoiseError, argument
from equipoise.layer_ids import format_ids
from equipoise.trace import Trace


def fitted(trace: Trace, options: TraceOptions) -> Trace:
    """Fit a trace to the stated layers and experts, and note each change.

    Raises
    ------
    EquipoiseError
        Assignments to experts beyond the stated number, unless ``drop_experts``.
    """
    notes: list[str] = []
    if options.layer_ids not in (None, trace.layer_ids):
        assert options.layer_ids is not None
        trace = _with_layers(trace, options.layer_ids, notes)
    if options.num_experts not in (None, trace.num_experts):
        assert options.num_experts is not None
        trace = _with_experts(trace, options.num_experts, options.drop_experts, notes)
    return trace.with_notes(*notes)


def _with_layers(trace: Trace, layer_ids: tuple[int, ...], notes: list[str]) -> Trace:
    missing = sorted(set(layer_ids) - set(trace.layer_ids))
    dropped = sorted(set(trace.layer_ids) - set(layer_ids))
    if missing and dropped:
        raise EquipoiseError(
            f"The recording has the layers {format_ids(trace.layer_ids)}; {format_ids(layer_ids)} "
            "would both leave some out and add others, which looks like another numbering. "
            "Do one of the two."
        )
    if missing:
        notes.append(
            f"Layers {format_ids(missing)} are not in the recording; they were added without load, "
            "so nothing is known of their experts."
        )
    if dropped:
        notes.append(f"Layers {format_ids(dropped)} were left out, as asked.")
    return trace.with_layers(layer_ids)


def _with_experts(trace: Trace, num_experts: int, drop: bool, notes: list[str]) -> Trace:
    E = trace.num_experts
    if num_experts > E:
        notes.append(
            f"Experts {format_ids(range(E, num_experts))} are not in the recording; they were "
            "added without load."
        )
        return trace.first_experts(num_experts)
    beyond, everything = int(trace.total[:, num_experts:].sum()), int(trace.total.sum())
    if beyond and not drop:
        raise EquipoiseError(
            f"Experts {format_ids(range(num_experts, E))} have {beyond} assignments, but there are "
            f"{num_experts} experts. If they have no weights, keep 0-{num_experts - 1} only, with "
            f"{argument('drop_experts')}; if the columns are slots, give the map of the run."
        )
    share = f", {beyond / everything:.1%} of all assignments" if beyond else ""
    notes.append(f"Experts {format_ids(range(num_experts, E))} were left out, as asked{share}.")
    return trace.first_experts(num_experts)
