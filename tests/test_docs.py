"""The documentation keeps up with the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from equipoise.engines.registry import map_formats, trace_formats

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "models").rglob("*.md")),
]
FORMATS = "\n".join(
    p.read_text(encoding="utf-8") for p in sorted((DOCS / "reference" / "formats").glob("*.md"))
)


def test_the_command_page_is_current():
    page = runpy.run_path(str(DOCS / "generate.py"))["commands_page"]()
    current = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert current == page, "run: python docs/generate.py"


def test_the_table_of_dispatchers_is_current():
    page = runpy.run_path(str(DOCS / "generate.py"))["dispatch_page"]()
    current = (DOCS / "reference" / "dispatch.md").read_text(encoding="utf-8")
    assert current == page, "run: python docs/generate.py"


def test_the_table_of_planners_is_current():
    page = runpy.run_path(str(DOCS / "generate.py"))["planners_page"]()
    current = (DOCS / "reference" / "planners.md").read_text(encoding="utf-8")
    assert current == page, "run: python docs/generate.py"


def test_the_tables_of_engines_options_are_current():
    page = runpy.run_path(str(DOCS / "generate.py"))["engine_options_page"]()
    current = (DOCS / "reference" / "engine-options.md").read_text(encoding="utf-8")
    assert current == page, "run: python docs/generate.py"
    assert "| `num_wait_worker_iterations` |" in page


def test_the_notebook_of_the_lab_is_current():
    generate = runpy.run_path(str(DOCS / "generate.py"))
    current = generate["NOTEBOOK"].read_text(encoding="utf-8")
    assert current == generate["lab_notebook"](), "run: python docs/generate.py"


def test_every_option_has_a_help_text():
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    bare = [line for line in page.splitlines() if re.match(r"\* `.*`:\s*(\*\[.*)?$", line)]
    assert bare == []


@pytest.mark.parametrize("known", [*trace_formats(), *map_formats()], ids=lambda f: f.name)
def test_every_format_is_documented(known):
    assert f"`{known.name}`" in FORMATS


def test_the_commands_name_every_format_that_they_write():
    page = " ".join((DOCS / "reference" / "commands.md").read_text(encoding="utf-8").split())
    maps = ", ".join(known.name for known in map_formats() if known.write is not None)
    traces = ", ".join(known.name for known in trace_formats() if known.write is not None)
    assert page.count(f"Engine that loads the map: {maps}; or vllm,") == 2  # plan and repair
    assert page.count(f"Engine that loads the maps: {maps}.") == 1
    assert f"Maps: {maps}. Recordings: {traces}." in page


def test_every_rule_is_documented():
    code = "\n".join(p.read_text() for p in (ROOT / "src/equipoise/engines").rglob("*.py"))
    rules = set(re.findall(r'"([TSXAENW]\d)"', code))
    assert len(rules) > 20
    assert {rule for rule in rules if not re.search(rf"\b{rule}\b", FORMATS)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).as_posix()
        if name != "README.md" and not name.startswith("dev/decisions/"):
            assert f"({name})" in index, name


def test_the_readme_example_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "moe_load_balancer.yaml").is_file()
    assert "more than the bound" in capsys.readouterr().out


def test_commands_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^equipoise (\w+) ", text, re.MULTILINE))
    assert len(named) >= 6
    assert {name for name in named if f"\n## equipoise {name}\n" not in page} == set()
