"""A question: a model, a deployment and its traffic."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from equipoise.checks import brief, check_number, check_type, check_whole
from equipoise.dispatch import DISPATCHERS
from equipoise.errors import EquipoiseError, argument
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.own_work import OwnWork, Phase
from equipoise.simulate.profiles import names

Routing = Literal["generated", "recorded"]

DISPATCH = tuple(
    name for name, entry in DISPATCHERS.items() if not entry.engine and not entry.needs_cost
)
"""Dispatchers that a question can name."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The facts about a model that an answer needs.

    Parameters
    ----------
    name
        Name of the model.
    shape
        Shape of a routed expert, number of experts, and choices per token.
    num_layers
        Number of MoE layers.
    own_work
        Work for a rank's own tokens, such as attention; ``None`` if unknown, and then left out.
    """

    name: str
    shape: ExpertShape
    num_layers: int
    own_work: OwnWork | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A deployment and its traffic.

    Parameters
    ----------
    routing
        Source of the routing: ``generated``, or the given recording.
    skew
        Standard deviation of the logarithm of an expert's popularity, for generated routing: 0 for
        a fair router, 1 if ``None``.
    drift
        Standard deviation of the change of that logarithm from window to window, for generated
        routing; 0.05 if ``None``.
    step_tokens
        Number of tokens of a step, all ranks together.
    num_ranks
        Number of expert-parallel ranks.
    redundant_per_rank
        Number of slots of a rank and layer beyond the fewest that hold all experts.
    dispatch
        Name of the dispatcher, one of ``DISPATCH``.
    gpu
        Name of a hardware profile.
    model
        Name of a model.
    phase
        Phase of the steps.
    layer
        Number of the layer to show; the least balanced one if ``None``.
    seed
        Random seed of the routing and of the batches.
    """

    routing: Routing = "generated"
    skew: float | None = None
    drift: float | None = None
    step_tokens: int = 4096
    num_ranks: int = 32
    redundant_per_rank: int = 1
    dispatch: str = "even"
    gpu: str = "h100"
    model: str = "deepseek-v3"
    phase: Phase = "decode"
    layer: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_one_of("routing", self.routing, get_args(Routing))
        _check_one_of("phase", self.phase, get_args(Phase))
        _check_one_of("dispatch", self.dispatch, DISPATCH)
        _check_one_of("gpu", self.gpu, names("hardware"))
        check_type(argument("model"), self.model, str)
        for name, high in (("skew", 3), ("drift", 1)):
            given = getattr(self, name)
            if given is None:
                continue
            check_number(argument(name), given, low=0, high=high)
            if self.routing == "recorded":
                raise EquipoiseError(
                    f"{argument(name)} is of generated routing; leave it out with a recording."
                )
        check_whole(argument("step_tokens"), self.step_tokens, low=1, high=1 << 20)
        check_whole(argument("num_ranks"), self.num_ranks, low=2, high=256)
        check_whole(argument("redundant_per_rank"), self.redundant_per_rank, high=32)
        check_whole(argument("seed"), self.seed, high=1 << 32)
        if self.layer is not None:
            check_whole(argument("layer"), self.layer)

    @classmethod
    def of(cls, document: Any) -> Question:
        """Read a question from a JSON object; missing keys have their defaults.

        Raises
        ------
        EquipoiseError
            Data that is not an object, an unknown key, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(document, dict):
            raise EquipoiseError(f"The question is {brief(document)}; expected an object.")
        unknown = sorted(set(document) - set(known))
        if unknown:
            raise EquipoiseError(
                f"There is nothing called {brief(unknown[0])} to ask for; expected some of "
                f"{', '.join(known)}."
            )
        return cls(**document)


def _check_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise EquipoiseError(
            f"{argument(name)} is {brief(value)}; expected one of {', '.join(known)}."
        )
