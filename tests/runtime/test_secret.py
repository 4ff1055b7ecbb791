from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.runtime.members.secret import Seal, secret_of

SECRET, OTHER = "a secret of 24 characters", "another of 24 characters"


@given(st.text(), st.text())
def test_what_is_signed_is_read_with_the_same_secret_only(key, text):
    try:
        (key + text).encode()
    except UnicodeEncodeError:  # half a surrogate is no text of a store
        return
    entry = Seal(SECRET).close(key, text).encode()
    assert Seal(SECRET).open(key, entry) == text
    assert Seal(OTHER).open(key, entry) is None
    assert Seal(None).open(key, entry) is None
    assert Seal(SECRET).open(key + "x", entry) is None
    assert Seal(SECRET).open(key, entry + b"x") is None


@given(st.binary())
def test_nothing_else_is_signed(entry):
    assert Seal(SECRET).open("key", entry) is None


def test_without_a_secret_what_is_unsigned_is_read():
    entry = Seal(None).close("key", "some text").encode()
    assert Seal(None).open("key", entry) == "some text"
    assert Seal(SECRET).open("key", entry) is None


@pytest.mark.parametrize("secret", ["", "x" * 15])
def test_a_short_secret_is_refused(secret):
    with pytest.raises(EquipoiseError, match=rf"has {len(secret)} characters; .* at least 16"):
        Seal(secret)


def test_where_it_comes_from(tmp_path):
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\nwhat is below does not count\n")
    assert secret_of(None, {}) is None
    assert secret_of(None, {"EQUIPOISE_SECRET": OTHER}) == OTHER
    assert secret_of(None, {"EQUIPOISE_SECRET_FILE": str(path)}) == SECRET
    assert secret_of("given", {"EQUIPOISE_SECRET": OTHER}) == "given"


def test_what_cannot_be_meant_is_refused(tmp_path):
    both = {"EQUIPOISE_SECRET": OTHER, "EQUIPOISE_SECRET_FILE": "x"}
    with pytest.raises(EquipoiseError, match="both set"):
        secret_of(None, both)
    with pytest.raises(EquipoiseError, match=r"EQUIPOISE_SECRET_FILE is .*none, which cannot be"):
        secret_of(None, {"EQUIPOISE_SECRET_FILE": str(tmp_path / "none")})
