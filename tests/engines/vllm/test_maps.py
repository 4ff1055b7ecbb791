import hashlib
import json

import pytest

from equipoise.engines.formats import MapContext
from equipoise.engines.vllm.maps import FORMATS
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement

RECORD, MOE_LIST, DECODER_LIST = FORMATS
ROWS = [[0, 1, 2, 0], [1, 2, 0, 1]]
PLACEMENT = Placement(ROWS, num_ranks=2, num_experts=3, layer_ids=[3, 5])
CONTEXT = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5), num_redundant=1)


def decoder_rows():
    dense = [0, 1, 2, 0]
    return [dense, dense, dense, ROWS[0], dense, ROWS[1]]


def codes(path, format, document, context=CONTEXT):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return [finding.code for finding in format.check(format.parse(path), context)]


def record(**changes):
    return {
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "num_redundant_experts": 1,
        "num_slots": 4,
        "initial_global_assignments": {str(i): list(row) for i, row in enumerate(ROWS)},
    } | changes


# The record of pull request 41141


@pytest.fixture
def jsonl(tmp_path):
    return tmp_path / "map.jsonl"


def test_golden_record(jsonl):
    RECORD.write(PLACEMENT, jsonl, CONTEXT)
    data = jsonl.read_bytes()
    assert len(data) == 168
    assert hashlib.sha256(data).hexdigest().startswith("18c3cbf7a31aedab")
    assert json.loads(data) == record()


def test_record_round_trip(jsonl):
    RECORD.write(PLACEMENT, jsonl, CONTEXT)
    raw = RECORD.parse(jsonl)
    assert RECORD.matches(jsonl)
    assert RECORD.check(raw, CONTEXT) == []
    assert RECORD.to_placement(raw, CONTEXT) == PLACEMENT
    unnumbered = RECORD.to_placement(raw, MapContext(num_ranks=2))
    assert unnumbered == Placement(ROWS, num_ranks=2, num_experts=3)


def test_the_golden_record_with_another_redundancy_is_refused(jsonl):
    assert codes(jsonl, RECORD, record(num_redundant_experts=2)) == ["X6"]


def with_row(row, **changes):
    return record(initial_global_assignments={"0": row, "1": ROWS[1]}, **changes)


@pytest.mark.parametrize(
    ("code", "document"),
    [
        ("X1", with_row([0, 1, 2, True])),
        ("X1", with_row([0, 1, 2, 0.0])),
        ("X1", with_row([0, 1, 2, 3])),
        ("X1", with_row([0, 1, 2, -1])),
        ("X1", with_row([0, 1, 1, 0])),
        ("X2", with_row([0, 1, 2])),
        ("X2", with_row("0 1 2")),
        ("X5", record(initial_global_assignments={"0": ROWS[0], "2": ROWS[1]})),
        ("X5", record(initial_global_assignments={"1": ROWS[0], "0": ROWS[1]})),
        ("X5", record(initial_global_assignments={"0": ROWS[0]})),
        ("X5", record(initial_global_assignments={"3": ROWS[0], "5": ROWS[1]})),
        ("X6", record(num_slots=5, num_redundant_experts=2)),
        ("X6", record(num_slots="4")),
        ("X6", record(num_redundant_experts=True)),
        ("X6", record(num_redundant_experts=-1)),
        ("X6", record(num_ranks=2)),
        ("X6", json.dumps(record()) + "\n" + json.dumps(record())),
        ("X6", json.dumps(record()).replace('{"0"', '{"0": [1], "0"')),
        ("X7", record(version=2)),
        ("X7", record(version=True)),
    ],
)
def test_each_rule_of_the_record(jsonl, code, document):
    found = codes(jsonl, RECORD, document)
    assert found
    assert set(found) == {code}


def test_x3_slots_that_do_not_divide(jsonl):
    context = MapContext(num_ranks=3, num_experts=3, layer_ids=(3, 5), num_redundant=1)
    assert codes(jsonl, RECORD, record(), context) == ["X3"]


def test_x6_the_engine_is_configured_otherwise(jsonl):
    context = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5), num_redundant=3)
    assert codes(jsonl, RECORD, record(), context) == ["X6"]


def test_all_defects_of_a_record_in_one_run(jsonl):
    document = record(version=3, num_slots=None, extra=1) | {
        "initial_global_assignments": {"0": [0, 1, 2, "0"], "7": [0, 1, 2]}
    }
    context = MapContext(num_ranks=3, num_experts=3, layer_ids=(3, 4, 5))
    found = set(codes(jsonl, RECORD, document, context))
    assert found == {"X1", "X2", "X3", "X5", "X6", "X7"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "[]",
        '{"record_type": "eplb_load_stats"}',
        '{"record_type": "eplb_initial_mapping"}',
        "{",
    ],
)
def test_what_is_no_record(jsonl, text):
    jsonl.write_text(text)
    with pytest.raises(FormatError, match=r"map\.jsonl"):
        RECORD.parse(jsonl)


# The lists of pull requests 49572 and 53022


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map.json"


def test_moe_list_bytes_and_round_trip(path):
    MOE_LIST.write(PLACEMENT, path, CONTEXT)
    assert path.read_text() == "[\n[0, 1, 2, 0],\n[1, 2, 0, 1]\n]\n"
    raw = MOE_LIST.parse(path)
    assert MOE_LIST.check(raw, CONTEXT) == []
    assert MOE_LIST.to_placement(raw, CONTEXT) == PLACEMENT


