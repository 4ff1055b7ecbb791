"""Checks that a recording can be MoE routing at all.

In every MoE layer a router gives each token ``K`` different experts. Four facts follow: the ``K``
choices of a token differ; all MoE layers of a step have the same number of assignments; every id
is an expert of the model; and two ranks have equal counts only if they saw the same tokens.

Data that cannot be routing is refused. Data that is certainly padding is left out, with a note.
Data that is merely unusual gets a note. ``equipoise explain invariants`` lists the rules.
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
"""The id that marks a missing choice."""

_CHUNK_CELLS = 1 << 24  # ids processed at a time, to bound memory
_UNEQUAL = 0.005  # layers may differ by this share: some recorders are approximate
_EXPECTED = 30  # mean assignments per expert from which an expert without any is hardly chance
_EVIDENCE = 20.0  # expected difference, in assignments, from which equal counts are hardly chance
_ROWS = 8  # layers compared at once
_CLEAR = 1000.0  # expected difference, in assignments, from which a comparison may end early
_NEAR_TIE = 0.05  # share of the difference between independent tokens that near ties may cause


@dataclass(frozen=True, eq=False)
class Choices:
    """The experts that tokens chose, without padding tokens and dense layers.

    Parameters
    ----------
    ids
        Expert ids of the kept tokens and layers, ``(D', L', K)``; ``NO_CHOICE`` marks a missing
        choice.
    tokens
        Mask of the tokens that were kept, ``(D,)`` bool.
    layers
        Rows of the layers that were kept, ``(L',)``.
    notes
        Sentences about what was left out.
    """

    ids: NDArray[np.integer]
    tokens: NDArray[np.bool_]
    layers: NDArray[np.int64]
    notes: tuple[str, ...]


def clean_choices(
    ids: NDArray[np.integer], *, num_experts: int | None = None, keep_layers: bool = False
) -> Choices:
    """Leave dense layers and padding tokens out of recorded choices.

    Engines fill dense layers, and the last token of a request, with zeros. A row of ``K`` equal
    ids is therefore taken as padding: the choices of a token always differ.

    Parameters
    ----------
    ids
        Expert ids as recorded, ``(D, L, K)``; not changed.
    num_experts
        Number of experts ``E``, if known. It tells an 8-bit or 16-bit -1 from an expert.
    keep_layers
        Flag to keep layers without any choice, for users who numbered the layers themselves.

    Raises
    ------
    EquipoiseError
        A token that names an expert twice, ids that overflowed their type, or no choice at all.
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
            "last token of a request often does; they were left out."
        )
    kept = ids[tokens][:, layers]
    holes = blank[tokens][:, layers]
    recorded = ~holes.all(axis=0)
    if holes[:, recorded].any():
        notes.append(
            f"{int(holes[:, recorded].sum())} of {holes[:, recorded].size} choices of a token in "
            "a layer are missing; they are not counted."
        )
    if holes.any():
        kept = kept.astype(np.result_type(kept.dtype, np.int8), copy=False)
        kept[holes] = NO_CHOICE
    return Choices(kept, tokens, layers, tuple(notes))


def _without_wrapped(
    ids: NDArray[np.integer], num_experts: int | None
) -> tuple[NDArray[np.integer], list[str]]:
    """Replace ids that are negative, or a -1 stored as unsigned, by -1; also return notes."""
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
    return signed, [
        f"{int(odd.sum())} ids are {value}, which is not an expert; they are not counted."
    ]


def blank_rows(ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Find the tokens without a choice in a layer: all ids are negative, or all ``K`` are equal.

    Returns
    -------
    Mask over tokens and layers, ``(D, L)``.

    Raises
    ------
    EquipoiseError
        A token that names one expert twice and others as well.
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
                "choices of a token differ, so these are not routing choices. Expected expert ids "
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
    """Group the ranks that counted the same tokens.

    Ranks of a tensor-parallel group see the same tokens. Their counts differ only where two experts
    nearly tie. Counts of independent tokens differ much more: in every cell by about the square
    root of their sum.

    Parameters
    ----------
    by_rank
        Assignments by source rank, ``(T, R, L, E)``; not changed.

    Returns
    -------
    Groups of ascending ranks, ordered by their first rank. A rank without load is its own group.
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
    """Write the note that says which groups of ranks were counted once."""
    shared = [f"ranks {format_ids(group)}" for group in groups if len(group) > 1]
    named = shared[:4] + (["more"] if len(shared) > 4 else [])
    return (
        f"The {' and the '.join(named)} recorded the same counts, as without attention data "
        "parallelism; each group was counted once, and the source rank of a token is not known."
    )


def checked(trace: Trace, *, layers_given: bool = False, experts_given: bool = False) -> Trace:
    """Leave empty layers and padding experts out of a trace, and note whatever is unusual.

    Parameters
    ----------
    trace
        Recording as read; not changed.
    layers_given, experts_given
        Flags that the user stated the layers, or the number of experts; then none is left out.

    Raises
    ------
    EquipoiseError
        A ``top_k`` above the number of experts, or a layer with fewer experts than the others.
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
    """Count ranks that saw the same tokens once; the result has no counts by source rank."""
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
    """Leave out layers without load, and layers in which one expert has all the load."""
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
    """Leave out the last experts if no layer ever chose them and chance cannot explain it."""
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
    """Note the layers whose number of assignments differs from that of the others."""
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
    """Note experts with more assignments than there are tokens (``1 / K`` of all assignments)."""
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
    """Note experts that were never chosen, where chance cannot explain it.

    Raises
    ------
    EquipoiseError
        A layer that uses all experts but the last two or more: it seems to have fewer experts.
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
