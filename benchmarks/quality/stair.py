"""STAIR's published rule in plain loops, as a row of the comparison; not a planner to use.

Source: vllm-ascend 0.30, where STAIR is the default policy of model runner V2. Written from what it
does; no limits on transfers, which is its default. Layer by layer:

1. Consecutive steps are averaged to at most 64 samples, weighted by their steps. The risk of an
   expert is mean + 0.674 standard deviations (the third quartile of a normal).
2. Numbers of copies: experts in order of risk are cut into 4 groups. Group by group, the copies
   left are split between the group and all later ones: as the greedy rule would (largest risk per
   copy first, at most one copy a rank), and up to 8 copies away from it. The 64 splits with the
   least largest risk per copy go on. From the numbers in force, copy by copy towards each of those
   that are left at the end: a copy to the largest risk per copy, from where it is missed least. The
   64 best of all that were passed are tried, the numbers in force among them.
3. Placing: experts by decreasing risk per copy, each copy to the rank with room that lacks the
   expert and has the least mean + 0.674 standard deviations afterwards, covariances included. Where
   there is no such rank, the last choice is taken back, at most 32 times. Experts that stay on a
   rank keep their slots.
4. Of the placings that are no worse than the one in force, by the mean and by the 95th percentile
   over the steps of busiest rank over mean, the one with the least mean is taken; of equal ones,
   that with fewest transfers between nodes, then inside nodes.

Its rule when to plan again is left out: here it always plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

QUARTILE = NormalDist().inv_cdf(0.75)
SAMPLES = 64
GROUPS = 4
RADIUS = 8
BEAM = 64
TAKEN_BACK = 32
TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Stair:
    """The rule with its published numbers."""

    def place(self, problem: Problem, old: Placement) -> Placement:
        """The placement for the problem's steps, from the one in force.

        Raises
        ------
        EquipoiseError
            An expert twice on a rank of the placement in force, which the rule refuses.
        """
        if old.duplicates.any():
            raise EquipoiseError("the placement in force has an expert twice on a rank.")
        num_nodes = problem.topology.num_nodes
        node = np.arange(old.num_ranks) * num_nodes // old.num_ranks
        layers = [
            _Layer(problem.load[:, layer], old.by_rank[layer], node).best()
            for layer in range(problem.num_layers)
        ]
        return problem.placement(np.stack(layers).reshape(problem.num_layers, -1))


class _Layer:
    """One layer: its loads, and what the ranks hold now, ``(R, C)``."""

    def __init__(self, steps: Floats, held: Ints, node: Ints) -> None:
        self.held, self.node = held, node
        self.num_ranks, self.size = held.shape
        self.samples, self.weights = _samples(steps)
        total = self.weights.sum()
        self.mean = (self.samples * self.weights[:, None]).sum(axis=0) / total
        centred = self.samples - self.mean
        covariance = (centred * self.weights[:, None]).T @ centred / max(total - 1, 1)
        self.covariance = (covariance + covariance.T) / 2
        self.variance = np.diag(self.covariance)
        self.risk = self.mean + QUARTILE * np.sqrt(self.variance)

    def best(self) -> Ints:
        """What the ranks shall hold."""
        if not self.samples.any():
            return self.held
        mean, high = self._imbalance(self.held)
        found: list[tuple[float, Ints]] = []
        for copies in self._numbers_of_copies():
            placed = self._placed(copies)
            if placed is None:
                continue
            new = _in_slots(self.held, placed)
            its_mean, its_high = self._imbalance(new)
            if its_mean <= mean and its_high <= high:
                found.append((its_mean, new))
        if not found:
            return self.held
        least = min(its_mean for its_mean, _ in found) + TIE
        tied = [new for its_mean, new in found if its_mean <= least]
        return min(tied, key=lambda new: (*self._transfers(new), *new.ravel().tolist()))

    # Numbers of copies --------------------------------------------------------------------------

    def _numbers_of_copies(self) -> list[Ints]:
        now = np.bincount(self.held.ravel(), minlength=len(self.risk))
        passed = {tuple(now.tolist()): now}
        for target in self._targets():
            passed |= {tuple(copies.tolist()): copies for copies in self._towards(now, target)}
        best = sorted(passed.values(), key=self._key)[:BEAM]
        if not any((copies == now).all() for copies in best):
            best[-1] = now
        return best

    def _targets(self) -> list[Ints]:
        """What the search over groups ends with, from any start."""
        by_risk = np.argsort(-self.risk, kind="stable")
        groups = np.array_split(by_risk, min(GROUPS, len(by_risk)))
        states = [np.ones(len(self.risk), dtype=np.int64)]
        for index, group in enumerate(groups[:-1]):
            states = self._next(states, group, np.concatenate(groups[index + 1 :]))
        ends = [self._filled(state, self._left(state), groups[-1]) for state in states]
        different = {tuple(end.tolist()): end for end in ends if end is not None}
        return sorted(different.values(), key=self._key)[:BEAM]

    def _next(self, states: list[Ints], group: Ints, later: Ints) -> list[Ints]:
        """The best states after one group more has its copies."""
        tried = {}
        for state in states:
            for after, end in self._splits(state, group, later):
                tried[tuple(after.tolist())] = (*self._key(end), after)
        ranked = sorted(tried.items(), key=lambda item: (*item[1][:2], item[0]))
        return [entry[-1] for _, entry in ranked[:BEAM]]

    def _splits(self, state: Ints, group: Ints, later: Ints) -> Iterator[tuple[Ints, Ints]]:
        """The state after the group, and its greedy end."""
        left = self._left(state)
        greedy = self._filled(state, left, np.concatenate([group, later]))
        if greedy is None:
            return
        middle = int((greedy - state)[group].sum())
        for share in range(max(0, middle - RADIUS), min(left, middle + RADIUS) + 1):
            after = self._filled(state, share, group)
            end = None if after is None else self._filled(after, left - share, later)
            if after is not None and end is not None:
                yield after, end

    def _left(self, copies: Ints) -> int:
        return self.held.size - int(copies.sum())

    def _filled(self, copies: Ints, extra: int, among: Iterable[int]) -> Ints | None:
        """Copies to the largest risk per copy, at most one a rank; ``None`` if they do not fit."""
        copies = copies.copy()
        waiting = [(-self.risk[e] / copies[e], int(e)) for e in among if copies[e] < self.num_ranks]
        heapify(waiting)
        for _ in range(extra):
            if not waiting:
                return None
            _, e = heappop(waiting)
            copies[e] += 1
            if copies[e] < self.num_ranks:
                heappush(waiting, (-self.risk[e] / copies[e], e))
        return copies

    def _towards(self, copies: Ints, target: Ints) -> Iterator[Ints]:
        for _ in range(self.held.size - len(self.risk)):
            more, fewer = np.flatnonzero(copies < target), np.flatnonzero(copies > target)
            if not len(more) or not len(fewer):
                return
            copies = copies.copy()
            gets = more[np.argmax(self.risk[more] / copies[more])]
            gives = fewer[np.argmin(self.risk[fewer] / (copies[fewer] - 1))]
            copies[gets] += 1
            copies[gives] -= 1
            yield copies

    def _key(self, copies: Ints) -> tuple[float, tuple[int, ...]]:
        return float((self.risk / copies).max()), tuple(copies.tolist())

    # Placing ------------------------------------------------------------------------------------

    def _placed(self, copies: Ints) -> list[list[int]] | None:
        """Experts of each rank, or ``None`` if too much had to be taken back."""
        ranks = _Ranks(self, copies)
        order = np.argsort(-self.risk / copies, kind="stable")
        waiting = np.repeat(order, copies[order]).tolist()
        choices: list[list[int]] = []
        taken_back, goes_back = 0, False
        while len(ranks.history) < len(waiting):
            if not goes_back:
                choices.append(ranks.by_risk(waiting[len(ranks.history)]))
            if not choices[-1]:
                choices.pop()
                if not ranks.history:
                    return None
                ranks.take_back()
                goes_back = True
                continue
            if goes_back:
                taken_back += 1
                if taken_back > TAKEN_BACK:
                    return None
            ranks.put(waiting[len(ranks.history)], choices[-1].pop(0))
            goes_back = False
        return ranks.held

    def _imbalance(self, held: Ints) -> tuple[float, float]:
        """Mean and 95th percentile over the steps of busiest rank over mean."""
        copies = np.bincount(held.ravel(), minlength=len(self.risk))
        loads = (self.samples / copies)[:, held].sum(axis=2)
        mean = loads.sum(axis=1) / self.num_ranks
        ratio = np.divide(loads.max(axis=1), mean, out=np.ones(len(mean)), where=mean > 0)
        total = self.weights.sum()
        steps = np.sort(np.repeat(ratio, self.weights))
        high = steps[max(1, int(np.ceil(0.95 * total))) - 1]
        return float((ratio * self.weights).sum() / total), float(high)

    def _transfers(self, new: Ints) -> tuple[int, int]:
        """Experts received from another node, and from a rank of the same."""
        across = within = 0
        for rank, slot in np.argwhere(new != self.held):
            has = self.node[np.any(self.held == new[rank, slot], axis=1)]
            if (has == self.node[rank]).any():
                within += 1
            else:
                across += 1
        return across, within


class _Ranks:
    """Ranks that copies are put on one after another."""

    def __init__(self, layer: _Layer, copies: Ints) -> None:
        self.layer = layer
        self.mean_each = layer.mean / copies
        self.variance_each = layer.variance / copies**2
        self.covariance_each = 2 * layer.covariance / np.outer(copies, copies)
        self.held: list[list[int]] = [[] for _ in range(layer.num_ranks)]
        self.mean = np.zeros(layer.num_ranks)
        self.variance = np.zeros(layer.num_ranks)
        self.shared = np.zeros((layer.num_ranks, len(copies)))  # covariances of what is held
        self.history: list[tuple[int, float, float, Floats]] = []

    def by_risk(self, expert: int) -> list[int]:
        """Ranks that can take it, the one with the least risk afterwards first."""
        able = [
            rank
            for rank, held in enumerate(self.held)
            if len(held) < self.layer.size and expert not in held
        ]
        variance = np.maximum(self._variance_with(expert), 0)
        risk = self.mean + self.mean_each[expert] + QUARTILE * np.sqrt(variance)
        return sorted(able, key=lambda rank: (risk[rank], rank))

    def put(self, expert: int, rank: int) -> None:
        before = (rank, self.mean[rank], self.variance[rank], self.shared[rank].copy())
        self.history.append(before)
        self.variance[rank] = max(self._variance_with(expert)[rank], 0)
        self.mean[rank] += self.mean_each[expert]
        self.shared[rank] += self.covariance_each[expert]
        self.held[rank].append(expert)

    def take_back(self) -> None:
        rank, *before = self.history.pop()
        self.mean[rank], self.variance[rank], self.shared[rank] = before
        self.held[rank].pop()

    def _variance_with(self, expert: int) -> Floats:
        return self.variance + (self.variance_each[expert] + self.shared[:, expert])


def _samples(steps: Floats) -> tuple[Floats, Ints]:
    """Means of consecutive steps, and how many each stands for."""
    number = min(len(steps), SAMPLES)
    bounds = np.arange(number + 1) * len(steps) // number
    means = np.stack([steps[begin:end].mean(axis=0) for begin, end in pairwise(bounds)])
    return means, np.diff(bounds)


def _in_slots(old: Ints, ranks: list[list[int]]) -> Ints:
    """Experts that stay keep their slots; new ones fill the others in ascending order."""
    new = old.copy()
    for row, before, held in zip(new, old, ranks, strict=True):
        row[~np.isin(before, held)] = sorted(set(held) - set(before.tolist()))
    return new
