"""How an engine is started, as text."""

from __future__ import annotations

import shlex
import textwrap

from rich.console import Console
from rich.padding import Padding

from equipoise.cli.views.text import one_line
from equipoise.engines.formats import Launch


def print_launch(console: Console, flags: Launch, *, files_written: bool = False) -> None:
    """Print flags, environment, files and notes."""
    if flags.command:
        console.print(f"Start {flags.engine} {flags.version} with")
        for name, value in flags.environment:
            console.print(f"  {name}={value}", soft_wrap=True)
        console.print(f"  {shlex.join(flags.command)}", soft_wrap=True)  # to be copied whole
    for name, content in flags.files:
        console.print(
            one_line(f"and this as {name}{', which is written' if files_written else ''}:")
        )
        console.print(textwrap.indent(content.rstrip(), "  "), soft_wrap=True)
    for note in flags.notes:
        console.print(Padding(f"note: {note}", (0, 0, 0, 2), expand=False))
