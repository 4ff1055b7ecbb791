"""Every input of this folder stands in its table, and some test reads it."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
INPUTS = [path for path in HERE.rglob("*") if path.is_file() and path.suffix not in (".py", ".md")]


def test_every_input_has_a_row_and_a_test():
    table = (HERE / "README.md").read_text()
    tests = "".join(path.read_text() for path in HERE.parent.rglob("test_*.py"))
    folders = {
        path.relative_to(HERE).parts[0] for path in INPUTS if "__pycache__" not in path.parts
    }
    assert folders
    assert {folder for folder in folders if folder not in table} == set()
    assert {folder for folder in folders if folder not in tests} == set()
