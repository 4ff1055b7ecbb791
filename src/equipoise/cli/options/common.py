"""What the commands share: reading the input they name, and showing the output."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from equipoise.cli.views.progress import progress_bar
from equipoise.engines.files import output_file, output_folder
from equipoise.engines.formats import LaunchOptions, MapContext, TraceFormat, TraceOptions, given
from equipoise.engines.map_io import read_map
from equipoise.engines.registry import map_format, trace_format
from equipoise.engines.trace_io import detect_trace, read_trace
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import parse_ids
from equipoise.topology import Topology
from equipoise.trace import Trace

Size = Parameter(validator=Number(gte=1, lte=1 << 20))
"""How many of something a deployment has; far above any, so that nothing absurd is allocated."""
Amount = Parameter(validator=Number(gte=1, lte=1 << 40))
"""How much of something to take at once."""
Redundant = Parameter(validator=Number(gte=0, lte=1 << 20))

Json = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print one JSON document instead of text.")
]


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
        Tokens per step, for recordings of single tokens.
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
        Sum so many consecutive steps into one.
    """

    format: str | None = None
    experts: str | None = None
    layers: str | None = None
    first_axis: Literal["step", "rank"] | None = None
    run_map: Path | None = None
    window_tokens: Annotated[int | None, Amount] = None
    iterations: str | None = None
    allow_pickle: Annotated[bool, Parameter(negative=())] = False
    phase: str | None = None
    domain: str | None = None
    only_layers: str | None = None
    window: Annotated[int | None, Amount] = None

    def read(self, path: Path, *, ranks: int | None = None) -> Trace:
        """The chosen part of the recording at ``path``; ``ranks`` are those of ``run_map``."""
        known = detect_trace(path) if self.format is None else trace_format(self.format)
        self._refuse_unused(known)
        with progress_bar(f"reading {path.name}") as progress:
            trace = read_trace(path, self._options(ranks), format=known.name, progress=progress)
        labels = {"phase": self.phase, "domain": self.domain}
        wanted = {name: value for name, value in labels.items() if value is not None}
        if wanted or self.only_layers:
            layers = parse_ids(self.only_layers) if self.only_layers else None
            trace = trace.select(layers=layers, **wanted)
        return trace if self.window is None else trace.windows(self.window)

    @property
    def num_experts(self) -> int | None:
        """``E`` as given, plain or as the range from 0."""
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
            iterations=parse_range(self.iterations) if self.iterations else None,
            allow_pickle=self.allow_pickle,
        )


_FIELDS = {
    "first_axis": "first_axis",
    "run_map": "placement",
    "window_tokens": "window_tokens",
    "iterations": "iterations",
    "allow_pickle": "allow_pickle",
}
"""The arguments that only some formats use, and what ``TraceOptions`` calls them."""


