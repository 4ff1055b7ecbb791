"""The built site in a real browser, from its folder: pages, links, and the search without a server.

`make site` builds it. Skipped where it is not built; with EQUIPOISE_REQUIRE_SITE=1 in the
environment that is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from equipoise.report.pages import pages
from tests.browser.test_report_page import browser  # noqa: F401  # the fixture

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
REQUIRED = os.environ.get("EQUIPOISE_REQUIRE_SITE") == "1"

if not (SITE / "index.html").is_file() and not REQUIRED:
    pytest.skip("no site; make site builds it", allow_module_level=True)


def test_every_page_is_in_it():
    docs = ROOT / "docs"
    built = [SITE / one.path.relative_to(docs).with_suffix(".html") for one in pages().values()]
    assert [str(file) for file in built if not file.is_file()] == []


def test_search_works_without_a_server(browser):  # noqa: F811
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{(SITE / 'search.html').as_uri()}?q=redundancy")
    page.wait_for_selector("ul.search li a")
    found = page.eval_on_selector_all("ul.search li a", "links => links.map(a => a.href)")
    assert any("/howto/budget.html" in link for link in found)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()
