"""Runs pieces of Python one after another in one session, as a notebook does."""

from __future__ import annotations

import ast
import contextlib
import io
from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """What is seen below a piece: the text that it printed, then the value that it ends with.

    A value behind a semicolon is not shown.
    """

    printed: str
    value: object

    @property
    def text(self) -> str:
        return self.printed if self.value is None else f"{self.printed}{self.value!r}\n"


def run_cell(code: str, session: dict[str, object]) -> Shown:
    *steps, last = ast.parse(code).body
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(steps, []), "cell", "exec"), session)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), session)
        else:
            exec(compile(ast.Module([last], []), "cell", "exec"), session)
    return Shown(printed.getvalue(), None if code.rstrip().endswith(";") else value)
