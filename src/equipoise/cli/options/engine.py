"""What decides the launch flags, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Amount, Size
from equipoise.engines.formats import LaunchOptions
from equipoise.engines.transformers.config import ModelConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EngineArguments:
    """What decides the launch flags besides the map.

    Parameters
    ----------
    engine_version
        The engine's release, such as 1.3.0rc5; the newest known if not given, see equipoise
        explain launch.
    hidden_layers
        All decoder layers of the model, dense ones included; SGLang maps have a row for each.
        --model says it as well.
    architecture
        TensorRT-LLM: the model's architecture, as in its config.json. --model says it as well.
    backend
        TensorRT-LLM: the MoE backend.
    a2a_backend
        SGLang: --moe-a2a-backend. vLLM: --all2all-backend.
    ep_dispatch
        SGLang: --ep-dispatch-algorithm.
    window_size
        vLLM: steps that a rearrangement looks back on; 1000 if not given.
    step_interval
        vLLM: steps between two rearrangements; 3000 if not given.
    use_async
        vLLM: move experts in the background.
    """

    engine_version: str | None = None
    hidden_layers: Annotated[int | None, Size] = None
    architecture: str | None = None
    backend: str | None = None
    a2a_backend: str | None = None
    ep_dispatch: str | None = None
    window_size: Annotated[int | None, Amount] = None
    step_interval: Annotated[int | None, Amount] = None
    use_async: bool | None = None

    def options(self, model: ModelConfig | None) -> LaunchOptions:
        """The options in the form that the engines' flag writers take."""
        return LaunchOptions(
            version=self.engine_version,
            architecture=self.architecture,
            backend=self.backend,
            a2a_backend=self.a2a_backend,
            dispatch=self.ep_dispatch,
            window_size=self.window_size,
            step_interval=self.step_interval,
            use_async=self.use_async,
            model=model,
        )
