"""How good any placement could be, and what stands in the way. Formulas: ``docs/planners.md``."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import as_loads, check_count
from equipoise.dispatch import dispatcher
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement, check_slot_count
from equipoise.plan.problem import Binding, Plan, Problem

Floats = NDArray[np.float64]

_ROUNDING = 1e-9  # relative: bounds that differ by less are equal
_GAIN = 0.02  # relative: what is worth advice


def peak_lower_bound(load_LE: ArrayLike, num_ranks: int, num_slots: int) -> Floats:
    """The least peak any placement of the loads can have, whatever the dispatcher.

    For the ``j`` heaviest experts at most ``j + S - E`` slots exist, so their load cannot be shared
    by more than ``min(R, j + S - E)`` ranks.  The bound is the largest such share, over all ``j``.

    Parameters
    ----------
    load_LE
        Assignments per layer and expert, ``(L, E)``; not changed.

    Returns
    -------
    ``(L,)`` float64, assignments on the busiest rank.

    Raises
    ------
    EquipoiseError
        Loads that are no finite numbers >= 0, slots that do not fit.
    """
    load = _as_load(load_LE)
    check_slot_count(num_slots, num_ranks=num_ranks, num_experts=load.shape[1])
    bound: Floats = _prefix_shares(load, num_ranks, num_slots).max(axis=1)
    return bound


def even_split_lower_bound(load_LE: ArrayLike, num_ranks: int, num_slots: int) -> Floats:
    """The least peak any placement can have when all copies of an expert share its load equally.

    Some rank holds a copy of the expert with the largest load per copy.  That largest quotient is
    least when each redundant slot goes to the largest load per copy, as in Adams' method of
    apportionment; copies beyond one a rank lower nothing.

    Parameters and result as for ``peak_lower_bound``.
    """
    load = _as_load(load_LE)
    check_slot_count(num_slots, num_ranks=num_ranks, num_experts=load.shape[1])
    bound: Floats = _load_per_copy(load, num_ranks, num_slots).max(axis=1)
    return bound


def packing_lower_bound(load_LE: ArrayLike, copies_LE: ArrayLike, num_ranks: int) -> Floats:
    """The least peak of an even split over given copies, wherever they are placed.

    The larger of two bounds on slots sorted by their load, ``S / R`` of them on each rank.  The
    ``j`` heaviest occupy some number of ranks, whose remaining slots hold at least the lightest
    loads.  Of the ``qR + 1`` heaviest some rank holds ``q + 1``, and at least the lightest besides.

    Parameters
    ----------
    load_LE, copies_LE
        Assignments and copies per layer and expert, ``(L, E)``; every expert has a copy.

    Returns
    -------
    ``(L,)`` float64, assignments on the busiest rank.
    """
    load, copies = _as_load(load_LE), np.asarray(copies_LE)
    if copies.shape != load.shape or (copies < 1).any() or np.ptp(copies.sum(axis=-1)):
        raise EquipoiseError(
            f"Copies of shape {copies.shape} do not fit loads of shape {load.shape}; expected one "
            "or more of every expert, and as many in every layer."
        )
    num_slots = int(copies[0].sum())
    check_slot_count(num_slots, num_ranks=num_ranks, num_experts=load.shape[1])
    share = (load / copies).ravel()
    slots = -np.sort(-np.repeat(share, copies.ravel()).reshape(len(load), num_slots), axis=1)
    return np.maximum(_slot_prefix_bound(slots, num_ranks), _pigeonhole_bound(slots, num_ranks))


def hierarchy_lower_bound(
    load_LE: ArrayLike, num_ranks: int, num_groups: int, num_nodes: int
) -> Floats:
    """The least peak when each group of experts lives on one node, all nodes hold equally many.

    The node of the heaviest group holds at least the lightest groups besides, and no node has less
    than the busiest rank's share of its load.

    Returns
    -------
    ``(L,)`` float64, assignments on the busiest rank.

    Raises
    ------
    EquipoiseError
        Groups that do not divide the experts, or nodes that do not divide the groups.
    """
    load = _as_load(load_LE)
    check_groups(load.shape[1], num_groups, num_nodes)
    groups = np.sort(load.reshape(len(load), num_groups, -1).sum(axis=2), axis=1)
    others = groups[:, : num_groups // num_nodes - 1].sum(axis=1)
    node: Floats = np.maximum(groups.sum(axis=1) / num_nodes, groups[:, -1] + others)
    return node * num_nodes / num_ranks


def certify(
    problem: Problem, slots_LS: NDArray[np.int64], *, planner: str, dispatch: str = "even"
) -> Plan:
    """The plan with this placement: its peaks under the dispatcher, bounds, what binds, advice.

    Raises
    ------
    EquipoiseError
        Loads of a layer that add up to infinity, an unknown dispatcher.
    """
    placement = problem.placement(slots_LS)
    load = _finite_total(problem)
    peak = _peak(load, placement, dispatch)
    bound, binding = _bind(load, problem, dispatch)
    return Plan(
        placement=placement,
        planner=planner,
        dispatch=dispatch,
        load=load,
        peak=peak,
        bound=bound,
        binding=binding,
        status=_advice(peak, bound, load.sum(axis=1) / placement.num_ranks, binding),
    )


def _peak(load: Floats, placement: Placement, dispatch: str) -> Floats:
    if dispatch != "even":
        return dispatcher(dispatch).peaks(load[None], placement).reshape(-1)
    # One row a layer: gathering slots is several times faster than the sums over many batches.
    shape = (placement.num_layers, placement.num_ranks, placement.slots_per_rank)
    per_slot = np.take_along_axis(load / placement.copies, placement.slots, axis=1)
    peak: Floats = per_slot.reshape(shape).sum(axis=2).max(axis=1)
    return peak


def check_groups(num_experts: int, num_groups: int, num_nodes: int) -> None:
    """Raise ``EquipoiseError`` unless the groups divide the experts and the nodes the groups."""
    check_count("num_groups", num_groups)
    check_count("num_nodes", num_nodes)
    if num_experts % num_groups:
        raise EquipoiseError(
            f"{num_experts} experts do not divide into {num_groups} groups; give the model's own "
            "number of routing groups, or plan without groups."
        )
    if num_groups % num_nodes:
        raise EquipoiseError(
            f"{num_groups} groups do not divide over {num_nodes} nodes; choose another "
            "ranks_per_node, or plan without groups."
        )


def _as_load(load_LE: ArrayLike) -> Floats:
    load = as_loads(load_LE)
    if load.ndim != 2:
        raise EquipoiseError(f"Loads have shape {load.shape}; expected (layers, experts).")
    return load


def _finite_total(problem: Problem) -> Floats:
    with np.errstate(over="ignore"):
        load = problem.total
        total = load.sum(axis=1)
    if not np.isfinite(total).all():
        layer = problem.layer_ids[int(np.argmin(np.isfinite(total)))]
        raise EquipoiseError(f"The loads of layer {layer} add up to infinity; scale them down.")
    return load


def _prefix_shares(load: Floats, num_ranks: int, num_slots: int) -> Floats:
    """Share of a rank if the ``j + 1`` heaviest experts spread as far as they can, ``(L, E)``."""
    num_experts = load.shape[1]
    reach = np.minimum(num_ranks, np.arange(1, num_experts + 1) + num_slots - num_experts)
    shares: Floats = np.cumsum(-np.sort(-load, axis=1), axis=1) / reach
    return shares


def _load_per_copy(load: Floats, num_ranks: int, num_slots: int) -> Floats:
    """Load per copy under the counts that make its maximum least, ``(L, E)``."""
    from equipoise.plan import _kernels  # numba takes long to import

    useful = min(num_slots, load.shape[1] * num_ranks)
    copies: NDArray[np.int64] = _kernels.adams_counts(load, useful, num_ranks)
    return load / copies


def _slot_prefix_bound(slots: Floats, num_ranks: int) -> Floats:
    """B5 of ``docs/planners.md`` on descending slot loads ``(L, S)``."""
    num_layers, num_slots = slots.shape
    size = num_slots // num_ranks
    heaviest = np.cumsum(slots, axis=1)
    lightest = np.zeros((num_layers, num_slots + 1))
    lightest[:, 1:] = np.cumsum(slots[:, ::-1], axis=1)
    bound = np.zeros(num_layers)
    for j in range(1, num_slots + 1):
        ranks = np.arange(-(-j // size), min(j, num_ranks) + 1)
        loads = heaviest[:, j - 1, None] + lightest[:, ranks * size - j]
        np.maximum(bound, (loads / ranks).min(axis=1), out=bound)
    return bound


def _pigeonhole_bound(slots: Floats, num_ranks: int) -> Floats:
    """B6 of ``docs/planners.md`` on descending slot loads ``(L, S)``."""
    size = slots.shape[1] // num_ranks
    bound = np.zeros(len(slots))
    for q in range(1, size):
        together = slots[:, q * num_ranks - q : q * num_ranks + 1].sum(axis=1)
        lightest = slots[:, slots.shape[1] - (size - q - 1) :].sum(axis=1)
        np.maximum(bound, together + lightest, out=bound)
    return bound


def _bind(load: Floats, problem: Problem, dispatch: str) -> tuple[Floats, tuple[Binding, ...]]:
    """The best bound of each layer under the dispatcher, and what makes it."""
    num_ranks, num_slots = problem.topology.num_ranks, problem.num_slots
    shares = _prefix_shares(load, num_ranks, num_slots)
    # Copies that take unequal shares are bound by the experts they belong to alone.
    per_copy = _load_per_copy(load, num_ranks, num_slots) if dispatch == "even" else 0 * load
    mean = load.sum(axis=1) / num_ranks
    spread, split = shares.max(axis=1), per_copy.max(axis=1)
    bound = np.maximum(spread, split)
    binding = []
    for row, layer in enumerate(problem.layer_ids):
        if bound[row] <= mean[row] * (1 + _ROUNDING):
            kind, text = "mean", _mean_text(mean[row])
        elif split[row] > spread[row] * (1 + _ROUNDING):
            kind, text = "copies", _copies_text(per_copy[row], mean[row])
        else:
            heavy = int(np.argmax(shares[row] >= spread[row] * (1 - _ROUNDING))) + 1
            reach = min(num_ranks, heavy + num_slots - problem.num_experts)
            kind, text = "experts", _experts_text(load[row], heavy, reach, mean[row])
        binding.append(Binding(layer, kind, f"layer {layer}: {text}"))
    return bound, tuple(binding)


def _mean_text(mean: float) -> str:
    return "only the mean; perfect balance is not excluded" if mean > 0 else "no load"


def _copies_text(per_copy: Floats, mean: float) -> str:
    expert = int(np.argmax(per_copy))
    return (
        f"an even split leaves each copy of expert {expert} {per_copy[expert] / mean:.2f}x the "
        "mean; more copies help, or a dispatcher that follows the load"
    )


def _experts_text(load: Floats, heavy: int, reach: int, mean: float) -> str:
    order = np.argsort(-load, kind="stable")[:heavy]
    ratio = load[order].sum() / mean
    if heavy == 1:
        limit, remedy = f"on at most {reach} ranks", "more copies"
        if reach == 1:
            limit, remedy = "alone", "copies"
        return f"expert {order[0]} {limit} is {ratio / reach:.1f}x the mean; only {remedy} help"
    names = ", ".join(map(str, order[:3])) + (", ..." if heavy > 3 else "")
    return (
        f"the {heavy} heaviest experts ({names}) are {ratio:.1f} ranks' worth of load on at most "
        f"{reach} ranks; only more copies help"
    )


def _advice(
    peak: Floats,
    bound: Floats,
    mean: Floats,
    binding: tuple[Binding, ...],
) -> str:
    """How far from perfect, how far from possible, and what would help."""
    over_mean, over_bound = peak.sum() / mean.sum() - 1, peak.sum() / bound.sum() - 1
    advice = [
        f"Over all steps together the busiest ranks carry {over_mean:.1%} more than the mean, "
        f"{over_bound:.1%} more than the bound."
    ]
    if bound.sum() > mean.sum() * (1 + _GAIN):
        held = sum(b.kind != "mean" for b in binding)
        advice.append(
            f"In {held} of {len(binding)} layers the heaviest experts have too few copies: "
            "more redundant slots help."
        )
    if over_bound > _GAIN:
        advice.append("Another placement, or more slots, may come closer to the bound.")
    else:
        advice.append("No placement on these slots is better on that sum; single steps differ.")
    return " ".join(advice)
