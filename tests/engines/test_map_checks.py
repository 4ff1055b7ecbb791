from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.engines.formats import MapContext, RawMap, Severity
from equipoise.engines.map_checks import (
    LIMIT,
    MAX_BYTES,
    Rules,
    build,
    check_layer_keys,
    check_layers_have_rows,
    check_row_count,
    check_rows,
    default_row,
    describe,
    parse_json,
    peek_json,
    read_text,
    unchecked,
)
from equipoise.errors import EquipoiseError, FormatError

RULES = Rules(
    ids="ids",
    missing="missing",
    width="width",
    slots="slots",
    stated="stated",
    redundancy="redundancy",
    duplicates="duplicates",
)
KNOWN = MapContext(num_ranks=2, num_experts=4, num_redundant=2)
GOOD = RawMap(rows=[[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]], layer_keys=[3, 4])


def found(rows, context=KNOWN, **changes):
    keys = list(range(3, 3 + len(rows)))
    raw = replace(GOOD, rows=rows, layer_keys=keys, **changes)
    return check_rows(raw, context, RULES)


def test_a_good_map_has_no_findings():
    assert found(GOOD.rows) == []


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], {"a": 1}])
def test_a_value_that_is_no_true_integer_is_named(value):
    (finding,) = found([[0, 1, 2, 3, 0, value], GOOD.rows[1]])
    assert (finding.code, finding.layer, finding.slot) == ("ids", 3, 5)
    assert "Layer 3, slot 5" in finding.message


@pytest.mark.parametrize("value", [-1, 4, 10**30])
def test_an_id_out_of_range_is_named(value):
    (finding,) = found([[0, 1, 2, 3, 0, value], GOOD.rows[1]])
    assert (finding.code, finding.layer, finding.slot) == ("ids", 3, 5)
    assert finding.expert == value
    assert "0 to 3" in finding.message


def test_every_missing_expert_is_named():
    findings = found([[0, 1, 0, 1, 0, 1], GOOD.rows[1]], replace(KNOWN, num_ranks=6))
    assert [(f.code, f.layer, f.expert) for f in findings] == [
        ("missing", 3, 2),
        ("missing", 3, 3),
    ]


def test_a_missing_expert_shows_without_a_stated_number_where_another_layer_has_it():
    (finding,) = found([[0, 1, 2, 0, 1, 2], [3, 2, 1, 0, 3, 2]], MapContext())
    assert (finding.code, finding.layer, finding.expert) == ("missing", 3, 3)


def test_ragged_rows_are_named_by_layer():
    rows = [GOOD.rows[0], GOOD.rows[1], [0, 1, 2, 3, 0]]
    (finding,) = found(rows)
    assert (finding.code, finding.layer) == ("width", 5)
    assert "5 slots; expected 6" in finding.message


@pytest.mark.parametrize("row", ["0,1,2", 7, None, {"0": 1}])
def test_a_row_that_is_no_list_is_named(row):
    (finding,) = found([GOOD.rows[0], row])
    assert (finding.code, finding.layer) == ("width", 4)


def test_an_illegal_slot_count_names_the_nearest_legal_ones():
    (finding,) = found(GOOD.rows, MapContext(num_ranks=4, num_experts=4))
    assert finding.code == "slots"
    assert "4 slots (0 redundant) or 8 slots (4 redundant)" in finding.message


def test_fewer_slots_than_experts_are_one_finding_and_allocate_nothing():
    (finding,) = found(GOOD.rows, MapContext(num_ranks=2, num_experts=10**15))
    assert finding.code == "slots"


def test_redundancy_other_than_configured():
    (finding,) = found(GOOD.rows, replace(KNOWN, num_redundant=4))
    assert finding.code == "redundancy"
    assert "8 slots" in finding.remedy


def test_stated_counts_that_contradict_the_deployment():
    findings = found(GOOD.rows, num_ranks=3, num_experts=5)
    assert [f.code for f in findings] == ["stated", "stated"]


