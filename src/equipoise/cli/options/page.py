"""The page that a command writes, and pictures of its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from equipoise import __version__
from equipoise.cli.options.command_line import command_line
from equipoise.cli.options.groups import PAGE
from equipoise.cli.options.output import check_output
from equipoise.engines.files import write_bytes, write_text
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.report.page.document import render_page, save_picture
from equipoise.report.page.story import Origin, Story, checksum
from equipoise.report.page.vega import FORMATS, library
from equipoise.trace import Trace


@Parameter(name="*", group=PAGE)
@dataclass(frozen=True, kw_only=True)
class PageArguments:
    """A page, and pictures of its figures; both need equipoise[page].

    Parameters
    ----------
    html
        Write a self-contained page, too.
    figure
        Save a figure of the page, too: its name on the page (heat-0, heat-1, time, ranks, strip,
        layers, lag, age, ...) and png, pdf or svg, as in layers.pdf. Can be given several times.
    """

    html: Path | None = None
    figure: tuple[Path, ...] = ()

    def check(self, *inputs: Path | None, other: Path | None = None) -> None:
        """Refuse, before any long work, what cannot be drawn or written.

        Parameters
        ----------
        inputs
            Files that the command reads.
        other
            Another file that it writes.
        """
        outputs = [path for path in (self.html, *self.figure) if path is not None]
        for path in self.figure:
            if path.suffix[1:] not in FORMATS:
                kinds = ", ".join(FORMATS)
                raise EquipoiseError(f"{path}: is not a picture; give a name that ends in {kinds}.")
        for path in outputs:
            check_output(path, *inputs)
        places = [path.resolve() for path in (*outputs, other) if path is not None]
        for path, place in zip(outputs, places, strict=False):
            if places.count(place) > 1:
                raise EquipoiseError(f"{path}: is the name of two outputs; give each its own.")
        if outputs:
            library()

    def write(self, tell: Callable[[], Story]) -> None:
        """Write what was asked for, each file as a whole, once all are made.

        Parameters
        ----------
        tell
            Function that makes the story; not called if nothing was asked for.
        """
        if self.html is None and not self.figure:
            return
        story = tell()
        pictures = {x: save_picture(story, x.stem, x.suffix[1:]) for x in self.figure}
        if self.html is not None:
            write_text(self.html, render_page(story))
        for path, content in pictures.items():
            write_bytes(path, content)


def origin(recording: Trace, maps: dict[str, Placement | None] | None = None) -> Origin:
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
    for name, placement in (maps or {}).items():
        if placement is not None:
            facts[f"{name}, SHA-256"] = placement.checksum
    return Origin(facts=facts)
