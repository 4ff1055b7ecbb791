from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import equipoise

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"

NAMES = {
    "Auto", "Contiguous", "EquipoiseError", "Even", "FewestExperts", "Greedy", "Hierarchical",
    "MapContext", "MinMax", "Nearest", "Placement", "Plan", "Problem", "RankCost", "Repair",
    "Robust", "RoundRobin", "Survivable", "Topology", "Trace", "TraceOptions", "__version__",
    "best_placement", "diff", "dropped_tokens", "ep_step_time", "evaluate", "expert_loads",
    "imbalance", "noise_floor", "rank_cost", "read_map", "read_trace", "sample_model_path",
    "sample_trace_path", "study", "summarise", "validate_map", "write_map", "write_trace",
}  # fmt: skip

HEAVY = {
    "numba", "scipy", "torch", "transformers", "yaml", "safetensors", "jinja2", "ijson", "pandas",
    "matplotlib", "msgspec",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Top-level modules a fresh interpreter has after running the code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.splitlines()[-1].split())


def test_the_surface_is_pinned():
    assert set(equipoise.__all__) == NAMES
    assert set(dir(equipoise)) == NAMES


def test_every_name_resolves_and_is_documented():
    for name in NAMES - {"__version__"}:
        assert getattr(equipoise, name).__doc__, name


def test_every_name_is_in_the_reference():
    entries = re.findall(r"^\.\. auto\w+:: (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(entries) == sorted(NAMES - {"__version__"})


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(equipoise, "unknown")


def test_import_loads_numpy_at_most():
    assert not loaded_by("import equipoise") & HEAVY
    assert not loaded_by("import equipoise; equipoise.Trace, equipoise.Placement") & HEAVY


def test_help_loads_numpy_at_most():
    assert not loaded_by("from equipoise.cli import main; main(['--help'])") & HEAVY
