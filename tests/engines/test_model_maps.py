"""Maps whose files leave experts and layers open, read with the configuration of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import examine_map, reading_warnings, write_map
from equipoise.engines.model_maps import examine_map_of
from equipoise.engines.transformers.config import ModelConfig, read_model_config
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

LAYERS = (2, 3, 4)
PLACEMENT = Placement([[0, 1, 2, 3, 0, 2]] * 3, num_ranks=2, num_experts=4, layer_ids=LAYERS)
FORMATS = {"equipoise": "json", "trtllm": "yaml", "sglang": "json", "ascend": "json"}
RANKS = MapContext(num_ranks=2)


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    return configured(tmp_path)


def configured(path: Path, **values: object) -> ModelConfig:
    facts = {"model_type": "deepseek_v3", "n_routed_experts": 4, "num_experts_per_tok": 2}
    facts |= {"num_hidden_layers": 5, "first_k_dense_replace": 2, "num_nextn_predict_layers": 1}
    facts |= {"hidden_size": 8, "moe_intermediate_size": 8, "torch_dtype": "bfloat16"}
    (path / "config.json").write_text(json.dumps(facts | values))
    return read_model_config(path)


def written(path: Path, format: str, placement: Placement = PLACEMENT) -> Path:
    file = path / f"map.{FORMATS[format]}"
    write_map(placement, file, format=format, context=MapContext(num_hidden_layers=5))
    return file


@pytest.mark.parametrize("format", FORMATS)
def test_layers_and_experts_are_those_of_the_model(
    tmp_path: Path, format: str, model: ModelConfig
) -> None:
    reading = examine_map_of(written(tmp_path, format), RANKS, model)
    assert reading.placement == PLACEMENT
    assert not reading_warnings(reading)


@pytest.mark.parametrize("format", ["sglang", "ascend"])
def test_without_a_model_they_are_open(tmp_path: Path, format: str) -> None:
    file = written(tmp_path, format)
    reading = examine_map_of(file, RANKS, None)
    assert reading == examine_map(file, RANKS)
    assert reading.placement.layer_ids != LAYERS
    assert reading_warnings(reading)


def test_rows_of_speculative_layers_are_kept(tmp_path: Path, model: ModelConfig) -> None:
    more = Placement([[0, 1, 2, 3]] * 4, num_ranks=2, num_experts=4, layer_ids=(*LAYERS, 5))
    file = written(tmp_path, "trtllm", more)
    assert examine_map_of(file, RANKS, model).placement == more


@pytest.mark.parametrize("format", FORMATS)
def test_a_map_of_other_experts_is_refused(tmp_path: Path, format: str) -> None:
    other = configured(tmp_path, n_routed_experts=8)
    with pytest.raises(EquipoiseError, match=r"has 4 experts in a layer and .*config\.json 8;"):
        examine_map_of(written(tmp_path, format), RANKS, other)


@pytest.mark.parametrize(
    ("format", "values"),
    [
        ("equipoise", {"first_k_dense_replace": 3}),
        ("trtllm", {"first_k_dense_replace": 3}),
        ("sglang", {"num_hidden_layers": 6}),
        ("ascend", {"num_hidden_layers": 6}),
    ],
)
def test_a_map_of_other_layers_is_refused(
    tmp_path: Path, format: str, values: dict[str, int]
) -> None:
    other = configured(tmp_path, **values)
    with pytest.raises(EquipoiseError, match=r"says that the MoE layers are|5 layer rows"):
        examine_map_of(written(tmp_path, format), RANKS, other)


def test_a_map_of_some_layers_is_read(tmp_path: Path) -> None:
    larger = configured(tmp_path, num_hidden_layers=9)
    assert examine_map_of(written(tmp_path, "trtllm"), RANKS, larger).placement == PLACEMENT


def test_what_is_told_by_hand_stands(tmp_path: Path, model: ModelConfig) -> None:
    file = written(tmp_path, "sglang")
    with pytest.raises(EquipoiseError, match="layer"):
        examine_map_of(file, MapContext(num_ranks=2, layer_ids=(1, 2)), model)
    with pytest.raises(EquipoiseError, match="4"):
        examine_map_of(file, MapContext(num_ranks=2, num_hidden_layers=4), model)
