"""What is to be known of the input, on standard error: results alone go to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console

from equipoise.cli.options.names import in_options
from equipoise.cli.views.text import one_line
from equipoise.trace import Trace


def print_notes(notes: Iterable[str]) -> None:
    """Print notes, a line each."""
    for note in notes:
        print(f"equipoise: note: {one_line(in_options(note))}", file=sys.stderr, flush=True)


def print_recording(console: Console, recording: Trace) -> None:
    """Print what a recording is, and the notes on it."""
    console.print(one_line(f"{recording}"))
    print_notes(recording.provenance.notes)
