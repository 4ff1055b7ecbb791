"""The page of a plan in a real browser.

Skipped without a Chromium; with EQUIPOISE_REQUIRE_BROWSER=1 in the environment that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.study import study
from equipoise.report.page.copies import CopyPoint, copies_curve
from equipoise.report.page.document import heat_matrix, render_page
from equipoise.report.page.of_plan import plan_story
from equipoise.report.page.story import Origin, Story
from equipoise.topology import Topology
from equipoise.trace import Trace

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

LAYERS, RANKS, EXPERTS = 12, 8, 64


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        missing = "no chromium on the PATH; the package chromium brings it"
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


NASTY = "<img src=x onerror=console.log(1)>\x1b[31m"
ROUNDING = 0.0006  # of the numbers that stand in the page


@pytest.fixture(scope="module")
def story() -> Story:
    rng = np.random.default_rng(4)
    share = rng.dirichlet(np.full(EXPERTS, 0.5), size=(2, LAYERS))
    counts = np.stack([[rng.multinomial(4000, p) for p in share[t % 2]] for t in range(20)])
    recorded = Trace(
        counts=counts,
        layer_ids=tuple(range(3, 3 + LAYERS)),
        top_k=4,
        labels={"domain": np.array(["math", NASTY] * 10)},
    )
    result = study(recorded, Topology(RANKS), num_slots=EXPERTS + RANKS, planner=Greedy())
    return plan_story(recorded, result, Origin(facts={"command": "equipoise plan run"}))


@pytest.fixture(scope="module")
def file(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "plan.html"
    path.write_text(render_page(story), encoding="utf-8")
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
    opened.wait_for_selector("body[data-drawn=light]")
    yield opened
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("blob:")] == [file.as_uri()]


def saved(page: playwright.Page, selector: str) -> str:
    with page.expect_download() as download:
        page.locator(selector).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def matrix(page: playwright.Page, number: int) -> np.ndarray:
    """The values of a heat map, as it saves them."""
    rows = saved(page, f"[data-save=csv][data-of=heat-{number}]").splitlines()
    values = [float(row.split(",")[-1]) for row in rows[1:]]
    return np.array(values).reshape(LAYERS, RANKS + 1)


def expected(story: Story, number: int, statistic: str, steps: np.ndarray) -> np.ndarray:
    laid = story.laid[number]
    return heat_matrix(laid.multiples[steps], laid.evaluation.mean[steps], statistic)


@pytest.mark.parametrize("statistic", ["mean", "p95", "worst", "sum"])
def test_statistics_are_those_of_the_library(
    page: playwright.Page, story: Story, statistic: str
) -> None:
    page.select_option("#statistic", statistic)
    every = np.arange(story.trace.num_steps)
    for number in range(2):
        found = matrix(page, number)
        np.testing.assert_allclose(found, expected(story, number, statistic, every), atol=ROUNDING)


def test_the_mean_of_the_busiest_is_the_verdict(page: playwright.Page, story: Story) -> None:
    for number in range(2):
        headline = float(page.locator(".card dd:not(.meaning)").nth(number).inner_text())
        assert matrix(page, number)[:, -1].mean() == pytest.approx(headline, abs=0.0012)


def test_the_slider_shows_one_step(page: playwright.Page, story: Story) -> None:
    page.locator("#step").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.locator("#statistic").input_value() == "step"
    assert (page.locator("#which").text_content() or "").startswith(f"{story.trace.steps[2]}")
    np.testing.assert_allclose(
        matrix(page, 1), expected(story, 1, "mean", np.array([2])), atol=ROUNDING
    )


def test_a_domain_is_chosen(page: playwright.Page, story: Story) -> None:
    page.select_option("#stage", json.dumps(["domain", "math"]))
    steps = np.flatnonzero(story.trace.labels["domain"] == "math")
    assert 0 < len(steps) < story.trace.num_steps
    np.testing.assert_allclose(matrix(page, 0), expected(story, 0, "mean", steps), atol=ROUNDING)


def test_pointing_at_a_cell_reads_all_maps(page: playwright.Page, story: Story) -> None:
    box = page.locator("#heat-0 canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    readout = page.locator("#readout").text_content() or ""
    found = re.match(r"layer (\d+), rank (\d+): ", readout)
    assert found is not None, readout
    row, rank = int(found[1]) - 3, int(found[2])
    every = np.arange(story.trace.num_steps)
    for number, name in enumerate(["no balancing", "this plan"]):
        value = expected(story, number, "mean", every)[row, rank]
        shown = re.search(rf"{name} ([\d.]+)×", readout)
        assert shown is not None
        assert float(shown[1]) == pytest.approx(value, abs=0.006)
    step = story.laid[0].multiples[:, row, rank].argmax()
    assert f"in step {story.trace.steps[step]})" in readout
    assert f"; {EXPERTS // RANKS} experts, by load " in readout


def test_maps_are_read_with_the_keyboard(page: playwright.Page) -> None:
    readout = page.locator("#readout")
    page.locator("#heat-0").focus()
    assert (readout.text_content() or "").startswith("layer 3, rank 0: ")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert (readout.text_content() or "").startswith("layer 4, rank 1: ")
    for _ in range(RANKS):
        page.keyboard.press("ArrowRight")
    assert (readout.text_content() or "").startswith("layer 4, busiest rank: ")


def test_the_curve_of_copies_is_read_with_the_keyboard(
    browser: playwright.Browser, story: Story, tmp_path: Path
) -> None:
    points = [
        CopyPoint(line=line, redundant=n, gain=gain + n / 100, low=gain, high=gain + 0.5)
        for line, slots, gain in (("greedy", (0, 8, 16), 0.0), ("robust", (0, 16), 0.2))
        for n in slots
    ]
    curve = copies_curve(
        points, name="budget", title="Gain from copies", says="A sentence on how to read it.",
        series="planner", taken_off="taken off",
    )  # fmt: skip
    path = tmp_path / "curve.html"
    path.write_text(render_page(replace(story, figures=(curve,))), encoding="utf-8")
    opened, complaints = browser.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.goto(path.as_uri())
    opened.wait_for_selector("body[data-drawn=light]")
    said = opened.locator("#budget-point")
    opened.locator("#budget").focus()
    assert said.text_content() == "greedy, 0 redundant slots: 0.0% taken off, 0.0% to 50.0%"
    ways = {
        "ArrowRight": "greedy, 8 ", "ArrowDown": "robust, 0 ", "ArrowUp": "greedy, 0 ",
        "End": "greedy, 0 ", "ArrowLeft": "greedy, 0 ",
    }  # fmt: skip
    for key, start in ways.items():
        opened.keyboard.press(key)
        assert (said.text_content() or "").startswith(start), key
    opened.locator("#theme").click()
    opened.wait_for_selector("body[data-drawn=dark]")
    opened.locator("#budget").focus()
    opened.keyboard.press("ArrowRight")
    assert (said.text_content() or "").startswith("greedy, 8 ")
    legend = opened.locator("#budget svg .role-legend-label text").all_text_contents()
    assert legend == ["greedy", "robust"]
    dashes = opened.locator("#budget svg .mark-line path").evaluate_all(
        "lines => lines.map((x) => x.getAttribute('stroke-dasharray'))"
    )
    assert len(set(dashes)) == 2
    opened.close()
    assert complaints == []


@pytest.mark.parametrize("order", ["id", "load"])
def test_experts_are_ordered_by_number_or_load(
    page: playwright.Page, story: Story, order: str
) -> None:
    page.select_option("#order", order)
    rows = [line.split(",") for line in saved(page, "[data-save=csv][data-of=experts]").split()[1:]]
    total = story.trace.total
    multiple = total / total.mean(axis=1, keepdims=True)
    ids = np.tile(np.arange(EXPERTS), (LAYERS, 1))
    if order == "load":
        ids = np.argsort(-multiple, axis=1, kind="stable")
    layout = story.laid[1].layout
    for name, values in {"value": multiple, "copies": layout.copies}.items():
        column = ["layer", "expert", "id", "value", "copies"].index(name)
        shown = np.array([float(row[column]) for row in rows]).reshape(LAYERS, EXPERTS)
        if order == "load" and name == "copies":
            continue  # equal loads may stand in either order
        wanted = np.take_along_axis(values, ids, axis=1)
        np.testing.assert_allclose(shown, wanted, atol=ROUNDING)


def test_the_placement_of_a_layer_is_shown(page: playwright.Page, story: Story) -> None:
    page.select_option("#layer", label="8")  # the model's number of row 5
    text = saved(page, "[data-save=csv][data-of=placement]").split()
    at = text[0].split(",").index("expert")
    placement = story.laid[1].layout
    shown = [int(line.split(",")[at]) for line in text[1:]]
    assert shown == placement.slots[5].tolist()


def test_every_figure_is_drawn_and_explained(page: playwright.Page) -> None:
    plots = page.locator(".plot")
    for number in range(plots.count()):
        assert plots.nth(number).locator("canvas, svg").count() == 1
    for title in page.locator("section h2").all():
        if title.locator(".save").count():
            assert len(title.locator("+ p.hint").inner_text()) > 40


def test_tables_are_sorted_and_saved(page: playwright.Page, story: Story) -> None:
    column = page.locator("#layer-table td:nth-child(2)")
    values = [x.evaluation.imbalance.mean(axis=0) for x in story.laid]
    page.locator("#layer-table .sort").nth(1).click()
    assert column.first.inner_text() == f"{values[0].max():.3f}"
    page.locator("#layer-table .sort").nth(1).click()
    assert column.first.inner_text() == f"{values[0].min():.3f}"
    rows = json.loads(saved(page, "[data-table=json][data-of=layer-table]"))
    assert [row["layer"] for row in rows] == [3 + int(i) for i in values[0].argsort(kind="stable")]
    text = saved(page, "[data-table=csv][data-of=label-table]")
    assert f"domain,{NASTY[:-5]}\N{REPLACEMENT CHARACTER}[31m," in text


def test_figures_are_saved_as_pictures(page: playwright.Page) -> None:
    assert saved(page, "[data-save=svg][data-of=layers]").startswith("<svg")
    with page.expect_download() as download:
        page.locator("[data-save=png][data-of=heat-0]").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def luminance(page: playwright.Page, what: str) -> float:
    colour = page.evaluate(f"getComputedStyle(document.body).{what}")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_dark_follows_the_system_and_the_button(page: playwright.Page) -> None:
    button = page.locator("#theme")
    assert luminance(page, "backgroundColor") > 200 > luminance(page, "color")
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("body[data-drawn=dark]")
    assert luminance(page, "backgroundColor") < 60 < luminance(page, "color")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    page.wait_for_selector("body[data-drawn=light]")
    assert luminance(page, "backgroundColor") > 200


@pytest.mark.parametrize("width", [1280, 420, 320])
def test_nothing_is_wider_than_the_window(page: playwright.Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(100)  # for the figures to follow
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_black_on_white_with_whole_figures(page: playwright.Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.wait_for_selector(f"body[data-drawn={scheme}]")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4
    page.emulate_media(media="print", color_scheme=scheme)  # type: ignore[arg-type]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    drawn = page.locator(".plot canvas, .plot svg").all()
    assert all((box := x.bounding_box()) and box["x"] + box["width"] <= 718 for x in drawn)
    assert page.locator("#layer-table .sort").first.is_visible()
    assert page.locator("#statistic").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_verdict_and_tables_read_without_scripts(browser: playwright.Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(file.as_uri())
    assert opened.locator(".answer").is_visible()
    assert opened.locator("#layer-table tbody tr").count() == LAYERS
    assert opened.locator("noscript p").is_visible()
    context.close()
