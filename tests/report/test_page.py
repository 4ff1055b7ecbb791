from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.bounds import Binding
from equipoise.plan.result import Plan
from equipoise.report.page import render_page
from equipoise.report.summary import summarise
from equipoise.trace import Provenance, Trace


class Page(HTMLParser):
    """Heat map cells, text and every attribute that could reach outside."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "td" and str(values.get("class", "")).startswith("q"):
            self.cells.append(values["title"] or "")
        self.links += [
            v or "" for k, v in attrs if k in ("src", "href", "action", "srcset", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def trace(num_layers: int = 3, num_experts: int = 16, **options: object) -> Trace:
    rng = np.random.default_rng(2)
    share = rng.dirichlet(np.full(num_experts, 0.4), size=num_layers)
    counts = np.stack([[rng.multinomial(3000, p) for p in share] for _ in range(4)])
    options.setdefault("labels", {"domain": np.array(["code", "code", "math", "math"])})
    return Trace(counts=counts, top_k=2, **options)  # type: ignore[arg-type]


def placed(recorded: Trace, num_ranks: int) -> Placement:
    """Every expert on its rank and one copy of the hottest on each of the others' spare slots."""
    E = recorded.num_experts
    blocks = np.arange(E).reshape(num_ranks, -1)
    spare = np.repeat(recorded.total.argmax(axis=1)[:, None], num_ranks, axis=1)
    slots = [np.concatenate([blocks, s[:, None]], axis=1).ravel() for s in spare]
    return Placement(slots, num_ranks=num_ranks, num_experts=E, layer_ids=recorded.layer_ids)


def planned(recorded: Trace, placement: Placement) -> Plan:
    load = recorded.total.astype(np.float64)
    mean = load.sum(axis=1) / placement.num_ranks
    return SimpleNamespace(  # what the page reads of a plan
        placement=placement,
        planner="ByHand()",
        dispatch="even",
        load=load,
        peak=1.25 * mean,
        bound=mean,
        binding=tuple(
            Binding(layer, kind, f"layer {layer}: {kind} <binds>")
            for layer, kind in zip(recorded.layer_ids, ("mean", "experts", "copies"), strict=True)
        ),
        status="Load it, then look again.",
        gap=0.25,
    )


def test_one_cell_for_each_layer_and_rank_with_its_value() -> None:
    found = summarise(trace(layer_ids=(3, 4, 9)), num_ranks=4)
    page = Page(render_page(found))
    assert len(page.cells) == 3 * 4
    assert page.cells[5] == f"layer 4, rank 1: {found.rank_p95[1][1]:.2f}×"
    assert page.cells[-1].startswith("layer 9, rank 3: ")


def test_notes_stand_above_the_numbers() -> None:
    recorded = trace(provenance=Provenance("npz", "run.npz", ("Rank 3 is missing.",)))
    text = Page(render_page(summarise(recorded, num_ranks=4))).text
    assert text.count("Rank 3 is missing.") == 1
    assert text.index("Rank 3 is missing.") < text.index("carries")


def test_nothing_outside_is_referenced() -> None:
    html = render_page(summarise(trace(), num_ranks=4))
    assert Page(html).links == ["data:,"]
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttp|WebSocket", html)
    assert "default-src 'none'" in html


def test_before_and_after_share_one_scale_and_show_the_plan() -> None:
    recorded = trace()
    placement = placed(recorded, 4)
    before, after = summarise(recorded, num_ranks=4), summarise(recorded, placement=placement)
    assert before.balance is not None
    assert after.balance is not None
    page = Page(render_page(before, after=after, plan=planned(recorded, placement)))
    text = " ".join(page.text.split())
    assert len(page.cells) == 2 * 3 * 4
    assert f"carries {before.balance.imbalance:.2f}× its share" in text
    assert f"{after.balance.imbalance:.2f}× after" in text
    assert "ByHand()" in text
    assert "Load it, then look again." in text
    assert "by more than 20.0%" in text  # a gap of 25 % above the bound
    assert "experts <binds>" in text
    assert "mean <binds>" not in text


def test_words_of_files_are_escaped() -> None:
    nasty = "<script>alert('x')</script>&\"quoted\""
    recorded = trace(
        labels={"domain": np.array([nasty, nasty, "b", "b"])},
        provenance=Provenance("npz", nasty, (nasty,)),
    )
    html = render_page(summarise(recorded, num_ranks=4), title=nasty)
    assert "<script>alert" not in html
    assert html.count("<script>") == 1
    assert nasty in Page(html).text


def test_without_ranks_experts_are_shown() -> None:
    page = Page(render_page(summarise(trace())))
    assert page.cells == []
    assert "hottest expert" in page.text
    assert "Noise floor" in page.text


@pytest.mark.parametrize(
    ("counts", "num_ranks"),
    [
        (np.ones((1, 1, 1)), 1),
        (np.ones((1, 1, 2)), 2),
        (np.array([[[0, 0], [3, 1]]]), 2),
        (np.array([[[10**12, 0], [1, 0]]]), 2),
    ],
)
def test_the_smallest_and_the_most_uneven_traces_have_a_page(
    counts: np.ndarray, num_ranks: int
) -> None:
    found = summarise(Trace(counts=counts), num_ranks=num_ranks)
    html = render_page(found)
    assert len(Page(html).cells) == counts.shape[1] * num_ranks
    assert not re.search(r"\b(nan|inf)\b", html, re.IGNORECASE)


def test_many_ranks_and_layers_stay_near_a_megabyte() -> None:
    recorded = trace(75, 256)
    found = summarise(recorded, num_ranks=64)
    after = summarise(recorded, placement=placed(recorded, 64))
    html = render_page(found, after=after)
    assert len(Page(html).cells) == 2 * 75 * 64
    assert len(html.encode()) < 1_000_000
    joined = render_page(summarise(recorded, num_ranks=256))
    assert len(Page(joined).cells) == 75 * 64
    assert "layer 0, rank 0-3: " in joined
    assert len(joined.encode()) < 1_000_000


def test_page_is_deterministic() -> None:
    found = summarise(trace(), num_ranks=4)
    assert render_page(found) == render_page(found)


def test_other_traces_and_ranks_are_refused() -> None:
    before = summarise(trace(), num_ranks=4)
    with pytest.raises(EquipoiseError, match="different traces"):
        render_page(before, after=summarise(trace(4), num_ranks=4))
    with pytest.raises(EquipoiseError, match="4 and 2 ranks"):
        render_page(before, after=summarise(trace(), num_ranks=2))
    with pytest.raises(EquipoiseError, match="None and None ranks"):
        render_page(summarise(trace()), after=summarise(trace()))


def test_a_plan_needs_its_summary() -> None:
    recorded = trace()
    with pytest.raises(EquipoiseError, match="give it as after"):
        render_page(summarise(recorded, num_ranks=4), plan=planned(recorded, placed(recorded, 4)))
