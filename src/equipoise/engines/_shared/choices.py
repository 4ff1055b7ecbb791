"""Traces made from the tokens' choices: padding is left out, and tokens are grouped into steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import agreed_num_experts, refuse_oversize
from equipoise.engines.formats import TraceOptions
from equipoise.errors import EquipoiseError, Message, argument
from equipoise.invariants import Choices, clean_choices
from equipoise.layer_ids import format_ids
from equipoise.trace import Provenance, Trace


@dataclass(frozen=True, eq=False)
class Sequences:
    """Tokens with the same label: their choices ``(D, L, K)`` and the lengths of sequences."""

    label: str
    ids: NDArray[np.integer]
    lengths: NDArray[np.int64] | None = None


def trace_of_choices(
    parts: Sequence[Sequences],
    options: TraceOptions,
    provenance: Provenance,
    stated_layers: Sequence[int] | None = None,
) -> Trace:
    """Count the choices of all parts; each sequence, or each window if asked for, is a step.

    Dense layers and padding are left out. Sequences without lengths end where a token has no
    choice at all, as engines mark the last token of a request.

    Raises
    ------
    EquipoiseError
        Parts of different shapes, steps that cannot be told apart, or ids that are not choices.
    """
    ids, clean = cleaned([part.ids for part in parts], options)
    notes = [*provenance.notes, *clean.notes]
    sizes: list[NDArray[np.int64]] = []
    start = 0
    for part in parts:
        kept = clean.tokens[start : start + len(part.ids)]
        sizes.append(_step_sizes(part, kept, options.window_tokens, notes))
        start += len(part.ids)
    labels = np.repeat([part.label for part in parts], [len(s) for s in sizes])
    return trace_of_steps(
        clean,
        np.concatenate(sizes),
        {"domain": labels} if labels.astype(bool).any() else {},
        layer_ids=named_layers(clean.layers, ids.shape[1], stated_layers, options.layer_ids),
        options=options,
        provenance=replace(provenance, notes=tuple(notes)),
    ).with_notes(*_short_windows(parts, sizes, options.window_tokens))


def cleaned(
    parts: Sequence[NDArray[np.integer]], options: TraceOptions
) -> tuple[NDArray[np.integer], Choices]:
    """Join the choices ``(D, L, K)`` of all parts; also return them without padding."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    refuse_oversize(shape, parts[0].itemsize, "Choices (tokens, layers, top_k)")
    ids = np.concatenate(parts) if len(parts) > 1 else parts[0]
    all_numbered = options.layer_ids is not None and len(options.layer_ids) == ids.shape[1]
    return ids, clean_choices(ids, num_experts=options.num_experts, keep_layers=all_numbered)


def trace_of_steps(
    clean: Choices,
    sizes: NDArray[np.int64],
    labels: Mapping[str, NDArray[np.str_]],
    *,
    layer_ids: tuple[int, ...],
    options: TraceOptions,
    provenance: Provenance,
) -> Trace:
    """Count choices whose tokens are in the order of their steps.

    Parameters
    ----------
    sizes
        Number of tokens of each step, ``(T,)``; they add up to the kept tokens.
    labels
        Labels of the steps, ``(T,)`` each.
    """
    known = None if options.drop_experts else options.num_experts
    E, more = agreed_num_experts(int(clean.ids.max()), known)
    refuse_oversize((len(sizes), clean.ids.shape[1], E), 8, "Counts (steps, layers, experts)")
    return Trace.from_tokens(
        clean.ids,
        np.concatenate([[0], np.cumsum(sizes)]),
        num_experts=E,
        layer_ids=layer_ids,
        labels=labels,
        provenance=provenance,
    ).with_notes(*more)


def named_layers(
    kept: NDArray[np.int64],
    num_rows: int,
    stated: Sequence[int] | None,
    given: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """Choose the layer numbers of kept rows: the file's, the user's, or the row numbers."""
    if stated is not None and len(stated) != num_rows:
        raise EquipoiseError(f"{len(stated)} layer ids for {num_rows} layers; give one a layer.")
    if stated is not None:
        return tuple(int(stated[row]) for row in kept)
    if given is None or len(given) == num_rows:
        return tuple(int((given or range(num_rows))[row]) for row in kept)
    if len(given) == len(kept):
        return given
    if max(given) < num_rows:  # they choose rows of a file with a row for each decoder layer
        return tuple(kept.tolist())
    raise EquipoiseError(
        f"{len(given)} layer ids {format_ids(given)} for {num_rows} layers, {len(kept)} of them "
        "with choices; give one a layer."
    )


def _step_sizes(
    part: Sequences, kept: NDArray[np.bool_], window_tokens: int | None, notes: list[str]
) -> NDArray[np.int64]:
    """Count the kept tokens of each step of a part."""
    if window_tokens is not None:
        if window_tokens < 1:
            raise EquipoiseError(
                f"{argument('window_tokens')} is {window_tokens}; expected at least 1."
            )
        full, rest = divmod(int(kept.sum()), window_tokens)
        return np.array([window_tokens] * full + [rest] * (rest > 0), dtype=np.int64)
    if part.lengths is not None:
        return _kept_lengths(part.lengths, kept)
    if kept.all() or kept[-1]:
        raise EquipoiseError(
            "The file has no lengths of sequences, so steps cannot be told apart; give "
            f"{argument('window_tokens')}, the tokens of a step."
        )
    ends = np.flatnonzero(~kept) + 1
    notes.append(
        Message(
            f"Tokens without a choice were taken as the ends of {len(ends)} requests, a step each; "
            f"{argument('window_tokens')} groups tokens otherwise."
        )
    )
    return _kept_lengths(np.diff(ends, prepend=0), kept)


def _kept_lengths(lengths: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the kept tokens of each sequence; leave out sequences without any."""
    running = np.concatenate([[0], np.cumsum(kept)])
    ends = np.cumsum(lengths)
    sizes: NDArray[np.int64] = running[ends] - running[ends - lengths]
    return sizes[sizes > 0]


def _short_windows(
    parts: Sequence[Sequences], sizes: list[NDArray[np.int64]], window_tokens: int | None
) -> tuple[str, ...]:
    if window_tokens is None:
        return ()
    short = [
        f"{size[-1]} of {part.label}" if part.label else f"{size[-1]}"
        for part, size in zip(parts, sizes, strict=True)
        if len(size) and size[-1] < window_tokens
    ]
    if not short:
        return ()
    return (f"Last windows shorter than {window_tokens} tokens were kept: {', '.join(short)}.",)
