"""Messages that name arguments, for Python users and for others."""

from __future__ import annotations

import copy
import pickle

import pytest

from equipoise.cli.options.names import OPTIONS, in_options
from equipoise.errors import EquipoiseError, FormatError, Message, argument, named

TEXT = f"Give {argument('num_ranks')} or {argument('layer_ids')} 3-5."


def test_a_message_reads_as_python_and_as_the_command():
    message = Message(TEXT)
    assert message == "Give num_ranks or layer_ids 3-5."
    assert message.arguments == ("num_ranks", "layer_ids")
    assert message.named(OPTIONS) == "Give --ranks or --layers 3-5."
    assert message.named({"num_ranks": "ranks"}) == "Give ranks or layer_ids 3-5."
    assert type(message.named({})) is str


def test_an_error_carries_its_arguments():
    error = EquipoiseError(TEXT)
    assert str(error) == f"{error}" == "Give num_ranks or layer_ids 3-5."
    assert repr(error) == "EquipoiseError('Give num_ranks or layer_ids 3-5.')"
    outer = FormatError(f"a.json: {error.message.marked}")
    assert str(outer) == "a.json: Give num_ranks or layer_ids 3-5."
    assert in_options(outer.message) == "a.json: Give --ranks or --layers 3-5."


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_name_the_same(again):
    assert again(Message(TEXT)).parts == Message(TEXT).parts
    assert again(EquipoiseError(TEXT)).message.parts == Message(TEXT).parts


def test_plain_text_stays_as_it_is():
    assert named("Give num_ranks.", OPTIONS) == "Give num_ranks."
    assert Message("no mark").arguments == ()


def test_braces_and_percent_signs_are_text():
    error = EquipoiseError(f"{{x}} %s {argument('speed')} {{}}")
    assert str(error) == "{x} %s speed {}"
