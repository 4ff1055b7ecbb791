"""The registry of dispatchers: our own, and the rules of engines.

A new dispatcher is one class and one entry here; then the command, the documentation and the tests
of all dispatchers include it. Classes are named, not imported, because those of engines are in an
outer layer of the package.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module

from equipoise.checks import brief
from equipoise.cost import RankCost
from equipoise.dispatch.base import Dispatcher, check_dispatcher, takes
from equipoise.errors import EquipoiseError, argument
from equipoise.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A dispatcher that has a name.

    Parameters
    ----------
    where
        Class as ``"module:Class"``.
    summary
        Line that says what each copy of an expert gets.
    engine
        Engine whose rule it is; ``None`` for our own, which the runtime can serve by.
    needs_cost
        Flag that it cannot be made without a cost.
    """

    where: str
    summary: str
    engine: str | None = None
    needs_cost: bool = False

    @property
    def kind(self) -> type[Dispatcher]:
        """Import and return the class."""
        module, name = self.where.split(":")
        found: type[Dispatcher] = getattr(import_module(module), name)
        return found


DISPATCHERS: dict[str, Entry] = {
    "even": Entry(
        where="equipoise.dispatch.even:Even",
        summary="the same, whatever its rank carries",
    ),
    "minmax": Entry(
        where="equipoise.dispatch.minmax:MinMax",
        summary="what makes the slowest rank as fast as possible",
    ),
    "nearest": Entry(
        where="equipoise.dispatch.nearest:Nearest",
        summary="what comes from its rank, else its node, else an even part",
    ),
    "fewest": Entry(
        where="equipoise.dispatch.fewest:FewestExperts",
        summary="all or nothing, for the fewest active experts on a rank",
    ),
    "auto": Entry(
        where="equipoise.dispatch.auto:Auto",
        summary="what the fastest of minmax, fewest and even gives it, timed by a cost",
        needs_cost=True,
    ),
    "vllm": Entry(
        where="equipoise.engines.vllm.rules:Vllm",
        summary="rows, by their hash",
        engine="vLLM",
    ),
    "sglang-static": Entry(
        where="equipoise.engines.sglang.rules:SglangStatic",
        summary="all from near ranks, and from those dealt to it",
        engine="SGLang",
    ),
    "sglang-dynamic": Entry(
        where="equipoise.engines.sglang.rules:SglangDynamic",
        summary="all from near ranks, and others at random",
        engine="SGLang",
    ),
    "sglang-rows": Entry(
        where="equipoise.engines.sglang.rules:SglangRows",
        summary="rows of the whole batch, in turn",
        engine="SGLang",
    ),
    "trtllm": Entry(
        where="equipoise.engines.trtllm.rules:Trtllm",
        summary="choices in turn, block by block",
        engine="TensorRT-LLM",
    ),
    "ascend": Entry(
        where="equipoise.engines.ascend.rules:Ascend",
        summary="all from some ranks, in turn",
        engine="vllm-ascend, Model Runner V1",
    ),
    "ascend-mrv2": Entry(
        where="equipoise.engines.ascend.rules:AscendMrv2",
        summary="rows in turn, from 1,024 on again",
        engine="vllm-ascend, Model Runner V2",
    ),
    "lplb": Entry(
        where="equipoise.engines.deepseek.rules:Lplb",
        summary="what makes the slowest rank as fast as possible, of two copies at most",
        engine="DeepSeek's LPLB",
    ),
}
"""All dispatchers by name, in the order in which help and documentation list them."""


def dispatcher(
    dispatch: str | Dispatcher,
    topology: Topology | None = None,
    *,
    cost: RankCost | None = None,
    top_k: int | None = None,
) -> Dispatcher:
    """Make the dispatcher of a name, for given ranks, cost and router.

    Parameters
    ----------
    dispatch
        Name in ``DISPATCHERS``, or a dispatcher object, which keeps its own topology and ``top_k``.
    topology
        Speeds and nodes of the ranks, used with a name.
    cost
        Cost of a rank's share, which makes peaks seconds; ``None`` for the object's own, or none.
    top_k
        Number of choices per token, used with a name whose rule needs it; ``None`` for its default.

    Raises
    ------
    EquipoiseError
        An unknown name, an object that is not a ``Dispatcher``, a cost for a dispatcher without
        times, or a missing cost for one that needs it.
    """
    if not isinstance(dispatch, str):
        known = check_dispatcher(dispatch)
        if cost is None:
            return known
        _check_knows_times(known.name, known)
        timed: Dispatcher = replace(known, cost=cost)  # type: ignore[type-var]
        return timed
    entry = _entry(dispatch)
    if cost is None and entry.needs_cost:
        raise EquipoiseError(
            f"The dispatcher {dispatch} needs a cost to time its rules by; "
            f"give {argument('cost')}, or use minmax."
        )
    kind = entry.kind
    if cost is not None:
        _check_knows_times(dispatch, kind)
    told = {"topology": topology, "cost": cost, "top_k": top_k}
    return kind(**{x: told[x] for x in told if told[x] is not None and takes(kind, x)})


def needs_cost(dispatch: str | Dispatcher) -> bool:
    """Tell whether this is the name of a dispatcher that needs a cost."""
    return isinstance(dispatch, str) and _entry(dispatch).needs_cost


def check_serving(name: str) -> None:
    """Raise ``EquipoiseError`` unless the runtime can serve by the dispatcher of this name.

    It can serve by our own dispatchers that need no cost. The rules of engines are only models.
    """
    able = [x for x, entry in DISPATCHERS.items() if not entry.engine and not entry.needs_cost]
    if name not in able:
        raise EquipoiseError(
            f"There is no dispatcher {brief(name)} to serve by; use one of {', '.join(able)}."
        )


def _entry(name: str) -> Entry:
    if name not in DISPATCHERS:
        raise EquipoiseError(
            f"There is no dispatcher {brief(name)}; use one of {', '.join(DISPATCHERS)}."
        )
    return DISPATCHERS[name]


def _check_knows_times(name: str, dispatch: Dispatcher | type[Dispatcher]) -> None:
    if not takes(dispatch, "cost"):
        able = [x for x, entry in DISPATCHERS.items() if takes(entry.kind, "cost")]
        raise EquipoiseError(
            f"The dispatcher {name} knows no times; leave {argument('cost')} out, or use one of "
            f"{', '.join(able)}."
        )
