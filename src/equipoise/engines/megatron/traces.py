"""Megatron's router traces: ``router_trace_rank<number>.jsonl``.

Each line is one step and layer of a rank. ``equipoise explain traces-sglang-vllm`` has the details.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import (
    MAX_EXPERTS,
    agreed_num_experts,
    naming,
    refuse_oversize,
)
from equipoise.engines._shared.json_lines import json_object, read_lines
from equipoise.engines._shared.rank_parts import missing_ranks, part_of_rank
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError, FormatError
from equipoise.invariants import NO_CHOICE, blank_rows, same_tokens, same_tokens_note
from equipoise.layer_ids import MAX_LAYER
from equipoise.trace import Provenance, TokenIds, Trace

_NAME = re.compile(r"router_trace_rank(\d{1,5})\.jsonl")
_CHOICES = "top_indices"
_TOKENS = "semantic_token_ids"
_DECODER = "decoder"  # the block of a record, where it says one; the other is the draft layers'
_STAGE = "pre_dispatch"
_PEEK_BYTES = 1 << 24
_MAX_STEP = 1 << 48


def matches(path: Path) -> bool:
    """Whether a folder holds files named as router traces, or a file begins as one."""
    try:
        if path.is_dir():
            return any(_NAME.fullmatch(file.name) for file in path.iterdir())
        with path.open("rb") as file:
            record = json_object(file.readline(_PEEK_BYTES))
    except (OSError, FormatError):
        return False
    return _CHOICES in record and "layer" in record


@dataclass(eq=False)
class _Records:
    """The choices read so far, ``(tokens, K)``, by step, rank and decoder layer."""

    choices: dict[tuple[int, int], dict[int, list[NDArray[np.int32]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    top_k: int = 0
    largest: int = 0
    repeats: int = 0
    padding: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, record: dict[str, Any], rank: int | None, steps: tuple[int, int] | None) -> None:
        """Add a record, if it is of a decoder layer before tokens are sent.

        Raises
        ------
        EquipoiseError
            A number is missing or impossible, or some choices are not a routing.
        """
        block, stage = record.get("block", _DECODER), record.get("stage", _STAGE)
        if block != _DECODER:
            draft = "" if "mtp_idx" not in record else f", mtp_idx {record['mtp_idx']!r:.20}"
            self.left_out[f"block {block!r:.40}{draft}"] += 1
            return
        if stage != _STAGE:
            self.left_out[f"stage {stage!r:.40}"] += 1
            return
        step, layer = _number(record, "step", _MAX_STEP), _number(record, "layer", MAX_LAYER)
        if steps is not None and not steps[0] <= step < steps[1]:
            return
        source = rank if rank is not None else _number(record, "rank", MAX_EXPERTS)
        ids = self._ids(record)
        if len(ids):
            parts = self.choices[step, source][layer]
            self.repeats += bool(parts)
            parts.append(ids)

    def _ids(self, record: dict[str, Any]) -> NDArray[np.int32]:
        rows = record.get(_CHOICES)
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise EquipoiseError(f"{_CHOICES} is not a list of the experts of each token.")
        flat = [expert for row in rows for expert in row]
        if not set(map(type, flat)) <= {int} or len({len(row) for row in rows}) > 1:
            raise EquipoiseError(f"{_CHOICES} does not have the same number of experts a token.")
        if not flat:
            return np.zeros((0, 0), dtype=np.int32)
        if min(flat) < NO_CHOICE or max(flat) >= MAX_EXPERTS:
            raise EquipoiseError(f"Experts {min(flat)} to {max(flat)} are not expert ids.")
        ids = np.array(rows, dtype=np.int32)
        if self.top_k not in (0, ids.shape[1]):
            raise EquipoiseError(
                f"Tokens have {ids.shape[1]} experts, those before have {self.top_k}; expected one "
                "top-k."
            )
        self.top_k = ids.shape[1]
        ids[blank_rows(ids[:, None, :])[:, 0] | self._padded(record, len(ids))] = NO_CHOICE
        self.largest = max(self.largest, int(ids.max()))
        return ids

    def _padded(self, record: dict[str, Any], num_tokens: int) -> NDArray[np.bool_]:
        """Return which tokens of a record are padding: those without a name, if any has one."""
        names = record.get(_TOKENS)
        if not isinstance(names, list) or len(names) != num_tokens:
            return np.zeros(num_tokens, dtype=np.bool_)
        padded = np.array([name is None for name in names])
        self.padding += int(padded.sum())
        return padded


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read a folder of traces, or the trace of one rank.

    Raises
    ------
    FormatError
        A line is damaged, or there is no record of a decoder layer.
    """
    notes: list[str] = []
    records = _Records()
    with naming(path):
        files = _files(path)
        for rank, file in files.items():
            for number, record in read_lines(file, json_object, notes, progress):
                try:
                    records.add(record, rank, options.iterations)
                except EquipoiseError as error:
                    raise FormatError(f"{file}, line {number}: {error}") from error
        if not records.choices:
            raise FormatError(
                f"{path} holds no choices of a decoder layer, in the steps asked for."
            )
        notes += _said(path, records)
        size = sum(file.stat().st_size for file in files.values())
        return _trace(records, options, Provenance("megatron", str(path), tuple(notes)), size)


