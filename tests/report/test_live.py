from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console, RenderableType

from equipoise.control.status import Arrival, Status
from equipoise.report.live import View


def status(**said: Any) -> Status:
    """Rank 0 of two after a second, balanced, unless said otherwise."""
    usual = {
        "name": "p0", "rank": 0, "members": ["p0", "p1"], "epoch": 1, "time": 1.0, "step": 10,
        "step_seconds": 0.02, "tokens": 40, "domain": "docs", "rank_load": [300, 300],
        "imbalance": 1.0, "state": "observe", "version": 0, "moved_slots": 0, "moved_bytes": 0,
        "log": [],
    }  # fmt: skip
    return msgspec.convert(usual | said, Status)


def shown(
    what: RenderableType, *, width: int = 100, height: int = 25, encoding: str = "utf-8"
) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, height=height, record=True, color_system=None)
    console.print(what)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def a_run() -> View:
    """Balanced after a move, a shift, and the next move; two processes."""
    view = View("model", 60, 2)
    story = [
        # (time, domain, imbalance, state, version, moved_slots)
        (1.0, "docs", 1.5, "warm-up", 0, 0),
        (2.0, "docs", 1.5, "observe", 0, 0),
        (3.0, "docs", 1.4, "move", 1, 3),
        (4.0, "docs", 1.0, "settle", 1, 6),
        (5.0, "docs", 1.1, "observe", 1, 6),
        (6.0, "tables", 1.6, "plan", 1, 6),
        (7.0, "tables", 1.2, "settle", 2, 9),
    ]
    for time, domain, imbalance, state, version, moved in story:
        step, tokens = int(time * 10), int(time * 40)
        said = {
            "time": time, "domain": domain, "imbalance": imbalance, "state": state,
            "version": version, "moved_slots": moved, "step": step, "tokens": tokens,
            "moved_bytes": 500_000 * moved, "rank_load": [450, 150],
            "log": [f"line at {time:g} s"],
        }  # fmt: skip
        assert view.update({"p0": status(**said), "p1": status(name="p1", rank=1, tokens=tokens)})
    return view


def test_the_picture_of_a_run():
    assert (
        shown(a_run().render())
        == """\
model on 2 ranks   6 of 60 s   serving tables

Load of each rank over the mean
  rank 0 ██████████████████████████████████████████┊████████████████████  1.50
  rank 1 █████████████████████                     ┊                      0.50

Imbalance, busiest over mean rank: 1.20
  ▇▇▆▁▂█▃  1 to 1.60

Controller: settle, map 2, 9 slots, 4.5 MB moved
Serving: 80 tokens/s, 20 ms a step, 70 steps
  line at 7 s"""
    )


def test_the_table_has_a_row_for_each_stretch():
    assert (
        shown(a_run().summary().table())
        == """\
  from             domain  seconds  steps  ms a step  tokens/s  imbalance
  start            docs        2.0     20      100.0        80      1.450
  map 1            docs        2.0     20      100.0        80      1.050
  shift to tables  tables      1.0     10      100.0        80      1.600
  map 2            tables      1.0     10      100.0        80      1.200"""
    )


def test_the_line_for_a_pipe():
    line = a_run().line()
    assert line == (
        "   6.0 s  tables    imbalance 1.20  80 tokens/s  settle, map 2  loads 1.50 0.50"
    )
    assert line.isascii()


def test_the_document_has_the_numbers_of_the_table():
    document = a_run().summary().as_dict()
    assert (document["moved_slots"], document["moved_bytes"]) == (9, 4_500_000)
    assert document["stretches"][-1] == {
        "began": "map 2", "domain": "tables", "seconds": 1.0, "steps": 10, "tokens": 80,
        "imbalance": 1.2, "tokens_per_second": 80.0, "step_seconds": 0.1,
    }  # fmt: skip


def test_a_terminal_of_few_characters_gets_those_it_has():
    text = shown(a_run().render(), encoding="ascii")
    assert text.isascii()
    assert "\n  ##=_.#.  1 to 1.60\n" in text


