"""Write the pages that follow from the code: `python docs/generate.py`; a test says when."""

from __future__ import annotations

from pathlib import Path

from equipoise.cli import app


def commands_page() -> str:
    """`docs/commands.md`, from the commands' own signatures and docstrings."""
    text = app.generate_docs(output_format="markdown", recursive=True)
    return "<!-- Written by docs/generate.py; do not edit. -->\n" + text.rstrip() + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "commands.md").write_text(commands_page(), encoding="utf-8")
