"""MindSpeed-RL loads: layer to expert to tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.engines.ascend.load import FORMAT
from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.errors import FormatError
from equipoise.trace import Trace


def read(path: Path, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), no_progress)


def file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_an_expert_left_out_counts_zero(tmp_path: Path) -> None:
    path = file(tmp_path, {"10": {"0": 3, "2": 4.0}, "3": {}})
    assert FORMAT.matches(path)
    trace = read(path)
    assert trace.layer_ids == (3, 10)
    assert trace.counts.tolist() == [[[0, 0, 0], [3, 0, 4]]]
    assert trace.provenance.notes == (
        "The file does not state the number of experts; 3 is the largest id seen plus one.",
    )
    assert read(path, num_experts=5).num_experts == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"3": {"1": 1}, "3": {"2": 1}}', "The key '3' appears twice"),
        ({"3": 1}, "Expected"),
        ({}, "No expert of any layer"),
        ({"3": {}}, "No expert of any layer"),
        ({"x": {"0": 1}}, "key 'x' of the file"),
        ({"3": {"-1": 1}}, "key '-1' of layer 3"),
        ({"3": {"1": 1}, "03": {"1": 1}}, "key '03' of the file"),
        ({"3": {"1": -1}}, "Layer 3, expert 1 has -1"),
        ({"3": {"1": 0.5}}, "Layer 3, expert 1 has 0.5"),
        ({"3": {"1": 1e300}}, "Layer 3, expert 1"),
        ({"3": {"999999999": 1}}, "at most 65536 are read"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        read(file(tmp_path, content))
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        [],
        [{"layer": 0, "expert": 0, "tokens": 1}],
        {"load_history": []},
        {"moe_layer_count": 1, "layer_list": []},
        {"physical_to_logical_map": [[0]]},
        {"0": [1, 2]},
        "",
    ],
)
def test_other_documents_are_not_claimed(tmp_path: Path, content: Any) -> None:
    assert not FORMAT.matches(file(tmp_path, content))
    assert not FORMAT.matches(tmp_path)
