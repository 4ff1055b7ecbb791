"""Maps that are read, and what their files do not say, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.groups import MAPS
from equipoise.cli.options.limits import Redundant, Size
from equipoise.engines.formats import MapContext
from equipoise.engines.registry import map_format
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import parse_ids


@Parameter(name="*", group=MAPS)
@dataclass(frozen=True, kw_only=True)
class MapArguments:
    """What a map file does not say.

    Parameters
    ----------
    ranks
        Expert-parallel ranks.
    experts
        Logical experts of a layer.
    layers
        Numbers of the MoE layers in the model, as in 3-60.
    hidden_layers
        Number of decoder layers of the model, dense ones included; an SGLang map has a row for
        each.
    redundant
        Redundant slots of a layer, all ranks together, as the engine is configured.
    model_key
        Model whose map to read, where a file holds the maps of several.
    """

    ranks: Annotated[int | None, Size] = None
    experts: Annotated[int | None, Size] = None
    layers: str | None = None
    hidden_layers: Annotated[int | None, Size] = None
    redundant: Annotated[int | None, Redundant] = None
    model_key: str | None = None

    @property
    def context(self) -> MapContext:
        """The options in the form that the engines' readers take."""
        return MapContext(
            num_ranks=self.ranks,
            num_experts=self.experts,
            layer_ids=parse_ids(self.layers) if self.layers else None,
            num_hidden_layers=self.hidden_layers,
            num_redundant=self.redundant,
            model_key=self.model_key,
        )


def check_decoder_layers(hidden_layers: int | None, *formats: str) -> None:
    """Refuse a number of decoder layers if all the map formats in play would ignore it."""
    if hidden_layers is not None and not any(map_format(name).decoder_rows for name in formats):
        raise EquipoiseError(
            f"Maps for {' and '.join(formats)} have rows for MoE layers only; "
            "leave --hidden-layers out."
        )


def check_model_key(model_key: str | None, *formats: str) -> None:
    """Refuse the choice of a model if none of the map formats in play holds several."""
    if model_key is not None and not any(map_format(name).by_model for name in formats):
        raise EquipoiseError(
            f"Maps for {' and '.join(formats)} hold one model; leave --model-key out."
        )
