from __future__ import annotations

from dataclasses import replace

import pytest

from equipoise.engines._shared.findings import LIMIT
from equipoise.engines.formats import MapContext, Severity
from tests.engines._shared.small_map import GOOD, KNOWN, found


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
