"""The model, on the command line: for bytes that nobody has to work out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cyclopts import Parameter

from equipoise.cli.options.groups import HARDWARE
from equipoise.engines.transformers.config import ModelConfig, read_model_config
from equipoise.errors import EquipoiseError


@Parameter(name="*", group=HARDWARE)
@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The model that is served.

    Parameters
    ----------
    model
        Model that is served: its config.json, the folder of it, or the name of a public model such
        as deepseek-v3 (equipoise explain model-config lists them). It determines the bytes of an
        expert and of a token of KV cache, instead of --expert-bytes.
    """

    model: Path | None = None

    @cached_property
    def config(self) -> ModelConfig | None:
        """Its configuration; ``None`` if none was given."""
        return None if self.model is None else read_model_config(self.model)

    def expert_bytes(self, by_hand: int | None) -> int | None:
        """Bytes of one expert in one layer, of the configuration or by hand; ``None`` if unknown.

        Raises
        ------
        EquipoiseError
            Both are given.
        """
        known = None if self.config is None else self.config.expert_bytes
        if known is not None and by_hand is not None:
            raise EquipoiseError(
                f"--model and --expert-bytes are given, and {self.model} already says that an "
                f"expert has {known:,} bytes; give one of the two."
            )
        return by_hand if known is None else known

    def need_expert_bytes(self, by_hand: int | None) -> int | None:
        """The same; ``EquipoiseError`` if there is a configuration and neither says them."""
        size = self.expert_bytes(by_hand)
        return self.config.need_expert_bytes() if size is None and self.config is not None else size

    def hidden_layers(self, by_hand: int | None) -> int | None:
        """All decoder layers, of the configuration or by hand; a refusal if they differ."""
        known = None if self.config is None else self.config.num_hidden_layers
        if known is not None and by_hand not in (None, known):
            raise EquipoiseError(
                f"--hidden-layers is {by_hand}, and {self.model} says {known}; leave one out."
            )
        return by_hand if known is None else known

    def check_fits(self, what: str, num_experts: int, layer_ids: Sequence[int]) -> None:
        """Raise ``EquipoiseError`` if a map or a recording is not of the model."""
        if self.config is not None:
            self.config.check_fits(what, num_experts, layer_ids)
