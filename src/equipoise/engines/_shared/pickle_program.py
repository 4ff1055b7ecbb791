"""Inspection of a pickle before it runs, because a pickle is a program from an unknown author."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from equipoise.errors import FormatError

MAX_NESTING = 100
"""Largest depth of nested tuples. Python hashes them recursively, and too deep ones crash it."""


def checked_instructions(
    program: bytes | BinaryIO, allowed: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """Yield name and argument of each instruction of a pickle, without running it.

    Parameters
    ----------
    program
        Pickle, or a stream positioned at its beginning.
    allowed
        Names of the instructions that may occur, as in ``pickletools``.

    Raises
    ------
    FormatError
        Another instruction, a memo index that would take much memory, or tuples nested too deep.
    """
    nesting: list[int | None] = []  # depth of tuples of each object on the stack; None is a mark
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
    """Pop the operands of these kinds from the stack; return the largest depth."""
    deepest = 0
    for kind in reversed(kinds):
        if kind is pickletools.stackslice:
            continue  # it is popped with its mark
        while (depth := nesting.pop()) is not None:
            deepest = max(deepest, depth)
            if kind is not pickletools.markobject:
                break
    return deepest
