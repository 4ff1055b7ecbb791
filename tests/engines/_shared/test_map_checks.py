from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.engines._shared.map_checks import (
    LIMIT,
    MAX_BYTES,
    MAX_ENTRIES,
    SHOWN,
    Rules,
    build,
    by_kind,
    check_layer_keys,
    check_layers_have_rows,
    check_row_count,
    check_rows,
    default_row,
    describe,
    guessed_decoder_rows,
    guessed_order,
    parse_json,
    peek_json,
    read_text,
    refuse_foreign,
    repeated_keys,
    stated,
    unchecked,
    unknown_keys,
)
from equipoise.engines.formats import MapContext, RawMap, Severity
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


def test_text_of_too_many_values(tmp_path):
    path = tmp_path / "map.json"
    path.write_text("," * (MAX_ENTRIES + 1))
    with pytest.raises(FormatError, match=r"1,048,577 values or more; 128 layers"):
        read_text(path)
    path.write_text("," * 5)
    with pytest.raises(FormatError, match="5 values or more"):
        read_text(path, max_entries=4)


def test_a_layer_that_holds_the_lower_experts_only_is_told_of_unequal_layers():
    short, whole = [0, 1, 2, 0, 1, 2], GOOD.rows[1]
    for finding in found([short, whole], replace(KNOWN, num_ranks=6)):
        assert "If the layer has only experts 0 to 2: all layers of a map" in finding.remedy
    for finding in found([[0, 2, 3, 0, 2, 3], whole], replace(KNOWN, num_ranks=6)):
        assert "only experts" not in finding.remedy


def test_where_no_id_can_be_an_expert_every_one_is_named():
    findings = found([[9, 9], [9, 9]], MapContext(num_ranks=2))
    assert [(f.code, f.layer, f.slot) for f in findings] == [
        ("ids", 3, 0),
        ("ids", 3, 1),
        ("ids", 4, 0),
        ("ids", 4, 1),
    ]
    assert "expert ids are 0 to 1" in findings[0].message


def test_few_defects_of_a_kind_are_shown_singly_and_more_as_one():
    rows = [[0, 1, 2, 3, 0, 9 + i] for i in range(SHOWN)]
    findings = found(rows)
    assert by_kind(findings) == findings
    rows = [[0, 1, 2, 3, 0, 9 + i] for i in range(SHOWN + 1)]
    findings = found(rows)
    (shown,) = by_kind(findings)
    assert shown.message.startswith(findings[0].message)
    assert shown.message.endswith("In all there are 4 of this kind, in layers 3-6.")
    assert shown.count == 4


def test_a_count_of_a_kind_has_those_that_are_not_listed():
    findings = found([[*range(4), *[99] * 30]], MapContext(num_experts=4))
    (shown,) = by_kind(findings)
    assert "In all there are 30 of this kind, in layer 3." in shown.message


def test_kinds_stay_apart_and_errors_come_first():
    rows = [[0, 0, 9, 3, 1, 2]] * 5
    shown = by_kind(found(rows))
    assert [(f.code, f.severity, f.count) for f in shown] == [
        ("ids", Severity.ERROR, 5),
        ("duplicates", Severity.WARNING, 5),
    ]


def test_what_a_file_states_in_words():
    assert stated({"a": 1}) is None
    assert stated([1]) is None
    assert stated({"version": 2, "format": "x"}) == "format 'x' and version 2"
    assert len(stated({"format": "x" * 10**6})) < 60
    refuse_foreign({"rows": []}, Path("map.json"), "ours")
    with pytest.raises(FormatError, match=r"map\.json: states the version None: another program's"):
        refuse_foreign({"version": None}, Path("map.json"), "ours")


def test_keys_are_named_in_one_finding_however_many_there_are():
    mapping = dict.fromkeys(map(str, range(1000)))
    (extra,) = unknown_keys(mapping, ("0",), "keys", "The file")
    assert "the keys '1', '2', '3', '4', '5' and 994 more" in extra.message
    assert extra.readable
    assert unknown_keys({"0": 1}, ("0",), "keys", "The file") == []
    (twice,) = repeated_keys(["a", "b", "a"], "keys")
    assert "The keys 'a', 'b' stand twice" in twice.message
    assert twice.count == 2


def test_rows_without_numbers_are_a_guess_that_is_named():
    for guess in (guessed_order, guessed_decoder_rows):
        (finding,) = guess(GOOD, MapContext())
        assert "layers 0-1" in finding.message
        assert finding.remedy.startswith("Give layer_ids")
        assert guess(GOOD, MapContext(layer_ids=(3, 4))) == []
