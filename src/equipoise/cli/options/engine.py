"""What decides the launch flags, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.groups import ENGINE
from equipoise.cli.options.limits import Amount, Size
from equipoise.engines.formats import LaunchOptions
from equipoise.engines.transformers.config import ModelConfig


@Parameter(name="*", group=ENGINE)
@dataclass(frozen=True, kw_only=True)
class EngineArguments:
    """Options that determine the launch flags, in addition to the map.

    Parameters
    ----------
    engine_version
        Release of the engine, such as 1.3.0rc5. If not given: the newest release that is known
        (equipoise explain launch lists them).
    hidden_layers
        Number of decoder layers of the model, dense ones included; an SGLang map has a row for
        each. --model gives it too.
    architecture
        Architecture of the model, as in its config.json (TensorRT-LLM). --model gives it too.
    backend
        MoE backend (TensorRT-LLM).
    a2a_backend
        Value of --moe-a2a-backend (SGLang) or --all2all-backend (vLLM).
    ep_dispatch
        Value of --ep-dispatch-algorithm (SGLang).
    window_size
        Steps that a rearrangement looks back on (vLLM); 1000 if not given.
    step_interval
        Steps between two rearrangements (vLLM); 3000 if not given.
    use_async
        Move experts in the background (vLLM).
    """

    engine_version: str | None = None
    hidden_layers: Annotated[int | None, Size] = None
    architecture: str | None = None
    backend: str | None = None
    a2a_backend: str | None = None
    ep_dispatch: str | None = None
    window_size: Annotated[int | None, Amount] = None
    step_interval: Annotated[int | None, Amount] = None
    use_async: Annotated[bool | None, Parameter(negative="--no-use-async")] = None

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
