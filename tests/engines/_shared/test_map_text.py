from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.engines._shared.map_text import (
    MAX_BYTES,
    MAX_ENTRIES,
    parse_map_json,
    peek_json,
    read_text,
    refuse_foreign,
    stated,
)
from equipoise.errors import FormatError


def test_json_keys_given_twice_are_kept():
    document, repeated = parse_map_json('{"a": 1, "b": {"c": 1, "c": 2}, "a": 2}', Path("x"))
    assert document == {"a": 2, "b": {"c": 2}}
    assert repeated == ["c", "a"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_a_format_error(text, tmp_path):
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"map\.json"):
        parse_map_json(text, path)
    assert peek_json(path) is None


def test_text_that_cannot_be_read(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        read_text(tmp_path / "absent")
    path = tmp_path / "latin.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="UTF-8"):
        read_text(path)
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(FormatError, match="at most"):
        read_text(path)


def test_text_of_too_many_values(tmp_path):
    path = tmp_path / "map.json"
    path.write_text("," * (MAX_ENTRIES + 1))
    with pytest.raises(FormatError, match=r"1,048,577 values or more; 128 layers"):
        read_text(path)
    path.write_text("," * 5)
    with pytest.raises(FormatError, match="5 values or more"):
        read_text(path, max_entries=4)


def test_what_a_file_states_in_words():
    assert stated({"a": 1}) is None
    assert stated([1]) is None
    assert stated({"version": 2, "format": "x"}) == "format 'x' and version 2"
    assert len(stated({"format": "x" * 10**6})) < 80
    refuse_foreign({"rows": []}, Path("map.json"), "ours")
    with pytest.raises(FormatError, match=r"map\.json: states the version None: another program's"):
        refuse_foreign({"version": None}, Path("map.json"), "ours")
