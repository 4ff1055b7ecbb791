"""The engine options behind each decision of a checklist."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from equipoise.engines._shared.knob import Knob
from equipoise.errors import EquipoiseError
from equipoise.simulate.checklist import Topic

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
"""Names of the engines whose options are known, by folder."""

FRAMEWORKS = {"trtllm": "trtllm"}
"""Framework whose timed kernels an engine runs, if not SGLang's."""


def knobs(engine: str) -> Mapping[Topic, tuple[Knob, ...]]:
    """Return the options of an engine by decision, the most important first.

    Raises
    ------
    EquipoiseError
        An engine whose options are not known.
    """
    if engine not in ENGINES:
        raise EquipoiseError(
            f"No options of {engine!r} are known; use one of {', '.join(ENGINES)}."
        )
    known: Mapping[Topic, tuple[Knob, ...]] = import_module(
        f"equipoise.engines.{engine}.knobs"
    ).KNOBS
    return known
