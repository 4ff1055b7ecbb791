"""Maps as people reported them, each with the truth of the table in ``README.md``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines.formats import MapContext, Severity
from equipoise.engines.map_io import validate_map, write_map
from equipoise.engines.registry import map_format, map_formats

MAPS = Path(__file__).parent / "foreign_maps"


@pytest.fixture
def run(capsys):
    """Run a command; its status, and what it said, on one line."""

    def run(*arguments: object) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, " ".join((out + err).split())

    return run


def converted(run, tmp_path, name, *options):
    """The map that ``convert`` makes of a case, and what it said."""
    target = tmp_path / "map.json"
    status, said = run("convert", MAPS / name, "--to", "equipoise", "-o", target, *options)
    assert status == 0, said
    return eq.read_map(target), said


def advises_to_delete(said: str) -> bool:
    return re.search(r"\b([Rr]emove|[Dd]elete|[Dd]rop|leave (it|them) out)\b", said) is not None


# The map of one model, whose rows are MoE layers, the last ones perhaps draft layers


def test_a_map_of_another_plug_in_is_not_sglangs(run, tmp_path):
    status, said = run("validate", MAPS / "model_rows_v1.json", "--ranks", 2)
    assert status == 0
    assert "vllm-hygon" in said
    assert "S1" not in said
    assert not advises_to_delete(said)
    placement, said = converted(run, tmp_path, "model_rows_v1.json", "--ranks", 2)
    assert placement.slots.tolist() == [[0, 1, 2, 3, 0, 1], [1, 0, 2, 3, 1, 0], [3, 2, 1, 0, 3, 2]]
    assert "does not say whether the last ones are draft (MTP) layers" in said
    assert "taken as layers 0-2, in order. Give --layers" in said


def test_the_rows_of_draft_layers_get_numbers_as_well(run, tmp_path):
    options = ("--ranks", 2, "--layers", "3,4,61")
    placement, _ = converted(run, tmp_path, "model_rows_v1.json", *options)
    assert placement.layer_ids == (3, 4, 61)
    status, said = run("validate", MAPS / "model_rows_v1.json", "--ranks", 2, "--layers", "3-4")
    assert status == 1
    assert "3 layer rows; the model has 2 MoE layers" in said


def test_sglang_is_never_made_of_it(run):
    status, said = run("validate", MAPS / "model_rows_v1.json", "--for", "sglang")
    assert status == 2
    assert "another program's file, not SGLang's --init-expert-location" in said
    assert not advises_to_delete(said)


# A map for each model


def test_of_several_models_one_is_chosen(run, tmp_path):
    status, said = run("validate", MAPS / "by_model_v2.json", "--ranks", 2)
    assert status == 2
    assert "the maps of 2 models ('HYV4ForCausalLM', 'HYV4MTP'); give --model-key" in said
    options = ("--ranks", 2, "--model-key")
    main_model, said = converted(run, tmp_path, "by_model_v2.json", *options, "HYV4ForCausalLM")
    assert main_model.slots.tolist() == [[0, 1, 2, 3, 0, 1], [0, 2, 1, 3, 2, 3]]
    assert "The map of HYV4ForCausalLM." in said
    drafter, _ = converted(run, tmp_path, "by_model_v2.json", *options, "HYV4MTP")
    assert drafter.slots.tolist() == [[3, 2, 1, 0, 3, 2]]


def test_one_model_needs_no_choice(run, tmp_path):
    document = json.loads((MAPS / "by_model_v2.json").read_text())
    del document["model_maps"]["HYV4MTP"]
    (tmp_path / "one.json").write_text(json.dumps(document))
    assert run("validate", tmp_path / "one.json", "--ranks", 2)[0] == 0
    status, said = run("validate", tmp_path / "one.json", "--ranks", 2, "--model-key", "other")
    assert status == 2
    assert "none of 'other'" in said


def test_the_choice_of_a_model_is_refused_where_there_are_none(run, tmp_path):
    path = MAPS / "ascend_without_ids.json"
    for command in (
        ("validate", path),
        ("convert", path, "--to", "trtllm", "-o", tmp_path / "map.yaml"),
        ("diff", path, path),
    ):
        status, said = run(*command, "--model-key", "A")
        assert status == 2
        assert "leave --model-key out" in said


# Ascend's maps without what the engine never reads


@pytest.mark.parametrize(
    ("name", "slots", "missing"),
    [
        ("ascend_without_counts.json", [[2, 0, 3, 1]], "device_count"),
        ("ascend_without_ids.json", [[0, 1, 2, 3, 0, 1]] * 2, "device_id"),
    ],
)
def test_ascend_maps_without_counts_or_ids_are_read(run, tmp_path, name, slots, missing):
    status, said = run("validate", MAPS / name, "--ranks", 2)
    assert status == 0
    assert " error: " not in said
    assert missing in said
    placement, said = converted(run, tmp_path, name)
    assert (placement.num_ranks, placement.slots.tolist()) == (2, slots)
    assert missing in said
    assert "The engine never reads it" in said
    assert "in order. Give --layers" in said


def test_writing_for_ascend_is_strict(run, tmp_path):
    target = tmp_path / "expert_map.json"
    source = MAPS / "ascend_without_ids.json"
    assert run("convert", source, "--to", "ascend", "-o", target, "--layers", "3-4")[0] == 0
    status, said = run("validate", target, "--ranks", 2, "--layers", "3-4", "--experts", 4)
    assert (status, said) == (0, f"{target}: ascend: 0 errors, 0 warnings: valid.")


# TensorRT-LLM's online file


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("online.yaml", "re-plans 2 layers an iteration"),
        ("online_min.yaml", "keeps its default layout"),
    ],
)
def test_no_assignments_are_no_error(run, tmp_path, name, then):
    status, said = run("validate", MAPS / name, "--ranks", 32, "--experts", 256)
    assert status == 0
    assert f"No assignments: the engine places the experts itself and {then}." in said
    status, said = run("validate", MAPS / name, "--ranks", 33, "--experts", 256)
    assert status == 1
    assert "288 slots do not divide over 33 ranks" in said
    target = tmp_path / "map.json"
    status, said = run("convert", MAPS / name, "--ranks", 32, "--to", "equipoise", "-o", target)
    assert status == 2
    assert "no assignments, so it is not a map: the engine places the experts itself" in said


# Tensors of other programs


def test_a_tensor_of_slots_is_read(run, tmp_path):
    placement, said = converted(run, tmp_path, "phy2log.pt", "--ranks", 4)
    assert (placement.num_layers, placement.num_slots, placement.num_experts) == (3, 24, 16)
    assert placement.slots[0, :6].tolist() == [12, 10, 9, 6, 11, 8]
    assert "Read as the experts of slots" in said


def test_a_count_that_contradicts_the_slots_is_told(run):
    status, said = run("validate", MAPS / "eplb_dict.pt", "--ranks", 4)
    assert status == 1
    assert "the slots hold 2 copies of expert 1, and the file counts 1" in said


def test_a_table_that_lost_a_slot_says_what_it_is(run):
    status, said = run("validate", MAPS / "expert_map.pth")
    assert status == 2
    assert "is a table of the slot that each expert has on each rank" in said
    assert "what layer 0, rank 2 holds in slot 2: a second copy of one of its experts" in said


@pytest.mark.parametrize("command", ["validate", "convert"])
def test_a_text_is_neither_a_map_nor_a_recording(run, tmp_path, command):
    options = ("--to", "equipoise", "-o", tmp_path / "map.json") if command == "convert" else ()
    status, said = run(command, MAPS / "not_a_map.txt", *options)
    assert status == 2
    assert "is neither a map nor a recording" in said
    assert "The simplest map is two lines of YAML" in said
    assert "columns layer,expert,tokens, or numpy.savez(counts=...)" in said


def test_the_simplest_map_is_read_as_the_sentence_says(run, tmp_path):
    _, said = run("validate", MAPS / "not_a_map.txt")
    lines = re.findall(r'"((?:num_slots|initial)[^"]*)"', said)
    (tmp_path / "map").write_text("\n".join(lines))
    target = tmp_path / "map.json"
    status, _ = run("convert", tmp_path / "map", "--ranks", 2, "--to", "equipoise", "-o", target)
    assert status == 0
    assert eq.read_map(target) == eq.Placement(
        [[0, 1, 2, 0]], num_ranks=2, num_experts=3, layer_ids=[3]
    )


# What holds for every map

PLACEMENT = eq.Placement(
    [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]], num_ranks=6, num_experts=4, layer_ids=[3, 4]
)
CONTEXT = MapContext(
    num_ranks=6, num_experts=4, layer_ids=(3, 4), num_hidden_layers=5, num_redundant=2
)
WRITABLE = [known.name for known in map_formats() if known.write is not None]
JSON_NAMES = [name for name in WRITABLE if ".json" in map_format(name).suffixes]


@pytest.mark.parametrize("name", WRITABLE)
def test_what_we_write_has_neither_errors_nor_warnings(tmp_path, name):
    path = tmp_path / f"map{map_format(name).suffixes[0]}"
    write_map(PLACEMENT, path, format=name, context=CONTEXT)
    findings = validate_map(path, CONTEXT, format=name)
    assert {finding.severity for finding in findings} <= {Severity.NOTE}


@pytest.mark.parametrize("name", [*JSON_NAMES, "by_model_v2.json", "model_rows_v1.json"])
@pytest.mark.parametrize(
    "change",
    [
        {"format": "acme.placement", "version": 4},
        {"format": "equipoise.map2"},
        {"format": None},
        {"version": 99},
        {"version": "1"},
        {"format": "vllm_offline_eplb_physical_to_logical_v3", "version": 3},
    ],
    ids=str,
)
def test_nobody_is_told_to_delete_what_a_file_says_it_is(run, tmp_path, name, change):
    path = tmp_path / "map.json"
    if name in JSON_NAMES:
        write_map(PLACEMENT, path, format=name, context=CONTEXT)
    else:
        path.write_bytes((MAPS / name).read_bytes())
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | change if isinstance(document, dict) else change))
    for form in (None, *(known.name for known in map_formats())):
        choice = () if form is None else ("--for", form)
        _, said = run("validate", path, "--ranks", 6, *choice)
        assert not advises_to_delete(said), said


@pytest.mark.parametrize("key", ["format", "version"])
@pytest.mark.parametrize("name", ["sglang", "ascend", "trtllm"])
def test_a_file_that_says_what_it_is_is_not_taken_for_an_engines(run, tmp_path, name, key):
    path = tmp_path / f"map{map_format(name).suffixes[0]}"
    write_map(PLACEMENT, path, format=name, context=CONTEXT)
    text = path.read_text()
    value = f'{key}: "acme"\n' if name == "trtllm" else f'{{"{key}": "acme", '
    path.write_text(value + text if name == "trtllm" else text.replace("{", value, 1))
    for choice in ((), ("--for", name)):
        status, said = run("validate", path, "--ranks", 6, *choice)
        assert status == 2
        assert f"states the {key} 'acme'" in said
        assert "another program's file" in said


@pytest.mark.parametrize("name", ["equipoise", "sglang", "vllm-41141", "ascend"])
def test_a_key_given_twice_is_refused_by_name(run, tmp_path, name):
    path = tmp_path / "map.json"
    write_map(PLACEMENT, path, format=name, context=CONTEXT)
    text = path.read_text()
    key = re.search(r'"([a-z_]+)":', text)[1]
    path.write_text(text.replace(f'"{key}":', f'"{key}": 0, "{key}":', 1))
    status, said = run("validate", path, "--ranks", 6, "--for", name)
    assert status == 1
    assert f"The key '{key}' appears twice in one mapping" in said
    target = tmp_path / "out.json"
    options = ("--format", name, "--ranks", 6, "--to", "equipoise", "-o", target)
    assert run("convert", path, *options)[0] == 2
    assert not target.exists()


def test_many_defects_of_one_kind_are_one_line_and_json_has_all(run, tmp_path, capsys):
    rows = [[0, 1, 2, 3, *[0] * 8] for _ in range(58)]
    path = tmp_path / "map.yaml"
    write_map(
        eq.Placement(rows, num_ranks=2, num_experts=4, layer_ids=range(3, 61)),
        path,
        format="trtllm",
    )
    options = ("validate", str(path), "--ranks", "2", "--experts", "4", "--layers", "3-60")
    assert main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "In all there are 406 of this kind, in layers 3-60." in lines[0]
    assert lines[1] == f"{path}: trtllm: 0 errors, 406 warnings: valid."
    assert main([*options, "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert len(findings) == 406


def test_a_layer_with_fewer_experts_gets_none_it_does_not_have(run, tmp_path):
    path = tmp_path / "map.yaml"
    few = [slot % 12 for slot in range(16)]
    path.write_text(
        f"num_slots: 16\ninitial_global_assignments:\n  3: {list(range(16))}\n  4: {few}\n"
    )
    status, said = run("validate", path, "--ranks", 4, "--experts", 16, "--layers", "3-4")
    assert status == 1
    assert "Layer 4: expert 12 has no slot" in said
    assert "If the layer has only experts 0 to 11: all layers of a map have the same" in said
    target = tmp_path / "out.json"
    assert run("convert", path, "--ranks", 4, "--to", "equipoise", "-o", target)[0] == 2
    assert not target.exists()
