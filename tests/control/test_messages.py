from __future__ import annotations

import ast
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import equipoise
from equipoise.control.controller import Action, Order, Outcome, State
from equipoise.control.messages import PeerError, decode, encode
from equipoise.runtime.members.decision import Decision
from equipoise.runtime.members.holdings import Brought, Served
from equipoise.topology import Topology

ORDER = Order(
    number=7, action=Action.MOVE, state=State.MOVE, version=2, serving="abc", layers=(3, 5),
    slots=np.arange(6).reshape(2, 3), outcome=Outcome.FAILED, note="why", quiet_until=9,
    wait_steps=30,
)  # fmt: skip


def test_an_order_arrives_as_it_was_sent():
    heard = decode(encode(ORDER), Order)
    assert heard.slots.dtype == np.int64
    assert heard.slots.tolist() == ORDER.slots.tolist()
    assert {k: v for k, v in vars(heard).items() if k != "slots"} == {
        k: v for k, v in vars(ORDER).items() if k != "slots"
    }


def test_what_a_rebuild_tells_arrives_as_it_was_sent():
    served = Served((1, 2), 2, ((-5, 2**62), (3, 4)), ({"w": ((2, 3), "float32")},) * 2)
    brought = Brought(served, [[0, 1], [1, -1]], ["a slot"], ((1, 2), 2))
    assert decode(encode(brought), Brought) == brought
    assert served.slot_bytes == 2 * 6 * 4
    table = np.array([[0, 1], [1, 0]])
    topology = Topology(2, speed=(1.0, 0.5))
    decision = Decision(served, topology, table, table.astype(np.int8), table, table - 1)
    heard = decode(encode(decision), Decision | None)
    assert heard.placement == decision.placement
    assert heard.topology == topology
    assert heard.content.dtype == np.int8


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        pickle.dumps(ORDER),
        encode(ORDER)[:-1],
        encode(ORDER) + b"\x00",
        encode({"number": 7}),
        encode([1, 2, 3]),
        encode(ORDER).replace(b"\x92\x02\x03", b"\x92\x02\x04"),  # a shape that does not fit
        encode(ORDER).replace(b"\xa4move", b"\xa4fall"),
    ],
)
def test_anything_else_is_no_message(data):
    with pytest.raises(PeerError, match="not a valid message"):
        decode(data, Order)


@given(st.binary(max_size=200))
def test_reading_raises_nothing_else(data):
    try:
        decode(data, Order)
    except PeerError:
        return


def test_what_is_no_data_is_not_sent():
    with pytest.raises(NotImplementedError, match="A function is not sent"):
        encode(lambda: None)


def test_a_number_format_is_the_readers():
    @dataclass
    class Small:
        held: NDArray[np.int8]

    globals()["Small"] = Small
    assert decode(encode({"held": np.array([1, 2], np.int8)}), Small).held.tolist() == [1, 2]


# Local pipes between a process and the child that it has started.
PIPES = {"processes.py": "_SPAWN.Pipe", "process.py": "spawn.Pipe"}
PACKAGE = Path(equipoise.__file__).parent
MODULES = [*(PACKAGE / "control").rglob("*.py"), *(PACKAGE / "runtime").rglob("*.py")]


@pytest.mark.parametrize("path", sorted(MODULES), ids=lambda p: p.name)
def test_no_object_is_read_from_another_process(path):
    """Neither pickles nor the collectives of torch that are made of them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    modules = {
        alias.name.partition(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import)
        for alias in n.names
    } | {n.module.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {name for name in names if name.endswith(("_object", "_object_list", "_objects"))}
    assert not modules & {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
    assert ("multiprocessing" in modules) == (path.name in PIPES)
