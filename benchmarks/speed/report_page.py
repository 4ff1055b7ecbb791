"""Time to build and to open the page of a report: 75 layers of 256 experts, 56 windows, 32 ranks.

    python -m benchmarks.speed.report_page [RECORDING]

Protocol: a recording, or else a generated one of that size; its summary is made before. "built" is
the story and the page, the plotting library's start included. "opened" is headless Chromium from
the address to the last figure drawn, the median of 5, each in a window of its own. Seconds of the
processor are those of the command, and of the page's main thread.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from benchmarks.quality.machine import about_machine
from equipoise import Trace, read_trace
from equipoise.report.page.document import render_page
from equipoise.report.page.of_report import report_story
from equipoise.report.page.story import Origin
from equipoise.report.summary import summarise
from equipoise.simulate.routers import drift, lognormal, sample_trace

LAYERS, EXPERTS, WINDOWS, RANKS, TOP_K, TOKENS = 75, 256, 56, 32, 8, 4096
OPENINGS = 5


def recorded() -> Trace:
    popularity = lognormal(EXPERTS, sigma=1.0, num_layers=LAYERS, seed=1)
    moving = drift(popularity, num_steps=WINDOWS, std_per_step=0.1, seed=2)
    return sample_trace(moving, num_tokens=TOKENS, top_k=TOP_K, seed=3)


def build(trace: Trace) -> tuple[str, float, float]:
    """The page, and the seconds of the clock and of the processor that it took."""
    summary = summarise(trace, num_ranks=RANKS)
    clock, processor = time.perf_counter(), time.process_time()
    page = render_page(report_story(trace, summary, Origin(facts={"command": "benchmark"})))
    return page, time.perf_counter() - clock, time.process_time() - processor


def opened(browser: Browser, file: Path) -> tuple[float, float]:
    """Seconds until the last figure is drawn, and of the processor for the main thread."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    began = time.perf_counter()
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn=light]")
    seconds = time.perf_counter() - began
    metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    context.close()
    return seconds, metrics["TaskDuration"]


def main() -> None:
    trace = read_trace(sys.argv[1]) if len(sys.argv) > 1 else recorded()
    page, clock, processor = build(trace)
    print(f"{about_machine()}\n")
    print(f"{trace}")
    print(f"built in {clock:.2f} s ({processor:.2f} s of the processor)")
    print(f"{len(page.encode()) / 1e6:.2f} MB")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        file = Path(folder) / "report.html"
        file.write_text(page, encoding="utf-8")
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        times = [opened(browser, file) for _ in range(OPENINGS)]
        browser.close()
    seconds, processor = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"opened in {seconds:.2f} s ({processor:.2f} s of the processor), median of {OPENINGS}")


if __name__ == "__main__":
    main()
