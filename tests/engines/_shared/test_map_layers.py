from __future__ import annotations

from equipoise.engines._shared.map_layers import (
    check_layer_keys,
    check_layers_have_rows,
    check_row_count,
    guessed_decoder_rows,
    guessed_order,
    unchecked,
)
from equipoise.engines.formats import MapContext, Severity
from tests.engines._shared.small_map import GOOD, KNOWN


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


def test_rows_without_numbers_are_a_guess_that_is_named():
    for guess in (guessed_order, guessed_decoder_rows):
        (finding,) = guess(GOOD, MapContext())
        assert "layers 0-1" in finding.message
        assert finding.remedy.startswith("Give layer_ids")
        assert guess(GOOD, MapContext(layer_ids=(3, 4))) == []
