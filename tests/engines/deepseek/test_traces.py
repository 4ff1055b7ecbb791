"""ADRS load histories: streamed, with the step and the layer of what does not fit."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.engines.deepseek.traces import FORMAT
from equipoise.engines.formats import Progress, TraceOptions, no_progress
from equipoise.errors import FormatError
from equipoise.trace import Trace


def read(path: Path, progress: Progress = no_progress, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), progress)


def file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "expert-load.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def history(*steps: Any) -> dict[str, Any]:
    return {"load_history": [{"logical_expert_load": step, "time": 1.5} for step in steps]}


def test_steps_layers_and_experts_come_from_the_shapes(tmp_path: Path) -> None:
    loads = np.arange(24).reshape(3, 2, 4) * 50
    path = file(tmp_path, {"note": [1, {"a": 2}], **history(*loads.tolist())})
    assert FORMAT.matches(path)
    trace = read(path, layer_ids=(3, 4))
    np.testing.assert_array_equal(trace.counts, loads)
    assert trace.layer_ids == (3, 4)
    assert trace.steps.tolist() == [0, 1, 2]
    cut = read(path, iterations=(1, 2))
    np.testing.assert_array_equal(cut.counts, loads[1:2])
    assert cut.steps.tolist() == [1]


def test_whole_floats_are_counts(tmp_path: Path) -> None:
    assert read(file(tmp_path, history([[1.0, 70_000.0]]))).counts.tolist() == [[[1, 70_000]]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged JSON"),
        ('{"load_history": [{"logical_expert_load": [[1, 2]]}', "damaged JSON"),
        ('{"load_history": [{"logical_expert_load": [[1, 2]]}]} x', "damaged JSON"),
        ('{"load_history": [{"logical_expert_load": [[1, NaN]]}]}', "damaged JSON"),
        ('{"load_history": [{"logical_expert_load": [[1, 1e999]]}]}', "expert-load.json"),
        ({"load_history": []}, "No step was found"),
        ({"other": 1}, "No step was found"),
        ({"load_history": [5]}, "Step 0 has no logical_expert_load"),
        ({"load_history": [{"logical_expert_load": []}]}, "Step 0 has no logical_expert_load"),
        (history([[1, 2]], [[1, 2], [3, 4]]), "Step 1 has 2 layers; the steps before have 1"),
        (history([[1, 2]], [[1]]), "Step 1, layer row 0 has 1 loads; expected 2"),
        (history([[1, 2], [1, 2, 3]]), "Step 0, layer row 1 has 3 loads; expected 2"),
        (history([[1, 2], 7]), "Step 0, layer row 1 has a int"),
        (history([[]]), "Step 0, layer row 0 has 0 loads"),
        (history([[1, "a"]]), "Step 0, layer row 0 holds something other"),
        (history([[1, None]]), "Step 0, layer row 0 holds something other"),
        (history([[1, [2]]]), "Step 0, layer row 0 holds something other"),
        (history([[True, False]]), "Step 0, layer row 0 holds something other"),
        (history([[1, -2]]), "Step 0, layer row 0, expert 1 has load -2"),
        (history([[1, 2]], [[1, 2.5]]), "Step 1, layer row 0, expert 1 has load 2.5"),
        (history([[1, 10**40]]), "expert-load.json"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        read(file(tmp_path, content))
    assert "expert-load.json" in str(caught.value)


@pytest.mark.parametrize("iterations", [(5, 9), (2, 1), (-3, -1)])
def test_iterations_without_a_step_are_refused(tmp_path: Path, iterations: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"\[-?\d, -?\d\)"):
        read(file(tmp_path, history([[1, 2]])), iterations=iterations)


def test_progress_counts_bytes_up_to_the_size(tmp_path: Path) -> None:
    path = file(tmp_path, history(*np.full((40, 8, 256), 12345).tolist()))
    calls: list[tuple[int, int]] = []
    read(path, lambda done, total: calls.append((done, total)))
    done = [d for d, _ in calls]
    assert done == sorted(done)
    assert calls[-1] == (path.stat().st_size, path.stat().st_size)
    assert len(set(done)) > 2


def test_memory_stays_far_below_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, history(*np.full((120, 20, 256), 12345.0).tolist()))
    tracemalloc.start()
    read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = 120 * 20 * 256 * 2  # 16 bits a load, and once more while the steps are joined
    assert peak < 2 * kept + (2 << 20) < path.stat().st_size


@pytest.mark.parametrize(
    "content", [[], {"3": {"0": 1}}, {"a": {"load_history": []}}, "", "{", "\x80\x02"]
)
def test_other_documents_are_not_claimed(tmp_path: Path, content: Any) -> None:
    assert not FORMAT.matches(file(tmp_path, content))
    assert not FORMAT.matches(tmp_path)
