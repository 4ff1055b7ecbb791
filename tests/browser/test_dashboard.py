"""The dashboard in a real browser: its sliders against the library.

Skipped without a Chromium; with EQUIPOISE_REQUIRE_BROWSER=1 in the environment that is a failure.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from equipoise.control.findings import Balance, Finding
from equipoise.control.metrics import Metrics
from equipoise.engines.served_models import served_models
from equipoise.report.dashboard import Dashboard, DashboardServer
from equipoise.report.monitor.address import Addresses
from equipoise.simulate.what_if import Answer, Question, WhatIf
from equipoise.trace import Trace
from tests.browser.test_report_page import browser  # noqa: F401  # the fixture

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

NASTY = "<img src=x onerror=console.log(1)>"
MODEL = "gpt-oss-20b"
CELLS = {3: (0.5, 1.5, 1.25, 0.75), 9: (1.0, 1.0, 2.0, 0.0)}
AT_START = Question(model=MODEL, num_ranks=16, skew=1.0, drift=0.05)
"""What the page asks then: it began with a recording of 16 experts, which allows 16 ranks."""


@pytest.fixture(scope="module")
def what_if() -> WhatIf:
    rng = np.random.default_rng(1)
    popularity = rng.dirichlet(np.full(16, 0.5), size=2)
    recording = Trace(
        counts=rng.multinomial(40_000, popularity, size=(10, 2)),
        layer_ids=(3, 9),
        top_k=2,
    )
    return WhatIf(served_models(), recording, name=NASTY)


@pytest.fixture(scope="module")
def metrics() -> tuple[Metrics, str]:
    served = Metrics(with_details=True)
    served.take_step(0.25)
    served.take_ranks(4, 0.0, wanted=4, process="p0", rank=0)
    balance = {"": Balance(imbalance=1.5, excess=0.25, balancedness=0.6)}
    served.take_answer(
        Finding(number=0, balance=balance, sure_excess=0.2, assignments=100, layer_rank_load=CELLS)
    )
    return served, f"http://127.0.0.1:{served.listen(0)}/metrics"


@pytest.fixture(scope="module")
def server(what_if: WhatIf, metrics: tuple[Metrics, str]) -> Iterator[DashboardServer]:
    with DashboardServer(Dashboard(what_if, Addresses([metrics[1]])), 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def page(browser, server: DashboardServer) -> Iterator[playwright.Page]:  # noqa: F811
    """The page with a small model; afterwards, that it has not complained nor asked elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(server.url)
    settle(opened)
    opened.select_option("#routing", "generated")
    opened.select_option("#model", MODEL)
    settle(opened)
    yield opened
    context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith(server.url)} <= {"data:,"}


def settle(page: playwright.Page) -> None:
    page.wait_for_selector("#answer[aria-busy=false]", timeout=60_000)


def moved(page: playwright.Page, slider: str, *keys: str) -> None:
    page.locator(f"#{slider}").focus()
    for key in keys:
        page.keyboard.press(key)
    settle(page)


def told(page: playwright.Page, key: str) -> str:
    return page.locator(f"#figures dd[data-key={key}]").inner_text()


def numbers(page: playwright.Page, chart: str, column: int) -> list[str]:
    return page.locator(f"#{chart} tbody tr").evaluate_all(
        "(rows, column) => rows.map(row => row.cells[column].textContent)", column
    )


def short(value: float) -> str:
    size = abs(value)
    return "0" if value == 0 else f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def check(page: playwright.Page, answer: Answer) -> None:
    """The page says what the library answers."""
    assert page.locator("#headline").text_content() == answer.headline
    for figure in answer.figures:
        text = told(page, figure.key)
        assert short(figure.after) in text
        if figure.before not in (None, figure.after):
            assert short(figure.before) in text
    assert numbers(page, "batches", 1) == [short(value) for value in answer.batches.without]
    assert numbers(page, "batches", 2) == [short(value) for value in answer.batches.eplb]
    assert numbers(page, "ranks", 2) == [short(value) for value in answer.layer.ranks_after]
    assert numbers(page, "experts", 0) == [str(expert) for expert in answer.layer.experts]
    assert numbers(page, "experts", 2) == [str(copies) for copies in answer.layer.copies]
    assert numbers(page, "curve", 2) == [short(1e3 * s) for s in answer.curve.after_seconds]


