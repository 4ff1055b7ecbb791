"""How to read a recording, on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from equipoise.cli.options.limits import Amount
from equipoise.cli.options.names import OPTIONS, option_name
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.formats import MapContext, TraceFormat, TraceOptions, given
from equipoise.engines.map_io import read_map
from equipoise.engines.registry import trace_format
from equipoise.engines.trace_io import detect_trace, read_trace
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import parse_ids
from equipoise.trace import Trace


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TraceArguments:
    """How to read a recording, and which part of it.

    Parameters
    ----------
    format
        The recording's format; detected from its content if not given.
    experts
        Logical experts of a layer (64): missing ones are added without load. A range (0-63) also
        drops what was assigned to others, such as experts without weights.
    layers
        The model's numbers of the MoE layers (3-60): numbers the rows of a recording that has rows
        only; missing layers are added without load, others left out.
    first_axis
        What the first axis of bare counts is: step or rank.
    run_map
        The map the recorded run used: folds counts per slot to experts.
    window_tokens
        Tokens per step, for recordings of single tokens; of requests, how many decode at a time.
    top_k
        Experts a token chooses, where routing comes without its shape (SGLang's answers).
    columns
        Columns of a table of tokens: experts=topk_ids,layer=layer,request=req_id.
    iterations
        Read iterations START-STOP, STOP not included.
    allow_pickle
        Read pickle files, through an unpickler that only builds tensors.
    phase
        Keep the steps of this phase, such as prefill or decode.
    domain
        Keep the steps of this domain.
    only_layers
        Keep these layers (3-10,58).
    window
        Sum this number of consecutive steps into one.
    """

    format: str | None = None
    experts: str | None = None
    layers: str | None = None
    first_axis: Literal["step", "rank"] | None = None
    run_map: Path | None = None
    window_tokens: Annotated[int | None, Amount] = None
    top_k: Annotated[int | None, Amount] = None
    columns: str | None = None
    iterations: str | None = None
    allow_pickle: Annotated[bool, Parameter(negative=())] = False
    phase: str | None = None
    domain: str | None = None
    only_layers: str | None = None
    window: Annotated[int | None, Amount] = None

    def read(self, path: Path, *, ranks: int | None = None) -> Trace:
        """The chosen part of the recording at ``path``; ``ranks`` are those of ``run_map``."""
        known = (
            trace_format(self.format)
            if self.format is not None
            else detect_trace(path, columns_named=self.columns is not None)
        )
        self._refuse_unused(known)
        with progress_bar(f"reading {path.name}") as progress:
            trace = read_trace(path, self._options(ranks), format=known.name, progress=progress)
        provenance = trace.provenance.named(OPTIONS)
        if provenance != trace.provenance:
            trace = replace(trace, provenance=provenance)
        labels = {"phase": self.phase, "domain": self.domain}
        wanted = {name: value for name, value in labels.items() if value is not None}
        if wanted or self.only_layers:
            layers = parse_ids(self.only_layers) if self.only_layers else None
            trace = trace.select(layers=layers, **wanted)
        return trace if self.window is None else _summed(trace, self.window)

    @property
    def num_experts(self) -> int | None:
        """``E`` as given, as a number or as a range from 0."""
        if self.experts is None:
            return None
        match = re.fullmatch(r"(?:0-)?([0-9]{1,6})", self.experts)
        number = -1 if match is None else int(match[1]) + self._drops_experts
        if number < 1:
            raise EquipoiseError(
                f"--experts is {self.experts[:20]!r}; expected a number such as 64, or 0-63."
            )
        return number

    @property
    def _drops_experts(self) -> bool:
        return self.experts is not None and self.experts.startswith("0-")

    def _refuse_unused(self, known: TraceFormat) -> None:
        takes = {option_name(name) for name, field in _FIELDS.items() if field in known.options}
        takes |= {"--experts", "--layers"}  # every format
        unused = {option_name(name) for name in given(self) & _FIELDS.keys()} - takes
        if unused:
            raise EquipoiseError(
                f"A recording of the format {known.name} has no use for "
                f"{', '.join(sorted(unused))}; it takes {', '.join(sorted(takes))}."
            )

    def _options(self, ranks: int | None) -> TraceOptions:
        layer_ids = parse_ids(self.layers) if self.layers else None
        placement = None
        if self.run_map is not None:
            context = MapContext(num_experts=self.num_experts, num_ranks=ranks, layer_ids=layer_ids)
            placement = read_map(self.run_map, context)
        return TraceOptions(
            num_experts=self.num_experts,
            drop_experts=self._drops_experts,
            layer_ids=layer_ids,
            first_axis=self.first_axis,
            placement=placement,
            window_tokens=self.window_tokens,
            top_k=self.top_k,
            columns=parse_columns(self.columns) if self.columns is not None else None,
            iterations=parse_range(self.iterations) if self.iterations else None,
            allow_pickle=self.allow_pickle,
        )


_FIELDS = {
    "first_axis": "first_axis",
    "run_map": "placement",
    "window_tokens": "window_tokens",
    "top_k": "top_k",
    "columns": "columns",
    "iterations": "iterations",
    "allow_pickle": "allow_pickle",
}
"""The arguments that only some formats use, and what ``TraceOptions`` calls them."""


def _summed(trace: Trace, size: int) -> Trace:
    """Blocks of that many steps, over single requests; refuse a size that sums nothing."""
    labels = {name: values for name, values in trace.labels.items() if name != "request"}
    summed = replace(trace, labels=labels).windows(size)
    if size > 1 and summed.num_steps == trace.num_steps > 1:
        raise EquipoiseError(
            f"--window {size} sums nothing, since {' or '.join(labels)} changes from step to step. "
            "Keep one of them, as with --phase decode."
        )
    return summed


def parse_range(text: str) -> tuple[int, int]:
    """``START-STOP`` as two numbers, ``START < STOP``."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise EquipoiseError(
            f"Cannot read iterations from {text!r}; expected START-STOP, as in 100-200."
        )
    return int(first), int(last)


def parse_columns(text: str) -> dict[str, str]:
    """``OURS=THEIRS,...`` as a mapping."""
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    columns = {ours.strip(): theirs.strip() for ours, theirs in pairs}
    if not all(columns.keys()) or not all(columns.values()) or len(columns) < len(pairs):
        raise EquipoiseError(
            f"Cannot read columns from {text[:60]!r}; expected experts=topk_ids,layer=layer."
        )
    return columns