def test_second_copies_on_a_rank_are_warnings_that_name_both_slots():
    (finding,) = found([[0, 1, 0, 2, 3, 1], GOOD.rows[1]])
    assert (finding.code, finding.severity) == ("duplicates", Severity.WARNING)
    assert (finding.layer, finding.slot, finding.expert) == (3, 2, 0)
    assert "rank 0 has it in slot 0" in finding.message


def test_three_copies_on_a_rank_are_two_findings_against_the_first():
    findings = found([[0, 0, 0, 1, 2, 3], GOOD.rows[1]])
    assert [f.slot for f in findings] == [1, 2]
    assert all("in slot 0" in f.message for f in findings)


def test_many_defects_of_one_kind_are_capped_and_counted_in_every_layer():
    rows = [[*range(4), *[99] * 30], [*range(4), *[-7] * 25, *[0] * 5]]
    findings = found(rows, MapContext(num_experts=4))
    assert len(findings) == 2 * (LIMIT + 1)
    assert "10 more" in findings[LIMIT].message
    assert "30 in all" in findings[LIMIT].message
    assert "5 more" in findings[-1].message
    assert findings[-1].slot is None


def test_several_kinds_in_one_map_are_all_reported():
    findings = found([[0, True, 9, 3, 0, 1], [0, 1, 2], GOOD.rows[1], GOOD.rows[0]])
    assert [(f.code, f.layer) for f in findings] == [
        ("ids", 3),
        ("ids", 3),
        ("missing", 3),
        ("width", 4),
        ("missing", 4),
    ]


def test_layer_keys_that_are_not_the_models():
    extra, absent = check_layer_keys(GOOD, (4, 5, 6), "layers", "remedy")
    assert "Layer 3 is" in extra.message
    assert "Layers 5-6 are" in absent.message
    assert check_layer_keys(GOOD, None, "layers", "remedy") == []
    assert check_layer_keys(GOOD, (3, 4), "layers", "remedy") == []


def test_row_counts():
    assert check_row_count(GOOD, 2, "rows", "MoE layers") == []
    assert check_row_count(GOOD, None, "rows", "MoE layers") == []
    (finding,) = check_row_count(GOOD, 58, "rows", "MoE layers")
    assert "58 MoE layers" in finding.message
    (finding,) = check_layers_have_rows(GOOD, (0, 1, 2, 3), "rows")
    assert "Layers 2-3 are" in finding.message


def test_what_nobody_said_is_one_warning():
    (finding,) = unchecked(GOOD, MapContext(), "layer_ids")
    assert finding.severity is Severity.WARNING
    assert finding.remedy == "Give layer_ids, num_experts, num_ranks."
    assert unchecked(GOOD, KNOWN) == []


def test_default_row():
    assert default_row(6, 4).tolist() == [0, 1, 2, 3, 0, 1]


def test_build_needs_the_ranks():
    with pytest.raises(EquipoiseError, match="num_ranks"):
        build(GOOD.rows, [3, 4], GOOD, MapContext())


def test_build_refuses_sizes_beyond_any_deployment():
    width = 40_000
    raw = RawMap(rows=[list(range(width))], layer_keys=[0])
    with pytest.raises(EquipoiseError, match="more than any deployment"):
        build(raw.rows, [0], raw, MapContext(num_ranks=width))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "the boolean True"),
        (1.5, "the float 1.5"),
        ("x" * 99, "the string 'xxxxxxxx"),
        (None, "nothing (null)"),
        (7, "7"),
        pytest.param(10**5000, "an enormous number", id="enormous"),
    ],
)
def test_describe(value, text):
    assert describe(value).startswith(text)
    assert len(describe(value)) < 60


def test_json_keys_given_twice_are_kept():
    document, repeated = parse_json('{"a": 1, "b": {"c": 1, "c": 2}, "a": 2}', Path("x"))
    assert document == {"a": 2, "b": {"c": 2}}
    assert repeated == ["c", "a"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_a_format_error(text, tmp_path):
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"map\.json"):
        parse_json(text, path)
    assert peek_json(path) is None


def test_text_that_cannot_be_read(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        read_text(tmp_path / "absent")
    path = tmp_path / "latin.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="UTF-8"):
        read_text(path)
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(FormatError, match="at most"):
        read_text(path)