def test_sliders_are_moved_with_the_keyboard_and_numbers_are_the_librarys(page, what_if):
    check(page, what_if.answer(AT_START))
    moved(page, "skew", "ArrowRight", "ArrowRight")
    check(page, what_if.answer(replace(AT_START, skew=1.1)))
    moved(page, "redundant_per_rank", "ArrowRight")
    moved(page, "num_ranks", "ArrowLeft")
    moved(page, "step_tokens", "ArrowLeft")
    page.select_option("#dispatch", "minmax")
    page.select_option("#gpu", "b200")
    settle(page)
    question = replace(
        AT_START,
        skew=1.1,
        redundant_per_rank=2,
        num_ranks=8,
        step_tokens=2048,
        dispatch="minmax",
        gpu="b200",
    )
    answer = what_if.answer(question)
    check(page, answer)
    assert page.locator("#batches path[data-name]").count() == 5
    assert numbers(page, "batches", 4) == [short(value) for value in answer.batches.chosen]


def test_copies_appear_and_the_floor_stays(page):
    moved(page, "redundant_per_rank", "Home")
    floor = told(page, "floor")
    assert page.locator("#experts circle").count() == 0
    busiest = float(re.findall(r"[\d.]+", told(page, "imbalance"))[-1])
    moved(page, "redundant_per_rank", "ArrowRight", "ArrowRight")
    assert page.locator("#experts circle").count() > 0
    assert float(re.findall(r"[\d.]+", told(page, "imbalance"))[-1]) < busiest
    assert told(page, "floor") == floor


def test_sliders_keep_to_what_the_experts_allow(page):
    page.select_option("#model", "mixtral-8x7b")
    moved(page, "num_ranks", "End")
    assert page.locator("output[for=num_ranks]").text_content() == "8"
    moved(page, "redundant_per_rank", "End")
    assert page.locator("output[for=redundant_per_rank]").text_content() == "7"
    assert page.locator("#error").is_hidden()
    assert page.locator("#num_ranks").get_attribute("aria-valuetext") == "8"


def test_a_recording_is_asked_about_and_its_name_is_text(page, what_if):
    page.select_option("#routing", "recorded")
    settle(page)
    assert page.locator("#routing option").nth(1).text_content() == NASTY
    assert page.locator("#skew").is_hidden()
    check(page, what_if.answer(Question(model=MODEL, num_ranks=16, routing="recorded")))
    page.select_option("#layer", "9")
    settle(page)
    assert "layer 9" in page.locator("#ranks svg.chart").get_attribute("aria-label")
    page.select_option("#routing", "generated")
    settle(page)
    assert page.locator("#layer").input_value() == ""


def test_the_group_is_shown_live(page, metrics):
    status = page.locator("#live-status")
    playwright.expect(status).to_contain_text(metrics[1], timeout=10_000)
    assert page.locator("#live-figures dd[data-key=ranks]").text_content() == "4"
    assert page.locator("#live-figures dd[data-key=state]").text_content() == "warm-up"
    assert page.locator("#live-figures dd[data-key=imbalance]").text_content() == "1.50×"
    page.locator("#live-chart tbody tr").first.wait_for(state="attached", timeout=10_000)
    assert numbers(page, "live-chart", 1)[-1] == "1.50"
    assert numbers(page, "live-chart", 2)[-1] == "1.25"
    metrics[0].take_ranks(3, 0.0, wanted=4, process="p0", rank=0)
    assert page.locator("#live-heat .chart rect").count() == 8
    table = page.locator("#live-heat tbody tr")
    assert table.all_text_contents() == ["30.501.501.250.75", "91.001.002.000"]
    ranks = page.locator("#live-figures dd[data-key=ranks]")
    playwright.expect(ranks).to_have_text("3", timeout=10_000)


def test_every_control_has_a_name_and_is_reached_with_tab(page):
    names = page.locator("input, select, button").evaluate_all(
        "all => all.filter(e => e.offsetParent && !e.labels?.length && !e.textContent)"
        ".map(e => e.id)"
    )
    assert names == []
    reached = set()
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    controls = {"theme", "routing", "skew", "drift", "step_tokens", "phase", "draw", "num_ranks"}
    assert controls | {"redundant_per_rank", "dispatch", "gpu", "model", "layer"} <= reached


def test_charts_have_names_with_numbers(page):
    labels = page.locator("#answer svg.chart").evaluate_all(
        "all => all.map(e => e.getAttribute('aria-label'))"
    )
    assert len(labels) == 5
    assert all(re.search(r"\d", label) for label in labels)


@pytest.mark.parametrize("width", [1600, 1000, 700, 400])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_follows_the_system_and_the_button(page):
    def brightness() -> float:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    assert brightness() > 200
    page.emulate_media(color_scheme="dark")
    assert brightness() < 60
    page.locator("#theme").click()
    assert brightness() > 200
