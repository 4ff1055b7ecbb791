"""Walking through a pickle before it runs: a pickle is a program, and may be anyone's."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from equipoise.errors import FormatError

MAX_NESTING = 100
"""Tuples within tuples. Python hashes them by recursion without a check: depth ends the process."""


def checked_instructions(
    program: bytes | BinaryIO, allowed: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """Name and argument of each instruction of a pickle, none of which has run.

    Parameters
    ----------
    program
        The pickle, or a stream that stands where it begins.
    allowed
        Names of the instructions that may occur, as in ``pickletools``.

    Raises
    ------
    FormatError
        Another instruction, a memo index that would take much memory, tuples nested too deep.
    """
    nesting: list[int | None] = []  # tuples within each object on the stack; None is a mark
    memo: dict[int, int] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if opcode.name not in allowed:
            raise FormatError(
                f"its pickle uses the instruction {opcode.name}, which plain tensors, containers "
                "and numbers do not need"
            )
        # The memo is an array as long as its largest index.
        if opcode.name == "LONG_BINPUT" and argument > count:
            raise FormatError(f"its pickle numbers an object {argument} after {count} instructions")
        match opcode.name:
            case "MARK":
                nesting.append(None)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = nesting[-1] or 0
            case "MEMOIZE":
                memo[len(memo)] = nesting[-1] or 0
            case "BINGET" | "LONG_BINGET":
                nesting.append(memo[argument])
            case name:
                depth = _popped(nesting, opcode.stack_before) + name.startswith("TUPLE")
                if depth > MAX_NESTING:
                    raise FormatError(f"its pickle nests tuples more than {MAX_NESTING} deep")
                nesting.extend([depth] * len(opcode.stack_after))
        yield opcode.name, argument


def _popped(nesting: list[int | None], kinds: Sequence[pickletools.StackObject]) -> int:
    """Take the operands of these kinds from the stack; the deepest of them."""
    deepest = 0
    for kind in reversed(kinds):
        if kind is pickletools.stackslice:
            continue  # comes after its mark
        while (depth := nesting.pop()) is not None:
            deepest = max(deepest, depth)
            if kind is not pickletools.markobject:
                break
    return deepest
