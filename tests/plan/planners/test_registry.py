"""A planner of somebody else's: one class and one entry, and everything has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq

ROOT = Path(__file__).parents[3]
MODULE = '''
"""A planner that turns the experts round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.plan.planners.registry import PLANNERS, Option, PlannerEntry
from equipoise.plan.result import certify


@dataclass(frozen=True, kw_only=True)
class Turned:
    """Experts in order, from another one on.

    Parameters
    ----------
    first
        Expert in the first slot.  The others follow.
    """

    first: int = 0

    def plan(self, problem):
        """The same slots in every layer."""
        row = (np.arange(problem.num_slots) + self.first) % problem.num_experts
        return certify(problem, np.tile(row, (problem.num_layers, 1)), planner=repr(self))


PLANNERS["turned"] = PlannerEntry(
    name="turned",
    home="turned:Turned",
    summary="to test the registry",
    time="`O(S)`",
    options=(Option("first", limits={"gte": 0}),),
)
'''


@pytest.fixture
def run(tmp_path):
    """Run code in a fresh interpreter that knows the planner; its status, and output or error."""
    (tmp_path / "turned.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "conftest.py").write_text("import turned\n", encoding="utf-8")

    def run(code: str) -> tuple[int, str]:
        code = (
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\nimport turned\n{code}"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        said = done.stdout + (done.stderr if done.returncode else "")
        return done.returncode, said

    return run


def command(*arguments: object) -> str:
    return f"from equipoise.cli import main; sys.exit(main({[str(a) for a in arguments]!r}))"


def test_the_command_runs_it_with_its_option(run, tmp_path):
    path = tmp_path / "run.trace.safetensors"
    trace = eq.Trace(counts=np.random.default_rng(0).integers(0, 50, (8, 2, 8)))
    eq.write_trace(trace, path)
    plan = ("plan", path, "--ranks", 4, "--redundant", 4)
    _, out = run(command(*plan, "--planner", "turned", "--first", 3, "--json"))
    answer = json.loads(out)
    assert answer["planner"] == "Turned(first=3)"
    row = [(slot + 3) % 8 for slot in range(12)]
    placement = eq.Placement([row, row], num_ranks=4, num_experts=8)
    assert answer["checksum"] == placement.checksum
    status, out = run(command(*plan, "--planner", "greedy", "--first", 3))
    assert status == 2
    assert "The planner greedy has no use for --first; it takes --allow-same-rank-copies." in out
    status, out = run(command(*plan, "--planner", "turned", "--first", -1))
    assert (status, 'Invalid value "-1" for --first' in out) == (2, True)
    status, out = run(command(*plan, "--planner", "turned", "--room", "3,3,3,3"))
    assert "The planner turned does not look at --room; use robust or survivable." in out


def test_help_and_documentation_have_it(run):
    _, out = run(command("plan", "--help"))
    words = " ".join(out.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())
    assert "round-robin, turned, colocate. equipoise explain planners" in words
    assert "Expert in the first slot (turned). [default: 0]" in words
    _, table = run("import runpy; print(runpy.run_path('docs/generate.py')['planners_table']())"
                   .replace("docs/generate.py", str(ROOT / "docs" / "generate.py")))  # fmt: skip
    assert (
        "| `Turned()` | `--planner turned` | to test the registry | `--first` | "
        "the sum of the loads | `O(S)` |\n"
    ) in table


def test_contract_tests_have_it(run):
    code = "import tests.plan.test_planners as contract; print(contract.CASES)"
    assert "('turned', ())" in run(code)[1]
