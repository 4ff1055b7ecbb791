import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.layers import check_layer_ids, format_ids, parse_ids


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
