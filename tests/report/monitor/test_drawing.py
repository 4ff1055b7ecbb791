"""Frames as a terminal shows them, in ``frames/``; where one changes on purpose, look at it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from equipoise.report.monitor.drawing import Picture, frame, shown_lines, snapshot
from equipoise.report.monitor.exposition import Page, look_at_pages
from equipoise.report.monitor.look import Loads, look_at_loads
from equipoise.report.monitor.monitor import Monitor
from tests.report.monitor.servers import exposition

FRAMES = Path(__file__).parent / "frames"
SIZES = [(80, 24), (200, 50)]


def recording(ranks: int) -> Monitor:
    """An hour of a recording: the first experts become popular, and the map changes twice."""
    monitor = Monitor("statistics.jsonl")
    for step in range(90):
        load_LE = np.full((12, 64), 100)
        load_LE[:, :5] += int(200 * np.sin(step / 20) ** 2)
        load_LE[::2, 40] += step
        loads = Loads(
            layer_ids=tuple(range(3, 15)),
            load_LE=load_LE,
            load_LR=load_LE.reshape(12, ranks, -1).sum(axis=2).astype(float),
        )
        monitor.take(
            [
                look_at_loads(
                    loads, time=1000.0 + 40 * step, step=10 * step, noise_floor=1.08,
                    map_version=step // 40, moved_slots=step // 40 * 12,
                )
            ]
        )  # fmt: skip
    return monitor


def group(ranks: int) -> Monitor:
    """Two looks at a serving group."""
    monitor = Monitor("127.0.0.1:9400")
    for time in (1000.0, 1060.0):
        text = exposition(
            ranks, layers=6, map_version=time // 1050, tokens_total=200 * time,
            step_seconds_sum=time, step_seconds_count=32 * time,
            last_look_timestamp_seconds=time - 7,
        )  # fmt: skip
        monitor.take([look_at_pages([Page(text)], time=time, silent={})])
    return monitor


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("ranks", [4, 32])
@pytest.mark.parametrize("story", [recording, group])
def test_frames(story, ranks, width, height):
    monitor = story(ranks)
    text = shown_lines(frame(monitor.view(4570.0), width, height)) + "\n"
    assert text == (FRAMES / f"{story.__name__}-{ranks}-{width}x{height}.txt").read_text()


@settings(max_examples=20)
@given(st.integers(1, 220), st.integers(1, 60))
def test_a_frame_has_the_size_of_the_terminal(width, height):
    for monitor in (FULL, EMPTY):
        lines = frame(monitor.view(0.0), width, height)
        assert len(lines) == height
        assert all(line.cell_len <= width for line in lines)


FULL, EMPTY = recording(4), Monitor("nothing yet")


def test_a_terminal_without_block_characters_gets_ascii():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=out, width=80, height=24, color_system=None)
    console.print(Picture(FULL.view(4570.0), 24))
    out.flush()
    text = out.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "rank 0 ##" in text
    assert text.count("\n") <= 24


def test_a_snapshot_is_a_page_that_escapes_names():
    monitor = Monitor("<script>alert(1)</script>")
    page = snapshot(monitor.view(0.0), 80, 24)
    assert page.startswith("<!DOCTYPE html>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
