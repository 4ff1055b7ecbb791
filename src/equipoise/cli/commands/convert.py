"""``equipoise convert``: the same map or recording in another format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Size
from equipoise.cli.options.maps import check_decoder_layers, check_model_key
from equipoise.cli.options.names import in_options, option_name
from equipoise.cli.options.output import Output, check_output
from equipoise.cli.options.recording import TraceArguments, recording_path
from equipoise.cli.views.console import stdout
from equipoise.cli.views.notes import print_notes
from equipoise.cli.views.text import one_line
from equipoise.engines.files import check_readable
from equipoise.engines.formats import MapContext, given
from equipoise.engines.map_io import detect_map, examine_map, is_map, reading_warnings, write_map
from equipoise.engines.registry import map_formats, trace_format, trace_formats
from equipoise.engines.trace_io import detect_trace, write_trace
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import parse_ids


def convert(
    source: Annotated[Path, Parameter(converter=recording_path)],
    /,
    *,
    to: str,
    output: Annotated[Path, Output],
    ranks: Annotated[int | None, Size] = None,
    hidden_layers: Annotated[int | None, Size] = None,
    model_key: str | None = None,
    reading: TraceArguments | None = None,
) -> int:
    """Rewrite a recording or a map in another format; say exactly what is lost.

    For example:

        equipoise convert sample --to trtllm -o dump
        equipoise convert map.json --to trtllm -o map.yaml
        equipoise convert map.json --to sglang --hidden-layers 61 -o location.json

    Parameters
    ----------
    source
        Map or recording to rewrite; or sample, the recording that ships with equipoise.
    to
        Format to write. Maps: equipoise, trtllm, sglang, vllm-41141, vllm-49572, vllm-53022,
        ascend. Recordings: equipoise, trtllm.
    output
        File to write; a folder for a recording of the format trtllm.
    ranks
        Number of expert-parallel ranks, which most maps do not say.
    hidden_layers
        Number of decoder layers of the model, dense ones included; an SGLang map has a row for
        each.
    model_key
        Model whose map to read, where a file holds the maps of several.
    """
    work = _Work(
        source=source,
        to=to,
        output=output,
        ranks=ranks,
        hidden_layers=hidden_layers,
        model_key=model_key,
        reading=reading or TraceArguments(),
    )
    kind = _kind_of(source, work.reading.format)
    kind.check(work)
    lost = kind.rewrite(work)
    console = stdout()
    console.print(one_line(f"{output}: written as {to}."))
    for sentence in lost:
        console.print(f"  {one_line(in_options(sentence))}")
    return 0


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What to rewrite as what, and what the command says of it."""

    source: Path
    to: str
    output: Path
    ranks: int | None = None
    hidden_layers: int | None = None
    model_key: str | None = None
    reading: TraceArguments


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of file: its formats, what may be said of it, and how it is rewritten.

    Parameters
    ----------
    takes
        Options that say something of a file of this kind.
    rewrite
        Function that writes the other file and returns what it does not say, in sentences.
    """

    name: str
    formats: Callable[[], frozenset[str]]
    takes: frozenset[str]
    rewrite: Callable[[_Work], list[str]]

    def check(self, work: _Work) -> None:
        """Refuse options that would be ignored, and formats of another kind."""
        unused = (given(work) | given(work.reading)) - _ALWAYS - self.takes
        if unused:
            raise EquipoiseError(
                f"{work.source} is a {self.name}, which has no use for "
                f"{', '.join(sorted(map(option_name, unused)))}."
            )
        others = [kind.name for kind in _KINDS if work.to in kind.formats()]
        if others and self.name not in others:
            raise EquipoiseError(
                f"{work.source} is a {self.name}, and {work.to} is a format of {others[0]}s; "
                "equipoise plan makes maps from recordings."
            )


def _rewrite_map(work: _Work) -> list[str]:
    reading = work.reading
    check_output(work.output, work.source)
    name = reading.format or detect_map(work.source).name
    check_decoder_layers(work.hidden_layers, name, work.to)
    check_model_key(work.model_key, name)
    context = MapContext(
        num_ranks=work.ranks,
        num_experts=reading.num_experts,
        layer_ids=parse_ids(reading.layers) if reading.layers else None,
        num_hidden_layers=work.hidden_layers,
        model_key=work.model_key,
    )
    found = examine_map(work.source, context, format=name)
    target = MapContext(num_hidden_layers=work.hidden_layers)
    lost = write_map(found.placement, work.output, format=work.to, context=target)
    print_notes([*found.notes, *reading_warnings(found)])
    return lost


def _rewrite_recording(work: _Work) -> list[str]:
    if work.ranks is not None and work.reading.run_map is None:
        raise EquipoiseError(
            f"{work.source} is a recording, which has no use for --ranks without --run-map."
        )
    target = trace_format(work.to)  # before a long read
    check_output(work.output, work.source, work.reading.run_map, folder=target.folder)
    trace = work.reading.read(work.source, ranks=work.ranks)
    return write_trace(trace, work.output, format=work.to)


_ALWAYS = frozenset({"source", "to", "output", "reading"})
_MAP = _Kind(
    name="map",
    formats=lambda: frozenset(known.name for known in map_formats()),
    takes=frozenset({"format", "experts", "layers", "ranks", "hidden_layers", "model_key"}),
    rewrite=_rewrite_map,
)
_RECORDING = _Kind(
    name="recording",
    formats=lambda: frozenset(known.name for known in trace_formats()),
    takes=frozenset(field.name for field in fields(TraceArguments)) | {"ranks"},
    rewrite=_rewrite_recording,
)
_KINDS = (_MAP, _RECORDING)


def _kind_of(source: Path, name: str | None) -> _Kind:
    """The kind of a file: by its format's name if only one kind has it, else by content."""
    named = [kind for kind in _KINDS if name in kind.formats()]
    if len(named) == 1:
        return named[0]
    if is_map(source):
        return _MAP
    check_readable(source)
    if name is None and not any(known.matches(source) for known in trace_formats()):
        _refuse(source)
    return _RECORDING


def _refuse(source: Path) -> None:
    """Say what a source is that is known neither as a map nor as a recording."""
    if not source.is_dir():
        detect_map(source)  # a damaged map, another program's file, or neither
    detect_trace(source)
