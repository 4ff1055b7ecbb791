"""The report page in a real browser.

Skipped without a Chromium; with EQUIPOISE_REQUIRE_BROWSER=1 in the environment that is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.balance import rank_loads
from equipoise.placement import Placement
from equipoise.plan.bounds import Binding
from equipoise.plan.result import Plan
from equipoise.report.page import render_page
from equipoise.report.summary import TraceSummary, summarise
from equipoise.trace import Trace

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

LAYERS, RANKS, EXPERTS = 12, 8, 64


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        missing = "no chromium on the PATH"
        if os.environ.get("EQUIPOISE_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with playwright.sync_playwright() as play:
        started = play.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def trace() -> Trace:
    rng = np.random.default_rng(4)
    share = rng.dirichlet(np.full(EXPERTS, 0.5), size=LAYERS)
    counts = np.stack([[rng.multinomial(4000, p) for p in share] for _ in range(6)])
    labels = {"domain": np.repeat(["code", "math"], 3)}
    return Trace(counts=counts, layer_ids=tuple(range(3, 3 + LAYERS)), top_k=4, labels=labels)


@pytest.fixture(scope="module")
def plan(trace: Trace) -> Plan:
    """Experts dealt to the ranks to and fro, heaviest last."""
    order = np.argsort(trace.total, axis=1)
    to_and_fro = np.concatenate([np.arange(RANKS), np.arange(RANKS)[::-1]])
    rank = np.tile(to_and_fro, EXPERTS // len(to_and_fro))
    slots = np.take_along_axis(order, np.argsort(rank, kind="stable")[None, :], axis=1)
    placement = Placement(slots, num_ranks=RANKS, num_experts=EXPERTS, layer_ids=trace.layer_ids)
    load = trace.total.astype(np.float64)
    return SimpleNamespace(  # what the page reads of a plan
        placement=placement,
        planner="ToAndFro(an_option_with_a_long_name=False, another_with_a_longer_name=True)",
        dispatch="even",
        load=load,
        peak=rank_loads(load, placement).max(axis=1),
        bound=load.sum(axis=1) / RANKS,
        binding=tuple(Binding(n, "copies", f"layer {n}: too few copies") for n in trace.layer_ids),
        status="Load it.",
        gap=rank_loads(load, placement).max(axis=1).sum() * RANKS / load.sum() - 1,
    )


@pytest.fixture(scope="module")
def summaries(trace: Trace, plan: Plan) -> tuple[TraceSummary, TraceSummary]:
    return summarise(trace, num_ranks=RANKS), summarise(trace, placement=plan.placement)


@pytest.fixture(scope="module")
def file(
    summaries: tuple[TraceSummary, TraceSummary],
    plan: Plan,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(summaries[0], after=summaries[1], plan=plan), encoding="utf-8")
    return path


@pytest.fixture
def page(browser: playwright.Browser, file: Path) -> Iterator[playwright.Page]:
    """The open page; afterwards, that it complained about nothing and asked for nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(file.as_uri())
    yield opened
    context.close()
    assert complaints == []
    assert requests == [file.as_uri()]


def cells(page: playwright.Page, map_index: int) -> playwright.Locator:
    return page.locator("table.heat").nth(map_index).locator("tbody td")


def test_maps_have_a_cell_for_each_layer_and_rank(
    page: playwright.Page, summaries: tuple[TraceSummary, TraceSummary]
) -> None:
    for index, summary in enumerate(summaries):
        assert cells(page, index).count() == LAYERS * RANKS
        value = summary.rank_p95[2][5]
        title = cells(page, index).nth(2 * RANKS + 5).get_attribute("title")
        assert title == f"layer 5, rank 5: {value:.2f}×"


def test_equal_values_have_equal_colours_on_both_maps(page: playwright.Page) -> None:
    colours = page.locator("table.heat tbody td").evaluate_all(
        """all => all.map(c => [c.className, c.title.split(': ')[1],
                                getComputedStyle(c).backgroundColor])"""
    )
    by_class: dict[str, set[str]] = {}
    for name, _, colour in colours:
        by_class.setdefault(name, set()).add(colour)
    assert len(by_class) >= 5
    assert all(len(found) == 1 for found in by_class.values())
    assert len(set.union(*by_class.values())) == len(by_class)


def test_pointing_at_a_cell_reads_both_maps(
    page: playwright.Page, summaries: tuple[TraceSummary, TraceSummary]
) -> None:
    cells(page, 0).nth(4 * RANKS + 3).hover()
    before, after = (s.rank_p95[4][3] for s in summaries)
    assert page.locator("#readout").text_content() == (
        f"layer 7, rank 3: {before:.2f}× before, {after:.2f}× after"
    )
    assert page.locator("td.on").count() == 2


def test_maps_are_read_with_the_keyboard(page: playwright.Page) -> None:
    readout = page.locator("#readout")
    page.locator("table.heat").first.focus()
    assert (readout.text_content() or "").startswith("layer 3, rank 0: ")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert (readout.text_content() or "").startswith("layer 4, rank 1: ")
    for _ in range(RANKS):
        page.keyboard.press("ArrowRight")
    assert (readout.text_content() or "").startswith(f"layer 4, rank {RANKS - 1}: ")


def test_every_control_is_reached_with_tab(page: playwright.Page) -> None:
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"theme", "heat", "scroll"} <= reached


def luminance(page: playwright.Page, selector: str, what: str) -> float:
    colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{what}")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_dark_follows_the_system_and_the_button(page: playwright.Page) -> None:
    button = page.locator("#theme")
    assert luminance(page, "body", "backgroundColor") > 200 > luminance(page, "body", "color")
    assert button.get_attribute("aria-pressed") == "false"
    page.emulate_media(color_scheme="dark")
    assert luminance(page, "body", "backgroundColor") < 60 < luminance(page, "body", "color")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert luminance(page, "body", "backgroundColor") > 200


@pytest.mark.parametrize("width", [1280, 800, 420, 320])
def test_nothing_is_wider_than_the_window(page: playwright.Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_charts_have_names_and_points_with_values(page: playwright.Page) -> None:
    charts = page.locator("svg.chart")
    assert charts.count() == 2
    assert charts.nth(0).get_attribute("aria-label") == f"imbalance (max/mean) of {LAYERS} layers"
    assert charts.nth(0).locator("circle title").count() == 2 * LAYERS


def test_the_page_reads_without_scripts(browser: playwright.Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(file.as_uri())
    assert opened.locator("table.heat tbody td").count() == 2 * LAYERS * RANKS
    assert opened.locator("h1").is_visible()
    context.close()
