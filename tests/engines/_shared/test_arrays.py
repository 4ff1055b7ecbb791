"""What trace readers share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equipoise.engines._shared.arrays import (
    MAX_BYTES,
    MAX_EXPERTS,
    agreed_layer_ids,
    agreed_num_experts,
    compact,
    naming,
    refuse_oversize,
)
from equipoise.errors import EquipoiseError, FormatError


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0, np.uint8), (255, np.uint8), (256, np.uint16), (2**32 - 1, np.uint32), (2**32, np.int64)],
)
def test_counts_take_the_smallest_type(largest: int, dtype: type[np.integer]) -> None:
    got = compact(np.array([0, largest]))
    assert got.dtype == dtype
    assert got.tolist() == [0, largest]


def test_arrays_beyond_the_limit_are_refused() -> None:
    refuse_oversize((MAX_BYTES // 8,), 8, "Counts")
    with pytest.raises(EquipoiseError, match=r"Counts of shape \(\d+,\) would take 4.0 GiB"):
        refuse_oversize((MAX_BYTES // 8 + 1,), 8, "Counts")


def test_layer_ids_are_stated_given_or_counted() -> None:
    assert agreed_layer_ids([3, 4], None, 2) == (3, 4)
    assert agreed_layer_ids(None, (3, 4), 2) == (3, 4)
    assert agreed_layer_ids([3, 4], (3, 4), 2) == (3, 4)
    assert agreed_layer_ids(None, None, 2) == (0, 1)
    assert agreed_layer_ids([3, 4], (5, 6), 2) == (3, 4), "fitted later, whatever the format"
    assert agreed_layer_ids(None, (1, 2), 3) == (0, 1, 2), "a choice among decoder layers"
    with pytest.raises(EquipoiseError, match="2 layer ids for 3 layers"):
        agreed_layer_ids(None, (3, 4), 3)
    with pytest.raises(EquipoiseError, match="2 layer ids for 3 layers"):
        agreed_layer_ids([3, 4], None, 3)


def test_num_experts_is_given_or_the_largest_id_plus_one() -> None:
    assert agreed_num_experts(7, 8) == (8, ())
    experts, notes = agreed_num_experts(7, None)
    assert experts == 8
    assert "8 is the largest id seen plus one" in notes[0]
    with pytest.raises(EquipoiseError, match="Expert 8 occurs, but num_experts is 8"):
        agreed_num_experts(8, 8)
    with pytest.raises(EquipoiseError, match="at most 65536 are read"):
        agreed_num_experts(MAX_EXPERTS, None)
    with pytest.raises(EquipoiseError, match="at most 65536 are read"):
        agreed_num_experts(7, 10**9)


def test_errors_get_the_name_of_the_file_once() -> None:
    path = Path("dump.bin")
    with pytest.raises(FormatError, match=r"^dump\.bin: broken$"), naming(path):
        raise EquipoiseError("broken")
    with pytest.raises(FormatError, match=r"^already named$"), naming(path):
        raise FormatError("already named")
    with pytest.raises(FormatError, match=r"^dump\.bin cannot be read: No such file"), naming(path):
        path.read_bytes()
