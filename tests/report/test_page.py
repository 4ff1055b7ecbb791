"""The page as a document: what stands in it, that it needs nothing else, that words do no harm."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from equipoise.cost import rank_cost
from equipoise.dispatch import dispatcher
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.evaluate import evaluate
from equipoise.plan.planners.baselines import Contiguous
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.study import Study, study
from equipoise.plan.weigh.budget import budget
from equipoise.report.measured import contiguous, unbalanced
from equipoise.report.page import document, vega
from equipoise.report.page.document import heat_matrix, page_figures, render_page, save_picture
from equipoise.report.page.figures import label_changes
from equipoise.report.page.laid import lay
from equipoise.report.page.of_budget import budget_story
from equipoise.report.page.of_compare import compare_story, lay_maps
from equipoise.report.page.of_forecast import forecast_story
from equipoise.report.page.of_plan import plan_story
from equipoise.report.page.of_report import report_story
from equipoise.report.page.of_tune import tuning_story
from equipoise.report.page.story import Origin, Story
from equipoise.report.page.tables import Cell, loss_table, shown
from equipoise.report.summary import summarise
from equipoise.simulate.expert_time import UncertainCost
from equipoise.simulate.forecast import forecast
from equipoise.simulate.online import Conditions
from equipoise.simulate.tune import Setting as Tried
from equipoise.simulate.tune import Study as Tuned
from equipoise.simulate.tune import Tuning, cases, run
from equipoise.topology import Topology
from equipoise.trace import Provenance, Trace

ORIGIN = Origin(facts={"command": "equipoise report run.safetensors", "version": "1"})
NASTY = "<script>alert('x')</script>&\"quoted\"\x1b[2J</script>"


class Page(HTMLParser):
    """Text, data, scripts and every attribute that could reach outside."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.policy = ""
        self.tone = ""
        self._in = ""
        self.feed(html)
        self.data = json.loads(self.scripts[0])
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._in = tag
        if tag == "script":
            self.scripts.append("")
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        if (values.get("class") or "").startswith("band"):
            self.tone = (values["class"] or "").split()[-1]
        self.links += [
            v or "" for k, v in attrs if k in ("src", "href", "action", "srcset", "data")
        ]

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.texts.append(data)


