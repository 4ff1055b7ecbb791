"""``equipoise calibrate`` on timed runs, and a forecast that goes by what it found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from tests.simulate.test_own_runs import Run, run_of


def keep(run: Run, folder: Path) -> Path:
    """A run as the folder that the command reads."""
    folder.mkdir()
    eq.write_trace(run.trace, folder / "trace.safetensors")
    eq.write_map(run.layout.placement, folder / "map.json", format="equipoise")
    rows = "\n".join(map(repr, run.seconds.tolist()))
    (folder / "step_seconds.csv").write_text(f"seconds\n{rows}\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    parent = tmp_path_factory.mktemp("runs")
    asked = [(32, False), (128, False), (512, False), (512, True)]
    return [
        keep(run_of(tokens, skewed=skewed), parent / f"{tokens}-{skewed}")
        for tokens, skewed in asked
    ]


@pytest.fixture(scope="module")
def machine(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("machine") / "mine.json"
    names = [str(folder) for folder in folders]
    assert main(["calibrate", *names, "--ranks", "2", "-o", str(output)]) == 0
    return output


def test_the_runs_constants_are_found(machine: Path) -> None:
    cost = json.loads(machine.read_text())["timed_runs"]["cost"]
    assert cost["experts"]["token_seconds"] == pytest.approx(2e-5, rel=0.1)
    assert cost["experts"]["expert_seconds"] == pytest.approx(3.2e-4, rel=0.3)


def test_a_forecast_by_timed_runs_counts_whole_steps(machine: Path, folders, document) -> None:
    trace = folders[2] / "trace.safetensors"
    (answer,) = document(
        "forecast", trace, "--ranks", 2, "--rank-cost", machine, "--planner", "greedy"
    )
    assert "counting whole steps" in answer["text"]
    best = answer["best"]
    assert best["interval"][0] <= best["gain"] <= best["interval"][1]
    seconds = np.loadtxt(folders[2] / "step_seconds.csv", skiprows=1)
    plain = best["step_seconds"] / (1 - best["gain"])
    assert plain == pytest.approx(seconds.mean(), rel=0.1)


def test_the_others_take_its_experts_times(machine: Path, folders, document) -> None:
    trace = folders[2] / "trace.safetensors"
    told = ("--ranks", 2, "--redundant", 2, "--rank-cost", machine, "--planner", "greedy")
    assert document("plan", trace, *told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}", "{1}", "{2}"], "Timed runs need --ranks"),
        (["{0}", "{1}", "--ranks", "2"], "2 timed runs cannot tell"),
        (["{0}", "{1}", "{2}", "--ranks", "3"], "3 ranks|32 experts"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    arguments: list[str], message: str, folders: list[Path], tmp_path: Path, capsys
) -> None:
    given = [argument.format(*folders) for argument in arguments]
    assert main(["calibrate", *given, "-o", str(tmp_path / "mine.json")]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "mine.json").exists()
