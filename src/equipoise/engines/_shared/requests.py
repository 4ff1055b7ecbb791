"""Traces made from the tokens of requests: prompts are prefill, generated tokens are decode."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count
from equipoise.engines._shared.arrays import refuse_long_labels
from equipoise.engines._shared.choices import cleaned, named_layers, trace_of_steps
from equipoise.engines.formats import TraceOptions
from equipoise.errors import EquipoiseError, Message, argument
from equipoise.trace import Provenance, Trace


@dataclass(frozen=True, eq=False)
class Request:
    """The routing of one request.

    Parameters
    ----------
    name
        Name of the request in its log, or empty.
    ids
        Choices of the tokens in order, ``(D, L, K)``.
    num_prompt
        Number of leading tokens that are the prompt; ``None`` if the log does not say.
    domain
        Kind of traffic, if known.
    """

    name: str
    ids: NDArray[np.integer]
    num_prompt: int | None = None
    domain: str = ""


def trace_of_requests(
    requests: Sequence[Request],
    options: TraceOptions,
    provenance: Provenance,
    stated_layers: Sequence[int] | None = None,
) -> Trace:
    """Count the choices of all requests; dense layers and padding are left out.

    A log says which tokens belong to a request, but not which requests ran together. So the prompt
    of a request is one step and its generated tokens are another. With ``window_tokens``, this
    number of requests is decoded at a time, as by a server that starts one when another ends, and a
    decode step has one token of each. If prompts are unknown, a step is a request, or
    ``window_tokens`` consecutive tokens.

    Raises
    ------
    EquipoiseError
        Requests of different shapes, or ids that are not choices.
    """
    shapes = {request.ids.shape[1:] for request in requests}
    if len(shapes) > 1:
        raise EquipoiseError(
            f"Requests have (layers, top_k) {sorted(shapes)[:4]}; expected those of one model."
        )
    ids, clean = cleaned([request.ids for request in requests], options)
    tokens = _Tokens.of(requests, clean.tokens)
    keys, note = _step_keys(tokens, requests, options.window_tokens)
    order = np.lexsort(keys[::-1])
    table = np.stack(keys)[:, order]
    starts = np.flatnonzero(np.append(True, (table[:, 1:] != table[:, :-1]).any(axis=0)))
    notes = (*provenance.notes, note, *clean.notes)
    return trace_of_steps(
        replace(clean, ids=clean.ids[order]),
        np.diff(starts, append=len(order)),
        _labels(tokens, requests, order[starts], by_request=options.window_tokens is None),
        layer_ids=named_layers(clean.layers, ids.shape[1], stated_layers, options.layer_ids),
        options=options,
        provenance=replace(provenance, notes=notes),
    )


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Columns of the kept tokens, in the order of their requests."""

    request: NDArray[np.int64]
    position: NDArray[np.int64]  # position in the request
    decode: NDArray[np.bool_] | None  # whether the token was generated; None if unknown
    domain: NDArray[np.int64]  # numbered by first occurrence

    @classmethod
    def of(cls, requests: Sequence[Request], kept: NDArray[np.bool_]) -> _Tokens:
        lengths = [len(request.ids) for request in requests]
        request = np.repeat(np.arange(len(requests)), lengths)[kept]
        position = np.concatenate([np.arange(n) for n in lengths])[kept]
        prompts = [r.num_prompt for r in requests if r.num_prompt is not None]
        known = len(prompts) == len(requests)
        codes: dict[str, int] = {}
        domains = np.array([codes.setdefault(r.domain, len(codes)) for r in requests])
        decode = position >= np.array(prompts)[request] if known else None
        return cls(request, position, decode, domains[request])


def _step_keys(
    tokens: _Tokens, requests: Sequence[Request], together: int | None
) -> tuple[list[NDArray[np.int64]], str]:
    """Return the columns by which tokens are ordered and grouped into steps, and a note."""
    decode = tokens.decode
    if together is not None:
        check_count(argument("window_tokens"), together)
    if decode is not None and together is not None:
        start = _starts(tokens, decode, len(requests), together)
        time = start[tokens.request] + np.where(decode, place_in_run(tokens.request, decode), 0)
        keys = [tokens.domain, time, decode, np.where(decode, -1, tokens.request)]
        return [key.astype(np.int64) for key in keys], (
            f"Requests were taken as decoded {together} at a time, each next one starting where "
            "one ends: a decode step has a token of each, a prompt is a prefill step."
        )
    if decode is not None:
        return [tokens.request, decode.astype(np.int64)], Message(
            "Each request is two steps, its prompt (prefill) and what it generated (decode): the "
            f"file does not say which ran together. {argument('window_tokens')} decodes that many "
            "requests at a time."
        )
    unknown = "How long the prompts were is not known, so prefill and decode are not told apart"
    if together is None:
        return [tokens.request], f"{unknown}; a step is a request."
    by_domain = np.argsort(tokens.domain, kind="stable")
    place = np.empty_like(tokens.domain)
    place[by_domain] = place_in_run(tokens.domain[by_domain])
    return [tokens.domain, place // together], f"{unknown}; a step is {together} tokens in a row."


def _starts(
    tokens: _Tokens, decode: NDArray[np.bool_], num_requests: int, together: int
) -> NDArray[np.int64]:
    """Compute the decode step in which each request begins if ``together`` run at a time."""
    lengths = np.bincount(tokens.request[decode], minlength=num_requests)
    domain = np.zeros(num_requests, dtype=np.int64)
    domain[tokens.request] = tokens.domain
    start = np.zeros(num_requests, dtype=np.int64)
    for code in np.unique(domain):
        ends = [0] * together  # a heap of the times at which places become free
        for request in np.flatnonzero(domain == code):
            start[request] = ends[0]
            heapq.heapreplace(ends, ends[0] + max(1, int(lengths[request])))
    return start


def place_in_run(
    group: NDArray[np.int64], counted: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Count the earlier counted members of each group; groups are runs of equal numbers."""
    ones = np.ones(len(group), dtype=np.int64) if counted is None else counted.astype(np.int64)
    before = np.cumsum(ones) - ones
    first = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    return before - np.repeat(before[first], np.diff(first, append=len(group)))


def _labels(
    tokens: _Tokens, requests: Sequence[Request], firsts: NDArray[np.int64], *, by_request: bool
) -> dict[str, NDArray[np.str_]]:
    """Return the labels of steps, from the first token of each."""
    labels: dict[str, NDArray[np.str_]] = {}
    of_step = tokens.request[firsts]
    if tokens.decode is not None:
        labels["phase"] = np.where(tokens.decode[firsts], "decode", "prefill")
    for name, values in (
        ("request", [r.name for r in requests] if by_request else []),
        ("domain", [r.domain for r in requests]),
    ):
        if any(values):
            refuse_long_labels(values, len(firsts), 1)
            labels[name] = np.array(values)[of_step]
    return labels
