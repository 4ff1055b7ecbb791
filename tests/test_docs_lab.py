from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from equipoise import balance, lab, noise
from equipoise.cli import main
from equipoise.sample import LAB_FOLDER
from equipoise.simulate import routers
from tests.cells import Shown, run_cell

DOCS = Path(__file__).parents[1] / "docs"
LAB = (DOCS / "tutorial" / "lab.md").read_text(encoding="utf-8")
CONCEPTS = (DOCS / "explanation" / "concepts.md").read_text(encoding="utf-8")
ANSWERS = (LAB_FOLDER / "answers.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?ms)^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?")


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> dict[str, Shown]:
    """The notebook, run in a folder as `equipoise lab` writes it, then the answers: code to output.

    There is no Jupyter: cells run one after another in this process.
    """
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    folder = tmp_path_factory.mktemp("lab") / "folder"
    assert main(["lab", "--output", str(folder)]) == 0
    notebook = json.loads((folder / "lab.ipynb").read_text(encoding="utf-8"))
    codes = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    names: dict[str, object] = {}
    sys.path.insert(0, str(folder))
    try:
        codes += [code for code, _ in BLOCK.findall(ANSWERS)]
        return {code.strip(): run_cell(code, names) for code in codes}
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("plots", None)
        pyplot.close("all")


@pytest.mark.parametrize("page", [LAB, ANSWERS], ids=["lab.md", "answers.md"])
def test_every_block_prints_what_its_page_shows(session, page):
    blocks = BLOCK.findall(page)
    assert len(blocks) >= 4
    for code, text in blocks:
        shown = session[code.strip()]
        assert (shown.text if text else shown.printed) == text


def test_the_notebook_draws_what_the_page_shows(session):
    drawn = re.findall(r'draw\("(\w+)"\);', "\n".join(session))
    own = re.findall(r"summary\.plot\.(\w+)\(\)$", "\n".join(session), re.MULTILINE)
    assert [*drawn, *own] == re.findall(r"\(lab/(\w+)\.svg\)", LAB)
    assert own == ["layers"]


def test_the_notebook_shows_nouns_as_small_pictures(session):
    ends = [shown.value for shown in session.values() if hasattr(shown.value, "_repr_html_")]
    assert [type(value).__name__ for value in ends] == ["Trace", "TraceSummary"]
    assert all("<svg" in value._repr_html_() for value in ends)


def test_every_try_has_an_answer():
    assert LAB.count("**Try:**") == ANSWERS.count("\n## ")


def test_the_lab_keeps_its_promises():
    ratio = re.search(r"^slower by (\S+)$", LAB, re.MULTILINE)
    assert ratio is not None
    assert float(ratio[1]) > 2.5
    assert "1.0 68 of 128 dropped" in LAB
    roots = [float(x) for x in re.findall(r"sqrt\(tokens\) = (\S+)$", LAB, re.MULTILINE)]
    assert len(roots) == 6
    assert max(roots) / min(roots) < 1.1


def test_every_public_quantity_is_in_the_glossary():
    for module in (balance, lab, noise, routers):
        for name, value in vars(module).items():
            defined_here = getattr(value, "__module__", None) == module.__name__
            if defined_here and not name.startswith(("_", "check_", "as_")):
                assert f"`{name}" in CONCEPTS, f"{name} is missing in docs/explanation/concepts.md"


def test_plots_are_drawn_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib")
    draw = runpy.run_path(str(LAB_FOLDER / "plots.py"))["main"]
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        draw(tmp_path / run)
    drawn = sorted((tmp_path / "first").iterdir())
    assert [f.name for f in drawn] == sorted(
        f.name for f in (DOCS / "tutorial" / "lab").glob("*.svg")
    )
    for plot in drawn:
        assert plot.read_bytes() == (tmp_path / "second" / plot.name).read_bytes()
        assert b"<dc:date>" not in plot.read_bytes()
