"""Maps for fewer or more ranks, made from the map in force with few moves.

``equipoise explain failure``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_ids, check_count, check_type
from equipoise.dispatch import Even
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.plan.evaluate import Evaluation, evaluate
from equipoise.plan.problem import Problem
from equipoise.plan.search.anneal import fill_up
from equipoise.plan.search.layout import check_room
from equipoise.plan.search.scenarios import Scenarios, group_scenarios, read_history
from equipoise.plan.weigh.coverage import failure_domain_of_rank
from equipoise.showing import in_short
from equipoise.topology import Topology

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROOTS = 4  # square roots of a 16th power: balance is the 16-norm over ranks, as in ``Robust``


class Content(IntEnum):
    """The source from which a slot gets its expert.

    ============  =============================================================
    ``KEPT``      The slot already held it.
    ``COPIED``    A rank that is alive holds it, perhaps the slot's own rank.
    ``RELOADED``  No rank that is alive holds it: load it from the checkpoint.
    ============  =============================================================
    """

    KEPT = 0
    COPIED = 1
    RELOADED = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Refit:
    """A placement on another number of ranks, and where its slots get their experts from.

    Parameters
    ----------
    old, placement
        Placements before and after.
    old_rank
        Old number of each new rank, ``(R,)``; -1 for an added rank.
    content
        Source of every new slot's expert, ``(L, S)``: a ``Content``.
    """

    old: Placement
    placement: Placement
    old_rank: Ints
    content: NDArray[np.int8]

    __repr__ = in_short

    @property
    def gone(self) -> Ints:
        """Old ranks that are gone, ascending."""
        return np.setdiff1d(np.arange(self.old.num_ranks), self.old_rank)

    @property
    def counts(self) -> Ints:
        """Number of slots of each ``Content`` in each layer, ``(L, 3)``."""
        counts: Ints = (self.content[:, :, None] == np.array(Content)).sum(axis=1)
        return counts

    def devices(self, before: Topology) -> Topology:
        """Describe the ranks of the new placement; an added rank has the mean speed."""
        speed = before.speed
        if speed is not None:
            speed = tuple(np.append(speed, np.mean(speed))[self.old_rank].tolist())
        return Topology(len(self.old_rank), speed=speed)

    def evaluate(self, problem: Problem) -> Evaluation:
        """Score the new placement on the traffic it was made for, under an even split."""
        devices = self.devices(problem.topology)
        return evaluate(self.placement, problem.load, dispatch=Even(topology=devices))

    @property
    def status(self) -> str:
        """Sentences on what changes."""
        kept, copied, reloaded = self.counts.sum(axis=0)
        before, after = self.old, self.placement
        status = (
            f"{before.num_ranks} ranks become {after.num_ranks}: {kept} slots keep their expert, "
            f"{copied} copy one from a rank that is alive, {reloaded} reload one that no rank has."
        )
        if after.slots_per_rank > before.slots_per_rank:
            status += (
                f" {after.num_ranks} ranks of {before.slots_per_rank} slots do not hold all "
                f"{after.num_experts} experts, so each needs {after.slots_per_rank}."
            )
        return status


def failover_maps(
    placement: Placement, problem: Problem, *, failure_domain: str = "rank"
) -> tuple[Refit, ...]:
    """Prepare for the loss of each rank, or of each node: make the placement on the survivors.

    Survivors keep the content of their slots as far as possible.  A lost expert is reloaded into a
    slot of an expert that has other copies; of these, the slot whose change harms balance least is
    chosen.  Survivors keep their number of slots.  If these cannot hold all experts, each survivor
    gets the fewest additional slots that can, and those not needed get further copies.

    Balance means an even split in every traffic group of ``problem``.

    Parameters
    ----------
    placement
        Placement in force; not changed.
    problem
        Traffic to balance, and the ranks of the placement.
    failure_domain
        Kind of loss to prepare for: ``"rank"`` or ``"node"``.

    Returns
    -------
    One result for each rank or node, in order.

    Raises
    ------
    EquipoiseError
        A problem that does not fit the placement, a single rank or node, or survivors without room
        for all experts.
    """
    _check(placement, problem)
    of_rank = failure_domain_of_rank(problem.topology, failure_domain)
    if of_rank[-1] == 0:
        raise EquipoiseError(f"There is a single {failure_domain}: nothing survives its loss.")
    scenarios = _scenarios(problem)
    return tuple(
        _refit(placement, problem, scenarios, np.flatnonzero(of_rank != lost), of_rank != lost)
        for lost in range(of_rank[-1] + 1)
    )


def resize(placement: Placement, problem: Problem, num_ranks: int) -> Refit:
    """Change a placement to fewer or more ranks, with few moves.

    To shrink, the last ranks leave. Experts that only they hold are copied to the others first;
    their slots are chosen as by ``failover_maps``.  To grow, ranks are added at the end, with the
    same number of slots as the others. They get copies of the experts that relieve the busiest
    ranks most. An added rank is assumed to have mean speed and room for all its slots.

    Parameters
    ----------
    placement
        Placement in force; not changed.
    problem
        Traffic to balance, and the ranks that the placement is on now.
    num_ranks
        New number of ranks.

    Raises
    ------
    EquipoiseError
        A problem that does not fit the placement, or ranks without room for all experts.
    """
    _check(placement, problem)
    num_ranks = check_count("num_ranks", num_ranks)
    old_rank = np.arange(num_ranks)
    old_rank[placement.num_ranks :] = -1
    alive = np.ones(placement.num_ranks, dtype=bool)
    return _refit(placement, problem, _scenarios(problem), old_rank, alive)


def refit(before_LRC: ArrayLike, problem: Problem) -> tuple[Placement, NDArray[np.int8]]:
    """Complete a placement on ranks whose slots may be empty or unknown.

    Slots keep their known experts. The others get the missing experts first, then copies, chosen as
    by ``failover_maps``.

    Parameters
    ----------
    before_LRC
        Expert ids by rank, ``(L, R, C)``; -1 marks a slot without a known expert. All slots of an
        added rank are -1.
    problem
        Traffic to balance, the ranks that exist now, and their number of slots. They get more slots
        if these cannot hold all experts. If the ranks had more slots before, the last are dropped.

    Returns
    -------
    The placement, and the ``Content`` of its slots, ``(L, S)``.

    Raises
    ------
    EquipoiseError
        Expert ids of another shape or outside ``[-1, E)``, or ranks without room for all experts.
    """
    check_type("problem", problem, Problem)
    topology, num_experts = problem.topology, problem.num_experts
    held = _as_held(before_LRC, problem)
    room = topology.distinct_experts(num_experts)
    check_room(room, num_experts)
    size = _slots_per_rank(problem.num_slots // topology.num_ranks, room, num_experts)
    before = np.full((problem.num_layers, topology.num_ranks, size), -1)
    stays = min(size, held.shape[2])
    before[:, :, :stays] = held[:, :, :stays]
    room, slowness = np.minimum(room, size), 1 / topology.relative_speed
    placement = problem.placement(_filled(before, _scenarios(problem), room, slowness))
    alive_LE = np.stack([np.isin(np.arange(num_experts), layer) for layer in held])
    return placement, _content(before.reshape(placement.slots.shape), placement.slots, alive_LE)


def _refit(
    old: Placement, problem: Problem, scenarios: Scenarios, old_rank: Ints, alive: Bools
) -> Refit:
    """Make the placement on the ranks of ``old_rank``; ranks in ``alive`` can be copied from."""
    room, slowness = _of_ranks(problem, old_rank)
    _check_survivors(old, old_rank, room)
    size = _slots_per_rank(old.slots_per_rank, room, old.num_experts)
    before = np.full((old.num_layers, len(old_rank), size), -1)
    stays = old_rank >= 0
    before[:, stays, : old.slots_per_rank] = old.by_rank[:, old_rank[stays]]
    after = _filled(before, scenarios, np.minimum(room, size), slowness)
    alive_LE = np.asarray(old.copies_on_rank[:, alive].any(axis=1))
    placement = Placement(
        after, num_ranks=len(old_rank), num_experts=old.num_experts, layer_ids=old.layer_ids
    )
    content = _content(before.reshape(after.shape), after, alive_LE)
    return Refit(old=old, placement=placement, old_rank=old_rank, content=content)


def _filled(before_LRC: Ints, scenarios: Scenarios, room: Ints, slowness: Floats) -> Ints:
    """Fill the slots so that every expert has one and none is empty, ``(L, S)``."""
    slots = before_LRC.copy()
    for layer, row in enumerate(slots):
        load, risk = scenarios.load[layer], scenarios.risk[layer]
        _Layer(row, load, risk, scenarios.weight[layer], room, slowness).fill()
    return fill_up(slots.reshape(len(slots), -1), slots.shape[1])


def _content(before: Ints, after: Ints, alive_LE: Bools) -> NDArray[np.int8]:
    """Find where each slot gets its expert from; an expert is reloaded once, then copied."""
    content = np.full(after.shape, Content.COPIED, dtype=np.int8)
    content[before == after] = Content.KEPT
    for layer, row in enumerate(after):
        experts, first = np.unique(row, return_index=True)
        content[layer, first[~alive_LE[layer, experts]]] = Content.RELOADED
    return content


class _Layer:
    """A layer while it is filled: the content of slots and the load of ranks.

    Expert ``E`` stands for "none" and has no load. A slot that repeats an expert of its rank counts
    as open, but keeps the expert unless the slot is needed.
    """

    def __init__(
        self,
        slots: Ints,
        load_ET: Floats,
        risk_ET: Floats,
        weight: Floats,
        room: Ints,
        slow: Floats,
    ) -> None:
        self.none, num_steps = load_ET.shape
        self.slots, self.weight, self.room, self.slow = slots, weight, room, slow
        self.load = np.vstack([load_ET, np.zeros(num_steps)])
        self.risk = np.vstack([risk_ET, np.zeros(num_steps)])
        same = slots[:, :, None] == slots[:, None, :]
        self.open = (slots < 0) | np.tril(same, k=-1).any(axis=2)  # (R, C)
        self.held = np.zeros((len(slots), self.none + 1))  # 1 where a rank holds an expert, else 0
        rank, at = np.nonzero(~self.open)
        self.held[rank, slots[rank, at]] = 1
        self.copies = np.bincount(slots[rank, at], minlength=self.none + 1)
        self.used = np.bincount(rank, minlength=len(slots))
        self._add_up()

    def fill(self) -> None:
        """Give every lost expert a slot, the heaviest first; then use the empty ones."""
        lost = np.flatnonzero(self.copies[: self.none] == 0)
        for e in lost[np.argsort(-self.load[lost] @ self.weight, kind="stable")]:
            rank, at = self._with_room(self.open)
            if not len(rank):
                rank, at = np.nonzero(~self.open & (self.copies[self.slots] > 1))
            leaving = np.where(self.open[rank, at], self.none, self.slots[rank, at])
            best = int(self._norms(rank, leaving, np.full(len(rank), e)).argmin())
            self._put(rank[best], at[best], e)
        while len((empty := self._with_room(self.slots < 0))[0]):
            rank, at = empty
            i = int((self.sums[rank] @ self.weight).argmin())
            experts = np.flatnonzero(self.held[rank[i], : self.none] == 0)
            nothing = np.full(len(experts), self.none)
            best = int(self._norms(np.full(len(experts), rank[i]), nothing, experts).argmin())
            self._put(rank[i], at[i], experts[best])

    def _with_room(self, wanted: Bools) -> tuple[Ints, Ints]:
        """Find the first wanted slot of each rank with room: return ranks and positions."""
        rank = np.flatnonzero(wanted.any(axis=1) & (self.used < self.room))
        return rank, wanted[rank].argmax(axis=1)

    def _put(self, rank: int, at: int, expert: int) -> None:
        if not self.open[rank, at]:
            self._mark(rank, self.slots[rank, at], -1)
        self.open[rank, at] = False
        self.slots[rank, at] = expert
        self._mark(rank, expert, 1)
        self._add_up()

    def _mark(self, rank: int, expert: int, copies: int) -> None:
        """Record that a rank holds one copy of an expert more, or with -1 one less."""
        self.held[rank, expert] += copies
        self.copies[expert] += copies
        self.used[rank] += copies

    def _add_up(self) -> None:
        """Add up the load of every rank, ``(R, T)``."""
        share = (1 / np.maximum(self.copies, 1))[:, None]
        counted = (self.load + self.risk * share) * share  # of one copy, with the price of variance
        self.sums = self.slow[:, None] * (self.held @ counted)

    def _norms(self, rank: Ints, leaving: Ints, arriving: Ints) -> Floats:
        """Compute the objective, ``(n,)``, after each move that replaces an expert on a rank."""
        from equipoise.plan.search import _packing_kernels as _kernels  # numba takes long to import

        norms = _kernels.powers_after(
            self.load,
            self.risk,
            self.slow,
            self.sums,
            self.held,
            self.copies,
            np.stack([rank, leaving, arriving], axis=1),
        )
        for _ in range(_ROOTS):
            norms = np.sqrt(norms)
        return np.asarray(norms @ self.weight)


def _of_ranks(problem: Problem, old_rank: Ints) -> tuple[Ints, Floats]:
    """Return the different experts that each new rank can hold, and 1 / speed, ``(R,)`` each."""
    stays, topology = old_rank >= 0, problem.topology
    room, slowness = np.full(len(old_rank), problem.num_experts), np.ones(len(old_rank))
    slowness[stays] = 1 / topology.relative_speed[old_rank[stays]]
    if topology.room is not None:
        known = np.array(topology.room)[old_rank[stays]]
        room[stays] = np.minimum(problem.num_experts, known)
    return room, slowness


def _check_survivors(old: Placement, old_rank: Ints, room: Ints) -> None:
    if room.sum() < old.num_experts:
        gone = np.setdiff1d(np.arange(old.num_ranks), old_rank).tolist()
        raise EquipoiseError(
            f"Without rank {format_ids(gone)} there is room for {room.sum()} experts of a layer, "
            f"the model has {old.num_experts}; the ranks that are left cannot take over."
        )


def _slots_per_rank(size: int, room: Ints, num_experts: int) -> int:
    """Return the number of slots per rank, raised to the fewest that hold all experts."""
    while np.minimum(room, size).sum() < num_experts:
        size += 1
    check_count("The number of slots", len(room) * size)
    return size


def _as_held(before_LRC: ArrayLike, problem: Problem) -> Ints:
    held = as_ids(before_LRC, "What the ranks hold")
    shape, num_experts = (problem.num_layers, problem.topology.num_ranks), problem.num_experts
    if held.ndim != 3 or held.shape[:2] != shape:
        raise EquipoiseError(
            f"What the ranks hold has shape {held.shape}; expected {shape[0]} layers, "
            f"{shape[1]} ranks, and the slots of a rank."
        )
    if ((held < -1) | (held >= num_experts)).any():
        raise EquipoiseError(
            f"The ranks hold experts {held.min()} to {held.max()}; expected ids from 0 to "
            f"{num_experts - 1}, or -1 for none."
        )
    return held.astype(np.int64)


def _scenarios(problem: Problem) -> Scenarios:
    return group_scenarios(read_history(problem, None), np.random.default_rng(0))


def _check(placement: Placement, problem: Problem) -> None:
    check_type("placement", placement, Placement)
    check_type("problem", problem, Problem)
    other = problem.difference(placement)
    if other is not None:
        raise EquipoiseError(
            f"The placement and the problem differ in {other}; give the traffic, the slots and "
            "the devices of this placement."
        )
