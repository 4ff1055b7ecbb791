"""Counts dumped as JSON: the same numbers in every shape whose meaning is certain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.tabular.counts_json import FORMAT
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Trace

ROWS = [[5, 0, 7], [1, 2, 9]]


def file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "counts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(path: Path, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), no_progress)


@pytest.mark.parametrize(
    ("content", "layers"),
    [
        (ROWS, (0, 1)),
        ([[5.0, 0, 7], [1, 2, 9.0]], (0, 1)),
        ([ROWS], (0, 1)),
        ({"3": ROWS[0], "10": ROWS[1]}, (3, 10)),
        ({"10": ROWS[1], "3": ROWS[0]}, (3, 10)),
        ({"layer_3": ROWS[0], "layer_4": ROWS[1]}, (3, 4)),
        ({"layers.3": ROWS[0], "Layer 4": ROWS[1]}, (3, 4)),
        ({"layer_3": {"expert_2": 7, "expert_0": 5}, "layer_4": {"0": 1, "1": 2, "2": 9}}, (3, 4)),
        ({"counts": ROWS, "num_layers": 2, "num_experts": 3}, (0, 1)),
        ({"tokens_per_expert": {"0": ROWS[0], "1": ROWS[1]}}, (0, 1)),
    ],
)
def test_every_certain_shape_is_read(tmp_path: Path, content: Any, layers: Any) -> None:
    path = file(tmp_path, content)
    assert FORMAT.matches(path)
    trace = read(path)
    assert trace.counts.tolist() == [ROWS]
    assert trace.layer_ids == layers


def test_windows_and_unknown_keys_are_said(tmp_path: Path) -> None:
    trace = read(file(tmp_path, {"counts": [ROWS, ROWS, ROWS], "model": "x"}), layer_ids=(3, 4))
    assert trace.num_steps == 3
    assert trace.layer_ids == (3, 4)
    assert "read as 3 windows" in trace.provenance.notes[1]
    assert "Keys not used: model." in trace.provenance.notes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([[1, 2, 3], [1, 2]], "Layers 1 have fewer than 3 experts"),
        ({"3": [1, 2, 3], "7": [1]}, "Layers 7 have fewer than 3 experts"),
        ([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]], "that is a map"),
        ([[1, -2]], "Layer 0: expected whole numbers"),
        ([[1, 0.5]], "Layer 0: expected whole numbers"),
        ([[1, "2"]], "Layer 0 holds something other than numbers"),
        ([[1, True]], "Layer 0 holds something other than numbers"),
        ([[1, 10**400]], "Layer 0 holds an enormous number"),
        ([[]], "Layer 0: expected whole numbers"),
        ([[[1, 2]], [[1, 2], [3, 4]]], "windows of equally many layers"),
        ([[[1, 2]], [[1]]], "windows of equally many layers"),
        ([[[[1]]]], "windows of equally many layers"),
        ([[[1]], [2]], "Layer 0 is neither a list nor an object of counts"),
        ([], "at least one layer"),
        ({"3": [1], "03": [2]}, "the second one of layer 3"),
        ('{"3": [1], "3": [2]}', "'3' appears twice"),
        ({"3": {"a": 1}}, "Layer 3 is neither a list"),
        ({"3": 7}, "Layer 3 is neither a list"),
        ({"counts": ROWS, "num_experts": 4}, "states num_experts 4, but has 3"),
        ({"counts": ROWS, "num_layers": 3}, "states num_layers 3, but has 2"),
        ({"a": 1}, "Expected a list of layers"),
        (7, "at least one layer"),
        ("[[1, 2", "is not JSON"),
    ],
)
def test_what_is_not_certain_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(FormatError, match=rf"counts\.json.*{said}"):
        read(file(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        {"load_history": []},
        {"logical_count": ROWS},
        {"0": {"0": 3}},
        {"record_type": "eplb_load_stats", "expert_load": ROWS},
        {"layer": 3, "tokens_per_expert": [1]},
        {"counts": ROWS, "load": ROWS},
        [{"layer": 0, "expert": 0, "tokens": 1}],
        [1, 2],
        "layer,expert",
        "",
    ],
)
def test_other_documents_are_not_claimed(tmp_path: Path, content: Any) -> None:
    assert not FORMAT.matches(file(tmp_path, content))
    assert not FORMAT.matches(tmp_path)


def test_layer_ids_have_to_fit(tmp_path: Path) -> None:
    with pytest.raises(EquipoiseError, match="3 layer ids for 2 layers"):
        read(file(tmp_path, ROWS), layer_ids=(3, 4, 5))