def _files(path: Path) -> dict[int | None, Path]:
    """Return the files by the rank in their names; a single file states it in its records."""
    if not path.is_dir():
        return {None: path}
    named = {_NAME.fullmatch(file.name): file for file in path.iterdir()}
    ranks = sorted((int(match[1]), file) for match, file in named.items() if match)
    if len({rank for rank, _ in ranks}) < len(ranks):
        raise FormatError(f"{path} holds two traces of one rank; keep one of them.")
    return dict(ranks)


def _said(path: Path, records: _Records) -> list[str]:
    notes = [f"{n} records of {what} were left out." for what, n in records.left_out.items()]
    if records.padding:
        notes.append(
            f"{records.padding} rows are padding ({_TOKENS} null); they count for nothing."
        )
    if records.repeats:
        notes.append(
            f"{records.repeats} records repeat a step and layer of their rank, as micro-batches "
            "do; they were added."
        )
    ranks = sorted({rank for _, rank in records.choices})
    layers = [
        frozenset(
            layer for (_, r), found in records.choices.items() if r == rank for layer in found
        )
        for rank in ranks
    ]
    if len(set(layers)) > 1:
        notes.append("Ranks recorded different layers, as the stages of a pipeline do.")
    return notes + (missing_ranks(ranks) if path.is_dir() else part_of_rank(path))


def _trace(
    records: _Records, options: TraceOptions, provenance: Provenance, file_bytes: int
) -> Trace:
    """Build the trace, with one step for each recorded step and its tokens rank by rank."""
    steps = sorted({step for step, _ in records.choices})
    ranks = sorted({rank for _, rank in records.choices})
    layers = sorted({layer for found in records.choices.values() for layer in found})
    known = None if options.drop_experts else options.num_experts
    E, notes = agreed_num_experts(records.largest, known)
    shape = (len(steps), ranks[-1] + 1, len(layers), E)
    refuse_oversize(shape, 8, "Counts (steps, ranks, layers, experts)", file_bytes)
    source = np.zeros(shape, dtype=np.int64)
    step_row, layer_row = ({n: i for i, n in enumerate(numbers)} for numbers in (steps, layers))
    for (step, rank), found in records.choices.items():
        for layer, parts in found.items():
            ids = np.concatenate(parts).ravel()
            cell = (step_row[step], rank, layer_row[layer])
            source[cell] = np.bincount(ids[(ids >= 0) & (ids < E)], minlength=E)
    groups = same_tokens(source)
    firsts = [group[0] for group in groups]
    if len(groups) < shape[1]:
        notes += (same_tokens_note(groups),)
    tokens = _tokens(records, steps, firsts, layers)
    if tokens is None:
        notes += (
            "The layers of a step and rank did not record the same number of tokens; the tokens' "
            "own choices were left out, the counts stay.",
        )
    return Trace(
        counts=source[:, firsts].sum(axis=1),
        source_counts=source if len(ranks) > 1 and len(groups) == shape[1] else None,
        layer_ids=tuple(layers),
        step_ids=np.array(steps),
        top_k=records.top_k,
        tokens=tokens,
        provenance=provenance,
    ).with_notes(*notes)


def _tokens(
    records: _Records, steps: list[int], ranks: list[int], layers: list[int]
) -> TokenIds | None:
    """Return the choices of all tokens, if every layer recorded the same tokens."""
    tokens: list[NDArray[np.int32]] = [np.zeros((0, len(layers), records.top_k), dtype=np.int32)]
    sizes = np.zeros(len(steps), dtype=np.int64)
    for place, step in enumerate(steps):
        for rank in ranks:
            found = records.choices.get((step, rank), {})
            by_layer = [np.concatenate(found[layer]) for layer in layers if layer in found]
            if not found:
                continue  # an idle rank
            if len(by_layer) < len(layers) or len({len(ids) for ids in by_layer}) > 1:
                return None
            tokens.append(np.stack(by_layer, axis=1))
            sizes[place] += len(by_layer[0])
    return TokenIds(np.concatenate(tokens), np.concatenate([[0], np.cumsum(sizes)]))


def _number(record: dict[str, Any], name: str, below: int) -> int:
    value = record.get(name)
    if type(value) is not int or not 0 <= value < below:
        raise EquipoiseError(f"{name} is {value!r:.40}; expected a number from 0.")
    return value


FORMAT = TraceFormat(
    name="megatron",
    summary="Megatron's router traces: a folder of router_trace_rank<number>.jsonl, or one of them",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids", "iterations"}),
)
