"""What is true of all routing, and what a recording that breaks it probably is.

A router gives every token ``K`` different experts, in every MoE layer. So the ``K`` choices of a
token differ, all MoE layers of a step carry the same number of assignments, ids lie within the
model, and two ranks count the same only if they saw the same tokens. What cannot be routing is
refused, what is certainly padding is left out with a note, and what is merely odd is said.
The rules, one by one: ``equipoise explain invariants``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError, Message, argument
from equipoise.layer_ids import format_ids
from equipoise.trace import Trace

NO_CHOICE = -1
"""What stands for an expert where a token chose none."""

_CHUNK_CELLS = 1 << 24  # ids looked at together, so that memory stays bounded
_UNEQUAL = 0.005  # layers whose assignments differ by less are the same: approximate recorders
_EXPECTED = 30  # assignments an expert should have before their absence means anything
_EVIDENCE = 20.0  # assignments of difference to expect before equal counts mean anything
_ROWS = 8  # layers compared at once
_CLEAR = 1000.0  # assignments of difference to expect before a search ends early
_NEAR_TIE = 0.05  # of the difference that independent tokens would make


@dataclass(frozen=True, eq=False)
class Choices:
    """What tokens chose, without the rows that are no choices.

    Parameters
    ----------
    ids
        ``(D', L', K)``: kept tokens and layers; ``NO_CHOICE`` where a kept token has none.
    tokens
        Which of the ``D`` tokens were kept, ``(D,)`` bool.
    layers
        Rows of the layers that were kept, ``(L',)``.
    notes
        What was left out, one sentence each.
    """

    ids: NDArray[np.integer]
    tokens: NDArray[np.bool_]
    layers: NDArray[np.int64]
    notes: tuple[str, ...]


def clean_choices(
    ids: NDArray[np.integer], *, num_experts: int | None = None, keep_layers: bool = False
) -> Choices:
    """Leave out dense layers and padding of choices ``(D, L, K)``; refuse what is no routing.

    A row of ``K`` equal ids is no choice, since choices differ: engines fill dense layers, and the
    last token of a request, with zeros.

    Parameters
    ----------
    ids
        Expert ids as recorded; not changed.
    num_experts
        ``E`` if known: tells an 8-bit or 16-bit -1 from an expert.
    keep_layers
        Keep layers without any choice: the user numbered them.

    Raises
    ------
    EquipoiseError
        A token that names an expert twice, ids that wrapped, or no choice at all.
    """
    ids, notes = _without_wrapped(ids, num_experts)
    blank = blank_rows(ids)
    if blank.all():
        raise EquipoiseError(_nothing_captured(ids))
    layers = np.flatnonzero(~blank.all(axis=0))
    if keep_layers:
        layers = np.arange(ids.shape[1])
    elif len(layers) < ids.shape[1]:
        dense = np.setdiff1d(np.arange(ids.shape[1]), layers).tolist()
        notes.append(
            Message(
                f"Layers {format_ids(dense)} hold no choice of any token; they were taken as dense "
                f"and left out. If they have experts, give {argument('layer_ids')} "
                f"0-{ids.shape[1] - 1}."
            )
        )
    tokens: NDArray[np.bool_] = ~np.logical_and.reduce(blank, axis=1)
    if not tokens.all():
        notes.append(
            f"{int((~tokens).sum())} of {len(tokens)} tokens hold no choice in any layer, as the "
            "last token of a request; left out."
        )
    kept = ids[tokens][:, layers]
    holes = blank[tokens][:, layers]
    recorded = ~holes.all(axis=0)
    if holes[:, recorded].any():
        notes.append(
            f"{int(holes[:, recorded].sum())} of {holes[:, recorded].size} choices of a token in "
            "a layer are missing; they count for nothing."
        )
    if holes.any():
        kept = kept.astype(np.result_type(kept.dtype, np.int8), copy=False)
        kept[holes] = NO_CHOICE
    return Choices(kept, tokens, layers, tuple(notes))


def _without_wrapped(
    ids: NDArray[np.integer], num_experts: int | None
) -> tuple[NDArray[np.integer], list[str]]:
    """The ids with -1 for every one that is a wrapped or negative number, and notes."""
    if ids.dtype == np.int8 and ids.size and ids.min() < NO_CHOICE:
        raise EquipoiseError(
            f"Ids go down to {ids.min()} in 8 signed bits: ids above 127 wrapped. "
            "Record them in 16 bits."
        )
    odd = ids < NO_CHOICE
    if ids.dtype.kind == "u" and ids.itemsize <= 2:
        largest = np.iinfo(ids.dtype).max
        wrapped = ids == largest
        beyond = num_experts is not None and largest >= num_experts
        if beyond or (wrapped.sum(axis=2) > 1).any():  # an expert is never chosen twice
            odd = wrapped
    if not odd.any():
        return ids, []
    signed = ids.astype(np.int32)
    signed[odd] = NO_CHOICE
    value = f"{ids[odd].min()}" if ids.dtype.kind == "i" else f"{ids[odd].max()}, a wrapped -1"
    return signed, [f"{int(odd.sum())} ids are {value}, no expert; they count for nothing."]


def blank_rows(ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Where a token has no choice in a layer, ``(D, L)``: negative ids, or ``K`` equal ones.

    Raises
    ------
    EquipoiseError
        A token names an expert twice, but others as well.
    """
    D, L, K = ids.shape
    blank = np.zeros((D, L), dtype=bool)
    for start, part in _chunks(ids):
        ordered = np.sort(part, axis=2)
        none = ordered[:, :, -1] < 0
        same = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)
        constant = same.all(axis=2) if K > 1 else np.zeros_like(none)
        blank[start : start + len(part)] = none | constant
        twice = same.any(axis=2) & ~constant
        if twice.any():
            token, layer = np.argwhere(twice)[0]
            expert = ordered[token, layer, 1:][same[token, layer]][0]
            raise EquipoiseError(
                f"Token {start + token} names expert {expert} twice in layer row {layer}; the {K} "
                "choices of a token differ, so these are no routing choices. Expected expert ids "
                "(tokens, layers, choices)."
            )
    return blank


