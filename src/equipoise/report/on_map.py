"""The summary of a recording on a map, and what it proves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from equipoise.placement import Placement
from equipoise.report.summary import TraceSummary, summarise
from equipoise.trace import MEMORY, Trace

_ORIGIN = "trace: "  # before the recording that a map of our format names


def summarise_on_map(
    trace: Trace, placement: Placement, map_notes: Sequence[str] = ()
) -> TraceSummary:
    """Summarise a trace on a map; the first note says whether the map was made from its steps.

    Parameters
    ----------
    map_notes
        Notes of the map's file, as ``examine_map`` returns them: our format names the recording.

    Raises
    ------
    EquipoiseError
        See ``summarise``.
    """
    summary = summarise(trace, placement=placement)
    return replace(summary, notes=(what_it_proves(trace, map_notes), *summary.notes))


def what_it_proves(trace: Trace, map_notes: Sequence[str]) -> str:
    """Say whether a map, with these notes in its file, is shown on the steps it was made from."""
    origin = next((n.removeprefix(_ORIGIN) for n in map_notes if n.startswith(_ORIGIN)), None)
    if origin is not None and _is_source_of(trace, origin):
        return (
            "This map was made from these steps, or from some of them: the numbers show how well "
            "it fits those, and new traffic gains less. Report steps that were recorded later."
        )
    known = "the file does not say which" if origin is None else f"it was made from {origin}"
    return f"The numbers count only on steps that the map was not made from; {known}."


def _is_source_of(trace: Trace, origin: str) -> bool:
    source = trace.provenance.source
    if source == MEMORY:  # a trace from memory has no name of its own
        return False
    with suppress(OSError, ValueError):  # the name may be that of a missing file, or of no file
        return origin == source or Path(origin).samefile(source)
    return False
