"""The steps of `docs/dev/extending.md`, taken on a copy of the package: a planner and an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "dev" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```python\n# (src/\S+?)(?:, below: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
CONTRACTS = {
    "tests/plan/test_planners.py": "dealt",
    "tests/dispatch/test_dispatchers.py": "tiny",
    "tests/engines/test_registry.py": "test_registry",  # all of it
    "tests/engines/test_map_io.py": "tiny",
}
"""Files, and the words that choose the tests of what the page adds."""
LOADS = np.random.default_rng(0).integers(1, 1000, (8, 2, 6))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `src` is the package with what the page adds."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("_triton_kernels*"))
    for name, line, text in BLOCK.findall(PAGE):
        file = folder / name
        if line:
            place = re.compile(rf"^ *{re.escape(line)}\n", re.MULTILINE)
            before = file.read_text(encoding="utf-8")
            assert len(place.findall(before)) == 1, f"{name} has not one line {line}"
            text = place.sub(lambda found, added=text: found[0] + added, before)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (folder / "loads.json").write_text(json.dumps({"tiny_loads": LOADS.tolist()}))
    return folder


def run(folder: Path, *words: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{folder / 'src'}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=where or folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def equipoise(folder: Path, command: str) -> str:
    done = run(folder, "equipoise", *command.split())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_commands_have_the_planner_and_the_engine(extended):
    plan = "plan loads.json --ranks 2 --redundant 2 --planner dealt --even-if-worse"
    said = equipoise(extended, f"{plan} --backwards --for tiny -o map.json")
    assert "--ranks 2 --copies 2 --map map.json" in " ".join(said.split())
    rows = json.loads((extended / "map.json").read_text())["rows"]
    heaviest = LOADS.sum(axis=0).argmax(axis=1)
    assert [row[4] for row in rows] == heaviest.tolist()  # backwards: first to the last rank
    assert "map.json" in equipoise(extended, "validate map.json --for tiny --experts 6")
    equipoise(extended, "convert map.json --to trtllm -o map.yaml --experts 6")
    assert "initial_global_assignments" in (extended / "map.yaml").read_text()
    offered = equipoise(extended, "plan --help").split()
    assert {"--backwards", "dealt,"} <= set(offered)


def test_the_doctor_and_the_settings_have_the_engine(extended):
    (extended / "config.json").write_text(
        (ROOT / "tests/engines/transformers/configs/olmoe-1b-7b.json").read_text()
    )
    launch = "tiny serve --ranks 2 --copies 3"
    done = run(extended, "equipoise", "doctor", launch, "--model", "config.json")
    assert done.returncode == 1
    assert "wrong --copies: 64 experts and 3 redundant ones are 67 slots" in done.stdout
    code = (
        "from equipoise.engines.settings import from_options as f; "
        "print(f('tiny', {'copies': 2, 'every': 5000}, num_experts=6).update_interval)"
    )
    (extended / "settings_of_tiny.py").write_text(code)
    assert run(extended, "settings_of_tiny").stdout == "5000\n"


@pytest.fixture(scope="module")
def passed(extended: Path) -> list[str]:
    """The contract tests that have passed over both, of all that were run, in one process."""
    chosen = " or ".join(CONTRACTS.values())
    words = ("-v", "-p", "no:cacheprovider", *CONTRACTS, "-k", chosen)
    done = run(extended, "pytest", *words, where=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return re.findall(r"^(tests/\S+)::.* PASSED\b", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("file", CONTRACTS)
def test_the_contract_tests_run_over_both(passed, file):
    assert passed.count(file) > 0
