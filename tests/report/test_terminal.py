from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from equipoise.placement import Placement
from equipoise.report.summary import TraceSummary, summarise
from equipoise.report.terminal import SummaryView
from equipoise.trace import Provenance, Trace


def shown(summary: TraceSummary, *, width: int = 80, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=terminal, color_system="256" if terminal else None
    )
    console.print(SummaryView(summary))
    return out.getvalue()


def trace(num_layers: int = 4, num_experts: int = 64, **options: object) -> Trace:
    rng = np.random.default_rng(3)
    share = rng.dirichlet(np.full(num_experts, 0.5), size=num_layers)
    counts = np.stack([[rng.multinomial(5000, p) for p in share] for _ in range(6)])
    return Trace(counts=counts, top_k=4, **options)  # type: ignore[arg-type]


def heat_rows(text: str) -> list[str]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Load of each rank"))
    body = lines[start + 2 :]
    return body[: next(i for i, line in enumerate(body) if line.startswith("  mean: "))]


def test_headline_comes_first_and_numbers_are_there() -> None:
    found = summarise(trace(), num_ranks=8)
    text = shown(found)
    assert found.balance is not None
    assert f"carries {found.balance.imbalance:.2f}x its share" in " ".join(text.split())
    assert f"{found.balance.imbalance:.3f}" in text
    assert f"{found.balance.balancedness:.3f}" in text
    assert text.index("On average") < text.index("Worst layers") < text.index("Hottest experts")


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize(("num_layers", "num_ranks"), [(4, 8), (75, 32), (58, 64), (61, 256)])
def test_fits_the_width(width: int, num_layers: int, num_ranks: int) -> None:
    recorded = trace(num_layers, 256, labels={"domain": np.repeat(["code", "math"], 3)})
    text = shown(summarise(recorded, num_ranks=num_ranks), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_a_pipe_gets_plain_ascii_text() -> None:
    text = shown(summarise(trace(), num_ranks=8))
    assert "\x1b" not in text
    assert text.isascii()


def test_a_terminal_gets_colour_over_the_same_marks() -> None:
    found = summarise(trace(), num_ranks=8)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, record=True)
    console.print(SummaryView(found))
    assert "\x1b[" in shown(found, terminal=True)
    assert console.export_text() == shown(found)


def test_heat_map_shows_every_cell_where_there_is_room() -> None:
    counts = np.array([[[1, 1, 1, 5], [2, 2, 2, 2]]])
    rows = heat_rows(shown(summarise(Trace(counts=counts), num_ranks=4)))
    assert [row.rstrip() for row in rows] == [
        "      0 ......##  2.50",
        "      1 --------  1.00",
    ]


def test_joined_cells_show_the_busiest() -> None:
    counts = np.ones((1, 60, 128), np.int64)
    counts[0, 31, 77] = 400
    rows = heat_rows(shown(summarise(Trace(counts=counts), num_ranks=128)))
    hot = [row for row in rows if "@" in row]
    assert len(rows) == 20
    assert len(hot) == 1
    assert hot[0].split()[0] == "30-32"


def test_without_ranks_there_is_no_heat_map() -> None:
    text = shown(summarise(trace()))
    assert "Load of each rank" not in text
    assert "Give the number of ranks" in text
    assert "imbalance" not in text


def test_copies_are_listed() -> None:
    slots = [0, 1, 2, 3, 3, 3]
    placement = Placement([slots], num_ranks=3, num_experts=4)
    found = summarise(Trace(counts=np.array([[[1, 1, 1, 9]]])), placement=placement)
    assert "6 slots on 3 ranks" in shown(found)
    assert "3.0x" in shown(found)
    assert "1, 2" in shown(found)


def test_words_of_files_are_neither_markup_nor_escapes() -> None:
    recorded = trace(
        labels={"domain": np.array(["[/red]"] * 3 + ["b\x1b[31m"] * 3)},
        provenance=Provenance("npz", "a[bold]\x1b]0;x.npz", ("[/nothing] here",)),
    )
    text = shown(summarise(recorded, num_ranks=8), terminal=True)
    assert "[/red]" in text
    assert "a[bold]" in text
    assert "[/nothing] here" in text
    assert "\x1b]0" not in text
    assert "b\x1b[31m" not in text


@pytest.mark.parametrize("width", [40, 80])
def test_names_that_differ_at_the_end_are_told_apart(width: int) -> None:
    names = [f"{'long-' * 14}{end}" for end in ("code", "math")]
    recorded = trace(labels={"domain": np.repeat(names, 3)})
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(SummaryView(summarise(recorded, num_ranks=8)), crop=False)
    lines = out.getvalue().splitlines()
    start = lines.index(next(line for line in lines if line.startswith("  domain")))
    table = lines[start : lines.index("Drift") - 1]
    assert "".join(line[10:26].strip() for line in table) == names[0] + names[1]
    assert "…" not in out.getvalue()


def test_notes_come_before_the_numbers() -> None:
    found = summarise(trace(provenance=Provenance("npz", "run.npz", ("A rank is missing.",))))
    text = shown(found)
    assert text.index("A rank is missing.") < text.index(found.headline[0][:30])


def test_many_labels_are_cut_and_counted() -> None:
    values = np.repeat([f"d{i}" for i in range(15)], 2)
    recorded = Trace(counts=np.ones((30, 1, 4), np.int64), labels={"domain": values})
    text = shown(summarise(recorded, num_ranks=2))
    assert "d11" in text
    assert "d12" not in text
    assert "3 more not shown" in text
