"""Write the pages that follow from the code: `python docs/generate.py`; a test says when."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

from equipoise.cli import COMMANDS, SCRIPTS, app, command
from equipoise.dispatch import DISPATCHERS
from equipoise.engines._shared.options import Option
from equipoise.engines.settings import TABLES
from equipoise.plan.planners.registry import PLANNERS, PlannerEntry
from equipoise.sample import LAB_FOLDER

DOCS = Path(__file__).parent
NOTEBOOK = LAB_FOLDER / "lab.ipynb"
BEGIN = "<!-- Written by docs/generate.py from the registry; do not edit up to the end of it. -->"
END = "<!-- The end of what docs/generate.py writes. -->"


def commands_page() -> str:
    """`docs/reference/commands.md`, from the commands' own signatures and docstrings."""
    for name in (*COMMANDS, *SCRIPTS):
        command(name)  # with its whole help
    text = app.generate_docs(output_format="markdown", recursive=True)
    text = text.replace("# equipoise\n", "# Commands\n", 1)
    return "<!-- Written by docs/generate.py; do not edit. -->\n" + text.rstrip() + "\n"


def dispatch_page() -> str:
    """`docs/reference/dispatch.md` with the table of dispatchers as the registry has it."""
    return _with_table("reference/dispatch.md", dispatchers_table())


def planners_page() -> str:
    """`docs/reference/planners.md` with the table of planners as the registry has it."""
    return _with_table("reference/planners.md", planners_table())


def engine_options_page() -> str:
    """`docs/reference/engine-options.md` with the tables of the engines' options."""
    return _with_table("reference/engine-options.md", engine_options_tables())


def engine_options_tables() -> str:
    """Every option of every engine that is read: what it does here, or why it does nothing."""
    return "\n".join(
        f"### {table.engine}: `{table.given_as}`\n\n"
        + _table(("option", "here"), ((f"`{name}`", _here(o)) for name, o in table.options.items()))
        for table in TABLES.values()
    )


def lab_notebook() -> str:
    """The lab's page as a notebook: blocks to run, drawings to draw, nothing of what they print."""
    page = (DOCS / "tutorial" / "lab.md").read_text(encoding="utf-8")
    page = re.sub(r"(?ms)^```text\n.*?^```\n", "", page)
    # A drawing that the block before it makes needs no cell of its own.
    page = re.sub(r"(plot\.\w+\(\)\n```\n)\n!\[.*\n", r"\1", page)
    page = re.sub(r"(?m)^!\[.*\]\(lab/(\w+)\.svg\)$", r'```python\ndraw("\1");\n```', page)
    page = re.sub(r"\[([^\]]+)\]\([^)]+\.\w+\)", r"\1", page)  # pages that are not at hand there
    parts = re.split(r"(?ms)^```python\n(.*?)^```$", page)
    cells = [_cell(kind, text.strip()) for kind, text in zip(cycle(("markdown", "code")), parts)]
    cells.insert(1, _cell("code", "from plots import draw  # next to this notebook"))
    filled = (cell for cell in cells if cell["source"])
    notebook = {
        "cells": [cell | {"id": f"cell-{number}"} for number, cell in enumerate(filled)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, text: str) -> dict[str, Any]:
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True), **code}


def dispatchers_table() -> str:
    """The dispatchers: what each gives a copy of an expert, and whose they are."""
    rows = (
        (
            f"`{name}`",
            entry.summary,
            f"what {entry.engine} does" if entry.engine else f"`{entry.kind.__name__}`",
        )
        for name, entry in DISPATCHERS.items()
    )
    return _table(("name", "each copy of an expert gets", "is"), rows)


def planners_table() -> str:
    """The planners: how to call them, when, what they look at and what they take."""
    head = ("planner", "command", "use it", "options", "looks at", "time per layer")
    return _table(head, map(_row, PLANNERS.values()))


def _with_table(name: str, table: str) -> str:
    """A page with the table between its marks."""
    page = (DOCS / name).read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}{END}{after}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _row(entry: PlannerEntry) -> tuple[str, ...]:
    needs = (*(o.field for o in entry.required if o.field not in entry.needs), *entry.needs)
    call = f"{entry.kind.__name__}({', '.join(f'{name}=...' for name in needs)})"
    options = (f"`--{option.key.replace('_', '-')}`" for option in entry.options)
    return (
        f"`{call}`",
        f"`{entry.chosen_by or f'--planner {entry.name}'}`",
        entry.summary,
        ", ".join(options),
        ", ".join(sorted(entry.sees)) or "the sum of the loads",
        entry.time,
    )


def _here(option: Option) -> str:
    if option.sets:
        return option.here
    values = " or ".join(f"`{json.dumps(value)}`" for value in option.harmless)
    taken = "is taken, and told" if option.advice else "asks for nothing; else it is refused"
    return f"No effect: {option.here}. {values} {taken}."


if __name__ == "__main__":
    (DOCS / "reference" / "commands.md").write_text(commands_page(), encoding="utf-8")
    (DOCS / "reference" / "dispatch.md").write_text(dispatch_page(), encoding="utf-8")
    (DOCS / "reference" / "engine-options.md").write_text(engine_options_page(), encoding="utf-8")
    (DOCS / "reference" / "planners.md").write_text(planners_page(), encoding="utf-8")
    NOTEBOOK.write_text(lab_notebook(), encoding="utf-8")
