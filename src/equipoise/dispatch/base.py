"""What a dispatcher is: what it declares of itself, what it answers, which batches it takes."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, brief
from equipoise.cost import RankCost
from equipoise.dispatch.split import Split
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.topology import Topology

TOO_MUCH_LOAD = 2**53
"""Assignments a layer must stay below: from here on float64 cannot tell each from the next."""


class Shares(Enum):
    """How the copies of an expert share its load."""

    EVEN = "even"
    """The same for all copies, always."""
    NEAREST = "nearest"
    """Copies near the source take what comes from there."""
    FOLLOWING = "following the load"
    """Chosen for each batch so that the slowest rank is fast."""
    OTHER = "other"
    """By a rule of its own; a search takes it for even."""


class Dispatcher(Protocol):
    """What every dispatcher is: a frozen, keyword-only dataclass that splits batches.

    It declares what it is, and nobody recognises it by its name. Those to which the ranks' speeds
    or nodes matter have a field ``topology``, those to which time matters a field ``cost``, and
    those that count tokens a field ``top_k``; the others declare ``None`` as a class attribute.
    """

    name: ClassVar[str]

    @property
    def topology(self) -> Topology | None:
        """Speeds and nodes of the ranks; ``None``: all equal, one node."""
        ...

    @property
    def cost(self) -> RankCost | None:
        """What a rank's share takes; ``None``: peaks are loads over speeds."""
        ...

    @property
    def shares(self) -> Shares:
        """How the copies of an expert share its load: what bounds hold, and how to search."""
        ...

    @property
    def scale_free(self) -> bool:
        """Whether twice the load has twice the peaks, so that the unit of loads does not matter.

        ``False`` where that is not sure.
        """
        ...

    def split(self, load: ArrayLike, placement: Placement) -> Split:
        """Share a batch, ``(L, E)`` or by source rank ``(L, R, E)``, over the copies.

        Deterministic; changes nothing it is given.
        """
        ...

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Peaks of batches ``(T, L, E)``, as ``split`` would have them, ``(T, L)``."""
        ...


_DECLARED = ("name", "topology", "cost", "shares", "scale_free", "split", "peaks")


def check_dispatcher(value: Dispatcher) -> Dispatcher:
    """The dispatcher; ``EquipoiseError`` unless it declares all that a dispatcher does."""
    missing = [name for name in _DECLARED if not hasattr(value, name)]
    if missing:
        raise EquipoiseError(
            f"The dispatcher is {brief(value)}, which declares no {', '.join(missing)}; give the "
            "name of one, or an instance of a class with all that Dispatcher lists."
        )
    if isinstance(value, type):
        raise EquipoiseError(f"The dispatcher is the class {value.__name__}; give an instance.")
    return value


def takes(dispatch: object, option: str) -> bool:
    """Whether it or its class is configured by that option, such as ``cost``: has it as a field."""
    return is_dataclass(dispatch) and any(field.name == option for field in fields(dispatch))


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch that was checked against its placement: a rule used by another takes it as it is.

    Parameters
    ----------
    load
        Assignments ``(L, E)``, contiguous.
    source_load
        The same by source rank, ``(L, R, E)``; ``None`` if unknown.
    """

    load: NDArray[np.float64]
    source_load: NDArray[np.float64] | None = None


def checked_batch(load: ArrayLike | Batch, placement: Placement) -> Batch:
    """A batch ``(L, E)`` or ``(L, R, E)``, checked unless it was; its arrays are copies.

    Raises
    ------
    EquipoiseError
        Loads that are NaN, infinite, negative or not of the placement's shape, or whose sum in a
        layer reaches ``2**53``.
    """
    if isinstance(load, Batch):
        source = load.source_load
        return Batch(load.load.copy(), None if source is None else source.copy())
    from equipoise.dispatch import _near_kernels  # numba takes long to import

    x = load if _can_be_added(load) else as_loads(load)
    assert isinstance(x, np.ndarray)
    if x.ndim != 3:
        return Batch(_fitting(x, placement, steps=False).copy())
    p = placement
    if x.shape != (p.num_layers, p.num_ranks, p.num_experts):
        raise EquipoiseError(
            f"Loads have shape {x.shape}; the placement needs (layers, source ranks, experts) = "
            f"{(p.num_layers, p.num_ranks, p.num_experts)}."
        )
    source_LRE, total_LE, good = _near_kernels.add_sources(np.ascontiguousarray(x))
    if not good:
        as_loads(x)  # says which is not, and why
    _check_total(total_LE, placement)
    return Batch(total_LE, source_LRE)


def _can_be_added(load: ArrayLike) -> bool:
    """Whether it is an array of sources as live layers give it, which is checked while added up."""
    if not isinstance(load, np.ndarray) or type(load) is not np.ndarray:  # subclasses mask entries
        return False
    return load.ndim == 3 and load.dtype in (np.int64, np.float64)


def checked_load(load: ArrayLike, placement: Placement, *, steps: bool) -> NDArray[np.float64]:
    """The load as contiguous float64, ``(L, E)`` or with ``steps`` ``(T, L, E)``.

    Raises
    ------
    EquipoiseError
        Loads that are NaN, infinite, negative or not of the placement's shape, or whose sum in a
        layer reaches ``2**53``.
    """
    return _fitting(as_loads(load), placement, steps=steps)


def _fitting(
    loads: NDArray[np.float64], placement: Placement, *, steps: bool
) -> NDArray[np.float64]:
    """Loads that are numbers, contiguous, if they fit the placement."""
    x = np.ascontiguousarray(loads)
    wanted = (placement.num_layers, placement.num_experts)
    if x.ndim != 2 + steps or x.shape[-2:] != wanted:
        shape = ("(steps, layers, experts) ending in " if steps else "(layers, experts) = ") + str(
            wanted
        )
        raise EquipoiseError(f"Loads have shape {x.shape}; the placement needs {shape}.")
    _check_total(x, placement)
    return x


def _check_total(x: NDArray[np.float64], placement: Placement) -> None:
    with np.errstate(over="ignore"):  # infinity is too much as well
        total = x.sum(axis=-1)
    if total.max() >= TOO_MUCH_LOAD:
        row = np.argwhere(total >= TOO_MUCH_LOAD)[0][-1]
        raise EquipoiseError(
            f"Layer {placement.layer_ids[row]} has {total.max():.3g} assignments; expected "
            "fewer than 2**53. Give the counts of one batch, or scale them down."
        )
