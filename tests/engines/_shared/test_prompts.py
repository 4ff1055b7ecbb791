from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.engines._shared.prompts import read_prompts
from equipoise.errors import FormatError


def test_read_plain_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("first\r\n\n  second one \n", encoding="utf-8")
    assert read_prompts(path) == {"": ["first", "second one"]}


def test_read_json_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a", "domain": "code"}\n{"prompt": "b"}\n\n'
        '{"domain": "code", "prompt": "c\u2028d"}\n',
        encoding="utf-8",
    )
    assert read_prompts(path) == {"code": ["a", "c\u2028d"], "": ["b"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 2"),
        ('{"domain": "a"}', "line 2.*prompt"),
        ('{"prompt": 3}', "line 2.*str"),
        ('{"prompt": "a", "domian": "code"}', "line 2.*domian"),
        ("plain", "line 2"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(FormatError, match=rf"prompts\.jsonl, {message}"):
        read_prompts(path)


def test_unreadable_and_empty_prompt_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        read_prompts(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(FormatError, match="no prompts"):
        read_prompts(tmp_path / "empty.txt")
