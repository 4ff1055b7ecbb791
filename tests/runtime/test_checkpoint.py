from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from equipoise.errors import EquipoiseError, FormatError
from equipoise.runtime.moe.checkpoint import Checkpoint, moe_blocks
from tests.runtime.small_model import FOLDER, E, L


def stored(layer, expert, part):
    tensors = load_file(FOLDER / "model.safetensors")
    return tensors[f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"]


def test_it_knows_its_layers_and_experts():
    checkpoint = Checkpoint(FOLDER)
    assert checkpoint.layer_ids == tuple(range(L))
    assert checkpoint.num_experts == E


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_hold_the_experts_asked_for_in_their_order(dtype):
    slots = Checkpoint(FOLDER, dtype=dtype).read_slots(3, [7, 0, 7])
    assert sorted(slots) == ["down_proj", "gate_up_proj"]
    for slot, expert in enumerate([7, 0, 7]):
        gate_up = torch.cat([stored(3, expert, "gate"), stored(3, expert, "up")])
        assert torch.equal(slots["gate_up_proj"][slot], gate_up.to(dtype))
        assert torch.equal(slots["down_proj"][slot], stored(3, expert, "down").to(dtype))


def test_no_slots_have_shapes_too():
    slots = Checkpoint(FOLDER).read_slots(0, [])
    assert {name: tuple(t.shape) for name, t in slots.items()} == {
        "gate_up_proj": (0, 112, 160),
        "down_proj": (0, 160, 56),
    }


def test_the_rest_is_the_model_without_its_routed_experts():
    body = Checkpoint(FOLDER).read_rest()
    assert not body.training
    assert len(moe_blocks(body)) == L
    names = {name for name, _ in body.named_parameters()}
    tensors = load_file(FOLDER / "model.safetensors")
    assert not any(".mlp.experts." in name for name in names)
    assert {name for name in tensors if ".mlp.experts." not in name} <= names | {"lm_head.weight"}
    for name, parameter in body.named_parameters():
        assert torch.equal(parameter, tensors.get(name, tensors["model.embed_tokens.weight"]))
    assert body.model.rotary_emb.inv_freq.device.type == "cpu"


def test_a_file_that_is_gone_or_cut_is_named(tmp_path):
    shutil.copy(FOLDER / "config.json", tmp_path)
    checkpoint = Checkpoint(tmp_path)
    whole = (FOLDER / "model.safetensors").read_bytes()
    for content in (None, whole[: len(whole) // 2]):
        if content is not None:
            (tmp_path / "model.safetensors").write_bytes(content)
        for read in (checkpoint.read_rest, lambda: checkpoint.read_slots(1, [2])):
            with pytest.raises(FormatError, match=r"model\.safetensors"):
                read()


def test_an_expert_that_is_not_stored_is_named():
    with pytest.raises(FormatError, match=r"experts\.32\."):
        Checkpoint(FOLDER).read_slots(1, [32])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"vocab_size": "many"}, "is not a model configuration"),
        ({"vocab_size": -1}, "is not a model configuration"),
        ({"num_attention_heads": 0}, "is not a model configuration"),
        ({"decoder_sparse_step": 0}, "is not a model configuration"),
        ({"pad_token_id": 10**9}, "is not a model configuration"),
        ({"dtype": "no"}, "is not a model configuration"),
        ({"num_experts_per_tok": 40}, "chooses 40 of 32 experts"),
        ({"mlp_only_layers": [0, 1, 2, 3, 4]}, "no layer routes to experts"),
        ({"num_experts": 33}, "does not fit its config.json"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_is_a_line(tmp_path, value, why):
    config = json.loads((FOLDER / "config.json").read_text()) | value
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(FOLDER / "model.safetensors", tmp_path)
    with pytest.raises(EquipoiseError, match=why) as told:
        Checkpoint(tmp_path).read_rest()
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600
