import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.layer_ids import check_layer_ids, format_ids, parse_ids


@given(st.sets(st.integers(0, 200), min_size=1))
def test_ranges_round_trip(ids):
    ascending = tuple(sorted(ids))
    assert parse_ids(format_ids(ascending)) == ascending


def test_format():
    assert format_ids((3, 4, 5, 7, 9, 10)) == "3-5, 7, 9-10"


@pytest.mark.parametrize(
    "text", ["", "a", "3-", "5-3", "3,3", "4,2", "-1", "1-2-3", "0-99999999999"]
)
def test_unreadable_layers_are_refused(text):
    with pytest.raises(EquipoiseError):
        parse_ids(text)


def test_one_id_a_layer():
    with pytest.raises(EquipoiseError, match="2 layer ids for 3 layers"):
        check_layer_ids((0, 1), 3)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ("01", "layer_ids is '01'; expected several, as a list"),
        (3, "layer_ids is 3; expected several"),
        (np.array(3), "layer_ids is array.3.; expected several"),
        ((0, 1.5), "A layer id is 1.5; expected a whole number"),
        ((0, True), "A layer id is True; expected a whole number"),
        ((0, 10**30), "expected -999999 to 999999"),
        ((1, 1), r"Layer ids \(1, 1\) are not ascending"),
        ((-1, 1), r"Layer ids \(-1, 1\) are not ascending"),
    ],
)
def test_what_is_no_layer_id(ids, says):
    with pytest.raises(EquipoiseError, match=says):
        check_layer_ids(ids, 2)


def test_ids_of_any_integer_type_come_back_as_ints():
    ids = check_layer_ids(np.array([3, 7], np.uint8), 2)
    assert ids == (3, 7)
    assert all(type(i) is int for i in ids)