def _chunks(ids: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.integer]]]:
    size = max(1, _CHUNK_CELLS // max(1, ids.shape[1] * ids.shape[2]))
    for start in range(0, len(ids), size):
        yield start, ids[start : start + size]


def _nothing_captured(ids: NDArray[np.integer]) -> str:
    values = np.unique(ids)
    what = f"every choice is {values[0]}" if len(values) == 1 else "no token has two choices"
    return (
        f"Nothing was captured: {what} in all {ids.shape[1]} layers. Check that the engine's "
        "kernel records its routing, and record again."
    )


def same_tokens(by_rank: NDArray[np.integer]) -> list[tuple[int, ...]]:
    """Groups of ranks that counted the same tokens, near ties included.

    Counts of independent tokens differ by about the square root of their sum in every cell. Ranks
    of a tensor-parallel group see the same tokens and differ, if at all, where two experts nearly
    tie.

    Parameters
    ----------
    by_rank
        Counts by source rank, ``(T, R, L, E)``.

    Returns
    -------
    Ascending ranks of each group, groups by their first rank. Ranks without load are alone.
    """
    groups: list[list[int]] = []
    for rank in range(by_rank.shape[1]):
        own = by_rank[:, rank]
        for group in groups:
            if own.any() and _saw_the_same(by_rank[:, group[0]], own):
                group.append(rank)
                break
        else:
            groups.append([rank])
    return [tuple(group) for group in groups]


def _saw_the_same(a: NDArray[np.integer], b: NDArray[np.integer]) -> bool:
    difference = expected = 0.0
    rows = ((t, slice(i, i + _ROWS)) for t in range(len(a)) for i in range(0, a.shape[1], _ROWS))
    for row in rows:  # a few rows tell most ranks apart
        wide_x, wide_y = a[row].astype(np.int64), b[row].astype(np.int64)
        both = (wide_x + wide_y).astype(np.float64)
        difference += float(np.abs(wide_x - wide_y).sum())
        expected += float(np.minimum(both, np.sqrt(both * (2 / np.pi))).sum())
        if expected > _CLEAR and difference > 5 * _NEAR_TIE * expected:
            return False
    return expected > _EVIDENCE and difference <= _NEAR_TIE * expected


def same_tokens_note(groups: Sequence[tuple[int, ...]]) -> str:
    """The sentence for groups of which each was counted once."""
    shared = [f"ranks {format_ids(group)}" for group in groups if len(group) > 1]
    named = shared[:4] + (["more"] if len(shared) > 4 else [])
    return (
        f"The {' and the '.join(named)} recorded the same counts, as without attention data "
        "parallelism; each group was counted once, and where tokens came from is not known."
    )


def checked(trace: Trace, *, layers_given: bool = False, experts_given: bool = False) -> Trace:
    """The trace without empty layers and padded experts, and with a note for whatever is odd.

    Parameters
    ----------
    trace
        A recording as read; not changed.
    layers_given, experts_given
        The user stated the layers or the number of experts, so none is left out.

    Raises
    ------
    EquipoiseError
        ``top_k`` above the number of experts, or a layer that has fewer experts than others.
    """
    if trace.top_k is not None and not 1 <= trace.top_k <= trace.num_experts:
        raise EquipoiseError(
            f"top_k is {trace.top_k} with {trace.num_experts} experts; "
            "a token cannot choose more experts than there are."
        )
    trace = _counted_once(trace)
    trace = _without_blank_layers(trace, keep=layers_given)
    trace = _without_padded_experts(trace, keep=experts_given)
    notes = [
        *_unequal_layers(trace),
        *_more_than_tokens(trace),
        *_never_chosen(trace, experts_given),
    ]
    return trace.with_notes(*(n for n in notes if n not in trace.provenance.notes))


def _counted_once(trace: Trace) -> Trace:
    """Ranks that saw the same tokens counted once; where tokens came from is then not known."""
    if trace.source_counts is None:
        return trace
    groups = same_tokens(trace.source_counts)
    if len(groups) == trace.source_counts.shape[1]:
        return trace
    firsts = [group[0] for group in groups]
    counts = trace.source_counts[:, firsts].sum(axis=1, dtype=np.int64)
    once = replace(trace, counts=counts, source_counts=None, tokens=None)
    return once.with_notes(same_tokens_note(groups))


def _without_blank_layers(trace: Trace, *, keep: bool) -> Trace:
    """Layers without load, and those whose tokens all chose one expert ``K`` times, left out."""
    total = trace.total
    loaded: NDArray[np.bool_] = np.logical_or.reduce(total > 0, axis=1)
    if not loaded.any() or keep:
        return trace
    notes: list[str] = []
    if not loaded.all():
        empty = [i for i, full in zip(trace.layer_ids, loaded, strict=True) if not full]
        notes.append(
            Message(
                f"Layers {format_ids(empty)} had no load in the whole recording; they were taken "
                "as dense and left out. If they have experts, name all layers with "
                f"{argument('layer_ids')} {format_ids(trace.layer_ids).replace(' ', '')}."
            )
        )
    one_expert = loaded & (np.count_nonzero(total, axis=1) == 1)
    if one_expert.any() and not one_expert[loaded].all():
        fixed = [i for i, one in zip(trace.layer_ids, one_expert, strict=True) if one]
        if (trace.top_k or 1) > 1:
            loaded &= ~one_expert
            notes.append(
                f"Layers {format_ids(fixed)} sent every assignment to one expert, which "
                f"{trace.top_k} different choices cannot do; they were taken as dense and left out."
            )
        else:
            notes.append(
                Message(
                    f"Layers {format_ids(fixed)} sent every assignment to one expert. If they are "
                    f"dense layers, leave them out with {argument('layer_ids')}."
                )
            )
    kept = [i for i, keep_it in zip(trace.layer_ids, loaded, strict=True) if keep_it]
    if len(kept) < trace.num_layers:
        trace = trace.select(layers=kept)
    return trace.with_notes(*notes)


def _without_padded_experts(trace: Trace, *, keep: bool) -> Trace:
    """Experts behind the last one that any layer ever chose, where that cannot be chance."""
    total = trace.total
    used: NDArray[np.bool_] = np.logical_or.reduce(total > 0, axis=0)
    E, real = trace.num_experts, int(np.flatnonzero(used).max(initial=-1)) + 1
    enough = total.sum(axis=1).min() >= _EXPECTED * E
    if keep or real in (0, E) or trace.num_layers < 2 or not (used[:real].all() and enough):
        return trace
    return trace.first_experts(real).with_notes(
        Message(
            f"Experts {format_ids(range(real, E))} were never chosen in any layer; they were taken "
            f"as padding and left out. If the model has {E} experts, give "
            f"{argument('num_experts')} {E}."
        )
    )


def _unequal_layers(trace: Trace) -> list[str]:
    """All MoE layers of a step route the same tokens, so they carry the same assignments."""
    load = trace.counts.sum(axis=2, dtype=np.int64)  # (T, L)
    load = load[:, load.any(axis=0)]
    ids = np.array(trace.layer_ids)[trace.total.any(axis=1)]
    if load.shape[1] < 2:
        return []
    middle = np.maximum(np.median(load, axis=1), 1.0)
    times = load / middle[:, None]
    typical = np.median(times, axis=0)
    odd = np.abs(typical - 1.0) > _UNEQUAL
    if odd.mean() >= 0.5:
        sums = load.sum(axis=0)
        low, high = int(sums.argmin()), int(sums.argmax())
        return [
            f"Layers differ in assignments, from {sums[low]} (layer {ids[low]}) to "
            f"{sums[high]} (layer {ids[high]}), though all route the same tokens: was every layer "
            "recorded, and every step to its end?"
        ]
    notes = [_odd_layer(ids, typical, i) for i in np.flatnonzero(odd)[:3]]
    if int(odd.sum()) > 3:
        notes.append(f"{int(odd.sum()) - 3} more layers differ like that.")
    apart = np.where(odd, 0.0, np.abs(times - 1.0))
    steps = np.flatnonzero(apart.max(axis=1) > _UNEQUAL)
    if len(steps):
        step, row = np.unravel_index(int(apart.argmax()), apart.shape)
        notes.append(
            f"In {len(steps)} of {len(load)} steps (first: {trace.steps[steps[0]]}) the layers do "
            f"not carry the same number of assignments; layer {ids[row]} carries "
            f"{times[step, row]:.2f} times those of the others in step {trace.steps[step]}."
        )
    return notes


def _odd_layer(ids: NDArray[np.int64], share: NDArray[np.float64], row: int) -> str:
    others = format_ids([int(i) for i in ids if i != ids[row]]).replace(" ", "")
    what = (
        "Passes of a draft (MTP) model that are counted under its number look like that: record "
        "without speculative decoding"
        if share[row] > 1
        else "A draft (MTP) layer, or one that was not always recorded, looks like that: check it"
    )
    return Message(
        f"Layer {ids[row]} carries {share[row]:.2f} times the assignments of the other layers, "
        f"though all route the same tokens. {what}, or leave the layer out with "
        f"{argument('layer_ids')} {others}."
    )


def _more_than_tokens(trace: Trace) -> list[str]:
    """No expert gets more assignments than there are tokens, ``1 / K`` of all assignments."""
    if trace.top_k is None or trace.top_k == 1:
        return []
    load = trace.counts.sum(axis=2, dtype=np.int64)
    above = trace.counts.max(axis=2).astype(np.int64) * trace.top_k > load
    if not above.any():
        return []
    step, layer = np.argwhere(above)[0]
    expert = int(trace.counts[step, layer].argmax())
    return [
        f"Step {trace.steps[step]}, layer {trace.layer_ids[layer]}: expert {expert} has "
        f"{trace.counts[step, layer, expert]} of {load[step, layer]} assignments, more than one "
        f"for each token with top_k {trace.top_k} ({int(above.sum())} such places): top_k or the "
        "counts are wrong."
    ]


def _never_chosen(trace: Trace, experts_given: bool) -> list[str]:
    """Experts that a layer, or every layer, never chose though chance would have.

    Raises
    ------
    EquipoiseError
        A layer in which exactly the last two or more experts are missing: it has fewer.
    """
    total = trace.total
    enough = total.sum(axis=1) >= _EXPECTED * trace.num_experts
    used = total > 0
    everywhere: NDArray[np.bool_] = np.logical_or.reduce(used, axis=0)
    notes = []
    if enough.any() and not everywhere.all():
        never = np.flatnonzero(~everywhere).tolist()
        notes.append(
            f"Experts {format_ids(never)} were never chosen in any layer, which chance does not "
            f"explain: is {trace.num_experts} the model's number of routed experts?"
        )
    if experts_given:
        return notes
    for row in np.flatnonzero(enough):
        last = int(np.flatnonzero(used[row]).max()) + 1
        missing = np.flatnonzero(everywhere[last:]) + last
        if len(missing) > 1 and 2 * last >= trace.num_experts and used[row, :last].all():
            layer, E = trace.layer_ids[row], trace.num_experts
            others = format_ids([i for i in trace.layer_ids if i != layer]).replace(" ", "")
            raise EquipoiseError(
                f"Layer {layer} never chose the experts {format_ids(missing.tolist())}, which "
                f"other layers use; a map would give it slots for experts that it may not have. "
                f"Give {argument('num_experts')} {E} if it has {E}, or leave it out with "
                f"{argument('layer_ids')} {others}."
            )
    return notes
