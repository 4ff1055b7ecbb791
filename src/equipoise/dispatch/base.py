"""The protocol of dispatchers: what they declare, what they return, which batches they accept."""

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
"""Upper limit of a layer's assignments: float64 cannot count beyond it."""


class Shares(Enum):
    """The way in which the copies of an expert share its load."""

    EVEN = "even"
    """Every copy takes an equal share, always."""
    NEAREST = "nearest"
    """Copies near a token's source serve the tokens from there."""
    FOLLOWING = "following the load"
    """Shares are chosen for each batch so that the slowest rank is fast."""
    OTHER = "other"
    """The dispatcher has a rule of its own; a search treats it as even."""


class Dispatcher(Protocol):
    """The protocol of dispatchers: frozen, keyword-only dataclasses that split batches.

    A dispatcher declares its properties, so that no code depends on its name. It has a field
    ``topology`` if the ranks' speeds or nodes matter to it, a field ``cost`` if times matter, and a
    field ``top_k`` if it counts tokens. Otherwise the class attribute of that name is ``None``.
    """

    name: ClassVar[str]

    @property
    def topology(self) -> Topology | None:
        """Speeds and nodes of the ranks; ``None`` for equal ranks on one node."""
        ...

    @property
    def cost(self) -> RankCost | None:
        """Cost of a rank's share; ``None`` if peaks are loads over speeds."""
        ...

    @property
    def shares(self) -> Shares:
        """Way in which copies share a load. It decides which bounds hold and how to search."""
        ...

    @property
    def scale_free(self) -> bool:
        """Whether twice the load has twice the peaks, so that the unit of loads does not matter.

        ``False`` if that is not certain.
        """
        ...

    def split(self, load: ArrayLike, placement: Placement) -> Split:
        """Share a batch, ``(L, E)`` or by source rank ``(L, R, E)``, over the copies.

        Equal arguments give equal results; no argument is changed.
        """
        ...

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Compute the peaks, ``(T, L)``, that ``split`` has for batches ``(T, L, E)``."""
        ...


_DECLARED = ("name", "topology", "cost", "shares", "scale_free", "split", "peaks")


def check_dispatcher(value: Dispatcher) -> Dispatcher:
    """Return the dispatcher; raise ``EquipoiseError`` unless it declares all of ``Dispatcher``."""
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
    """Tell whether a dispatcher or its class has a field of that name, such as ``cost``."""
    return is_dataclass(dispatch) and any(field.name == option for field in fields(dispatch))


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch that was already checked against its placement.

    A dispatcher that uses another passes it on, so that the check is not repeated.

    Parameters
    ----------
    load
        Assignments ``(L, E)``, contiguous.
    source_load
        Assignments by source rank, ``(L, R, E)``; ``None`` if unknown.
    """

    load: NDArray[np.float64]
    source_load: NDArray[np.float64] | None = None


def checked_batch(load: ArrayLike | Batch, placement: Placement) -> Batch:
    """Check a batch ``(L, E)`` or ``(L, R, E)`` unless it was checked; its arrays are copies.

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
        as_loads(x)  # raises an error that names the wrong load
    _check_total(total_LE, placement)
    return Batch(total_LE, source_LRE)


def _can_be_added(load: ArrayLike) -> bool:
    """Tell whether this is a float or int array by source, which is checked while it is summed."""
    if not isinstance(load, np.ndarray) or type(load) is not np.ndarray:  # subclasses may be masked
        return False
    return load.ndim == 3 and load.dtype in (np.int64, np.float64)


def checked_load(load: ArrayLike, placement: Placement, *, steps: bool) -> NDArray[np.float64]:
    """Return the load as contiguous float64, ``(L, E)`` or with ``steps`` ``(T, L, E)``.

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
    """Return checked loads as a contiguous array if they fit the placement."""
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
    with np.errstate(over="ignore"):  # an overflow to infinity is refused below
        total = x.sum(axis=-1)
    if total.max() >= TOO_MUCH_LOAD:
        row = np.argwhere(total >= TOO_MUCH_LOAD)[0][-1]
        raise EquipoiseError(
            f"Layer {placement.layer_ids[row]} has {total.max():.3g} assignments; expected "
            "fewer than 2**53. Give the counts of one batch, or scale them down."
        )
