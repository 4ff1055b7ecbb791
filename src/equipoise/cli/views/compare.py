"""Maps side by side, as text and as a document."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from equipoise.cli.views.notes import print_notes, print_recording
from equipoise.cli.views.text import one_line
from equipoise.report.page.laid import Laid
from equipoise.report.page.of_compare import best_of, score_table
from equipoise.report.page.tables import shown
from equipoise.trace import Trace


def compare_document(
    recording: Trace, laid: Sequence[Laid], notes: Sequence[str]
) -> dict[str, object]:
    """The comparison for programs: an object of scores for each layout, by its name."""
    table = score_table(laid)
    keys = [name.replace(" ", "_").replace("95th_percentile", "p95") for name in table.head[1:]]
    return {
        "source": recording.provenance.source,
        "notes": [*recording.provenance.notes, *notes],
        "dispatch": laid[0].evaluation.dispatch,
        "best": best_of(laid).name,
        "layouts": {
            str(name): dict(zip(keys, scores, strict=True)) for name, *scores in table.rows
        },
    }


def print_comparison(
    console: Console, recording: Trace, laid: Sequence[Laid], notes: Sequence[str]
) -> None:
    """Print the comparison for people, the best last."""
    print_recording(console, recording)
    print_notes(notes)
    scores = score_table(laid)
    table = Table(*scores.head, box=None)
    for name, *cells in scores.rows:
        table.add_row(one_line(str(name)), *map(shown, cells))
    console.print()
    console.print(table)
    console.print(one_line(f"Best on these steps: {best_of(laid).name}."))
