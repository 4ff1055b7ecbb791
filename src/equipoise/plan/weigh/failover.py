"""Maps for fewer or more ranks, made from the one in force with few moves.

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

_ROOTS = 4  # balance is judged by the 16-norm of the ranks, as ``Robust`` does


class Content(IntEnum):
    """Where a slot has its expert from.

    ============  ================================================================
    ``KEPT``      The slot had it already.
    ``COPIED``    Some rank that is still alive has it, perhaps the slot's own.
    ``RELOADED``  No rank has it any more: load the checkpoint.
    ============  ================================================================
    """

    KEPT = 0
    COPIED = 1
    RELOADED = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Refit:
    """A placement on other ranks, and what its slots receive.

    Parameters
    ----------
    old, placement
        Before and after.
    old_rank
        Which old rank each new one was, -1 for one that is new, ``(R,)``.
    content
        The ``Content`` of every new slot, ``(L, S)``.
    """

    old: Placement
    placement: Placement
    old_rank: Ints
    content: NDArray[np.int8]

    __repr__ = in_short

    @property
    def gone(self) -> Ints:
        """Old ranks that are no more."""
        return np.setdiff1d(np.arange(self.old.num_ranks), self.old_rank)

    @property
    def counts(self) -> Ints:
        """Slots of each layer by ``Content``, ``(L, 3)``."""
        counts: Ints = (self.content[:, :, None] == np.array(Content)).sum(axis=1)
        return counts

    def devices(self, before: Topology) -> Topology:
        """The ranks of the new placement; one that is new has the mean speed of the old ones."""
        speed = before.speed
        if speed is not None:
            speed = tuple(np.append(speed, np.mean(speed))[self.old_rank].tolist())
        return Topology(len(self.old_rank), speed=speed)

    def evaluate(self, problem: Problem) -> Evaluation:
        """Score the new placement on the traffic it was made for, by an even split."""
        devices = self.devices(problem.topology)
        return evaluate(self.placement, problem.load, dispatch=Even(topology=devices))

    @property
    def status(self) -> str:
        """What changes, in a sentence or two."""
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
    """For the loss of each rank, or each node, the placement on the survivors.

    Survivors keep their slots.  An expert that is lost takes the slot of an expert with another
    copy, the one whose loss harms the balance least, and is reloaded.  The survivors keep their
    number of slots; if those do not hold all experts, they get the fewest more that do, and added
    slots that no lost expert needs get copies of others.

    Balance is that of an even split in every traffic group of ``problem``.

    Parameters
    ----------
    problem
        Traffic to balance and the devices of the placement.

    Returns
    -------
    One for each rank or node, in their order.

    Raises
    ------
    EquipoiseError
        A problem of another shape, a single rank or node, survivors without room for all experts.
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
    """The placement on fewer or more ranks, with few moves.

    To shrink, the last ranks leave, and what only they have is copied to the others before they do;
    slots are found for it as for ``failover_maps``.  To grow, ranks are added after the last, each
    with the slots of any other, for copies of the experts that it lightens the busiest ranks most
    to copy; new ranks count as ranks of mean speed with room for all their slots.

    Parameters
    ----------
    problem
        Traffic to balance and the devices the placement is on now.
    num_ranks
        How many there shall be.

    Raises
    ------
    EquipoiseError
        A problem of another shape, ranks without room for all experts.
    """
    _check(placement, problem)
    num_ranks = check_count("num_ranks", num_ranks)
    old_rank = np.arange(num_ranks)
    old_rank[placement.num_ranks :] = -1
    alive = np.ones(placement.num_ranks, dtype=bool)
    return _refit(placement, problem, _scenarios(problem), old_rank, alive)


def refit(before_LRC: ArrayLike, problem: Problem) -> tuple[Placement, NDArray[np.int8]]:
    """The placement on ranks of which each holds something, nothing, or what nobody knows.

    As for ``failover_maps``, from what the ranks there are now hold: slots keep their expert, those
    without one get what is missing, then copies.

    Parameters
    ----------
    before_LRC
        Expert ids ``(L, R, C)``, -1 for a slot without a known expert; a rank that is new has none.
    problem
        Traffic to balance, the ranks there are now, and how many slots they shall have. They get
        more if those do not hold all experts; where they had more, the last are given up.

    Returns
    -------
    The placement, and the ``Content`` of its slots, ``(L, S)``.

    Raises
    ------
    EquipoiseError
        Experts of another shape or outside ``[-1, E)``, ranks without room for all experts.
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
    """The placement on the ranks that ``old_rank`` names; ``alive`` old ranks can be copied."""
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
    """What the slots hold once every expert has one and none is empty, ``(L, S)``."""
    slots = before_LRC.copy()
    for layer, row in enumerate(slots):
        load, risk = scenarios.load[layer], scenarios.risk[layer]
        _Layer(row, load, risk, scenarios.weight[layer], room, slowness).fill()
    return fill_up(slots.reshape(len(slots), -1), slots.shape[1])


def _content(before: Ints, after: Ints, alive_LE: Bools) -> NDArray[np.int8]:
    """Where each slot has its expert from; an expert is reloaded once, then copied."""
    content = np.full(after.shape, Content.COPIED, dtype=np.int8)
    content[before == after] = Content.KEPT
    for layer, row in enumerate(after):
        experts, first = np.unique(row, return_index=True)
        content[layer, first[~alive_LE[layer, experts]]] = Content.RELOADED
    return content


class _Layer:
    """A layer while it is filled: who holds what, and what every rank carries.

    Experts are numbered to ``E - 1``; ``E`` stands for none, which nobody holds and has no load.
    Slots that repeat an expert of their rank count as open, but keep it unless they are needed.
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
        """The first wanted slot of each rank that can hold another expert: ranks and positions."""
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
        """A rank holds one expert more, or with -1 one less."""
        self.held[rank, expert] += copies
        self.copies[expert] += copies
        self.used[rank] += copies

    def _add_up(self) -> None:
        """What every rank carries, ``(R, T)``."""
        share = (1 / np.maximum(self.copies, 1))[:, None]
        counted = (self.load + self.risk * share) * share  # by a copy, the price of variance too
        self.sums = self.slow[:, None] * (self.held @ counted)

    def _norms(self, rank: Ints, leaving: Ints, arriving: Ints) -> Floats:
        """The objective, ``(n,)``, after each of some moves: an expert for another on a rank."""
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
    """Different experts that each new rank can hold, and what its work takes, ``(R,)`` each."""
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
    """That many, or the fewest that hold all experts."""
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
