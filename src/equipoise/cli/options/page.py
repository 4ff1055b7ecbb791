"""The page that a command writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise import __version__
from equipoise.cli.options.command_line import command_line
from equipoise.cli.options.output import check_output
from equipoise.engines.files import write_text
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.report.page.document import render_page
from equipoise.report.page.story import Origin, Story, checksum
from equipoise.report.page.vega import library
from equipoise.trace import Trace

Html = Annotated[
    Path | None,
    Parameter(
        name="--html",
        help="Also write a self-contained page; needs equipoise[page].",
    ),
]


def check_page(html: Path | None, *inputs: Path | None) -> None:
    """Refuse a page before any long work: one that cannot be drawn, or not be written."""
    if html is not None:
        check_output(html, *inputs)
        library()


def check_apart(html: Path | None, *outputs: Path | None) -> None:
    """Refuse a page that would be written over another output of the same command."""
    for output in filter(None, outputs):
        if html is not None and html.resolve() == output.resolve():
            raise EquipoiseError(f"{html}: is the name of two outputs; give each its own.")


def origin(recording: Trace, **maps: Placement | None) -> Origin:
    """How to get the page again: the command, the version, checksums of what went in and came out.

    Parameters
    ----------
    maps
        Placements by what they are.
    """
    facts = {
        "command": command_line(),
        "version": f"equipoise {__version__}",
        "recording": f"{recording.provenance.source} ({recording.provenance.format})",
        "loads, SHA-256": checksum(recording),
    }
    placements = {
        f"{name.replace('_', ' ')}, SHA-256": x.checksum
        for name, x in maps.items()
        if x is not None
    }
    return Origin(facts=facts | placements)


def write_page(html: Path, story: Story) -> None:
    """Write the page of a story as a whole, or nothing."""
    write_text(html, render_page(story))
