"""Every type of model in ``MODEL_TYPES``, on tiny ones with random weights."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from equipoise.engines.transformers.recorder import RoutingRecorder
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement
from equipoise.runtime.members.recovery import rebuild
from equipoise.runtime.moe.checkpoint import Checkpoint, moe_blocks
from equipoise.runtime.moe.model import load_model
from equipoise.runtime.moe.model_types import MODEL_TYPES
from tests.engines.transformers.tiny import MODELS, VOCABULARY
from tests.runtime.same_answers import Plain
from tests.runtime.served_types import serve_through_a_death
from tests.runtime.tiny_models import save

NEW_TOKENS = 12
SERVED_BY_DEFAULT = ("deepseek_v3", "gpt_oss")
TOLERANCE = 1e-4  # of hidden states and logits; rounding alone makes 1e-5


@pytest.fixture(scope="module", params=MODEL_TYPES)
def saved(request, tmp_path_factory):
    """A type, the folder of a model of it, and the model."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, save(request.param, folder)


def test_what_is_read_is_what_was_saved(saved):
    name, folder, model = saved
    _, _, _, num_experts, _ = MODELS[name]
    checkpoint = Checkpoint(folder)
    assert checkpoint.num_experts == num_experts
    assert checkpoint.vocab_size == VOCABULARY
    body = checkpoint.read_rest()
    rest = dict(model.named_parameters()) | dict(model.named_buffers())
    blocks = moe_blocks(model)
    for layer_id in checkpoint.layer_ids:
        own = dict(blocks[layer_id].experts.named_parameters())
        slots = checkpoint.read_slots(layer_id, [num_experts - 1, 0])
        assert sorted(slots) == sorted(own)
        for part, held in slots.items():
            assert torch.equal(held, own[part][[num_experts - 1, 0]])
            rest.pop(f"model.layers.{layer_id}.mlp.experts.{part}")
    read = dict(body.named_parameters()) | dict(body.named_buffers())
    assert sorted(read) == sorted(rest)
    assert all(torch.equal(tensor, read[key]) for key, tensor in rest.items())


def random_placement(layers, num_experts, slots, ranks):
    rng = np.random.default_rng(1)
    extra = slots - num_experts
    rows = [[*range(num_experts), *rng.integers(0, num_experts, extra)] for _ in layers]
    return Placement(
        rng.permuted(rows, axis=1), num_ranks=ranks, num_experts=num_experts, layer_ids=layers
    )


def batch_of(rank):
    """Two prompts of a rank, the first of them padded."""
    draw = torch.Generator().manual_seed(rank)
    ids = torch.randint(1, VOCABULARY, (2, 15), generator=draw)
    mask = torch.ones_like(ids)
    ids[0, :6], mask[0, :6] = 0, 0
    return ids, mask


def outputs_of_layers(model):
    """A list to which every decoder layer of a model adds what it answers."""
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
    return seen


