import json
from pathlib import Path

import pytest

from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import examine_map, inspect_map, read_map
from equipoise.engines.vllm.hygon_maps import FORMAT
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement

CASES = Path(__file__).parents[2] / "cases" / "foreign_maps"
ROWS = [[0, 1, 2, 0], [1, 2, 0, 1]]
CONTEXT = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5))
COUNTS = {
    "num_moe_layers": 2,
    "num_logical_experts": 3,
    "num_physical_experts": 4,
    "num_redundant_experts": 1,
}


def single(**changes):
    return {
        "version": 1,
        "format": "vllm_offline_eplb_physical_to_logical",
        "physical_to_logical_map": ROWS,
    } | changes


def by_model(**models):
    entries = {name: {"physical_to_logical_map": rows} for name, rows in models.items()}
    name = "vllm_offline_eplb_physical_to_logical_by_model"
    return {"version": 2, "format": name, "model_maps": entries}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "eplb.json"


def codes(path, document, context=CONTEXT):
    path.write_text(json.dumps(document))
    return [finding.code for finding in inspect_map(path, context).findings]


def test_one_map(path):
    assert codes(path, single()) == []
    assert FORMAT.matches(path)
    assert read_map(path, CONTEXT) == Placement(ROWS, num_ranks=2, num_experts=3, layer_ids=[3, 5])
    (note,) = inspect_map(path, CONTEXT).notes
    assert "does not say whether the last ones are draft (MTP) layers" in note


def test_the_map_of_the_one_model(path):
    assert codes(path, by_model(A=ROWS)) == []
    assert inspect_map(path, CONTEXT).notes == ("The map of A.",)


def test_the_map_of_a_stage_of_a_pipeline(path):
    stages = {"A#pp_rank=0": ROWS, "A#pp_rank=1": ROWS[::-1]}
    path.write_text(json.dumps(by_model(**stages)))
    with pytest.raises(EquipoiseError, match=r"2 models \('A#pp_rank=0', 'A#pp_rank=1'\); give"):
        read_map(path, CONTEXT)
    context = MapContext(num_ranks=2, model_key="A#pp_rank=1")
    assert read_map(path, context).slots.tolist() == ROWS[::-1]


def test_stated_counts_are_checked_and_used(path):
    entry = by_model(A=ROWS)
    entry["model_maps"]["A"] |= COUNTS | {"record_kind": "initial", "model_class": "A"}
    assert codes(path, entry, MapContext(num_ranks=2)) == ["W4"]
    assert inspect_map(path, CONTEXT).notes[1].startswith("The layout the engine started with")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [5, "3", True])
def test_x6_counts_that_disagree_with_the_rows(path, name, value):
    found = codes(path, single(**(COUNTS | {name: value})), MapContext(num_ranks=2))
    assert "X6" in found or name == "num_logical_experts"


@pytest.mark.parametrize(
    ("code", "document"),
    [
        ("X1", single(physical_to_logical_map=[[0, 1, 2, 0], [1, 2, 0, 3]])),
        ("X1", single(physical_to_logical_map=[[0, 1, 2, 0], [1, 0, 0, 1]])),
        ("X2", single(physical_to_logical_map=[[0, 1, 2, 0], [1, 2, 0]])),
        ("X5", single(physical_to_logical_map=[ROWS[0]])),
        ("X7", single(version=2)),
        ("X7", by_model(A=ROWS) | {"version": 1}),
    ],
)
def test_each_rule(path, code, document):
    found = codes(path, document)
    assert found
    assert set(found) == {code}


def test_a_key_given_twice(path):
    path.write_text(json.dumps(by_model(A=ROWS, B=ROWS)).replace('"B"', '"A"'))
    assert [f.code for f in inspect_map(path, CONTEXT).findings] == ["X6"]


@pytest.mark.parametrize(
    "document",
    [
        {"format": "vllm_offline_eplb_by_stage", "version": 3},
        single(physical_to_logical_map=[]),
        single(physical_to_logical_map=None),
        by_model(),
        by_model(A=ROWS) | {"model_maps": [ROWS]},
        by_model(A=ROWS) | {"model_maps": {"A": ROWS}},
    ],
)
def test_what_is_known_and_cannot_be_read_has_its_own_reason(path, document):
    path.write_text(json.dumps(document))
    assert FORMAT.matches(path)
    with pytest.raises(FormatError, match=r"eplb\.json: (the format is|\w+_maps? )"):
        read_map(path, CONTEXT)


def test_what_people_sent():
    reading = examine_map(CASES / "model_rows_v1.json", MapContext(num_ranks=2, num_experts=4))
    assert reading.placement.num_layers == 3
    assert [finding.code for finding in reading.findings] == ["W4"]
