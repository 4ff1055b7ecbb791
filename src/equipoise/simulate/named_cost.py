"""Time models by name: published constants, or a file that ``equipoise calibrate`` wrote."""

from __future__ import annotations

from pathlib import Path

from equipoise.simulate.expert_time import COST_ERROR, ComputeModel, UncertainCost
from equipoise.simulate.own_runs import read_own_machine


def cost_model(name: str, error: float = COST_ERROR) -> ComputeModel:
    """Make the time model of a name.

    Parameters
    ----------
    name
        Name of published constants, or path of a file.
    error
        Relative error of published constants; a file has its own.

    Raises
    ------
    EquipoiseError
        A name that is neither a file nor published, or a damaged file.
    """
    if Path(name).is_file():
        return read_own_machine(Path(name))
    return UncertainCost.published(name, error)