def test_decoder_list_bytes_and_round_trip(path):
    context = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5), num_hidden_layers=6)
    DECODER_LIST.write(PLACEMENT, path, context)
    assert json.loads(path.read_text()) == decoder_rows()
    raw = DECODER_LIST.parse(path)
    assert DECODER_LIST.check(raw, context) == []
    assert DECODER_LIST.to_placement(raw, context) == PLACEMENT


def test_decoder_list_counts_draft_layers_beyond_the_decoders(path):
    context = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5), num_hidden_layers=5)
    DECODER_LIST.write(PLACEMENT, path, context)
    assert json.loads(path.read_text()) == decoder_rows()
    assert DECODER_LIST.check(DECODER_LIST.parse(path), context) == []


def test_decoder_list_needs_the_decoder_layers(path):
    with pytest.raises(EquipoiseError, match="num_hidden_layers"):
        DECODER_LIST.write(PLACEMENT, path, CONTEXT)


@pytest.mark.parametrize("format", [MOE_LIST, DECODER_LIST])
def test_one_list_for_all_layers(path, format):
    context = MapContext(
        num_ranks=2, num_experts=3, layer_ids=(3, 5), num_redundant=1, num_hidden_layers=6
    )
    assert codes(path, format, [0, 1, 2, 0], context) == []
    raw = format.parse(path)
    placement = format.to_placement(raw, context)
    assert placement == Placement([[0, 1, 2, 0]] * 2, num_ranks=2, num_experts=3, layer_ids=[3, 5])
    assert raw.notes == ("One list for all layers, 4 slots.",)
    with pytest.raises(EquipoiseError, match="give layer_ids"):
        format.to_placement(raw, MapContext(num_ranks=2))
    assert codes(path, format, [0, 1, 1, True], context) == ["X1", "X1"]


@pytest.mark.parametrize("format", [MOE_LIST, DECODER_LIST])
@pytest.mark.parametrize(
    ("code", "row"),
    [
        ("X1", [1, 2, 0, True]),
        ("X1", [1, 2, 0, 1.0]),
        ("X1", [1, 2, 0, 3]),
        ("X1", [1, 2, 0, -1]),
        ("X1", [1, 0, 0, 1]),
        ("X2", [1, 2, 0]),
        ("X2", None),
    ],
)
def test_x1_and_x2_in_a_list(path, format, code, row):
    rows = decoder_rows() if format is DECODER_LIST else list(ROWS)
    context = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5), num_hidden_layers=6)
    assert codes(path, format, rows, context) == []
    rows[-1] = row
    assert set(codes(path, format, rows, context)) == {code}


def test_x2_a_width_the_engine_is_not_configured_for(path):
    context = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5), num_redundant=3)
    assert codes(path, MOE_LIST, ROWS, context) == ["X2"]


def test_x3_in_a_list(path):
    context = MapContext(num_ranks=3, num_experts=3, layer_ids=(3, 5))
    assert codes(path, MOE_LIST, ROWS, context) == ["X3"]


@pytest.mark.parametrize("format", [MOE_LIST, RECORD])
def test_x4_more_redundancy_than_the_engine_takes(path, format):
    placement = Placement([[s % 3 for s in range(1027)]], num_ranks=1027, num_experts=3)
    context = MapContext(num_ranks=1027, num_experts=3, layer_ids=(0,), num_redundant=1024)
    format.write(placement, path, context)
    assert [f.code for f in format.check(format.parse(path), context)] == ["X4"]


def test_x5_rows_other_than_layers(path):
    context = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5), num_hidden_layers=6)
    assert codes(path, MOE_LIST, decoder_rows(), context) == ["X5"]
    assert set(codes(path, DECODER_LIST, ROWS, context)) == {"X5"}
    unknown = MapContext(num_ranks=2, num_experts=3, layer_ids=(3, 5))
    assert codes(path, DECODER_LIST, ROWS, unknown) == ["X5", "W2"]


def test_the_lists_have_the_same_form(path):
    path.write_text(json.dumps(ROWS))
    assert MOE_LIST.matches(path)
    assert DECODER_LIST.matches(path)


@pytest.mark.parametrize(
    "document", [[[849, 636, 511], [270, 308, 41]], [[[0, 1], [1, 0]]], [849, 636], [[0.5, 0.1]]]
)
def test_counts_are_not_taken_for_a_list(path, document):
    path.write_text(json.dumps(document))
    assert not MOE_LIST.matches(path)


def test_a_list_with_some_broken_ids_is_still_one(path):
    path.write_text(json.dumps([[0, 1, 2, 9], [1, 2, None, -1], [0, 1, 2, 0]]))
    assert MOE_LIST.matches(path)


@pytest.mark.parametrize("text", ["[]", '[{"a": 1}]', '["a"]', "{}", "3", "[[0], 1]", "x", ""])
def test_what_is_no_list(path, text):
    path.write_text(text)
    assert not MOE_LIST.matches(path)


@pytest.mark.parametrize("text", ["[]", "{}", "3", "x", ""])
def test_a_list_of_which_nothing_can_be_made(path, text):
    path.write_text(text)
    with pytest.raises(FormatError, match=r"map\.json"):
        MOE_LIST.parse(path)


def test_summaries_say_that_these_are_proposals():
    assert all("no release reads it" in format.summary for format in FORMATS)


def test_losses():
    assert len(RECORD.losses(PLACEMENT)) == 2
    assert "3, 5" in RECORD.losses(PLACEMENT)[1]
    unnumbered = Placement(ROWS, num_ranks=2, num_experts=3)
    assert len(MOE_LIST.losses(unnumbered)) == 1
    assert "which of its rows" in DECODER_LIST.losses(PLACEMENT)[1]
