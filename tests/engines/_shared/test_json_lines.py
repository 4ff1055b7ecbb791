from __future__ import annotations

import pytest

from equipoise.engines._shared.json_lines import json_object, read_lines
from equipoise.engines.formats import no_progress
from equipoise.errors import FormatError


def test_blank_lines_are_skipped_and_numbers_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"a": 1}\n \n{"b": 2}')
    lines = list(read_lines(path, json_object, notes := [], no_progress))
    assert lines == [(2, {"a": 1}), (4, {"b": 2})]
    assert notes == []


@pytest.mark.parametrize("last", ['{"b": ', "[1]", "\xff"])
def test_only_the_last_line_may_be_broken(tmp_path, last):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + last, encoding="latin-1")
    assert len(list(read_lines(path, json_object, notes := [], no_progress))) == 1
    assert notes[0].startswith("The last line is cut off and was left out (line 2: ")
    path.write_text('{"a": 1}\n' + last + "\n{}", encoding="latin-1")
    with pytest.raises(FormatError, match=r"a\.jsonl, line 2"):
        list(read_lines(path, json_object, [], no_progress))
