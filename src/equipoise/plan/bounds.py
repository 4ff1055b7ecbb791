"""Bounds: how good any placement could be, and what limits it.

Formulas: ``equipoise explain planners``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, check_count
from equipoise.cost import RankCost
from equipoise.dispatch.times import rank_speeds
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import check_slot_count
from equipoise.topology import Topology

Floats = NDArray[np.float64]

_ROUNDING = 1e-9  # relative difference below which bounds count as equal
_GAIN = 0.02  # relative gain from which advice is given


@dataclass(frozen=True)
class Binding:
    """The constraint that keeps a layer's peak from being lower.

    Parameters
    ----------
    layer
        Layer number of the model.
    kind
        ``mean``: no constraint, the bounds do not exclude perfect balance. ``experts``: the
        heaviest experts have too few copies. ``copies``: copies share the load equally. ``slots``:
        copies share equally and have to be placed. ``weights``: the weights of active experts have
        to be read.
    text
        Sentence for a person, such as "layer 17: expert 203 alone is 4.10x the mean; only more
        copies can lower it".
    """

    layer: int
    kind: str
    text: str


def peak_lower_bound(
    load_LE: ArrayLike, num_ranks: int, num_slots: int, *, speed: ArrayLike | None = None
) -> Floats:
    """Compute the least peak that any placement can have, whatever the dispatcher.

    The ``j`` heaviest experts have at most ``j + S - E`` slots, so they are on ``x <= j + S - E``
    ranks. These ranks have ``x S / R`` slots, of which at most ``S - E`` are redundant. They
    therefore also hold at least ``x S / R - j - (S - E)`` other experts, which weigh at least as
    much as the lightest. The bound of ``j`` is the least share of one of these ranks over all
    ``x``; the result is the largest bound over all ``j``.

    Parameters
    ----------
    load_LE
        Assignments per layer and expert, ``(L, E)``; not changed.
    num_ranks, num_slots
        Number of ranks ``R``, and of slots per layer on all ranks together ``S``.
    speed
        Speed of each rank, ``(R,)``; only the ratios count. ``None`` for equal speeds.

    Returns
    -------
    Assignments on the busiest rank, ``(L,)`` float64. With speeds, those of the slowest rank over
    its relative speed.

    Raises
    ------
    EquipoiseError
        Loads that are not finite numbers >= 0, or slots or speeds that do not fit.
    """
    load = _as_load(load_LE)
    check_slot_count(num_slots, num_ranks=num_ranks, num_experts=load.shape[1])
    topology = Topology(num_ranks, speed=None if speed is None else tuple(np.ravel(speed)))
    bound: Floats = _spread(load, num_slots, topology.relative_speed, 0.0).max(axis=1)
    return bound


def even_split_lower_bound(load_LE: ArrayLike, num_ranks: int, num_slots: int) -> Floats:
    """Compute the least peak of any placement whose copies share an expert's load equally.

    Some rank holds a copy of the expert with the largest load per copy. This largest quotient is
    smallest when each redundant slot goes to the largest load per copy (Adams' method of
    apportionment), with at most one copy per rank.

    Parameters and result are those of ``peak_lower_bound``, for ranks of equal speed.
    """
    load = _as_load(load_LE)
    check_slot_count(num_slots, num_ranks=num_ranks, num_experts=load.shape[1])
    bound: Floats = _load_per_copy(load, num_slots, num_ranks).max(axis=1)
    return bound


def joint_lower_bound(load_LE: ArrayLike, num_ranks: int, num_slots: int) -> Floats:
    """Compute the best bound for an even split, from the copies and their places together.

    To keep the peak below a level, each expert needs at least load / level copies. The argument of
    ``peak_lower_bound``, with these copies in place of experts and the remaining slots in place of
    redundant ones, may prove that the level is impossible. The bound is the highest such level.

    Parameters and result are those of ``peak_lower_bound``, for ranks of equal speed.
    """
    load = _as_load(load_LE)
    check_slot_count(num_slots, num_ranks=num_ranks, num_experts=load.shape[1])
    return limits(load, num_slots, Topology(num_ranks), cost=None, even=True).joint


def active_lower_bound(load_LE: ArrayLike, num_ranks: int) -> NDArray[np.int64]:
    """Compute the least number of active experts on the busiest rank, for any placement.

    Every expert with load is active on some rank, whatever the dispatcher.

    Returns
    -------
    Number of experts, ``(L,)`` int64.
    """
    check_count("num_ranks", num_ranks)
    active: NDArray[np.int64] = -(-np.count_nonzero(_as_load(load_LE), axis=1) // num_ranks)
    return active


def time_lower_bound(
    load_LE: ArrayLike, topology: Topology, num_slots: int, cost: RankCost
) -> Floats:
    """Compute the least time of a layer, whatever the placement and the dispatcher.

    Two bounds are combined. The first is ``peak_lower_bound`` with each expert's unsplit time in
    place of its load, plus the fixed time; splitting an expert never takes less time in total. The
    second is the time to read the weights of every active expert once.

    Returns
    -------
    Seconds, ``(L,)`` float64.

    Raises
    ------
    EquipoiseError
        Whatever ``peak_lower_bound`` refuses.
    """
    load = _as_load(load_LE)
    check_slot_count(num_slots, num_ranks=topology.num_ranks, num_experts=load.shape[1])
    spread, reading = _times(load, num_slots, topology, cost)
    bound: Floats = np.maximum(spread.max(axis=1), reading)
    return bound


def packing_lower_bound(load_LE: ArrayLike, copies_LE: ArrayLike, num_ranks: int) -> Floats:
    """Compute the least peak of an even split over given copies, wherever they are placed.

    The result is the larger of two bounds for slots sorted by load, with ``S / R`` on each rank.
    First, the ``j`` heaviest slots are on some ranks, whose other slots hold at least the lightest
    loads. Second, some rank holds ``q + 1`` of the ``qR + 1`` heaviest slots, and otherwise at
    least the lightest.

    Parameters
    ----------
    load_LE, copies_LE
        Assignments and numbers of copies per layer and expert, ``(L, E)``; at least one copy each.

    Returns
    -------
    ``(L,)`` float64, assignments on the busiest rank.
    """
    load, copies = _as_load(load_LE), np.asarray(copies_LE)
    if copies.shape != load.shape or (copies < 1).any() or np.ptp(copies.sum(axis=-1)):
        raise EquipoiseError(
            f"Copies of shape {copies.shape} do not fit loads of shape {load.shape}; expected one "
            "or more of every expert, and the same number in every layer."
        )
    num_slots = int(copies[0].sum())
    check_slot_count(num_slots, num_ranks=num_ranks, num_experts=load.shape[1])
    share = (load / copies).ravel()
    slots = -np.sort(-np.repeat(share, copies.ravel()).reshape(len(load), num_slots), axis=1)
    return np.maximum(_slot_prefix_bound(slots, num_ranks), _pigeonhole_bound(slots, num_ranks))


def hierarchy_lower_bound(
    load_LE: ArrayLike, num_ranks: int, num_expert_groups: int, num_nodes: int
) -> Floats:
    """Compute the least peak if each expert group stays on one node, the same number on each.

    The node with the heaviest expert group also holds others, at least the lightest. Its busiest
    rank has at least an equal share of the node's load.

    Returns
    -------
    ``(L,)`` float64, assignments on the busiest rank.

    Raises
    ------
    EquipoiseError
        Expert groups that do not divide the experts, or nodes that do not divide the expert groups.
    """
    load = _as_load(load_LE)
    check_expert_groups(load.shape[1], num_expert_groups, num_nodes)
    return on_nodes(load, num_ranks, num_expert_groups, num_nodes)


def on_nodes(load: Floats, num_ranks: int, num_expert_groups: int, num_nodes: int) -> Floats:
    """Compute ``hierarchy_lower_bound`` for loads and expert groups that were checked."""
    groups = np.sort(load.reshape(len(load), num_expert_groups, -1).sum(axis=2), axis=1)
    others = groups[:, : num_expert_groups // num_nodes - 1].sum(axis=1)
    node: Floats = np.maximum(groups.sum(axis=1) / num_nodes, groups[:, -1] + others)
    return node * num_nodes / num_ranks


@dataclass(frozen=True, eq=False)
class Limits:
    """Lower bounds on the peak of each of ``N`` rows of loads, one for each argument.

    All are in the same unit: assignments over relative speed, or seconds if there is a cost.

    Parameters
    ----------
    work
        Work of each expert in total, ``(N, E)``.
    spread
        Bound from the ``j + 1`` heaviest experts, spread over the most ranks possible,
        ``(N, E)``.
    per_copy
        Bound from one copy of each expert under an even split, ``(N, E)``; 0 for other dispatchers.
    joint
        Bound from even copies and their places together, ``(N,)``; 0 where there is none.
    reading
        Bound from reading the weights of the active experts, ``(N,)``; 0 without a cost.
    num_ranks, num_slots
        Number of ranks ``R`` and of slots ``S``.
    """

    work: Floats
    spread: Floats
    per_copy: Floats
    joint: Floats
    reading: Floats
    num_ranks: int
    num_slots: int

    @property
    def mean(self) -> Floats:
        """Peak of perfect balance, ``(N,)``."""
        return self.spread[:, -1]

    @cached_property
    def too_few_copies(self) -> Floats:
        """Largest of the bounds that more copies can lower, ``(N,)``."""
        rows = (self.spread.max(axis=1), self.per_copy.max(axis=1), self.joint)
        bound: Floats = np.max(rows, axis=0)
        return bound

    @cached_property
    def bound(self) -> Floats:
        """Largest of all bounds, ``(N,)``; read-only."""
        bound: Floats = np.maximum(self.too_few_copies, self.reading)
        bound.flags.writeable = False
        return bound

    def by_layer(self, num_layers: int) -> Sums:
        """Average over steps, where the rows are steps x layers."""

        def mean(rows: Floats) -> Floats:
            over_steps: Floats = rows.reshape(-1, num_layers).mean(axis=0)
            return over_steps

        return Sums(mean(self.bound), mean(self.mean), mean(self.too_few_copies))


@dataclass(frozen=True, eq=False)
class Sums:
    """Means over steps of ``bound``, ``mean`` and ``too_few_copies`` of ``Limits``, ``(L,)``."""

    bound: Floats
    mean: Floats
    too_few: Floats


def limits(
    load_NE: Floats, num_slots: int, topology: Topology, *, cost: RankCost | None, even: bool
) -> Limits:
    """Compute all bounds on the peaks of a dispatcher, for loads that were checked.

    Parameters
    ----------
    load_NE
        Assignments of each row and expert, ``(N, E)``.
    num_slots, topology
        Slots per layer on all ranks together, and the ranks.
    cost
        Cost of a rank's share, which makes the bounds seconds; ``None`` for assignments over speed.
    even
        Flag that the copies of an expert share its load equally.
    """
    num_ranks = topology.num_ranks
    work, reading = load_NE, np.zeros(len(load_NE))
    if cost is None:
        spread = _spread(load_NE, num_slots, topology.relative_speed, 0.0)
    else:
        work = cost.slot_seconds(load_NE)
        spread, reading = _times(load_NE, num_slots, topology, cost)
    per_copy, joint = np.zeros_like(load_NE), np.zeros(len(load_NE))
    if even:  # where copies take unequal shares, these bounds do not hold
        # With unequal speeds several copies on one fast rank may help, so they are not limited.
        most_copies = num_ranks if topology.speed is None else num_slots
        per_copy = _load_per_copy(load_NE, num_slots, most_copies)
        if cost is not None:
            per_copy = cost.fixed_seconds + cost.slot_seconds(per_copy)
        per_copy /= rank_speeds(topology, num_ranks, cost).max()
        if cost is None and topology.speed is None:
            best = np.maximum(spread.max(axis=1), per_copy.max(axis=1))
            joint = _joint(load_NE, best, num_slots, num_ranks)
    return Limits(work, spread, per_copy, joint, reading, num_ranks, num_slots)


def bindings(of: Limits, layer_ids: Sequence[int], where: str = "") -> tuple[Binding, ...]:
    """Name the constraint behind the bound of each row; ``where`` names the step, if any."""
    named = [(layer, *_binding(of, row)) for row, layer in enumerate(layer_ids)]
    return tuple(
        Binding(layer, kind, f"layer {layer}{where}: {text}") for layer, kind, text in named
    )


def check_expert_groups(num_experts: int, num_expert_groups: int, num_nodes: int) -> None:
    """Check that expert groups divide the experts and nodes divide the expert groups."""
    check_count("num_expert_groups", num_expert_groups)
    check_count("num_nodes", num_nodes)
    if num_experts % num_expert_groups:
        raise EquipoiseError(
            f"{num_experts} experts do not divide into {num_expert_groups} expert groups; give the "
            "model's own number, or plan without expert groups."
        )
    if num_expert_groups % num_nodes:
        raise EquipoiseError(
            f"{num_expert_groups} expert groups do not divide over {num_nodes} nodes; choose "
            f"another {argument('ranks_per_node')}, or plan without expert groups."
        )


def _as_load(load_LE: ArrayLike) -> Floats:
    load = as_loads(load_LE)
    if load.ndim != 2:
        raise EquipoiseError(f"Loads have shape {load.shape}; expected (layers, experts).")
    return load


def _spread(work_NE: Floats, num_slots: int, speed: Floats, fixed: float) -> Floats:
    """Compute the bound from the ``j + 1`` heaviest experts for each ``j``, ``(N, E)``."""
    from equipoise.plan.search import _packing_kernels as _kernels  # numba takes long to import

    spread: Floats = _kernels.spread(
        -np.sort(-work_NE, axis=1), num_slots, np.cumsum(-np.sort(-speed)), fixed
    )
    return spread


def _times(
    load_NE: Floats, num_slots: int, topology: Topology, cost: RankCost
) -> tuple[Floats, Floats]:
    """Compute ``_spread`` in seconds, and the time to read the active weights, ``(N,)``."""
    speed = rank_speeds(topology, topology.num_ranks, cost)
    spread = _spread(cost.slot_seconds(load_NE), num_slots, speed, cost.fixed_seconds)
    done = cost.fixed_seconds + cost.expert_seconds * np.arange(load_NE.shape[1] + 1)
    # Times at which ranks finish 1, 2, ... reads, sorted: entry n is the least time for n reads.
    reads = np.sort((done[1:, None] / speed).ravel())
    times = np.concatenate([[done[0] / speed.min()], reads])
    return spread, times[np.count_nonzero(load_NE, axis=1)]


def _joint(load_NE: Floats, bound_N: Floats, num_slots: int, num_ranks: int) -> Floats:
    """Raise the bounds where the copies and their places together prove more."""
    from equipoise.plan.search import _packing_kernels as _kernels  # numba takes long to import

    raised: Floats = _kernels.raise_even_bound(load_NE, bound_N, num_slots, num_ranks)
    return raised


def _load_per_copy(load_NE: Floats, num_slots: int, most_copies: int) -> Floats:
    """Compute load per copy, ``(N, E)``, for the copies that make its maximum smallest."""
    from equipoise.plan.search import _packing_kernels as _kernels  # numba takes long to import

    useful = min(num_slots, load_NE.shape[1] * most_copies)
    copies: NDArray[np.int64] = _kernels.adams_counts(load_NE, useful, most_copies)
    return load_NE / copies


def _slot_prefix_bound(slots: Floats, num_ranks: int) -> Floats:
    """Compute B5 of ``equipoise explain planners`` for descending slot loads ``(L, S)``."""
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
    """Compute B6 of ``equipoise explain planners`` for descending slot loads ``(L, S)``."""
    size = slots.shape[1] // num_ranks
    bound = np.zeros(len(slots))
    for q in range(1, size):
        together = slots[:, q * num_ranks - q : q * num_ranks + 1].sum(axis=1)
        lightest = slots[:, slots.shape[1] - (size - q - 1) :].sum(axis=1)
        np.maximum(bound, together + lightest, out=bound)
    return bound


def _binding(of: Limits, row: int) -> tuple[str, str]:
    """Return kind and text of the constraint behind the bound of a row.

    The text claims only what the bound proves: no placement on these slots is below it. It does not
    claim that some placement reaches the bound.
    """
    mean, bound, almost = of.mean[row], of.bound[row], of.bound[row] * (1 - _ROUNDING)
    if bound <= mean * (1 + _ROUNDING):
        return "mean", _mean_text(mean)
    least = f"{bound / mean:.2f}x the mean"
    if of.spread[row].max() >= almost:
        heavy = int(np.argmax(of.spread[row] >= almost)) + 1
        return "experts", f"{_experts_text(of, row, heavy)} {least}; only more copies can lower it"
    either = "more slots may lower it, or a dispatcher that follows the load"
    if of.per_copy[row].max() >= almost:
        return "copies", (
            f"an even split cannot get below {least}, the load of one copy of expert "
            f"{int(np.argmax(of.per_copy[row]))} with the best number of copies; {either}"
        )
    if of.joint[row] >= almost:
        return "slots", (
            f"an even split cannot get below {least}: the copies it takes leave too few slots for "
            f"the rest; {either}"
        )
    return "weights", (
        f"reading the weights of all active experts takes at least {least}; only fewer active "
        "experts can lower it"
    )


def _mean_text(mean: float) -> str:
    return "only the mean; the bounds do not exclude perfect balance" if mean > 0 else "no load"


def _experts_text(of: Limits, row: int, heavy: int) -> str:
    """Describe the heaviest experts and their limit; the caller adds a ratio to the mean."""
    num_experts, extra = of.work.shape[1], of.num_slots - of.work.shape[1]
    order = np.argsort(-of.work[row], kind="stable")[:heavy]
    reach = min(of.num_ranks, heavy + extra)
    shared = min(reach * of.num_slots // of.num_ranks - heavy - extra, num_experts - heavy) > 0
    where = "its rank" if reach == 1 else f"at most {reach} ranks"
    names = ", ".join(map(str, order[:3])) + (", ..." if heavy > 3 else "")
    who = f"expert {names}" if heavy == 1 else f"the {heavy} heaviest experts ({names})"
    verb = "is" if heavy == 1 else "are"
    if shared:
        return f"{who}, with the experts that must share {where}, {verb} at least"
    return f"{who} alone is" if reach == 1 else f"{who} on {where} {verb} at least"


def advice(peak: Floats, of: Sums, *, dispatch: str, together: bool, in_seconds: bool) -> str:
    """Write how far a plan is from the mean and from the bound, and what may help.

    Parameters
    ----------
    peak
        Load of the busiest rank, or time of the slowest, in each layer, ``(L,)``.
    of
        Bounds of the same layers, in the same unit.
    dispatch
        Name of the dispatcher.
    together
        Flag that all steps were summed; otherwise peaks and bounds are means over steps.
    in_seconds
        Flag that the unit is seconds.
    """
    bound, mean = of.bound.sum(), of.mean.sum()
    gap = 1 - bound / peak.sum()
    busiest = "slowest ranks take" if in_seconds else "busiest ranks carry"
    scope = "Over all steps together" if together else "Step by step"
    over_mean, over_bound = peak.sum() / mean - 1, peak.sum() / bound - 1
    said = [
        f"{scope} the {busiest} {over_mean:.1%} more than the mean, {over_bound:.1%} more than the "
        f"bound ({dispatch})."
    ]
    held = np.count_nonzero(of.too_few > of.mean * (1 + _ROUNDING))
    if held and bound > mean * (1 + _GAIN):
        said.append(
            f"In {held} of {len(of.mean)} layers the heaviest experts have too few copies for any "
            "placement to reach the mean: more redundant slots may help."
        )
    better = f"Another placement on these slots is at most {_at_most(gap)} better"
    if gap <= _ROUNDING:
        better = "No placement on these slots is better"
    said.append(f"{better} on that sum; single steps differ." if together else f"{better}.")
    return " ".join(said)


def _at_most(share: float) -> str:
    """Write a share as tenths of a percent, rounded up, so that "at most" holds."""
    return f"{max(1, np.ceil(round(share * 1000, 6))) / 1000:.1%}"
