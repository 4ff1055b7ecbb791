"""NumPy arrays as files: damage is told in our words, and numpy adds nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest

from equipoise.engines.tabular.npy import are_choices, load_npy
from equipoise.errors import FormatError


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_what_numpy_saved_is_read():
    array = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(load_npy(saved(array), "a.npy"), array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.replace(b"<i8", b"<i-"), "damaged header"),
        (lambda data: data.replace(b"(2, 3, 4)", b"(00, 3, 4)"), "is damaged|damaged header"),
        (lambda data: data.replace(b"(2, 3, 4)", b"(9, 3, 4)"), "is damaged"),
        (lambda data: data[:-8], "is damaged"),
        (lambda data: data[:20], "is damaged|damaged header|damaged .npy array"),
        (lambda data: data.replace(b"\x01\x00", b"\x09\x00", 1), "version"),
    ],
)
def test_damage_is_told_without_a_warning(change, said):
    with pytest.raises(FormatError, match=said):
        load_npy(change(saved(np.arange(24).reshape(2, 3, 4))), "a.npy")


@pytest.mark.parametrize("array", [np.array(["a"]), np.zeros(0), np.array([1j])])
def test_what_holds_no_numbers_is_refused(array):
    with pytest.raises(FormatError, match="expected numbers"):
        load_npy(saved(array), "a.npy")


RANDOM = np.random.default_rng(4)


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (RANDOM.integers(0, 9, (70, 2, 8)), "some rows repeat a count"),
        (np.tile(np.arange(8) * 3, (70, 4, 1)), "layers carry equal sums"),
        (RANDOM.random((70, 2, 8)).argsort(axis=2) + 70_000, "no expert has such an id"),
        (RANDOM.random((9, 2, 8)).argsort(axis=2), "few rows may differ by chance"),
    ],
)
def test_counts_are_not_taken_for_choices(counts, why):
    assert not are_choices(counts), why


def test_choices_of_all_layers_or_of_one_are_told():
    choices = RANDOM.random((70, 2, 8)).argsort(axis=2)[:, :, :3]
    choices[::10] = 0  # the ends of requests
    assert are_choices(choices)
    assert are_choices(choices[:, 0].repeat(2, axis=0))