@pytest.mark.parametrize("ranks", [2, 8, 32, 64])
@pytest.mark.parametrize(("width", "height"), [(40, 16), (80, 24), (200, 50)])
def test_what_matters_fits_the_terminal(ranks, width, height):
    view = View("model", 60, ranks)
    load = {"rank_load": [100 + rank for rank in range(ranks)], "imbalance": 1.3}
    log = {"log": [f"line {number}" for number in range(5)]}
    view.update({"p0": status(**load, **log, members=[f"p{rank}" for rank in range(ranks)])})
    lines = shown(view.render(), width=width, height=height).splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("1 to 1.50", "Controller: observe", "Serving: ", "line 0", "line 4"):
        assert part in text
    if (ranks, width) in [(32, 80), (64, 200)]:
        assert all(f"rank {rank} " in text for rank in range(ranks))
    assert f"rank {ranks - 1} " in text  # the busiest, whatever fits


def test_a_terminal_of_few_lines_gets_the_first():
    assert len(shown(a_run().render(), height=5).splitlines()) == 4


def test_before_anybody_spoke():
    view = View("model", 60, 2)
    assert not view.update({})
    assert view.elapsed == 0
    assert view.summary().stretches == ()


def test_how_far_the_processes_are_before_they_serve():
    view = View("model", 60, 3)
    assert not view.wait({})
    assert view.wait({"p0": Arrival.STARTED, "p1": Arrival.LOADED})
    assert not view.wait({"p0": Arrival.STARTED, "p1": Arrival.LOADED})
    assert view.line() == "model, 3 processes: 2 have started, 1 have met, 1 have the model"
    assert (
        shown(view.render())
        == """\
model on 3 processes
  have started           2 of 3
  have met               1 of 3
  have the model         1 of 3"""
    )


def test_only_rank_0_speaks():
    view = View("model", 60, 2)
    assert not view.update({"p1": status(name="p1", rank=1)})
    assert view.update({"p1": status(name="p1", rank=1), "p0": status()})


def test_what_was_seen_is_no_news():
    view = View("model", 60, 2)
    assert view.update({"p0": status()})
    assert not view.update({"p0": status()})
    assert view.update({"p0": status(time=1.25)})


def test_a_status_without_load_or_domain_is_shown():
    view = View("model", 60, 2)
    idle = {"rank_load": [], "domain": "", "state": "off"}
    view.update({"p0": status(**idle)})
    view.update({"p0": status(**idle, time=2.0)})
    assert "serving nothing" in shown(view.render())
    assert view.summary().stretches[0].domain == ""
    view.update({"p0": status(domain="docs", time=3.0)})
    assert [s.began for s in view.summary().stretches] == ["start", "start"]
    view.update({"p0": status(domain="", time=4.0)})
    assert len(view.summary().stretches) == 2  # a pause is no shift


def test_when_rank_0_dies_the_next_one_speaks():
    view = View("model", 60, 2)
    dead = status(tokens=100, moved_slots=5)
    view.update({"p0": status(), "p1": status(name="p1", rank=1, time=0.9)})
    view.update({"p0": dead, "p1": status(name="p1", rank=1, time=0.9)})
    view.update({"p0": status(time=2.0, tokens=100, moved_slots=5)})
    heir = status(name="p1", rank=0, epoch=2, members=["p1"], time=7.0, step=30, tokens=90)
    assert view.update({"p0": dead, "p1": heir})
    assert [s.began for s in view.summary().stretches] == ["map 0", "epoch 2: 1 rank"]
    assert view.summary().moved_slots == 5  # counted from 0 in each epoch
    assert "1 rank, epoch 2" in shown(view.render())


def test_what_is_wrong_with_any_process_is_said():
    view = View("model", 60, 2)
    view.update({"p0": status(), "p1": status(name="p1", rank=1)})
    assert "failed" not in view.line()
    wrong = status(name="p1", rank=1, failed_requests=2, alarms=["map_not_kept"])
    view.update({"p0": status(time=2.0, failed_requests=1), "p1": wrong})
    assert view.line().endswith("  3 requests failed, map_not_kept")
    assert "\n3 requests failed, map_not_kept" in shown(view.render())
