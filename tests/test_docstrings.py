"""The form of docstrings: whole sentences, and every parameter of the public surface described."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import equipoise

SOURCE = Path(__file__).parents[1] / "src" / "equipoise"
NOT_COVERED = re.compile(r"cli/")
"""Files whose docstrings need not have the form, because they are help texts."""

QUESTION = re.compile(r"(?:What|Which|How|Where|When|Who|Whose|Why|Once|Of|As)\b(?!:)")
"""First words of a description that only makes sense as an answer: write a noun or a verb."""
PRODUCT_NAMES = ("vLLM", "vllm-ascend")
"""Names that a docstring may start with although they start with a small letter."""

Described = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, name and cleaned docstring of a module and of all that it defines."""
    for node in ast.walk(tree):
        if isinstance(node, Described):
            text = ast.get_docstring(node)
            if text:
                line = 1 if isinstance(node, ast.Module) else node.lineno
                yield line, getattr(node, "name", "module"), text


def attribute_docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of the strings that follow an assignment."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for before, after in pairwise(body) if isinstance(body, list) else ():
            if (
                isinstance(before, ast.Assign | ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                yield after.lineno, inspect.cleandoc(after.value.value)


def parameters(text: str) -> Iterator[tuple[list[str], str]]:
    """Names and first line of each description in the section on parameters."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?:\n\n\w[\w ]+\n-{3,}|\Z)", text, re.S | re.M)
    for names, first in re.findall(r"^(\S.*)\n {4}(.*)", section[1] if section else "", re.M):
        yield [name.strip().lstrip("*") for name in names.split(",")], first


def defects(path: Path) -> Iterator[str]:
    """What is wrong with the docstrings of a file, with place and remedy."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    place = path.relative_to(SOURCE).as_posix()
    for line, name, text in docstrings(tree):
        first = text.split("\n\n")[0].rstrip()
        if QUESTION.match(text):
            yield f"{place}:{line} {name} starts with {text.split()[0]!r}; write a noun or a verb"
        if not (re.match(r"[A-Z0-9`*]", text) or text.startswith(PRODUCT_NAMES)):
            yield f"{place}:{line} {name} starts with a small letter"
        if not first.endswith((".", ":")):
            yield f"{place}:{line} the first sentence of {name} has no full stop"
        for names, description in parameters(text):
            if QUESTION.match(description):
                yield f"{place}:{line} {name}: {names} starts with {description.split()[0]!r}"
    for line, text in attribute_docstrings(tree):
        if QUESTION.match(text):
            yield f"{place}:{line} starts with {text.split()[0]!r}; write a noun"


FILES = [
    path
    for path in sorted(SOURCE.rglob("*.py"))
    if not NOT_COVERED.match(path.relative_to(SOURCE).as_posix())
]


def test_docstrings_are_sentences_that_name_their_subject():
    found = [defect for path in FILES for defect in defects(path)]
    assert not found, "\n".join(found)


KERNELS = sorted(SOURCE.rglob("_*kernels.py"))


@pytest.mark.parametrize("path", KERNELS, ids=[path.name for path in KERNELS])
def test_every_kernel_says_what_it_computes(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert defined
    bare = [node.name for node in defined if not ast.get_docstring(node)]
    assert not bare, f"{path.name}: no docstring in {', '.join(bare)}"


def sections() -> list[tuple[str, list[str], set[str]]]:
    """Name, parameters and described parameters of the exported functions, classes and methods."""
    found = []
    for name in equipoise.__all__:
        one = getattr(equipoise, name)
        if not callable(one):
            continue
        members = vars(one).items() if inspect.isclass(one) else ()
        methods = [
            (f"{name}.{key}", getattr(one, key))
            for key, value in members
            if not key.startswith("_")
            and (inspect.isfunction(value) or isinstance(value, classmethod | staticmethod))
        ]
        for label, function in [(name, one), *methods]:
            text = inspect.cleandoc(function.__doc__ or "")
            if inspect.isclass(function):
                bases = function.__mro__[1:]
                text += "".join(f"\n\n{inspect.cleandoc(b.__doc__ or '')}" for b in bases[:-1])
            described = set(re.findall(r"^(?:\w+, )*\w+$", text, re.M))
            taken = {part for names in described for part in names.split(", ")}
            given = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
            if "Parameters\n---" in text:
                found.append((label, given, taken))
    return found


SECTIONS = sections()


@pytest.mark.parametrize(
    ("name", "given", "described"), SECTIONS, ids=[section[0] for section in SECTIONS]
)
def test_parameters_of_exported_names_are_described_completely(name, given, described):
    assert set(given) <= described, f"{name}: {sorted(set(given) - described)} not described"
