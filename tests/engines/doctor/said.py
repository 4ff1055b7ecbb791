"""What the doctor says of a command, short."""

from __future__ import annotations

from pathlib import Path

from equipoise.engines.doctor.examine import Surroundings, examine
from equipoise.engines.transformers.config import ModelConfig, read_model_config
from tests.engines.doctor.corpus import MODELS


def model(name: str) -> ModelConfig:
    return read_model_config(MODELS / f"{name}.json")


def said(source: str | Path, **known: object) -> set[str]:
    """The kind and flag of every finding, as ``"wrong --enable-eplb"``."""
    return {
        f"{finding.kind.value} {finding.flag}"
        for diagnosis in examine(str(source), Surroundings(**known))
        for finding in diagnosis.findings
    }


def corrected(source: str | Path, **known: object) -> str:
    """The one launch, corrected."""
    (diagnosis,) = examine(str(source), Surroundings(**known))
    assert diagnosis.corrected is not None
    return diagnosis.corrected.text()
