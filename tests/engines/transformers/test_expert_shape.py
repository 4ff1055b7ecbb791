"""Shapes of experts from configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.engines.transformers.config import read_model_config
from equipoise.engines.transformers.expert_shape import expert_shape
from equipoise.errors import EquipoiseError

CONFIGS = Path(__file__).parent / "configs"


@pytest.mark.parametrize(
    ("name", "dtype", "widths"),
    [
        ("deepseek-v3", "fp8_block", (7168, 2048)),
        ("gpt-oss-120b", "w4a16_mxfp4", (2880, 2880)),
        ("kimi-k2-thinking", "w4a16_mxfp4", (7168, 2048)),
        ("olmoe-1b-7b", "bfloat16", (2048, 1024)),
    ],
)
def test_shapes_of_published_models(name, dtype, widths):
    config = read_model_config(CONFIGS / f"{name}.json")
    shape = expert_shape(config)
    assert (shape.dtype, (shape.hidden_size, shape.inter_size)) == (dtype, widths)
    assert shape.expert_bytes == pytest.approx(config.expert_bytes, rel=0.06)  # scales


def test_what_is_not_known_is_refused():
    config = read_model_config(CONFIGS / "deepseek-v3.json")
    unknown = replace(config, weight_type=None, unknown={"weight_type": "nobody says it"})
    with pytest.raises(EquipoiseError, match="weight_type is not known, since nobody says it"):
        expert_shape(unknown)
    with pytest.raises(EquipoiseError, match="weights are int8, and times are known of fp8"):
        expert_shape(replace(config, weight_type="int8"))
