"""``equipoise compare``: several maps side by side on one recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.output import Json
from equipoise.cli.options.page import PageArguments, origin
from equipoise.cli.options.recording import TraceArguments, recording_path
from equipoise.cli.views.compare import compare_document, print_comparison
from equipoise.cli.views.console import print_json, stdout
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import MapReading, examine_map
from equipoise.errors import EquipoiseError
from equipoise.report.on_map import what_it_proves
from equipoise.report.page.of_compare import check_names, compare_story, lay_maps
from equipoise.trace import Trace


def compare(
    *files: Annotated[Path, Parameter(converter=recording_path)],
    dispatch: str = "even",
    page: PageArguments | None = None,
    reading: TraceArguments | None = None,
    json: Json = False,
) -> int:
    """Show several maps side by side on one recording.

    Give up to five maps, then the recording. The maps may be of different formats and have
    different numbers of slots, for the same ranks. Give steps that none of them was made from.

    For example:

        equipoise compare map.json sample
        equipoise compare old.json new.json sample --dispatch minmax
        equipoise compare old.json new.json RECORDING --html compare.html

    Parameters
    ----------
    files
        Up to five maps, then a recording; or sample, the one that ships with equipoise.
    dispatch
        Dispatcher that shares each batch over the copies of an expert, as for equipoise plan.
    """
    if len(files) < 2:
        raise EquipoiseError("Give one or more maps and, last, a recording.")
    *paths, trace = files
    check_names([f"{path}" for path in paths])
    page = page or PageArguments()
    page.check(*files)
    recording = (reading or TraceArguments()).read(trace)
    found = {f"{path}": _examine(path, recording) for path in paths}
    maps = {name: reading.placement for name, reading in found.items()}
    laid = lay_maps(recording, maps, dispatch)
    notes = [f"{name}: {what_it_proves(recording, x.notes)}" for name, x in found.items()]
    page.write(lambda: compare_story(recording, laid, origin(recording, {**maps}), notes))
    if json:
        print_json(compare_document(recording, laid, notes))
    else:
        print_comparison(stdout(), recording, laid, notes)
    return 0


def _examine(path: Path, recording: Trace) -> MapReading:
    context = MapContext(num_experts=recording.num_experts, layer_ids=recording.layer_ids)
    return examine_map(path, context)
