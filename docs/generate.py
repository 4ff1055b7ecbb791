"""Write the pages that follow from the code: `python docs/generate.py`; a test says when."""

from __future__ import annotations

from pathlib import Path

from equipoise.cli import app
from equipoise.dispatch import DISPATCHERS

DOCS = Path(__file__).parent
BEGIN = "<!-- Written by docs/generate.py from the registry; do not edit up to the end of it. -->"
END = "<!-- The end of what docs/generate.py writes. -->"


def commands_page() -> str:
    """`docs/commands.md`, from the commands' own signatures and docstrings."""
    text = app.generate_docs(output_format="markdown", recursive=True)
    return "<!-- Written by docs/generate.py; do not edit. -->\n" + text.rstrip() + "\n"


def dispatchers_table() -> str:
    """The dispatchers in `docs/dispatch.md`, from their registry."""
    rows = (
        f"| `{name}` | {entry.summary} | "
        f"{f'what {entry.engine} does' if entry.engine else f'`{entry.kind.__name__}`'} |"
        for name, entry in DISPATCHERS.items()
    )
    head = ("| name | each copy of an expert gets | is |", "|---|---|---|")
    return "\n".join([BEGIN, *head, *rows, END])


def dispatch_page() -> str:
    """`docs/dispatch.md` with that table."""
    text = (DOCS / "dispatch.md").read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{dispatchers_table()}{after}"


if __name__ == "__main__":
    (DOCS / "commands.md").write_text(commands_page(), encoding="utf-8")
    (DOCS / "dispatch.md").write_text(dispatch_page(), encoding="utf-8")
