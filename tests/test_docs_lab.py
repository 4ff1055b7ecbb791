from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

from equipoise import balance, lab, noise
from equipoise.simulate import routers

DOCS = Path(__file__).parents[1] / "docs"
LAB = (DOCS / "lab.md").read_text(encoding="utf-8")
CONCEPTS = (DOCS / "concepts.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_of_the_lab_prints_what_the_page_shows():
    blocks = BLOCK.findall(LAB)
    assert [language for language, _ in blocks] == ["python", "text"] * (len(blocks) // 2)
    session: dict[str, object] = {}
    for (_, code), (_, shown) in zip(blocks[::2], blocks[1::2], strict=True):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "lab.md", "exec"), session)
        assert printed.getvalue() == shown


def test_the_lab_keeps_its_promises():
    ratio = re.search(r"^slower by (\S+)$", LAB, re.MULTILINE)
    assert ratio is not None
    assert float(ratio[1]) > 2.5
    assert "1.0 68 of 128 dropped" in LAB
    roots = [float(x) for x in re.findall(r"sqrt\(tokens\) = (\S+)$", LAB, re.MULTILINE)]
    assert len(roots) == 6
    assert max(roots) / min(roots) < 1.1


@pytest.mark.parametrize("page", ["lab.md", "concepts.md"])
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DOCS / target).exists(), target


def test_every_public_quantity_is_in_the_glossary():
    for module in (balance, lab, noise, routers):
        for name, value in vars(module).items():
            defined_here = getattr(value, "__module__", None) == module.__name__
            if defined_here and not name.startswith(("_", "check_", "as_")):
                assert f"`{name}" in CONCEPTS, f"{name} is missing in docs/concepts.md"


def test_plots_are_drawn_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib")
    draw = runpy.run_path(str(DOCS / "lab" / "plots.py"))["main"]
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        draw(tmp_path / run)
    drawn = sorted((tmp_path / "first").iterdir())
    assert [f.name for f in drawn] == sorted(f.name for f in (DOCS / "lab").glob("*.svg"))
    for plot in drawn:
        assert plot.read_bytes() == (tmp_path / "second" / plot.name).read_bytes()
        assert b"<dc:date>" not in plot.read_bytes()
