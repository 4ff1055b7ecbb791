from __future__ import annotations

import numpy as np
import pytest

from equipoise.engines._shared.token_rows import TokenRows
from equipoise.errors import EquipoiseError


def rows_of(*rows: tuple[str, int, int, list[int]]) -> TokenRows:
    table = TokenRows()
    for row in rows:
        table.add(*row)
    return table


def test_rows_of_layers_become_tokens_in_whatever_order_layers_come():
    table = rows_of(
        ("a", 4, 0, [1, 2]), ("a", 4, 1, [3, 4]), ("b", 3, 0, [5, 6]),
        ("a", 3, 0, [7, 8]), ("b", 4, 0, [9, 1]), ("a", 3, 1, [2, 3]),
    )  # fmt: skip
    requests, layers = table.requests(1 << 20, [])
    assert layers == (3, 4)
    assert [request.name for request in requests] == ["a", "b"]
    assert requests[0].ids.tolist() == [[[7, 8], [1, 2]], [[2, 3], [3, 4]]]
    assert requests[1].ids.tolist() == [[[5, 6], [9, 1]]]


def test_a_layer_that_lacks_a_token_has_no_choice_there():
    table = rows_of(("", 0, -1, [1, 2]), ("", 0, -1, [3, 4]), ("", 1, -1, [5, 6]))
    (request,), _ = table.requests(1 << 20, [])
    assert request.ids[1].tolist() == [[3, 4], [-1, -1]]


def test_token_numbers_that_start_again_begin_a_pass():
    notes: list[str] = []
    table = rows_of(*(("r", 0, token, [token, 9]) for token in (0, 1, 2, 0, 0, 1)))
    requests, _ = table.requests(1 << 20, notes)
    assert [len(request.ids) for request in requests] == [3, 1, 2]
    assert [request.name for request in requests] == [""] * 3
    assert "start again 2 times" in notes[0]


def test_a_warm_up_is_left_out_and_said():
    notes: list[str] = []
    dummies = [("r", 0, token, [5, 6]) for token in [*range(20), *range(10)]]
    table = rows_of(*dummies, ("r", 0, 0, [1, 2]), ("r", 0, 1, [5, 6]))
    requests, _ = table.requests(1 << 20, notes)
    assert [request.ids[:, 0].tolist() for request in requests] == [[[1, 2], [5, 6]]]
    assert "The first 30 tokens have the same choices" in notes[0]
    with pytest.raises(EquipoiseError, match="no request was recorded after it"):
        rows_of(*dummies).requests(1 << 20, [])


def test_layers_of_different_tokens_are_refused():
    table = rows_of(("r", 0, 7, [1, 2]), ("r", 1, 8, [1, 2]))
    with pytest.raises(EquipoiseError, match=r"Row 0 \(layer 0\) is token 7, .* token 8 there"):
        table.requests(1 << 20, [])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("r", -1, 0, [1, 2]), "expected numbers from 0"),
        (("r", 0, -2, [1, 2]), "expected numbers from 0"),
        (("r", 0, 0, []), "expected some"),
        (("r", 0, 0, [-2, 1]), "not expert ids"),
        (("r", 0, 0, [1, 1 << 20]), "not expert ids"),
        (("r", 0, 0, [1, 2, 3]), "expected one top-k"),
    ],
)
def test_rows_that_are_no_tokens(row, said):
    table = rows_of(("r", 0, 0, [1, 2]))
    with pytest.raises(EquipoiseError, match=said):
        table.add(*row)
    assert len(table.experts) == 2


def test_a_table_that_would_grow_out_of_its_file_is_refused():
    table = TokenRows()
    for layer in range(9000):
        table.add("r", layer, -1, [1, 2])
    for _ in range(9000):
        table.add("r", 0, -1, [1, 2])
    with pytest.raises(EquipoiseError, match="at most"):
        table.requests(100_000, [])
    with pytest.raises(EquipoiseError, match="no row"):
        TokenRows().requests(1, [])


def test_the_layers_of_equal_tokens_are_compared_whole():
    ids = np.array([[[1, 2], [3, 4]]] * 3)
    table = rows_of(
        *(("r", i, d, row.tolist()) for d, t in enumerate(ids) for i, row in enumerate(t))
    )
    (request,), _ = table.requests(1 << 20, [])
    np.testing.assert_array_equal(request.ids, ids)
