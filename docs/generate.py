"""Write the pages that follow from the code: `python docs/generate.py`; a test says when."""

from __future__ import annotations

from pathlib import Path

from equipoise.cli import app
from equipoise.plan.planners.registry import PLANNERS, PlannerEntry

DOCS = Path(__file__).parent
_BEGIN = "<!-- Written by docs/generate.py from the registry of planners; do not edit. -->\n"
_END = "<!-- End of what docs/generate.py writes. -->\n"


def commands_page() -> str:
    """`docs/commands.md`, from the commands' own signatures and docstrings."""
    text = app.generate_docs(output_format="markdown", recursive=True)
    return "<!-- Written by docs/generate.py; do not edit. -->\n" + text.rstrip() + "\n"


def planners_page() -> str:
    """`docs/planners.md` with the table of planners as the registry has it."""
    page = (DOCS / "planners.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{planners_table()}{_END}{after}"


def planners_table() -> str:
    """The planners: how to call them, when, what they look at and what they take."""
    head = ("planner", "command", "use it", "options", "looks at", "time per layer")
    rows = [head, ("---",) * len(head), *map(_row, PLANNERS.values())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


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


if __name__ == "__main__":
    (DOCS / "commands.md").write_text(commands_page(), encoding="utf-8")
    (DOCS / "planners.md").write_text(planners_page(), encoding="utf-8")
