"""NumPy arrays as files: damage is told in our words, and numpy adds nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest

from equipoise.engines.tabular.npy import load_npy
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
