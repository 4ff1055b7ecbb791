"""How the flags that go with a map are printed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from equipoise.cli.views.launch import print_launch
from equipoise.engines.formats import Launch

FLAGS = ("--ep-size", "8", "--ep-dispatch-algorithm", "dynamic", "--init-expert-location", "map")


@pytest.mark.parametrize("width", [40, 1 << 20])
def test_flags_are_one_line_to_copy_and_notes_are_indented(width):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=width == 40, color_system=None)
    note = "Compare some answers with and without the map before you rely on it."
    print_launch(console, Launch(engine="sglang", version="0.5.23", command=FLAGS, notes=(note,)))
    first, flags, *notes = out.getvalue().splitlines()
    assert (first, flags) == ("Start sglang 0.5.23 with", f"  {' '.join(FLAGS)}")
    assert all(line.startswith("  ") and len(line.rstrip()) <= width for line in notes)
    assert " ".join(" ".join(notes).split()) == f"note: {note}"
    assert len(notes) == (2 if width == 40 else 1)