def furthest(ours, theirs, mask):
    """How far the outputs of the layers are apart in the first pass, padding left out."""
    real = mask.bool()
    pairs = zip(ours[: len(ours) // NEW_TOKENS], theirs, strict=False)
    return max(float((a[real] - b[real]).abs().max()) for a, b in pairs)


def greedy(plain, ids, mask):
    out = plain.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return out[:, ids.shape[1] :]


def compare(group, folder, where):
    """Our model and the plain one on prompts of this rank."""
    ids, mask = batch_of(dist.get_rank(group))
    plain = Plain(folder).model
    theirs = outputs_of_layers(plain)
    with RoutingRecorder(plain) as recorder:
        wanted = greedy(plain, ids, mask)
    model = load_model(folder, where, group=group, dispatch="minmax")
    ours = outputs_of_layers(model.model)
    model.record()
    tokens, _ = model.generate(ids, mask, NEW_TOKENS)
    far = furthest(ours, theirs, mask)
    return torch.equal(tokens, wanted), far, recorder.trace(), model.recorder.to_trace(group)


def test_layers_tokens_and_counts_are_those_of_transformers(pool, saved):
    name, folder, _ = saved
    checkpoint = Checkpoint(folder)
    where = random_placement(checkpoint.layer_ids, checkpoint.num_experts, 12, 2)
    same, far, plain, ours = zip(*pool.run(compare, folder, where, ranks=2), strict=True)
    assert all(same)
    assert max(far) < TOLERANCE
    counts = sum(trace.counts for trace in plain)
    top_k = MODELS[name][4]
    assert counts[0].sum(axis=1).tolist() == [2 * (15 + 9) * top_k] * len(checkpoint.layer_ids)
    for trace in ours:
        np.testing.assert_array_equal(trace.counts, counts)
        assert trace.layer_ids == checkpoint.layer_ids


def one_goes_and_one_comes(group, folder, where):
    """Serve on processes 0 and 1, then on 1 and 2; whether the answers are the plain model's."""
    old, new = dist.new_group([0, 1]), dist.new_group([1, 2])
    rank = dist.get_rank()
    model = load_model(folder, where, group=old) if rank in (0, 1) else None
    if rank not in (1, 2):
        return True
    model, _ = rebuild(model, Checkpoint(folder), group=new)
    tokens, _ = model.generate(*batch_of(rank), NEW_TOKENS)
    return torch.equal(tokens, greedy(Plain(folder).model, *batch_of(rank)))


def test_rebuilt_on_other_processes(pool, saved):
    _, folder, _ = saved
    checkpoint = Checkpoint(folder)
    where = random_placement(checkpoint.layer_ids, checkpoint.num_experts, 12, 2)
    assert all(pool.run(one_goes_and_one_comes, folder, where))


# One of each way to store, route and compute, next to the small model, which is served so in
# test_server; the others are served so with -m long.
@pytest.mark.parametrize(
    "saved",
    [
        pytest.param(name, marks=() if name in SERVED_BY_DEFAULT else pytest.mark.long)
        for name in MODEL_TYPES
    ],
    indirect=True,
)
def test_served_by_three_processes_through_moves_and_a_death(saved, tmp_path):
    name, folder, model = saved
    done = serve_through_a_death(name, folder, model, tmp_path)
    assert done.wrong == []
    assert done.moves > 2


def test_several_files_with_an_index_are_read_as_one(saved, tmp_path):
    name, folder, _ = saved
    save(name, tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    whole, parts = Checkpoint(folder), Checkpoint(tmp_path)
    layer_id = whole.layer_ids[-1]
    one, other = whole.read_slots(layer_id, [3, 1]), parts.read_slots(layer_id, [3, 1])
    assert all(torch.equal(tensor, other[part]) for part, tensor in one.items())
    state, other = whole.read_rest().state_dict(), parts.read_rest().state_dict()
    assert all(torch.equal(tensor, other[part]) for part, tensor in state.items())


def test_every_type_is_in_the_table_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "model-types.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert rows[: len(MODEL_TYPES)] == list(MODEL_TYPES)


def change(folder, **values):
    """Change the configuration of a saved model."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


@pytest.mark.parametrize("kind", ["mixtral", "", None, ["qwen2_moe"]])
def test_another_type_is_refused_with_those_that_are_known(tmp_path, kind):
    save("qwen3_moe", tmp_path)
    change(tmp_path, model_type=kind)
    with pytest.raises(EquipoiseError, match="expected one of") as told:
        Checkpoint(tmp_path)
    assert f"of type {kind!r};" in str(told.value)
    assert all(name in str(told.value) for name in MODEL_TYPES)


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, "a quantised model"),
        ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "a quantised model"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "'softmax'; .* 'sigmoid' only"),
        ("deepseek_v3", {"topk_method": "greedy"}, "'greedy'; .* 'noaux_tc' only"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "'greedy' or 'group_limited_greedy' only"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob True; .* False only"),
        ("deepseek_v3", {"n_group": 3}, "routers that cannot choose"),
        ("deepseek_v3", {"n_group": 8, "topk_group": 9}, "routers that cannot choose"),
        ("deepseek_v2", {"n_group": 0}, "routers that cannot choose"),
        ("deepseek_v2", {"num_experts_per_tok": None}, "routers that cannot choose"),
        ("deepseek_v2", {"first_k_dense_replace": 3}, "no layer routes to experts"),
        ("gpt_oss", {"num_experts_per_tok": 7}, "chooses 7 of 6 experts"),
        ("gpt_oss", {"intermediate_size": 40}, "does not fit|expected .* by its config"),
        ("olmoe", {"intermediate_size": 40}, "have gate_up_proj"),
        ("olmoe", {"num_hidden_layers": 10**12}, "has 1000000000000 layers; expected at most 1000"),
    ],
    ids=str,
)
def test_what_would_not_be_the_model_is_refused(tmp_path, name, values, why):
    save(name, tmp_path)
    change(tmp_path, **values)
    with pytest.raises(EquipoiseError, match=why) as told:
        Checkpoint(tmp_path).read_slots(1, [0])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("part", ["mlp.experts.2.up_proj", "self_attn.o_proj"])
def test_quantised_tensors_are_refused_where_the_configuration_is_silent(tmp_path, part, dtype):
    save("deepseek_v3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.1.{part}.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(FormatError, match=rf"{part}.weight is stored as (float8_e4m3fn|int8);"):
        checkpoint.read_slots(1, [2]) if "experts" in part else checkpoint.read_rest()


def with_further_layers(folder, number):
    """A saved DeepSeek-V3 with a layer after the last, as if it predicted a further token."""
    save("deepseek_v3", folder)
    tensors = load_file(folder / "model.safetensors")
    last = "model.layers.2."
    further = {
        name.replace(last, f"model.layers.{number}."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    save_file(tensors | further, folder / "model.safetensors")
    return tensors


def test_layers_that_predict_further_tokens_are_left_aside_and_it_is_said(tmp_path, caplog):
    tensors = with_further_layers(tmp_path, 3)
    change(tmp_path, num_nextn_predict_layers=1)
    checkpoint = Checkpoint(tmp_path)
    with caplog.at_level(logging.WARNING, "equipoise.runtime"):
        body = checkpoint.read_rest()
    assert f"{tmp_path}: layers 3 predict further tokens (MTP)" in caplog.text
    assert checkpoint.layer_ids == (1, 2)
    assert set(body.state_dict()) == {name for name in tensors if ".mlp.experts." not in name}


@pytest.mark.parametrize(("number", "further"), [(3, 0), (4, 1), (30, 10**12 - 10**13)])
def test_layers_of_which_the_configuration_does_not_know_are_no_such_layers(
    tmp_path, number, further
):
    with_further_layers(tmp_path, number)
    change(tmp_path, num_nextn_predict_layers=further)
    with pytest.raises(FormatError, match=rf"model\.layers\.{number}\."):
        Checkpoint(tmp_path).read_rest()


def test_the_bias_of_the_choice_stays_in_float32(tmp_path):
    model = save("deepseek_v3", tmp_path)
    body = Checkpoint(tmp_path, dtype=torch.bfloat16).read_rest()
    routers = [moe_blocks(one)[1].gate for one in (body, model)]
    assert routers[0].weight.dtype is torch.bfloat16
    assert torch.equal(*(router.e_score_correction_bias for router in routers))


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({}, "has no weight_map"),
        ([], "holds no JSON object"),
        ({"weight_map": ["model.norm.weight"]}, "has no weight_map"),
        ({"weight_map": {"model.norm.weight": 1}}, "has no weight_map"),
        ({"weight_map": {"model.norm.weight": "../other.safetensors"}}, "expected one next to it"),
        ({"weight_map": {"model.norm.weight": "gone.safetensors"}}, r"gone\.safetensors"),
        ({"weight_map": {}}, "does not fit its config.json"),
    ],
    ids=str,
)
def test_an_index_that_names_no_tensors_is_refused(tmp_path, index, why):
    save("olmoe", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=why):
        Checkpoint(tmp_path).read_rest()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\xff", "7"])
def test_junk_for_a_configuration_is_a_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=r"config\.json (cannot be read|holds no JSON object)"):
        Checkpoint(tmp_path)
