"""How to read a recording, on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from equipoise.cli.options.groups import READING
from equipoise.cli.options.limits import Amount
from equipoise.cli.options.names import OPTIONS, option_name
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.formats import MapContext, TraceFormat, TraceOptions, given
from equipoise.engines.map_io import read_map
from equipoise.engines.registry import trace_format
from equipoise.engines.trace_io import detect_trace, read_trace
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import parse_ids
from equipoise.sample import sample_trace_path
from equipoise.trace import Trace

_SAMPLE = Path("sample")


def recording_path(kind: Any, tokens: Sequence[Token]) -> Path:
    """The path of a recording; that of the recording that ships, for ``sample``."""
    del kind
    path = Path(tokens[-1].value)
    return sample_trace_path() if path == _SAMPLE and not path.exists() else path


Recording = Annotated[
    Path,
    Parameter(
        converter=recording_path,
        help="Recording: a file or a folder of any known format; or sample, the one that ships "
        "with equipoise.",
    ),
]


@Parameter(name="*", group=READING)
@dataclass(frozen=True, kw_only=True)
class TraceArguments:
    """How to read a recording, and which part of it.

    Parameters
    ----------
    format
        Format of the recording. If not given: detected from its content.
    experts
        Logical experts of a layer, as in 64; experts that the recording lacks are added without
        load. A range, as in 0-63, also drops the load of all other experts, such as those without
        weights.
    layers
        Numbers of the MoE layers in the model, as in 3-60, for a recording that only has rows.
        Layers that it lacks are added without load, others are left out.
    first_axis
        Meaning of the first axis of bare counts.
    run_map
        Map that the recorded run used: turns counts of slots into counts of experts.
    window_tokens
        Tokens of a step, for a recording of single tokens. For a recording of requests: how many of
        them decode at a time.
    top_k
        Number of experts that a token chooses, if the recording does not state it (answers of
        SGLang).
    columns
        Columns of a table of tokens, as in experts=topk_ids,layer=layer,request=req_id.
    iterations
        Range of iterations to read, as in 100-200; the last one is not read.
    allow_pickle
        Read pickle files, through an unpickler that only builds tensors.
    phase
        Keep only the steps of this phase, such as prefill or decode.
    domain
        Keep only the steps of this domain.
    only_layers
        Keep only these layers, as in 3-10,58.
    window
        Number of consecutive steps that are summed into one.
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
    allow_pickle: bool = False
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
        layers = parse_ids(self.only_layers) if self.only_layers else None
        trace = kept_steps(trace, phase=self.phase, domain=self.domain, layers=layers)
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


def kept_steps(
    trace: Trace,
    *,
    phase: str | None,
    domain: str | None,
    layers: Sequence[int] | None = None,
) -> Trace:
    """Keep the steps of a phase and of a domain, and some layers; ``None`` keeps all."""
    labels = {"phase": phase, "domain": domain}
    wanted = {name: value for name, value in labels.items() if value is not None}
    return trace.select(layers=layers, **wanted) if wanted or layers else trace


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
