from __future__ import annotations

import pytest

from equipoise.engines._shared.findings import (
    SHOWN,
    by_kind,
    describe,
    repeated_keys,
    unknown_keys,
)
from equipoise.engines.formats import MapContext, Severity
from tests.engines._shared.small_map import found


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
    assert len(describe(value)) < 80


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


def test_keys_are_named_in_one_finding_however_many_there_are():
    mapping = dict.fromkeys(map(str, range(1000)))
    (extra,) = unknown_keys(mapping, ("0",), "keys", "The file")
    assert "the keys '1', '2', '3', '4', '5' and 994 more" in extra.message
    assert extra.readable
    assert unknown_keys({"0": 1}, ("0",), "keys", "The file") == []
    (twice,) = repeated_keys(["a", "b", "a"], "keys")
    assert "The keys 'a', 'b' appear twice" in twice.message
    assert twice.count == 2
