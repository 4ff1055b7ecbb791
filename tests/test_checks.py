from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from equipoise import checks
from equipoise.errors import EquipoiseError


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


class Hostile:
    def __array__(self, *args, **kwargs):
        raise KeyError("no array here")


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [4, np.int8(4), np.uint64(4), np.int64(4)])
def test_whole_numbers_come_back_as_ints(value):
    assert type(checks.check_count("n", value)) is int
    assert checks.check_whole("n", value) == 4


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (4.0, "n is 4.0; expected a whole number"),
        (np.float64(4), "n is 4.0; expected a whole number"),
        (True, "n is True; expected a whole number"),
        (np.True_, "n is True; expected a whole number"),
        ("4", "n is '4'; expected a whole number"),
        (None, "n is None; expected a whole number"),
        (4j, "n is 4j; expected a whole number"),
        ([4], r"n is \[4\]; expected a whole number"),
        (np.array(4), r"n is array\(4\); expected a whole number"),
        (Unprintable(), "n is .*Unprintable.*; expected a whole number"),
        (-1, "n is -1; expected 1 to 65536"),
        ("x" * 10**6, r"n is 'x+\.\.\.x+'; expected a whole number"),
        ("a\nb\x1b[31m", r"n is 'a\\nb\\x1b\[31m'; expected"),
        (np.zeros((1000, 1000)), r"n is array\(.*\); expected a whole number"),
    ],
)
def test_what_is_no_count_is_quoted_in_a_short_line(value, says):
    with pytest.raises(EquipoiseError, match=f"^{says}") as caught:
        checks.check_count("n", value)
    assert len(str(caught.value)) < 160
    assert "\n" not in str(caught.value)


def test_a_number_with_more_digits_than_python_prints():
    with pytest.raises(EquipoiseError, match="n is a value of type int; expected 1 to 65536"):
        checks.check_count("n", 10**5000)


def test_whole_numbers_of_64_bits():
    assert checks.check_whole("seed", 2**63 - 1) == 2**63 - 1
    with pytest.raises(EquipoiseError, match="seed is -1; expected 0 or more"):
        checks.check_whole("seed", -1)
    with pytest.raises(EquipoiseError, match="expected 0 to 9223372036854775807"):
        checks.check_whole("seed", 2**63)


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), np.float32(0.5), np.longdouble(0.5)])
def test_numbers_come_back_as_floats(value):
    assert checks.check_number("x", value, low=0, high=1) == 0.5
    assert type(checks.check_number("x", value, low=0, high=1)) is float


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 10**400, "0.5", True, None, 1j, [1]])
def test_what_is_no_number(value):
    with pytest.raises(EquipoiseError, match=r"^x is .*; expected (a number|0 or more)"):
        checks.check_number("x", value, low=0, high=np.inf)


def test_a_half_is_compared_without_overflow():
    with pytest.raises(EquipoiseError, match="x is"):
        checks.check_number("x", np.float16(2), low=1e300, high=np.inf)


# --- arrays --------------------------------------------------------------------------------------

ARRAYS = [
    ([[1, 2], [3]], "do not form an array; give rows of equal length"),
    (["a", "b"], "have type <U1; expected numbers"),
    ("abc", "have type <U3; expected numbers"),
    (b"abc", "expected numbers"),
    ([1, None], "have type dtype.*object.*; expected numbers|have type object; expected numbers"),
    (None, "expected numbers"),
    ({1: 2}, "expected numbers"),
    ({1, 2}, "expected numbers"),
    (iter([1]), "expected numbers"),
    ([10**30, 1], "expected numbers"),
    ([1, 2j], "have type complex128; expected numbers"),
    (np.array(["2024-01-01"], "datetime64[D]"), "expected numbers"),
    (np.array([3], "timedelta64[s]"), "expected numbers"),
    (np.zeros(2, [("a", int), ("b", float)]), "expected numbers"),
    (np.zeros(2, "V4"), "expected numbers"),
    (np.ma.array([1, 2], mask=[0, 1]), "have masked entries"),
    ([np.ma.array([1, 2], mask=[0, 1])], "have masked entries"),
    ([[1, np.ma.masked]], "have masked entries"),
    (Hostile(), "do not form an array"),
    ([Hostile()], "do not form an array|expected numbers"),
]


@pytest.mark.parametrize(("values", "says"), ARRAYS)
def test_what_is_no_array_of_numbers(values, says):
    for read in (checks.as_loads, lambda x: checks.as_ids(x, "Ids")):
        with pytest.raises(EquipoiseError, match=says):
            read(values)