def option_name(argument: str) -> str:
    """``run_map`` as it is typed: ``--run-map``."""
    return f"--{argument.replace('_', '-')}"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MachineArguments:
    """The ranks, where they are not all alike.

    Parameters
    ----------
    ranks_per_node
        Ranks behind one fast interconnect; all of them if not given.
    speed
        Relative speeds, one a rank: 1,1,2,2.
    room
        Experts of a layer that each rank's memory holds, one number a rank; all slots if not given.
    """

    ranks_per_node: Annotated[int | None, Size] = None
    speed: str | None = None
    room: str | None = None

    def topology(self, ranks: int) -> Topology:
        """So many ranks, as described."""
        room = None if self.room is None else tuple(map(int, _numbers("--room", self.room)))
        speed = None if self.speed is None else _numbers("--speed", self.speed)
        return Topology(ranks, self.ranks_per_node, speed=speed, room=room)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or (option == "--room" and any(v % 1 for v in values)):
        kind = "whole numbers" if option == "--room" else "numbers"
        raise EquipoiseError(f"{option} is {text!r}; expected {kind}, one a rank, as in 1,1,2,2.")
    return values


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MapArguments:
    """What a map file does not say.

    Parameters
    ----------
    ranks
        Expert-parallel ranks.
    experts
        Logical experts of a layer.
    layers
        The model's numbers of its MoE layers (3-60).
    hidden_layers
        All decoder layers of the model, dense ones included; SGLang maps have a row for each.
    redundant
        Redundant slots of a layer, all ranks together, as the engine is configured.
    model_key
        The model whose map to read, where a file holds those of several.
    """

    ranks: Annotated[int | None, Size] = None
    experts: Annotated[int | None, Size] = None
    layers: str | None = None
    hidden_layers: Annotated[int | None, Size] = None
    redundant: Annotated[int | None, Redundant] = None
    model_key: str | None = None

    @property
    def context(self) -> MapContext:
        """The same as the engines' readers take it."""
        return MapContext(
            num_ranks=self.ranks,
            num_experts=self.experts,
            layer_ids=parse_ids(self.layers) if self.layers else None,
            num_hidden_layers=self.hidden_layers,
            num_redundant=self.redundant,
            model_key=self.model_key,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EngineArguments:
    """What decides the launch flags besides the map.

    Parameters
    ----------
    engine_version
        The engine's release, from docs/launch.md; the newest known if not given.
    hidden_layers
        All decoder layers of the model, dense ones included; SGLang maps have a row for each.
    architecture
        TensorRT-LLM: the model's architecture, as in its config.json.
    backend
        TensorRT-LLM: the MoE backend.
    a2a_backend
        SGLang: --moe-a2a-backend.
    ep_dispatch
        SGLang: --ep-dispatch-algorithm.
    """

    engine_version: str | None = None
    hidden_layers: Annotated[int | None, Size] = None
    architecture: str | None = None
    backend: str | None = None
    a2a_backend: str | None = None
    ep_dispatch: str | None = None

    @property
    def options(self) -> LaunchOptions:
        """The same as the engines' flag writers take it."""
        return LaunchOptions(
            version=self.engine_version,
            architecture=self.architecture,
            backend=self.backend,
            a2a_backend=self.a2a_backend,
            dispatch=self.ep_dispatch,
        )


def check_output(output: Path, *inputs: Path | None, folder: bool = False) -> None:
    """Refuse an output before any long work: one that cannot be written, or onto an input."""
    if str(output) == "-":
        raise EquipoiseError("-: an output is written as a whole; give the name of a file.")
    place = output_folder(output) if folder else output_file(output)
    if not place.exists():
        return
    for source in filter(None, inputs):
        if source.resolve() in (place, *place.parents):
            raise EquipoiseError(
                f"{output}: would be written over the input {source}; give another name."
            )


def check_decoder_layers(hidden_layers: int | None, *formats: str) -> None:
    """Refuse a number of decoder layers if all the map formats in play would ignore it."""
    if hidden_layers is not None and not any(map_format(name).decoder_rows for name in formats):
        raise EquipoiseError(
            f"Maps for {' and '.join(formats)} have rows for MoE layers only; "
            "leave --hidden-layers out."
        )


def check_model_key(model_key: str | None, *formats: str) -> None:
    """Refuse the choice of a model if none of the map formats in play holds several."""
    if model_key is not None and not any(map_format(name).by_model for name in formats):
        raise EquipoiseError(
            f"Maps for {' and '.join(formats)} are of one model; leave --model-key out."
        )


def parse_range(text: str) -> tuple[int, int]:
    """``START-STOP`` as two numbers, ``START < STOP``."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise EquipoiseError(
            f"Cannot read iterations from {text!r}; expected START-STOP, as in 100-200."
        )
    return int(first), int(last)


def print_json(document: Any) -> None:
    """One JSON document and a newline on standard output."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    sys.stdout.flush()


_PIPE_WIDTH = 1 << 20
"""Columns of a pipe: what is cut or wrapped there is lost to the program behind it."""


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """Print; a line that is too long for a terminal is wrapped by it, not cut."""
        super().print(*objects, **{"crop": False} | options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # to `main`; rich would end the process with status 1


def stdout() -> Console:
    """Where results go: colours on a terminal, plain text in lines of any length in a pipe."""
    # What is printed may be the words of a file or its name: no markup.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return _Console(highlight=False, markup=False, emoji=False, width=width)
