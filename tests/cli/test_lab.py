"""``equipoise lab``: what it writes, and that its tests tell an exercise from its solution."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import unittest
from pathlib import Path

import pytest

from equipoise.cli import main
from equipoise.sample import LAB_FOLDER

TESTS = ("counting", "uniform", "hot_expert", "max_device", "efficiency", "capacity")


def make(tmp_path: Path, *options: str) -> Path:
    folder = tmp_path / "lab"
    assert main(["lab", "-o", str(folder), *options]) == 0
    return folder


def results(folder: Path) -> dict[str, str]:
    """What each test in the folder ends with, as a student would run them."""
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "-v"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == ("FAILED" in done.stderr)
    return dict(re.findall(r"(?ms)^test_(\w+) .*?\.\.\. (\w+)$", done.stderr))


def test_all_six_tests_of_the_starter_fail(tmp_path):
    assert results(make(tmp_path)) == dict.fromkeys(TESTS, "ERROR")


def test_all_six_tests_of_the_solution_pass(tmp_path):
    assert results(make(tmp_path, "--solution")) == dict.fromkeys(TESTS, "ok")


def test_the_solution_is_hidden_until_asked_for(tmp_path, capsys):
    folder = make(tmp_path)
    assert not (folder / "answers.md").exists()
    texts = [path.read_text(encoding="utf-8") for path in folder.iterdir()]
    assert not any("max(load - capacity, 0)" in text for text in texts)
    told = capsys.readouterr().out
    assert f"{folder}: README.md, exercise.py, lab.ipynb" in told
    assert f"cd {folder} && python -m unittest -v" in told


def test_with_the_solution_nothing_is_left_to_fill_in(tmp_path, capsys):
    make(tmp_path, "--solution")
    assert "exercise.py is filled in; answers.md answers" in capsys.readouterr().out


def test_as_json(tmp_path, capsys):
    folder = make(tmp_path, "--solution", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(folder)
    assert document["files"] == sorted(path.name for path in folder.iterdir())
    assert "answers.md" in document["files"]


def test_work_is_not_written_over(tmp_path, capsys):
    folder = make(tmp_path)
    (folder / "exercise.py").write_text("my own work")
    assert main(["lab", "-o", str(folder), "--solution"]) == 2
    assert "not an empty directory; name a new one" in capsys.readouterr().err
    assert (folder / "exercise.py").read_text() == "my own work"


MISTAKES = {
    "a repeated expert counts once": (
        "counting",
        "expert_loads",
        lambda choices, n: [sum(expert in row for row in choices) for expert in range(n)],
    ),
    "over the median": (
        "uniform",
        "imbalance",
        lambda loads: max(loads) / sorted(loads)[len(loads) // 2],
    ),
    "one for all": ("hot_expert", "imbalance", lambda loads: 1),
    "the mean device": ("max_device", "step_time", lambda loads, n, placement=None: sum(loads) / n),
    "neighbours on one device": (
        "max_device",
        "step_time",
        lambda loads, n, placement=None: max(
            sum(loads[i * len(loads) // n : (i + 1) * len(loads) // n]) for i in range(n)
        ),
    ),
    "over the busiest expert": (
        "efficiency",
        "efficiency",
        lambda loads, n: sum(loads) / max(loads) / len(loads),
    ),
    "a capacity rounded down": (
        "capacity",
        "dropped",
        lambda loads, factor: sum(max(x - int(factor * sum(loads) / len(loads)), 0) for x in loads),
    ),
}
"""What is easily got wrong: the test that must say so, and the function with the mistake."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_usual_mistake_fails_its_test(mistake, monkeypatch):
    test, function, wrong = MISTAKES[mistake]
    exercise = loaded("exercise", LAB_FOLDER / "solution.py")
    setattr(exercise, function, wrong)
    monkeypatch.setitem(sys.modules, "exercise", exercise)
    case = loaded("test_exercise", LAB_FOLDER / "test_exercise.py").LabTest(f"test_{test}")
    result = unittest.TestResult()
    case.run(result)
    assert len(result.failures) == 1


def loaded(name: str, path: Path):
    """A module from a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
