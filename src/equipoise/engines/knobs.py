"""Which option of an engine moves what a checklist decides."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from equipoise.engines._shared.knob import Knob
from equipoise.errors import EquipoiseError
from equipoise.simulate.checklist import Topic

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
"""The engines whose options are known, by the folder, with their names."""

FRAMEWORKS = {"trtllm": "trtllm"}
"""Whose timed kernels an engine runs, where they are not those of SGLang."""


def knobs(engine: str) -> Mapping[Topic, tuple[Knob, ...]]:
    """The options of an engine by what they decide, most important first.

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
