"""What can be asked: a model, a deployment and its traffic."""

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
"""Names of the dispatchers that a question can be about."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What an answer needs to know of a model.

    Parameters
    ----------
    name
        What it is called.
    shape
        A routed expert, how many there are, and how many a token chooses.
    num_layers
        MoE layers.
    own_work
        Attention and what else a rank does for its own tokens; ``None``: not known, left out.
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
        ``generated``, or the recording that was given.
    skew
        Generated routing: standard deviation of the logarithm of an expert's popularity, 0 for a
        fair router; 1 if ``None``.
    drift
        Generated routing: standard deviation of what that logarithm changes by from window to
        window; 0.05 if ``None``.
    step_tokens
        Tokens of a step, all ranks together.
    num_ranks
        Expert-parallel ranks.
    redundant_per_rank
        Slots of a rank and layer beyond the fewest that hold all experts.
    dispatch
        The dispatcher by name, one of ``DISPATCH``.
    gpu
        Name of a hardware profile.
    model
        Name of a model.
    phase
        What steps do.
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
        """The question that a JSON object asks; what it leaves out has its default.

        Raises
        ------
        EquipoiseError
            No object, a key that no question has, or a value out of range.
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
