from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement
from tests.runtime import small_model
from tests.runtime.small_model import FOLDER, TOLERANCE, E, L, load, random_placement


def compare(group, where, dispatch, max_num_tokens=None, damaged_rank=None):
    model = load(group, where, dispatch=dispatch, max_num_tokens=max_num_tokens)
    if damaged_rank == torch.distributed.get_rank(group):
        model.layers[2].weights["down_proj"][0] *= 1.1
    return small_model.furthest_logit(model)


@pytest.mark.parametrize("dispatch", ["even", "minmax", "nearest"])
@pytest.mark.parametrize("redundant", [0, 12])
@pytest.mark.parametrize("ranks", [2, 4])
def test_serves_what_transformers_serves(pool, ranks, redundant, dispatch):
    where = random_placement(ranks, redundant)
    assert max(pool.run(compare, where, dispatch, ranks=ranks)) < TOLERANCE


def test_in_chunks_too(pool):
    assert max(pool.run(compare, random_placement(4, 12), "minmax", 7)) < TOLERANCE


@pytest.mark.parametrize("damaged_rank", [0, 3])
def test_a_wrong_weight_in_one_slot_shows(pool, damaged_rank):
    where = random_placement(4, 0)
    assert max(pool.run(compare, where, "even", None, damaged_rank)) > 10 * TOLERANCE


def sizes(group, where):
    model = load(group, where)
    return (
        [(name, tuple(tensor.shape)) for name, tensor in model.layers[0].weights.items()],
        model.placement == where,
        sum(p.numel() for p in model.model.parameters()),
    )


def test_a_rank_holds_its_slots_only(pool):
    whole = sum(
        t.numel()
        for n, t in load_file(FOLDER / "model.safetensors").items()
        if ".experts." not in n
    )
    for weights, is_there, elsewhere in pool.run(sizes, random_placement(4, 12)):
        assert weights == [("down_proj", (11, 160, 56)), ("gate_up_proj", (11, 112, 160))]
        assert is_there
        assert elsewhere == whole


def refused(group, folder, where):
    with pytest.raises(EquipoiseError) as told:
        small_model.load_model(folder, where, group=group)
    return type(told.value), str(told.value)


def damaged(folder, change):
    """A copy of the model with a change to its configuration or its tensors."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda c, t: c.update(model_type="mixtral"), EquipoiseError, "type 'mixtral'"),
        (lambda c, t: c.update(hidden_act="gelu"), EquipoiseError, "hidden_act 'gelu'"),
        (
            lambda c, t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"),
            FormatError,
            "experts.3.up_proj",
        ),
        (
            lambda c, t: c.update(moe_intermediate_size=64),
            FormatError,
            "have gate_up_proj",
        ),
        (lambda c, t: t.pop("model.norm.weight"), FormatError, "model.norm.weight"),
    ],
)
def test_folders_that_cannot_be_served_are_refused(pool, tmp_path, change, kind, message):
    damaged(tmp_path, change)
    ((got, text),) = pool.run(refused, tmp_path, random_placement(1, 0), ranks=1)
    assert got is kind
    assert message in text


def test_missing_files_are_refused(pool, tmp_path):
    where = random_placement(1, 0)
    ((_, text),) = pool.run(refused, tmp_path, where, ranks=1)
    assert "config.json" in text
    shutil.copy(FOLDER / "config.json", tmp_path)
    ((_, text),) = pool.run(refused, tmp_path, where, ranks=1)
    assert "model.safetensors" in text
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    ((_, text),) = pool.run(refused, tmp_path, where, ranks=1)
    assert "model.safetensors" in text
    (tmp_path / "config.json").write_text("[")
    ((_, text),) = pool.run(refused, tmp_path, where, ranks=1)
    assert "config.json cannot be read" in text


def test_placements_of_other_models_are_refused(pool):
    slots = np.tile(np.arange(E), (L, 1))
    for where, message in (
        (Placement(slots[1:], num_ranks=2, num_experts=E), "layers 0-3"),
        (Placement(slots, num_ranks=4, num_experts=E), "for 4 ranks, the process group has 2"),
    ):
        for _, text in pool.run(refused, FOLDER, where, ranks=2):
            assert message in text
