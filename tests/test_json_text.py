from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import json_text
from equipoise.errors import FormatError
from equipoise.json_text import head_keys, parse_json, stream_items

DIGITS = "1" * 4301  # one more than Python reads, and enough to end a process in ijson

documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Text that a buffer may cut anywhere: escapes, characters of two and four bytes.
    | st.text(st.sampled_from('ab\\"é\U0001f600\n{}[]:,'), max_size=12),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=25,
)


@given(documents, st.booleans())
def test_parse_json_reads_what_python_writes(document: Any, ascii: bool) -> None:
    data = json.dumps(document, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    assert parse_json(data, "x") == document


@given(
    st.lists(documents, max_size=8),
    st.dictionaries(st.text(max_size=3).filter(lambda k: k != "list"), documents, max_size=2),
    st.integers(1, 40),
    st.booleans(),
)
def test_streamed_items_are_those_of_the_whole_document(
    items: list[Any], others: dict[str, Any], size: int, spaced: bool
) -> None:
    """Whatever the buffer cuts in two, and wherever the list stands among other keys."""
    root = {**dict(list(others.items())[:1]), "list": items, **others}
    data = json.dumps(root, indent=1 if spaced else None, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_BUFFER_BYTES", size)
        assert list(stream_items(io.BytesIO(data), "list", "x")) == items


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "The key 'a' appears twice"),
        ('{"list": [{"a": 1, "\\u0061": 1}]}', "The key 'a' appears twice"),
        ('{"list": [' + "[" * 100_000, "nested too deeply"),
        ('{"list": [' + DIGITS + "]}", "thousands of digits"),
        ('{"list": [1, NaN]}', "NaN is not a number"),
        ('{"list": [1, 2', "JSON"),
        ('{"list": [1 2]}', "JSON"),
        ('{"list": [1]} []', "JSON"),
        ('{"list": ["\ud800"]}', "UTF-8"),
    ],
)
def test_whole_and_streamed_reading_refuse_the_same(text: str, said: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    with pytest.raises(FormatError, match=f"^file.json.*{said}"):
        parse_json(data, "file.json")
    with pytest.raises(FormatError, match=f"^file.json.*{said}"):
        list(stream_items(io.BytesIO(data), "list", "file.json"))


@pytest.mark.parametrize("text", ["", "[]", "7", '{1: "list"}', '{"list": 7}', '{"list": {}}'])
def test_stream_items_refuses_what_holds_no_such_list(text: str) -> None:
    with pytest.raises(FormatError, match=r"^x: is damaged JSON"):
        list(stream_items(io.BytesIO(text.encode()), "list", "x"))


def test_a_fault_is_found_without_reading_to_the_end() -> None:
    data = b'{"list": [oops, ' + b"1, " * 3_000_000
    file = io.BytesIO(data)
    with pytest.raises(FormatError):
        list(stream_items(file, "list", "x"))
    assert file.tell() < len(data) // 4


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('{"a": 1, "b": {"c": 2}, "d": [{"e": 3}]}', ["a", "b", "d"]),
        ('\ufeff {"a": null, "b": 1}', ["b"]),
        ('{"a": 1, "b": [1, 2, ', ["a", "b"]),
        ('{"a": ' + DIGITS + "}", ["a"]),
        ('{"a": ' + "[" * 60_000, ["a"]),
        ('{"a": 1} trailing', ["a"]),
        ('["a"]', []),
        ("", []),
        ("a: 1", []),
    ],
)
def test_head_keys_are_those_of_the_root(tmp_path: Path, text: str, keys: list[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    assert head_keys(path) == keys


def test_head_keys_reads_the_head_only(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": [' + "1, " * 50_000 + '1], "b": 2}')
    assert head_keys(path) == ["a"]


@pytest.mark.parametrize("text", ['["\\ud800"]', '{"\\uD800": 1}', '{"a": ["\\udfff"]}'])
def test_half_a_character_is_refused(text):
    with pytest.raises(FormatError, match="half a character"):
        parse_json(text.encode(), "x.json")


def test_a_whole_character_in_two_escapes_is_one():
    assert parse_json(rb'["\ud83d\ude00"]', "x.json") == ["\N{GRINNING FACE}"]
