"""``equipoise convert``: the same map or recording in another format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Size
from equipoise.cli.options.maps import check_decoder_layers, check_model_key
from equipoise.cli.options.names import in_options, option_name
from equipoise.cli.options.output import check_output
from equipoise.cli.options.recording import TraceArguments
from equipoise.cli.views.console import stdout
from equipoise.cli.views.text import one_line
from equipoise.engines.files import check_readable
from equipoise.engines.formats import MapContext, MapFormat, TraceFormat, given
from equipoise.engines.map_io import detect_map, examine_map, is_map, reading_warnings, write_map
from equipoise.engines.registry import map_formats, trace_format, trace_formats
from equipoise.engines.trace_io import detect_trace, write_trace
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import parse_ids


def convert(
    source: Path,
    /,
    *,
    to: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    ranks: Annotated[int | None, Size] = None,
    hidden_layers: Annotated[int | None, Size] = None,
    model_key: str | None = None,
    reading: TraceArguments | None = None,
) -> int:
    """Rewrite a map or a recording in another format, and say exactly what is lost.

    Parameters
    ----------
    source
        A map or a recording.
    to
        Format to write. Maps: equipoise, trtllm, sglang, vllm-41141, vllm-49572, vllm-53022,
        ascend. Recordings: equipoise, trtllm.
    output
        The file to write; a folder for a trtllm recording.
    ranks
        Expert-parallel ranks, which most maps do not say.
    hidden_layers
        All decoder layers of the model, dense ones included; SGLang maps have a row for each.
    model_key
        The model whose map to read, where a file holds those of several.
    """
    reading = reading or TraceArguments()
    if _is_map(source, reading.format):
        context = MapContext(
            num_ranks=ranks,
            num_experts=reading.num_experts,
            layer_ids=parse_ids(reading.layers) if reading.layers else None,
            num_hidden_layers=hidden_layers,
            model_key=model_key,
        )
        lost = _convert_map(source, to, output, context, reading)
    else:
        lost = _convert_trace(source, to, output, ranks, hidden_layers, model_key, reading)
    console = stdout()
    console.print(one_line(f"{output}: written as {to}."))
    for sentence in lost:
        console.print(f"  {one_line(in_options(sentence))}")
    return 0


def _is_map(source: Path, name: str | None) -> bool:
    """Whether a source is a map: by its format's name, or where both kinds have it by content."""
    if name is not None and (name in _names(map_formats())) != (name in _names(trace_formats())):
        return name in _names(map_formats())
    if is_map(source):
        return True
    check_readable(source)
    if name is None and not any(known.matches(source) for known in trace_formats()):
        _refuse(source)
    return False


def _refuse(source: Path) -> None:
    """Say what a source is that is known neither as a map nor as a recording."""
    if not source.is_dir():
        detect_map(source)  # a damaged map, another program's file, or neither
    detect_trace(source)


def _convert_map(
    source: Path, to: str, output: Path, context: MapContext, reading: TraceArguments
) -> list[str]:
    unused = given(reading) - {"format", "experts", "layers"}
    if unused:
        raise EquipoiseError(
            f"{source} is a map, but these options are for recordings: "
            f"{', '.join(sorted(map(option_name, unused)))}."
        )
    check_output(output, source)
    name = reading.format or detect_map(source).name
    check_decoder_layers(context.num_hidden_layers, name, to)
    check_model_key(context.model_key, name)
    found = examine_map(source, context, format=name)
    target = MapContext(num_hidden_layers=context.num_hidden_layers)
    return [
        *found.notes,
        *reading_warnings(found),
        *write_map(found.placement, output, format=to, context=target),
    ]


def _names(formats: Sequence[MapFormat] | Sequence[TraceFormat]) -> set[str]:
    return {known.name for known in formats}


def _convert_trace(
    source: Path,
    to: str,
    output: Path,
    ranks: int | None,
    hidden_layers: int | None,
    model_key: str | None,
    reading: TraceArguments,
) -> list[str]:
    if model_key is not None:
        raise EquipoiseError(f"{source} is a recording; --model-key applies to maps only.")
    if hidden_layers is not None:
        raise EquipoiseError(f"{source} is a recording; --hidden-layers applies to maps only.")
    if ranks is not None and reading.run_map is None:
        raise EquipoiseError(f"{source} is a recording; --ranks applies to maps only.")
    if to in _names(map_formats()) - _names(trace_formats()):
        raise EquipoiseError(
            f"{source} is a recording, and {to} is a format of maps; equipoise plan makes them."
        )
    target = trace_format(to)  # before a long read
    check_output(output, source, reading.run_map, folder=target.folder)
    return write_trace(reading.read(source, ranks=ranks), output, format=to)