def trace(num_layers: int = 3, num_experts: int = 16, steps: int = 8, **options: object) -> Trace:
    rng = np.random.default_rng(2)
    share = rng.dirichlet(np.full(num_experts, 0.4), size=num_layers)
    counts = np.stack([[rng.multinomial(3000, p) for p in share] for _ in range(steps)])
    domain = np.array(["code", "math"])[(np.arange(steps) >= steps // 2).astype(int)]
    options.setdefault("labels", {"domain": domain})
    return Trace(counts=counts, top_k=2, **options)  # type: ignore[arg-type]


def reported(recorded: Trace, num_ranks: int | None = 4) -> Story:
    return report_story(recorded, summarise(recorded, num_ranks=num_ranks), ORIGIN)


def planned(recorded: Trace, current: Placement | None = None, **options: object) -> Study:
    return study(
        recorded,
        Topology(4),
        num_slots=20,
        planner=Greedy(),
        current=current,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
def test_ranks_make_the_imbalance_that_the_library_says(dispatch: str) -> None:
    recorded = trace()
    plan = Greedy().plan(planned(recorded).plan.problem)
    (laid,) = lay(recorded.counts, {"plan": plan.placement}, dispatch)
    expected = evaluate(plan.placement, recorded, dispatch=dispatch)
    np.testing.assert_allclose(laid.multiples.max(axis=2), expected.imbalance, rtol=1e-9)
    np.testing.assert_allclose(laid.sorted_ranks[0][0], expected.mean_imbalance, rtol=1e-9)
    busiest = heat_matrix(laid.multiples, laid.evaluation.mean, "mean")[:, -1]
    np.testing.assert_allclose(busiest.mean(), expected.mean_imbalance, rtol=1e-9)
    np.testing.assert_allclose(np.mean(laid.by_step), expected.mean_imbalance, rtol=1e-9)


def test_ranks_that_do_not_divide_the_experts_are_shown_too() -> None:
    recorded = trace()
    (laid,) = lay(recorded.counts, {"plain": unbalanced(recorded, 3)})
    np.testing.assert_allclose(laid.multiples.max(axis=2), laid.evaluation.imbalance, rtol=1e-9)


def test_times_are_those_of_the_dispatcher() -> None:
    recorded = trace()
    timed = dispatcher("even", Topology(4, speed=[1, 1, 2, 4]))
    for layout in (contiguous(recorded, 4), unbalanced(recorded, 4)):
        (laid,) = lay(recorded.counts, {"x": layout}, timed)
        np.testing.assert_allclose(laid.multiples.max(axis=2), laid.evaluation.imbalance)


def test_statistics_of_steps_leave_out_those_without_load() -> None:
    multiples = np.array([[[2.0, 0.0]], [[0.0, 2.0]], [[0.0, 0.0]]])
    mean = np.array([[1.0], [3.0], [0.0]])
    expected = {
        "mean": [1, 1, 2],
        "worst": [2, 2, 2],
        "p95": [1.9, 1.9, 2],
        "sum": [0.5, 1.5, 1.5],
    }
    for statistic, values in expected.items():
        np.testing.assert_allclose(heat_matrix(multiples, mean, statistic), [values])


def test_marks_stand_where_a_label_changes() -> None:
    assert label_changes([("domain", ["a", "a", "b"])]) == [
        {"step": 0, "change": "a"},
        {"step": 2, "change": "b"},
    ]
    assert label_changes([("one", ["a", "a"]), ("each", [str(i) for i in range(99)])]) == []


def test_changes_of_the_map_are_marked_with_the_traffics() -> None:
    assert label_changes([("domain", ["a", "a", "b"]), ("map", ["0", "2", "2"])]) == [
        {"step": 0, "change": "a, map 0"},
        {"step": 1, "change": "map 2"},
        {"step": 2, "change": "b"},
    ]


def test_a_map_is_no_kind_of_traffic() -> None:
    recorded = trace(labels={"map": np.array(["0"] * 4 + ["1"] * 4)})
    story = reported(recorded)
    assert story.summary.drift.labels == {}
    assert not [figure.name for figure in page_figures(story) if figure.name.startswith("between")]
    time = next(x for x in page_figures(story) if x.name == "time")
    assert '"change": "map 1"' in json.dumps(time.spec)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"), ("a", "a"), (1234567, "1,234,567"), (1234.5, "1,234.500"), (0.0, "0.000"),
        (0.048, "0.048"), (0.0002702, "0.00027"), (-0.0025, "-0.0025"),
    ],
)  # fmt: skip
def test_cells_of_tables_keep_their_digits(cell: Cell, text: str) -> None:
    assert shown(cell) == text


def test_the_verdict_stands_on_unseen_steps() -> None:
    result = planned(trace(steps=20))
    page = Page(render_page(plan_story(trace(steps=20), result, ORIGIN, expert_bytes=10**9)))
    steps = result.scores.unseen
    assert page.tone == "good"
    assert "Apply this plan." in page.text
    for value in (steps["plain"].mean_imbalance, steps["plan"].mean_imbalance):
        assert f"{value:.3f}" in page.text
    assert f"{result.verdict.compared.gain:+.1%}" in page.text
    assert f"{result.scores.chance_held:.3f}" in page.text
    assert "+3.00 GB" in page.text  # a slot a rank in three layers
    assert result.held is not None
    assert len(page.data["steps"]) == result.held.num_steps


def test_a_plan_that_is_worse_than_none_is_red() -> None:
    recorded = trace()
    result = planned(recorded)
    heaviest_first = np.argsort(-recorded.total, axis=1).reshape(3, 4, 4)
    coldest = np.broadcast_to(heaviest_first[:, -1:, -1:], (3, 4, 1))
    bad = Placement(
        np.concatenate([heaviest_first, coldest], axis=2).reshape(3, 20),
        num_ranks=4,
        num_experts=16,
    )
    page = Page(
        render_page(
            plan_story(recorded, replace(result, scores=result.scores.with_plan(bad)), ORIGIN)
        )
    )
    assert page.tone == "bad"
    assert "worse than no balancing" in page.text


def test_the_map_in_force_is_shown_next_to_the_plan() -> None:
    recorded = trace()
    rows = np.concatenate([np.arange(16).reshape(4, 4), np.zeros((4, 1), int)], axis=1)
    current = Placement(np.tile(rows.reshape(1, 20), (3, 1)), num_ranks=4, num_experts=16)
    result = planned(recorded, current)
    page = Page(render_page(plan_story(recorded, result, ORIGIN, current=current)))
    names = [layout["name"] for layout in page.data["layouts"]]
    assert names == ["no balancing", "map in force", "this plan"]
    assert result.migration is not None
    assert f"{result.migration.moves} slots change" in page.text


def test_a_plan_without_held_out_steps_says_that_nothing_was_verified() -> None:
    page = Page(render_page(plan_story(trace(), planned(trace(), hold_out=0), ORIGIN)))
    assert page.tone == "open"
    assert "nothing was verified" in page.text


def test_notes_and_quality_stand_above_the_numbers() -> None:
    recorded = trace(provenance=Provenance("npz", "run.npz", ("Rank 3 is missing.",)))
    text = Page(render_page(reported(recorded))).text
    assert text.count("Rank 3 is missing.") == 1
    assert text.index("Rank 3 is missing.") < text.index("8 x 3 x 16") < text.index("carries")


def test_nothing_outside_is_referenced_and_only_its_scripts_may_run() -> None:
    page = Page(render_page(reported(trace())))
    assert page.links == ["data:,"]
    assert "default-src 'none'" in page.policy
    assert "unsafe-eval" not in page.policy
    allowed = re.search(r"script-src ([^;]*)", page.policy)
    assert allowed is not None
    assert allowed[1].split() == [
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in page.scripts[1:]
    ]


def test_words_of_files_are_escaped() -> None:
    recorded = trace(
        labels={"domain": np.array([NASTY] * 4 + ["$ink"] * 4)},
        provenance=Provenance("npz", NASTY, (NASTY,)),
    )
    html = render_page(reported(recorded))
    assert "<script>alert" not in html
    assert "\x1b" not in html
    page = Page(html)
    assert len(page.scripts) == 3
    assert page.data["labels"]["domain"][0] == NASTY
    assert "<script>alert('x')</script>" in page.text


def test_words_of_files_are_not_taken_for_colours() -> None:
    story = reported(trace(labels={"domain": np.array(["$ink"] * 4 + ["b"] * 4)}))
    time = next(x for x in page_figures(story) if x.name == "time")
    assert '"$ink"' in json.dumps(vega.painted(time.spec))
    assert '"$soft"' not in json.dumps(vega.painted(time.spec))


def test_without_ranks_experts_are_shown() -> None:
    page = Page(render_page(reported(trace(), None)))
    assert page.data["layouts"] == []
    assert "Hottest expert" in page.text


@pytest.mark.parametrize(
    ("counts", "num_ranks"),
    [
        (np.ones((1, 1, 1)), 1),
        (np.ones((1, 1, 2)), 2),
        (np.array([[[0, 0], [3, 1]]]), 2),
        (np.array([[[10**12, 0], [1, 0]]]), 2),
        (np.ones((1, 1, 3)), 2),
    ],
)
def test_the_smallest_and_the_most_uneven_traces_have_a_page(
    counts: np.ndarray, num_ranks: int
) -> None:
    page = Page(render_page(reported(Trace(counts=counts), num_ranks)))
    assert not re.search(r"\b(nan|inf)\b", page.text + page.scripts[0], re.IGNORECASE)


def test_many_ranks_layers_and_steps_stay_below_three_megabytes() -> None:
    recorded = trace(75, 256, 56)
    html = render_page(
        report_story(
            recorded,
            summarise(recorded, num_ranks=128),
            ORIGIN,
            after=summarise(recorded, placement=contiguous(recorded, 128)),
            placement=contiguous(recorded, 128),
        )
    )
    page = Page(html)
    assert page.data["ranks"][:2] == ["0-1", "2-3"]
    assert len(page.data["ranks"]) == 64
    assert len(html.encode()) < 3_000_000


def test_page_is_deterministic() -> None:
    assert render_page(reported(trace())) == render_page(reported(trace()))


def test_pages_need_the_plotting_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    vega.library.cache_clear()
    with pytest.raises(EquipoiseError, match=r"equipoise\[page\]"):
        vega.library()
    vega.library.cache_clear()


def test_a_lost_rank_takes_experts_without_a_copy_elsewhere() -> None:
    recorded = Trace(counts=[[[6, 2, 1, 1]]])
    placement = Placement([[0, 1, 0, 2, 0, 3]], num_ranks=3, num_experts=4)
    table = loss_table(recorded, lay(recorded.counts, {"x": placement}))
    assert table is not None
    assert table.rows == tuple((r, 1.0, 1, pytest.approx(s)) for r, s in enumerate([0.2, 0.1, 0.1]))


@pytest.mark.parametrize(
    ("kind", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<svg")]
)
def test_figures_are_saved_as_pictures(kind: str, start: bytes) -> None:
    figure = next(x for x in page_figures(reported(trace())) if x.name == "layers")
    assert vega.picture(figure, kind).startswith(start)


def test_maps_are_saved_with_their_cells() -> None:
    story = reported(trace())
    picture = save_picture(story, "heat-0", "svg").decode()
    assert picture.count("busiest") >= 3
    (word,) = re.findall(r"<text ([^>]*)>busiest</text>", picture)
    assert 'text-anchor="end"' in word  # in the middle of a narrow column it would be cut off
    with pytest.raises(EquipoiseError, match=r"no figure nothing; the page has heat-0, time"):
        save_picture(story, "nothing", "svg")


def test_experts_and_slots_are_saved_as_the_page_opens_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = trace()
    rows = np.concatenate([np.arange(16).reshape(4, 4), np.zeros((4, 1), int)], axis=1)
    current = Placement(np.tile(rows.reshape(1, 20), (3, 1)), num_ranks=4, num_experts=16)
    story = plan_story(recorded, planned(recorded, current), ORIGIN, current=current)
    drawn: list[dict[str, object]] = []
    monkeypatch.setattr(document, "picture", lambda figure, _: drawn.append(figure.spec) or b"")
    for name in ("experts", "placement"):
        save_picture(story, name, "svg")
    experts, placement = drawn
    cells = experts["data"]["values"]
    assert (len(cells), max(x["copies"] for x in cells)) == (
        3 * 16,
        story.laid[-1].layout.copies.max(),
    )
    assert sum(x["value"] for x in cells) == pytest.approx(3 * 16, rel=1e-3)
    slots, links = placement["data"]["values"], placement["layer"][2]["data"]["values"]
    last = story.laid[-1].layout.slots[0]
    assert [5 * x["rank"] + x["slot"] for x in slots] == list(range(20))
    assert [x["expert"] for x in slots] == last.tolist()
    assert [x["moved"] for x in slots] == (last != current.slots[0]).tolist()
    assert len(links) == 20 - 16
    assert sum(x["value"] for x in slots) / 20 == pytest.approx(1.0)


def test_maps_are_compared_with_each_other_and_with_none() -> None:
    recorded = trace()
    plan = planned(recorded).plan.placement
    laid = lay_maps(recorded, {"a.json": contiguous(recorded, 4), "b.json": plan}, "even")
    page = Page(render_page(compare_story(recorded, laid, ORIGIN)))
    assert page.tone == "good"
    assert "Best on these steps: b.json." in page.text
    assert [x["name"] for x in page.data["layouts"]] == ["no balancing", "a.json", "b.json"]
    with pytest.raises(EquipoiseError, match="is for 2 ranks and the first map for 4"):
        lay_maps(recorded, {"a": plan, "b": contiguous(recorded, 2)}, "even")
    with pytest.raises(EquipoiseError, match="compare at most 5"):
        lay_maps(recorded, {str(i): plan for i in range(6)}, "even")


def test_a_budget_has_a_line_and_rows_for_every_planner() -> None:
    recorded = trace(steps=40)
    fit, held = recorded.split(at=0.75)
    planners = {"greedy": Greedy(), "contiguous": Contiguous()}
    results = {
        name: budget(fit, held, Topology(4), up_to=12, planner=planner, expert_bytes=10**9)
        for name, planner in planners.items()
    }
    story = budget_story(recorded, held, results, dispatcher("even", Topology(4)), ORIGIN)
    page = Page(render_page(story))
    start = results["greedy"].points[0]
    expected = [
        (name, point.redundant[0], point.gain_over(start))
        for name, result in results.items()
        for point in result.points
    ]
    rows = next(x for x in page.data["figures"] if x["name"] == "budget")["spec"]["data"]["values"]
    assert [(row["planner"], row["redundant"], row["gain"]) for row in rows] == [
        (name, slots, gain.share) for name, slots, gain in expected
    ]
    assert [row["high"] - row["gain"] for row in rows] == pytest.approx(
        [gain.error for _, _, gain in expected]
    )
    table = next(table for table in story.tables if table.name == "budget-table")
    column = table.head.index("taken off")
    assert [(row[0], row[1], row[column]) for row in table.rows] == [
        (name, slots, gain.share) for name, slots, gain in expected
    ]
    last = results["greedy"].front[-1]
    assert page.tone == "good"
    assert f"{last.redundant[0]} redundant slots a layer pay with the planner greedy." in page.text
    names = [layout["name"] for layout in page.data["layouts"]]
    assert names[0] == "no balancing"
    assert names[-1] == f"greedy, {last.redundant[0]} redundant"  # the best, which is shown large
    assert f"greedy: {results['greedy'].advice}" in page.text


def test_a_budget_of_few_steps_has_no_verdict() -> None:
    recorded = trace(steps=8)
    fit, held = recorded.split(at=0.75)
    results = {"greedy": budget(fit, held, Topology(4), up_to=8, planner=Greedy())}
    story = budget_story(recorded, held, results, dispatcher("even", Topology(4)), ORIGIN)
    assert story.band.tone == "open"
    assert story.band.answer == "No verdict: too few unseen windows."


def test_the_budget_in_seconds_says_what_times_count() -> None:
    recorded = trace(steps=40)
    fit, held = recorded.split(at=0.75)
    judge = dispatcher("even", Topology(4), cost=rank_cost("h100-deepep-ep32"))
    results = {"greedy": budget(fit, held, Topology(4), planner=Greedy(), dispatch=judge)}
    story = budget_story(recorded, held, results, judge, ORIGIN, counts="the experts")
    assert "Times count the experts." in story.notes
    assert "Floor" not in [number.name for number in story.band.numbers]
    table = next(table for table in story.tables if table.name == "budget-table")
    assert "experts ms" in table.head


def test_a_forecast_has_a_page_with_its_verdict_and_its_options() -> None:
    recorded = trace(steps=40)
    cost = UncertainCost.published("h100-deepep-ep32")
    answer = forecast(recorded, Topology(4), cost, planner=lambda dispatch: Greedy())
    page = Page(render_page(forecast_story(recorded, [answer], 0.2, ORIGIN)))
    assert answer.verdict.text in page.text
    assert f"{1e3 * answer.best.step_seconds:.3f} ms" in page.text
    spec = next(x["spec"] for x in page.data["figures"] if x["name"] == "budget-0")
    assert [row["gain"] for row in spec["data"]["values"]] == [x.gain for x in answer.options]


def test_tuning_has_a_page_with_every_setting_and_the_front() -> None:
    fit, held = trace(steps=80).split(0.5)
    model = UncertainCost.published("h100-deepep-ep32")
    conditions = Conditions(topology=Topology(4), model=model, expert_bytes=10**6, interference=1)
    tuned = Tuned(fit=fit, held=held, conditions=conditions, proposals=256)
    chosen = cases(tuned, dispatch=["even"], redundant=[0, 4], window=[8], interval=[8])
    found = Tuning(settings=tuple(Tried(**run(tuned, case)) for case in chosen))
    page = Page(render_page(tuning_story(tuned, found, ORIGIN, text=found.text)))
    assert found.text in page.text
    for name in ("front-memory", "front-moves"):
        spec = next(x["spec"] for x in page.data["figures"] if x["name"] == name)
        points = spec["data"]["values"]
        assert sorted(p["setting"] for p in points) == sorted(s.name for s in found.settings)
        assert {p["setting"] for p in points if p["front"]} == {s.name for s in found.front}
