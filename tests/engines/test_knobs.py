"""Options of engines by what they decide."""

from __future__ import annotations

import pytest

from equipoise.engines.knobs import ENGINES, knobs
from equipoise.engines.sglang import advice as sglang
from equipoise.engines.vllm import advice as vllm
from equipoise.errors import EquipoiseError
from equipoise.simulate.checklist import TOPICS


@pytest.mark.parametrize("engine", ENGINES)
def test_every_decision_has_an_option_of_every_engine(engine):
    known = knobs(engine)
    assert tuple(known) == TOPICS
    assert all(known.values())


def test_other_engines_are_refused():
    with pytest.raises(EquipoiseError, match="No options of 'ascend' are known"):
        knobs("ascend")


@pytest.mark.parametrize(("engine", "known"), [("vllm", vllm), ("sglang", sglang)])
def test_options_on_balancing_are_those_the_doctor_knows(engine, known):
    flags = known.FLAGS.keys() | known.ALIASES.keys()
    for knob in knobs(engine)["load balancing"]:
        assert knob.name.removeprefix("--").split()[0] in flags
