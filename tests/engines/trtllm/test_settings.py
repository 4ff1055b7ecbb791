from __future__ import annotations

import re
from pathlib import Path

import pytest

from equipoise.control.settings import Settings
from equipoise.engines.settings import from_options, read_options
from equipoise.errors import EquipoiseError

ONLINE = "num_slots: 8\nlayer_updates_per_iter: 2\n"
STATIC = "num_slots: 8\ninitial_global_assignments:\n  3: [0, 1, 2, 3, 4, 5, 0, 1]\n"
FITS = {"num_experts": 6, "num_ranks": 4, "layer_ids": (3,)}


def write(folder: Path, text: str, name: str = "balancer.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_online_file_of_two_lines(tmp_path):
    expected = Settings(num_redundant=2, layers_per_step=2)
    for source in (ONLINE, write(tmp_path, ONLINE), "{num_slots: 8, layer_updates_per_iter: 2}"):
        found = read_options("trtllm", source, **FITS)
        assert (found.settings, found.placement, found.advice) == (expected, None, ())


@pytest.mark.parametrize(("updates", "layers"), [("", 0), ("layer_updates_per_iter: 1", 1)])
def test_a_file_with_a_map_starts_from_it(updates, layers, tmp_path):
    path = write(tmp_path, STATIC + updates)
    found = read_options("trtllm", path, **FITS)
    assert found.settings == Settings(num_redundant=2, layers_per_step=layers, map_path=path)
    assert found.placement.slots.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1]]
    assert found.placement.layer_ids == (3,)


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("moe_config:\n  backend: WIDEEP\n  load_balancer: {}\n", "'moe_config.backend'"),
        ("pytorch_backend_config:\n  a: 1\n  moe_load_balancer: {}", "'pytorch_backend_config.a'"),
        ("moe_load_balancer: {}\nprint_iter_log: true", "'print_iter_log'"),
    ],
)
def test_a_file_of_all_options_that_holds_or_names_the_balancers(text, foreign, tmp_path):
    named = write(tmp_path, STATIC)
    for balancer in (f"{named}", "{num_slots: 8, layer_updates_per_iter: 1}"):
        path = write(tmp_path, text.format(balancer), "options.yaml")
        found = read_options("trtllm", path, **FITS)
        assert found.settings.num_redundant == 2
        assert found.advice == (f"{foreign}: not for balancing, so without effect here.",)
        assert (found.placement is not None) == (balancer == f"{named}")


def test_a_file_of_all_options_without_the_balancers(tmp_path):
    with pytest.raises(EquipoiseError, match="nothing would ever be balanced"):
        read_options("trtllm", write(tmp_path, "moe_config: {backend: WIDEEP}"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 0}, "num_slots: the number is 0; expected 6 or more"),
        ({"num_slots": "8"}, "num_slots: the number is '8'; expected a whole number"),
        ({"num_slots": 8}, "layer_updates_per_iter is 0 by default, and there are no"),
        ({"num_slots": 8, "layer_updates_per_iter": -1}, "layer_updates_per_iter is -1; expected"),
        (
            {"initial_global_assignments": {3: [0, 1]}},
            "initial_global_assignments: a map is read from a file; put the options in a file",
        ),
        ({"mode": "per_iteration"}, "mode 'per_iteration' would have no effect: experts move"),
        ({"ep_size": 4}, "TensorRT-LLM has no option 'ep_size' for balancing; it has auxiliary_"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        from_options("trtllm", options, num_experts=6)


def test_slots_need_the_number_of_experts():
    with pytest.raises(EquipoiseError, match="num_slots: the number of experts is not known"):
        read_options("trtllm", ONLINE)


def test_settings_of_ours_next_to_options(tmp_path):
    path = write(tmp_path, "")
    static = from_options("trtllm", {"num_slots": 8}, num_experts=6, map_path=path)
    assert static == Settings(num_redundant=2, layers_per_step=0, map_path=path)
    quick = from_options("trtllm", {"layer_updates_per_iter": 1}, num_experts=6, window=100)
    assert quick == Settings(window=100, layers_per_step=1)
