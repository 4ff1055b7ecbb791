"""What decides the launch flags, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Size
from equipoise.engines.formats import LaunchOptions


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EngineArguments:
    """What decides the launch flags besides the map.

    Parameters
    ----------
    engine_version
        The engine's release, from docs/launch.md; the newest known if not given.
    hidden_layers
        All decoder layers of the model, dense ones included; SGLang maps have a row for each.
    architecture
        TensorRT-LLM: the model's architecture, as in its config.json.
    backend
        TensorRT-LLM: the MoE backend.
    a2a_backend
        SGLang: --moe-a2a-backend.
    ep_dispatch
        SGLang: --ep-dispatch-algorithm.
    """

    engine_version: str | None = None
    hidden_layers: Annotated[int | None, Size] = None
    architecture: str | None = None
    backend: str | None = None
    a2a_backend: str | None = None
    ep_dispatch: str | None = None

    @property
    def options(self) -> LaunchOptions:
        """The options in the form that the engines' flag writers take."""
        return LaunchOptions(
            version=self.engine_version,
            architecture=self.architecture,
            backend=self.backend,
            a2a_backend=self.a2a_backend,
            dispatch=self.ep_dispatch,
        )
