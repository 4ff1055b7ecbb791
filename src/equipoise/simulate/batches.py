"""Steps of a given size, drawn from a recording with steps of another size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count, check_type
from equipoise.errors import EquipoiseError
from equipoise.trace import Provenance, TokenIds, Trace

Ints = NDArray[np.int64]

_MOST_TOKENS = 1 << 28  # largest number of tokens of all steps together
_DECODE = "decode"


def virtual_steps(trace: Trace, *, step_tokens: int, num_steps: int, seed: int = 0) -> Trace:
    """Draw steps with this number of tokens each, as a server would see them.

    If the trace has the choices of its tokens, each of its steps counts as one request, and the
    tokens of a request stay together. Requests come in random order; when all have come, they come
    again in another order. Prompts follow each other whole; a prompt is cut only where a step is
    full, and continues in the next step. In decode, ``step_tokens`` requests run at a time and each
    gives one token per step. When a request ends, the next begins. The first requests begin at a
    random token.

    If the trace has only counts, the steps go through its rows in order. Assignments are drawn
    independently from a row's shares, so what the tokens of a request have in common is lost.

    Parameters
    ----------
    trace
        Recording to draw from; not changed.
    step_tokens
        Number of tokens of a step, all ranks together; in decode, the number of sequences.
    num_steps
        Number of steps to draw.
    seed
        Random seed.

    Raises
    ------
    EquipoiseError
        A trace without load, with both prefill and decode, or with counts but no ``top_k``.
    """
    check_type("trace", trace, Trace)
    size = check_count("step_tokens", step_tokens) * check_count("num_steps", num_steps)
    if size > _MOST_TOKENS:
        raise EquipoiseError(
            f"{num_steps} steps of {step_tokens} tokens are {size:,} tokens; expected up to "
            f"{_MOST_TOKENS:,}. Draw fewer or smaller steps."
        )
    rng = np.random.default_rng(seed)
    if trace.tokens is None:
        counts, how = (
            _from_counts(trace, step_tokens, num_steps, rng),
            "from the shares of its rows",
        )
    else:
        offsets = trace.tokens.offsets
        lengths = np.diff(offsets)
        starts, lengths = offsets[:-1][lengths > 0], lengths[lengths > 0]
        if not len(starts):
            raise EquipoiseError("The trace has no tokens to draw steps from; record some traffic.")
        draw = _decoded if _is_decode(trace) else _in_a_row
        index = draw(starts, lengths, step_tokens, num_steps, rng)
        counts = _counted(trace.tokens, index, trace.num_experts)
        how = "from its requests, whose tokens stay together"
    source = trace.provenance
    note = f"Steps of {step_tokens} tokens were drawn {how}."
    return Trace(
        counts=counts,
        layer_ids=trace.layer_ids,
        top_k=trace.top_k,
        provenance=Provenance(source.format, source.source, (*source.notes, note)),
    )


def _from_counts(trace: Trace, step_tokens: int, num_steps: int, rng: np.random.Generator) -> Ints:
    if trace.top_k is None:
        raise EquipoiseError(
            "The trace does not say how many experts a token chooses; give its top_k, so that a "
            "step of tokens has a number of assignments."
        )
    loaded = np.flatnonzero(trace.counts.any(axis=(1, 2)))
    if not len(loaded):
        raise EquipoiseError("The trace has no load to draw steps from; record some traffic.")
    rows = loaded[np.arange(num_steps) * len(loaded) // num_steps]
    load = trace.counts[rows].astype(np.float64)
    total = load.sum(axis=-1, keepdims=True)
    even = np.full_like(load, 1 / load.shape[-1])
    share = np.divide(load, total, out=even, where=total > 0)
    size = np.where(total[..., 0] > 0, step_tokens * trace.top_k, 0)  # layers without load stay so
    return np.asarray(rng.multinomial(size, share))


def _is_decode(trace: Trace) -> bool:
    phases = set(trace.labels.get("phase", np.array([""])).tolist())
    if len(phases) > 1:
        raise EquipoiseError(
            f"The trace has steps of {', '.join(sorted(phases))}; keep those of one phase."
        )
    return phases == {_DECODE}


def _in_a_row(
    starts: Ints, lengths: Ints, step_tokens: int, num_steps: int, rng: np.random.Generator
) -> Ints:
    """Choose the tokens of each step, ``(num_steps, step_tokens)``: one request after the other."""
    size = step_tokens * num_steps
    parts, have = [], 0
    while have < size:
        for i in rng.permutation(len(starts)):
            parts.append(np.arange(starts[i], starts[i] + lengths[i]))
            have += int(lengths[i])
            if have >= size:
                break
    return np.concatenate(parts)[:size].reshape(num_steps, step_tokens)


def _decoded(
    starts: Ints, lengths: Ints, sequences: int, num_steps: int, rng: np.random.Generator
) -> Ints:
    """Choose the tokens of each step where every sequence gives one token per step."""
    index = np.empty((num_steps, sequences), np.int64)
    queue: list[int] = []
    for place in range(sequences):
        filled, first = 0, True
        while filled < num_steps:
            queue = queue or rng.permutation(len(starts)).tolist()
            i = queue.pop()
            begin = int(rng.integers(lengths[i])) if first else 0
            take = min(int(lengths[i]) - begin, num_steps - filled)
            position = starts[i] + begin
            index[filled : filled + take, place] = np.arange(position, position + take)
            filled, first = filled + take, False
    return index


def _counted(tokens: TokenIds, index_TD: Ints, num_experts: int) -> Ints:
    """Count the assignments ``(T, L, E)`` of the tokens at these positions."""
    num_layers = tokens.ids.shape[1]
    counts = np.empty((len(index_TD), num_layers, num_experts), np.int64)
    for t, index in enumerate(index_TD):
        ids = tokens.ids[index].astype(np.int64)
        known = (ids >= 0) & (ids < num_experts)
        place = np.arange(num_layers)[:, None] * num_experts + ids
        flat = np.bincount(place[known], minlength=num_layers * num_experts)
        counts[t] = flat.reshape(num_layers, num_experts)
    return counts
