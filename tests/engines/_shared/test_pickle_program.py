from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import pytest

from equipoise.engines._shared.pickle_program import MAX_NESTING, checked_instructions
from equipoise.errors import FormatError

ALL = frozenset(opcode.name for opcode in pickletools.opcodes)


def nested(depth: int) -> Any:
    value: Any = ()
    for _ in range(depth):
        value = (value,)
    return value


@pytest.mark.parametrize("protocol", range(6))
def test_a_harmless_pickle_is_walked_to_its_end(protocol):
    content = {(10, 3): [1, (2, 3, 4, 5)], "a": {"b": (1,)}, "again": [nested(9)] * 3}
    program = pickle.dumps(content, protocol)
    seen = [name for name, _ in checked_instructions(program + b"more", ALL)]
    assert seen == [opcode.name for opcode, _, _ in pickletools.genops(program)]
    stream = io.BytesIO(b"before" + program + b"after")
    stream.seek(6)
    assert len(list(checked_instructions(stream, ALL))) == len(seen)
    assert stream.read() == b"after"


@pytest.mark.parametrize("protocol", range(2, 6))
def test_tuples_in_tuples(protocol):
    list(checked_instructions(pickle.dumps(nested(MAX_NESTING), protocol), ALL))
    with pytest.raises(FormatError, match="nests tuples more than 100 deep"):
        list(checked_instructions(pickle.dumps(nested(MAX_NESTING + 1), protocol), ALL))


def test_depth_is_kept_through_the_memo():
    half = b")" + b"\x85" * 60 + b"q\x00"  # 60 deep, under number 0
    for rest in (b"0h\x00" + b"\x85" * 41, b"]h\x00a0h\x00N\x86" + b"\x85" * 40):
        with pytest.raises(FormatError, match="nests tuples"):
            list(checked_instructions(b"\x80\x02" + half + rest + b".", ALL))


def test_other_instructions_and_memory():
    with pytest.raises(FormatError, match="instruction REDUCE, which"):
        list(checked_instructions(pickle.dumps(ValueError(), 2), ALL - {"REDUCE"}))
    with pytest.raises(FormatError, match="numbers an object 2147483647"):
        list(checked_instructions(b"\x80\x02}r\xff\xff\xff\x7f.", ALL))
