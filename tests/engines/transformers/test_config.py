"""Facts from the configurations of published models, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise.engines.transformers
from equipoise.engines.transformers.config import ModelConfig, model_names, read_model_config
from equipoise.engines.transformers.model_types import MODEL_TYPES
from equipoise.errors import EquipoiseError

CONFIGS = Path(__file__).parent / "configs"
SHIPPED = Path(equipoise.engines.transformers.__file__).parent / "models"


def published(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return document


def read(path: Path, document: object) -> ModelConfig:
    file = path / "config.json"
    file.write_text(json.dumps(document))
    return read_model_config(file)


def changed(path: Path, name: str, **values: object) -> ModelConfig:
    return read(path, published(name) | values)


def test_a_redundant_slot_of_deepseek_v3_is_the_published_2_55_gb() -> None:
    model = read_model_config(CONFIGS / "deepseek-v3.json")
    assert model.architecture == "DeepseekV3ForCausalLM"
    assert model.moe_layer_ids == tuple(range(3, 61))
    assert model.speculative_layer_ids == (61,)
    assert (model.num_experts, model.top_k, model.num_shared_experts) == (256, 8, 1)
    assert (model.num_expert_groups, model.groups_per_token) == (8, 4)
    assert (model.quantisation, model.weight_type) == ("fp8", "fp8")
    assert model.expert_bytes == 44_040_192 + 10_752  # a float32 for every 128 x 128 weights
    assert model.scale_bytes == 3 * 16 * 56 * 4
    assert model.slot_bytes == 58 * 44_050_944
    assert model.kv_bytes_per_token == 70_272


def test_gpt_oss_has_four_bits_a_scale_of_a_byte_for_32_and_biases() -> None:
    model = read_model_config(CONFIGS / "gpt-oss-120b.json")
    weights, biases = 3 * 2880 * 2880, 3 * 2880
    assert model.expert_bytes == weights // 2 + weights // 32 + 2 * biases
    assert model.moe_layer_ids == tuple(range(36))
    assert model.kv_bytes_per_token == 36 * 2 * 8 * 64 * 2
    assert (model.weight_type, model.num_shared_experts) == ("mxfp4", 0)
    assert model.num_window_layers == 18


@pytest.mark.parametrize("name", model_names())
def test_every_model_that_ships_has_all_that_a_step_needs(name: str) -> None:
    model = read_model_config(name.upper())
    assert model.expert_bytes == pytest.approx(model.expert_shape.expert_bytes, rel=0.07)
    assert model.moe_layer_ids
    assert model.own_work is not None
    assert model.own_work.num_moe_layers == len(model.moe_layer_ids)
    profile = json.loads((SHIPPED / f"{name}.json").read_text())
    assert profile["format"] == "equipoise model 1"
    assert profile["source"]
    assert profile["date"]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: file.stem)
def test_models_that_ship_are_those_published(file: Path) -> None:
    by_name, by_file = read_model_config(file.stem), read_model_config(file)
    where = by_file.source.replace(str(file), file.stem)
    assert by_name == replace(by_file, source=where)


def test_a_profile_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    profile = json.loads((SHIPPED / "mixtral-8x7b.json").read_text())
    model = read(tmp_path, profile)
    assert replace(model, source="mixtral-8x7b") == read_model_config("mixtral-8x7b")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"source": ""}, "source is ''; expected text"),
        ({"date": 2024}, "date is 2024; expected text"),
        ({"config": [1]}, "is not the configuration of a model"),
        ({"config": {"model_type": "mixtral"}}, "without routed experts"),
        ({"format": "equipoise model 2"}, "is not the configuration of a model"),
    ],
)
def test_damaged_profiles_are_refused(tmp_path: Path, values: dict[str, object], said: str) -> None:
    profile = json.loads((SHIPPED / "mixtral-8x7b.json").read_text())
    with pytest.raises(EquipoiseError, match=said):
        read(tmp_path, profile | values)


# All parameters of a token but its routed experts and embeddings, by the makers' own counts
@pytest.mark.parametrize(
    ("name", "billions"),
    [("deepseek-v3", 36.6 - 0.9 - 20.4), ("qwen3-235b-a22b", 22 - 1.2 - 14.2)],
)
def test_what_a_token_takes_besides_its_experts(name: str, billions: float) -> None:
    work = read_model_config(name).own_work
    assert work is not None
    assert work.token_flops / 2e9 == pytest.approx(billions, rel=0.03)


def test_latent_attention_reads_its_compressed_cache() -> None:
    work = read_model_config("deepseek-v3").own_work
    assert work is not None
    assert work.kv_bytes_per_token == 61 * 576 * 2
    assert work.decode_pair_flops == 61 * 2 * 128 * (576 + 512)
    assert work.prefill_pair_flops == 61 * 2 * 128 * (192 + 128)
    assert work.weight_bytes == work.token_flops / 2  # FP8


def test_grouped_heads_read_keys_and_values() -> None:
    work = read_model_config("mixtral-8x7b").own_work
    assert work is not None
    assert work.kv_bytes_per_token == 32 * 2 * 8 * 128 * 2
    assert work.decode_pair_flops == work.prefill_pair_flops == 32 * 4 * 32 * 128
    assert work.token_flops == 2 * 32 * 2 * 4096 * (32 + 8) * 128


def test_what_is_besides_the_experts_may_be_unknown(tmp_path: Path) -> None:
    model = changed(tmp_path, "deepseek-v3", v_head_dim=None)
    assert model.own_work is None
    assert model.unknown["own_work"] == "v_head_dim is missing"
    odd = changed(tmp_path, "deepseek-v3", v_head_dim=[128, 64])
    assert "layers differ in their parts" in odd.unknown["own_work"]


def test_weights_that_nobody_timed_are_refused_for_a_step(tmp_path: Path) -> None:
    section = {"quant_method": "gptq", "bits": 8, "group_size": -1}
    model = changed(tmp_path, "olmoe-1b-7b", quantization_config=section)
    with pytest.raises(EquipoiseError, match="weights in int8, whose kernels nobody has timed"):
        _ = model.expert_shape


# expert bytes, MoE layers, speculative layers, KV bytes a token
NUMBERS = {
    "qwen3-235b-a22b": (3 * 4096 * 1536 * 2, range(94), (), 94 * 2 * 4 * 128 * 2),
    "qwen2-57b-a14b": (3 * 3584 * 2560 * 2, range(28), (), 28 * 2 * 4 * 128 * 2),
    "olmoe-1b-7b": (3 * 2048 * 1024 * 2, range(16), (), 16 * 2 * 16 * 128 * 2),
    "glm-4.5": (3 * 5120 * 1536 * 2, range(3, 92), (92,), 92 * 2 * 8 * 128 * 2),
    "mixtral-8x7b": (3 * 4096 * 14336 * 2, range(32), (), 32 * 2 * 8 * 128 * 2),
    "llama-4-maverick": (3 * 5120 * 8192 * 2, range(1, 48, 2), (), 48 * 2 * 8 * 128 * 2),
    "kimi-k2-thinking": (
        44_040_192 // 2 + 44_040_192 // 32 * 2,
        range(1, 61),
        (),
        61 * 576 * 2,
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_published_models(name: str) -> None:
    expert_bytes, layers, speculative, kv_bytes = NUMBERS[name]
    model = read_model_config(CONFIGS / f"{name}.json")
    assert model.expert_bytes == expert_bytes
    assert model.moe_layer_ids == tuple(layers)
    assert model.speculative_layer_ids == speculative
    assert model.kv_bytes_per_token == kv_bytes
    assert not model.unknown


@pytest.mark.parametrize(
    ("section", "weight_type", "bits", "scales"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8", 8, 3 * 4),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", 8, 3 * 8),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
            "int4",
            4,
            3 * 2048 * 1024 / 128 * 2.5,
        ),
        (
            {"quant_method": "gptq", "bits": 8, "group_size": -1},
            "int8",
            8,
            (1024 + 1024 + 2048) * 3,
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            "nvfp4",
            4,
            3 * (2048 * 1024 / 16 + 8),
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", 8, 3 * 8),
    ],
)
def test_quantised_experts(
    tmp_path: Path, section: dict[str, object], weight_type: str, bits: int, scales: float
) -> None:
    model = changed(tmp_path, "olmoe-1b-7b", quantization_config=section)
    assert model.weight_type == weight_type
    assert model.scale_bytes == scales
    assert model.expert_bytes == 3 * 2048 * 1024 * bits // 8 + scales


def compressed(**weights: object) -> dict[str, object]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*mlp.gate$"],
    }


@pytest.mark.parametrize(
    ("weights", "weight_type", "scales"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, "fp8", 3 * 2),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, "fp8", 4096 * 2),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
            "fp8",
            3 * 16 * 8 * 2,
        ),
        (
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            "nvfp4",
            3 * (2048 * 1024 // 16 + 4),
        ),
        (
            {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
            "mxfp4",
            3 * 2048 * 1024 // 32,
        ),
    ],
)
def test_compressed_tensors(
    tmp_path: Path, weights: dict[str, object], weight_type: str, scales: int
) -> None:
    model = changed(tmp_path, "olmoe-1b-7b", quantization_config=compressed(**weights))
    assert (model.weight_type, model.scale_bytes) == (weight_type, scales)


def test_experts_that_stay_unquantised(tmp_path: Path) -> None:
    fp8 = {"quant_method": "fp8"}

    def size(*names: str) -> tuple[int | None, str]:
        section = fp8 | {"modules_to_not_convert": list(names)}
        model = changed(tmp_path, "olmoe-1b-7b", quantization_config=section)
        return model.expert_bytes, model.unknown.get("expert_bytes", "")

    quantised, plain = 3 * 2048 * 1024 + 12, 3 * 2048 * 1024 * 2
    assert size("lm_head", "model.layers.3.mlp.gate", "*self_attn*") == (quantised, "")
    assert size("mlp.experts") == size("model.layers") == size("*.experts.*") == (plain, "")
    assert size("model.layers.3", "model.layers.40") == (
        None,
        "the experts of 1 MoE layers are not quantised",
    )
    assert "regular expression" in size("re:.*experts.*")[1]
    assert size("re:.*shared_experts.*") == (quantised, "")


def test_what_a_quantiser_wrote_into_a_file_of_its_own(tmp_path: Path) -> None:
    read(tmp_path, published("olmoe-1b-7b"))
    section = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))
    model = read_model_config(tmp_path)
    assert (model.quantisation, model.weight_type) == ("modelopt NVFP4", "nvfp4")
    assert model.kv_bytes_per_token == 16 * 2 * 16 * 128


def test_a_cache_of_eight_bits(tmp_path: Path) -> None:
    section = compressed(num_bits=8, type="float", strategy="channel")
    half = section | {"kv_cache_scheme": {"num_bits": 8}}
    odd = section | {"kv_cache_scheme": {"num_bits": 4}}
    assert changed(tmp_path, "olmoe-1b-7b", quantization_config=half).kv_bytes_per_token == 65_536
    assert changed(tmp_path, "olmoe-1b-7b", quantization_config=odd).kv_bytes_per_token is None


def test_layers_that_differ(tmp_path: Path) -> None:
    sparse = changed(tmp_path, "qwen2-57b-a14b", decoder_sparse_step=2, mlp_only_layers=[3])
    assert sparse.moe_layer_ids == (1, *range(5, 28, 2))
    kinds = ["dense"] * 4 + ["sparse"] * 57
    listed = changed(tmp_path, "deepseek-v3", first_k_dense_replace=None, mlp_layer_types=kinds)
    assert listed.moe_layer_ids == tuple(range(4, 61))
    every_third = changed(tmp_path, "deepseek-v3", moe_layer_freq=3)
    assert every_third.moe_layer_ids == tuple(range(3, 61, 3))


def test_what_is_not_known_has_a_reason(tmp_path: Path) -> None:
    strange = changed(tmp_path, "olmoe-1b-7b", model_type="olmoe_9")
    assert (strange.num_experts, strange.num_hidden_layers, strange.top_k) == (64, 16, 8)
    assert strange.moe_layer_ids is strange.expert_bytes is strange.kv_bytes_per_token is None
    assert strange.unknown["expert_bytes"] == "models of the type 'olmoe_9' are not known"
    with pytest.raises(EquipoiseError, match=r"config\.json: the bytes of an expert are not known"):
        strange.need_expert_bytes()

    other = changed(tmp_path, "olmoe-1b-7b", quantization_config={"quant_method": "new"})
    assert other.unknown["expert_bytes"] == "nothing is known here of the quantisation new"
    untyped = changed(tmp_path, "olmoe-1b-7b", torch_dtype=None)
    assert untyped.unknown["expert_bytes"] == "torch_dtype is missing"
    sparse = changed(tmp_path, "deepseek-v3", model_type="deepseek_v32")
    assert "index keys" in sparse.unknown["kv_bytes_per_token"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": None}, "without routed experts .* 'olmoe'"),
        ({"num_experts": 1}, "without routed experts"),
        ({"hidden_size": None, "num_experts_per_tok": None}, "misses hidden_size, num_experts_per"),
        ({"num_local_experts": 8}, "says num_experts 64 and num_local_experts 8"),
        ({"num_hidden_layers": "16"}, "num_hidden_layers is '16'; expected a whole number"),
        ({"num_hidden_layers": 10**9}, "expected 1 to 1024"),
        ({"intermediate_size": None}, "misses intermediate_size"),
        ({"quantization_config": 4}, "quantization_config is 4; expected an object"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries and the model 16 layers"),
        ({"layer_types": "full"}, "expected a list"),
        ({"model_type": None, "architectures": None}, "not the configuration of a model"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    document = {k: v for k, v in (published("olmoe-1b-7b") | change).items() if v is not None}
    with pytest.raises(EquipoiseError, match=message):
        read(tmp_path, document)


def test_another_document_is_refused(tmp_path: Path) -> None:
    for document in ([], 3, {"weights": 1}, {}):
        with pytest.raises(EquipoiseError, match="not the configuration of a model"):
            read(tmp_path, document)
    with pytest.raises(EquipoiseError, match=r"config\.json does not exist"):
        read_model_config(tmp_path / "no" / "config.json")
    with pytest.raises(EquipoiseError, match=r"config\.json does not exist"):
        read_model_config(CONFIGS)


def test_a_map_of_another_model_is_named() -> None:
    model = read_model_config(CONFIGS / "deepseek-v3.json")
    for layers in ([3], range(3, 61), [3, 60, 61], range(58), range(59)):
        model.check_fits("map.json", 256, list(layers))
    with pytest.raises(EquipoiseError, match=r"map\.json has 128 experts .*deepseek-v3\.json 256;"):
        model.check_fits("map.json", 128, [3])
    for layers in ([0], range(57), range(60), [3, 62]):
        with pytest.raises(EquipoiseError, match=r"map\.json has the layers .* layers are 3-60;"):
            model.check_fits("map.json", 256, list(layers))


def test_layers_beyond_the_model_may_be_speculative_where_nothing_says(tmp_path: Path) -> None:
    model = changed(tmp_path, "qwen3-235b-a22b", model_type="qwen3_next")
    model.check_fits("map.json", 128, [0, 94])
    with pytest.raises(EquipoiseError, match="the MoE layers are 0-93"):
        changed(tmp_path, "qwen3-235b-a22b").check_fits("map.json", 128, [0, 94])


def test_the_model_types_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "model-config.md").read_text()
    assert not [name for name in MODEL_TYPES if f"`{name.removesuffix('_text')}`" not in page]


_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
_KEYS = sorted({key for file in CONFIGS.glob("*.json") for key in json.loads(file.read_text())})


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(MODEL_TYPES)),
    st.dictionaries(st.sampled_from(_KEYS), _junk, max_size=4),
    st.sampled_from(["deepseek-v3", "gpt-oss-120b", "kimi-k2-thinking"]),
)
def test_junk_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, kind: str, values: dict[str, object], base: str
) -> None:
    path = tmp_path_factory.getbasetemp()
    try:
        model = changed(path, base, **(values | {"model_type": kind}))
    except EquipoiseError:
        return
    assert model.expert_bytes is None or model.expert_bytes >= 0