def test_lists_within_themselves():
    values: list[object] = []
    values.append(values)
    with pytest.raises(EquipoiseError):
        checks.as_loads(values)


@pytest.mark.parametrize(
    ("loads", "says"),
    [
        ([], "at least one number"),
        (3, "at least one number"),
        ([1, np.nan], r"at \[1\] is nan"),
        ([np.inf], r"at \[0\] is inf"),
        (np.array([np.longdouble("1e400")]), r"at \[0\] is inf"),
        ([-1e-300], r"at \[0\] is -1e-300"),
        ([1.7e308, 1.7e308], "add up to infinity; scale them down"),
        (np.full((3, 2, 8), 1e307), "add up to infinity"),
    ],
)
def test_what_is_no_load(loads, says):
    with pytest.raises(EquipoiseError, match=says):
        checks.as_loads(loads)


def test_loads_up_to_the_largest_sum():
    assert checks.as_loads([1.7e308, 0, 5e-324]).tolist() == [1.7e308, 0, 5e-324]
    assert checks.as_loads([8e307, 8e307]).sum() == 1.6e308


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble, np.uint8, np.uint64])
def test_loads_of_any_type_are_exact(dtype):
    loads = checks.as_loads(np.array([[0, 1, 200]], dtype))
    assert loads.dtype == np.float64
    assert loads.tolist() == [[0, 1, 200]]


def test_true_is_a_load_of_one():
    assert checks.as_loads([True, False]).tolist() == [1, 0]


def test_an_array_of_the_right_type_is_not_copied():
    mine = np.ones((2, 3))
    assert checks.as_loads(mine) is mine


def test_a_mask_that_hides_nothing():
    assert checks.as_loads(np.ma.array([1, 2], mask=[0, 0])).tolist() == [1, 2]


@pytest.mark.parametrize(("ids", "says"), [([1.0], "type float64"), ([True], "type bool")])
def test_what_is_no_id(ids, says):
    with pytest.raises(EquipoiseError, match=f"Ids have {says}; expected integers"):
        checks.as_ids(ids, "Ids")


def test_no_ids_are_integers():
    assert checks.as_ids([], "Ids").dtype == np.int64


def test_names_are_text_or_whole_numbers():
    assert checks.as_names(["a", "bc"], "Names").tolist() == ["a", "bc"]
    assert checks.as_names(np.array(["a", "bc"], object), "Names").tolist() == ["a", "bc"]
    assert checks.as_names([3, 4], "Names").tolist() == ["3", "4"]
    for odd in (["a", None], [1.5], None, [b"a"], [["a"], ["b", "c"]], np.array(["2024"], "M8[Y]")):
        with pytest.raises(EquipoiseError, match=r"^Names (has type|do not form an array)"):
            checks.as_names(odd, "Names")


# --- tensors, by their methods -------------------------------------------------------------------


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    whole = torch.tensor([[1, 2], [3, 200]])
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8):
        assert checks.as_loads(whole.to(dtype)).tolist() == [[1, 2], [3, 200]]
    learned = torch.tensor([1.0, 2.0], requires_grad=True)
    assert checks.as_loads(learned * 2).tolist() == [2, 4]
    assert checks.as_loads([learned, learned.to(torch.bfloat16)]).tolist() == [[1, 2], [1, 2]]
    assert checks.as_ids(whole.to(torch.int32), "Ids").dtype == np.int32
    for odd in (whole.float().to_sparse(), torch.empty(2, device="meta")):
        with pytest.raises(EquipoiseError, match="Loads are a tensor that numpy cannot read"):
            checks.as_loads(odd)
    with pytest.raises(EquipoiseError, match="have type complex64"):
        checks.as_loads(torch.tensor([1j]))


# --- other arguments -----------------------------------------------------------------------------


def test_flags_and_types():
    assert checks.check_flag("f", np.True_) is True
    with pytest.raises(EquipoiseError, match="f is 1; expected True or False"):
        checks.check_flag("f", 1)
    with pytest.raises(EquipoiseError, match="s is 5; expected a str"):
        checks.check_type("s", 5, str)


@dataclass
class Pair:
    first: int
    second: int


def test_objects_have_the_keys_that_are_expected_and_no_others():
    pair = {"second": 2, "first": 1}
    assert checks.check_fields("p", pair, Pair) is pair
    assert checks.check_keys("p", pair, ["first", "second"]) is pair
    for wrong in ({"first": 1}, {**pair, "third": 3}, ["first", "second"], None):
        with pytest.raises(EquipoiseError, match=r"^p is .*; expected an object of first, second"):
            checks.check_fields("p", wrong, Pair)
