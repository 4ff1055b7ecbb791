import json

import pytest

from equipoise import __version__
from equipoise.engines.formats import NOTHING_KNOWN, MapContext
from equipoise.engines.native.maps import FORMAT, write
from equipoise.errors import FormatError
from equipoise.placement import Placement

PLACEMENT = Placement([[0, 1, 2, 0], [1, 2, 0, 1]], num_ranks=2, num_experts=3, layer_ids=[3, 7])

TEXT = f"""\
{{
"format": "equipoise.map",
"version": 1,
"num_ranks": 2,
"num_experts": 3,
"num_slots": 4,
"checksum": "{PLACEMENT.checksum}",
"provenance": {{"created_by": "equipoise {__version__}", "planner": "Greedy()", "trace": "run"}},
"layers": [
{{"id": 3, "slots": [0, 1, 2, 0]}},
{{"id": 7, "slots": [1, 2, 0, 1]}}
]
}}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "map.json"
    write(PLACEMENT, path, MapContext(planner="Greedy()", trace="run"))
    return path


def codes(path, change=None, context=NOTHING_KNOWN):
    """The codes found after ``change`` has damaged the document."""
    if change is not None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
    return [finding.code for finding in FORMAT.check(FORMAT.parse(path), context)]


def test_golden(path):
    assert path.read_text() == TEXT


def test_the_same_placement_gives_the_same_bytes(path, tmp_path):
    other = tmp_path / "other.json"
    write(PLACEMENT, other, MapContext(planner="Greedy()", trace="run"))
    assert other.read_bytes() == path.read_bytes()


def test_round_trip_needs_no_context(path):
    raw = FORMAT.parse(path)
    assert FORMAT.matches(path)
    assert FORMAT.check(raw, MapContext()) == []
    assert FORMAT.to_placement(raw, MapContext()) == PLACEMENT
    assert FORMAT.losses(PLACEMENT) == []
    assert raw.notes == (f"created_by: equipoise {__version__}", "planner: Greedy()", "trace: run")


def test_n1_an_unknown_key(path):
    assert codes(path, lambda d: d.update(surprise=1)) == ["N1"]


def test_n1_unknown_keys_inside(path):
    def change(document):
        document["provenance"]["host"] = "x"
        document["layers"][0]["device"] = 1

    assert codes(path, change) == ["N1", "N1"]


def test_n1_provenance_of_another_kind(path):
    assert codes(path, lambda d: d.update(provenance=["x"])) == ["N1"]


@pytest.mark.parametrize("key", ["provenance", "version", "num_ranks", "num_slots", "checksum"])
def test_n1_a_missing_key(path, key):
    assert "N1" in codes(path, lambda d: d.pop(key))


def test_n1_a_repeated_key(path):
    path.write_text(TEXT.replace('"num_slots": 4', '"num_slots": 9, "num_slots": 4'))
    assert codes(path) == ["N1"]


@pytest.mark.parametrize("version", [2, "1", True, 1.0, None])
def test_n2_unknown_version(path, version):
    assert codes(path, lambda d: d.update(version=version)) == ["N2"]


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None])
def test_n3_a_count_that_is_no_positive_integer(path, value):
    assert codes(path, lambda d: d.update(num_ranks=value)) == ["N3"]


def test_n3_a_count_that_does_not_fit(path):
    assert codes(path, lambda d: d.update(num_ranks=3)) == ["N3"]
    assert codes(path, lambda d: d.update(num_ranks=2, num_experts=10**12)) == ["N3"]


def test_n3_the_deployment_differs(path):
    assert codes(path, context=MapContext(num_ranks=4, num_experts=3)) == ["N3"]
    assert codes(path, context=MapContext(num_redundant=2)) == ["N3"]


def test_n4_a_row_of_another_length(path):
    assert codes(path, lambda d: d["layers"][0]["slots"].pop()) == ["N4"]
    assert codes(path, lambda d: d["layers"][0].update(slots=None)) == ["N4"]


@pytest.mark.parametrize("value", [3, -1, True, 0.0, "0"])
def test_n5_a_bad_id(path, value):
    def change(document):
        document["layers"][0]["slots"][3] = value

    assert codes(path, change) == ["N5"]


def test_n5_a_missing_expert(path):
    def change(document):
        document["layers"][0]["slots"] = [0, 1, 1, 0]

    assert codes(path, change) == ["N5"]


@pytest.mark.parametrize("layer", [7, 8, -1, True, "3", None])
def test_n6_layer_ids_that_do_not_ascend(path, layer):
    assert "N6" in codes(path, lambda d: d["layers"][0].update(id=layer))


def test_n6_an_entry_that_is_no_layer(path):
    assert codes(path, lambda d: d["layers"].insert(0, [1])) == ["N6"]


def test_n6_layers_that_are_not_the_models(path):
    assert codes(path, context=MapContext(layer_ids=(3, 4))) == ["N6", "N6"]


@pytest.mark.parametrize("checksum", ["0" * 64, None, 7])
def test_n7_the_checksum(path, checksum):
    assert codes(path, lambda d: d.update(checksum=checksum)) == ["N7"]


def test_n7_the_content(path):
    def change(document):
        document["layers"][0]["slots"] = [1, 0, 2, 0]

    assert codes(path, change) == ["N7"]


def test_several_defects_are_all_reported(path):
    def change(document):
        document.update(surprise=1, version=9)
        document["layers"][0]["slots"][0] = "x"
        document["layers"][1]["slots"].append(0)

    # Expert 0 keeps its other copy in slot 3, so no expert is missing.
    assert codes(path, change) == ["N1", "N2", "N5", "N4"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "equipoise.map"}', "x", ""])
def test_what_is_no_map(path, text):
    path.write_text(text)
    with pytest.raises(FormatError, match=r"map\.json"):
        FORMAT.parse(path)
