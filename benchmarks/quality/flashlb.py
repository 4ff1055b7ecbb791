"""FlashLB's published rule in plain loops, as a row of the comparison; not a planner to use.

Source: the description of FlashLB (vllm-ascend's eplb policy 3, proposed to vLLM in pull requests
24069 and 37656). Written from the description alone:

1. Consecutive steps are summed to at most 64 samples, plus one on every load. Each layer gets the
   mean, variance and covariance (n - 1) of its experts over the samples; the risk of an expert is
   mean + 0.674 standard deviations (the third quartile of a normal).
2. Experts in order of risk are cut into 4 groups. Group by group, the copies left are split between
   the group and all later ones so that the largest risk per copy is least; splits up to 8 copies
   away are tried too. Every trial is completed greedily, placed from empty and scored by the mean
   over the samples of max/mean rank load. The best is kept.
3. Placing: experts by decreasing mean per copy, each copy to the rank with room that lacks the
   expert and has the least mean + 0.674 standard deviations afterwards.
4. The new ranks are matched to those in force so that most experts stay (Hungarian method).

Where the description is silent: at most one copy a rank is asked for, a copy that finds every rank
with room holding its expert goes to one of them, and ties go to the lowest index. Its rule for when
to plan again is left out: here it always plans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from equipoise.migration import keep_slots
from equipoise.placement import Placement
from equipoise.plan import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

QUARTILE = 0.674


@dataclass(frozen=True, kw_only=True)
class FlashLB:
    depth: int = 4
    width: int = 8
    max_samples: int = 64

    def place(self, problem: Problem, old: Placement) -> Placement:
        """The placement for the problem's steps, its ranks named after those in force."""
        slots = [self._layer(problem, layer) for layer in range(problem.num_layers)]
        return keep_slots(old, _name_ranks(old, problem.placement(np.stack(slots))))

    def _layer(self, problem: Problem, layer: int) -> Ints:
        num_ranks = problem.topology.num_ranks
        samples = _samples(problem.load[:, layer], self.max_samples)
        mean = samples.mean(axis=0)
        centred = samples - mean
        covariance = centred.T @ centred / max(len(samples) - 1, 1)
        risk = mean + QUARTILE * np.sqrt(np.diag(covariance))
        size = math.ceil(problem.num_experts / self.depth)
        by_risk = np.argsort(-risk, kind="stable")
        copies = np.ones(problem.num_experts, dtype=np.int64)
        left = problem.num_slots - problem.num_experts
        for start in range(0, problem.num_experts, size):
            group, later = by_risk[start : start + size], by_risk[start + size :]
            trials: list[tuple[float, int, Ints, Ints]] = []
            for share in self._shares(risk[group], risk[later], left, num_ranks):
                trial = copies.copy()
                trial[group] += _extra(risk[group], share, num_ranks)[0]
                trial[later] += _extra(risk[later], left - share, num_ranks)[0]
                slots = _place(mean, covariance, trial, num_ranks, problem.num_slots)
                trials.append((_score(samples, trial, slots), len(trials), trial, slots))
            _, _, trial, slots = min(trials)
            copies[group] = trial[group]
            left -= int(copies[group].sum()) - len(group)
        return slots.ravel()

    def _shares(self, here: Floats, later: Floats, left: int, num_ranks: int) -> list[int]:
        """Copies to try for a group: the greedy split first, then further and further from it."""
        lowest = max(0, left - len(later) * (num_ranks - 1))
        highest = min(left, len(here) * (num_ranks - 1))
        peak_here = _extra(here, highest, num_ranks)[1]
        peak_later = _extra(later, left - lowest, num_ranks)[1]
        peak = [max(peak_here[j], peak_later[left - j]) for j in range(lowest, highest + 1)]
        split = lowest + int(np.argmin(peak))
        near = range(max(lowest, split - self.width), min(highest, split + self.width) + 1)
        return sorted(near, key=lambda j: abs(j - split))


def _samples(load: Floats, max_samples: int) -> Floats:
    size = max(len(load) // max_samples, 1)
    whole = load[: len(load) // size * size].reshape(-1, size, load.shape[1])
    samples: Floats = whole.sum(axis=1) + 1.0
    return samples


def _name_ranks(old: Placement, new: Placement) -> Placement:
    slots = np.empty_like(new.by_rank)
    for layer in range(new.num_layers):
        stays = np.minimum(
            old.copies_on_rank[layer][:, None], new.copies_on_rank[layer][None, :]
        ).sum(axis=2)
        old_rank, new_rank = linear_sum_assignment(stays, maximize=True)
        slots[layer, old_rank] = new.by_rank[layer, new_rank]
    return Placement(
        slots.reshape(new.slots.shape),
        num_ranks=new.num_ranks,
        num_experts=new.num_experts,
        layer_ids=new.layer_ids,
    )


@numba.njit(cache=True)
def _extra(risk: Floats, num_extra: int, num_ranks: int) -> tuple[Ints, Floats]:
    """Extra copies by the largest risk per copy, and that largest after 0, 1, ... of them."""
    extra = np.zeros(len(risk), dtype=np.int64)
    peak = np.zeros(num_extra + 1)
    for j in range(num_extra + 1):
        most, chosen = 0.0, -1
        for e in range(len(risk)):
            share = risk[e] / (1 + extra[e])
            peak[j] = max(peak[j], share)
            if share > most and extra[e] < num_ranks - 1:
                most, chosen = share, e
        if j < num_extra:
            extra[chosen] += 1
    return extra, peak


@numba.njit(cache=True)
def _place(
    mean: Floats,
    covariance: Floats,
    copies: Ints,
    num_ranks: int,
    num_slots: int,
) -> Ints:
    """Slots ``(R, S / R)`` for the copies."""
    size = num_slots // num_ranks
    slots = np.full((num_ranks, size), -1)
    filled = np.zeros(num_ranks, dtype=np.int64)
    rank_mean, rank_variance = np.zeros(num_ranks), np.zeros(num_ranks)
    for e in np.argsort(-(mean / copies), kind="mergesort"):
        for _ in range(copies[e]):
            best, best_value, best_variance, best_held = -1, 0.0, 0.0, True
            for r in range(num_ranks):
                if filled[r] == size:
                    continue
                held = False
                variance = rank_variance[r] + covariance[e, e] / copies[e] ** 2
                for i in range(filled[r]):
                    other = slots[r, i]
                    held = held or other == e
                    variance += 2 * covariance[e, other] / (copies[e] * copies[other])
                value = rank_mean[r] + mean[e] / copies[e] + QUARTILE * np.sqrt(max(variance, 0.0))
                better = value < best_value if held == best_held else best_held
                if best < 0 or better:
                    best, best_value, best_variance, best_held = r, value, variance, held
            slots[best, filled[best]] = e
            filled[best] += 1
            rank_mean[best] += mean[e] / copies[e]
            rank_variance[best] = best_variance
    return slots


@numba.njit(cache=True)
def _score(samples: Floats, copies: Ints, slots: Ints) -> float:
    """Mean over the samples of max/mean rank load, copies sharing evenly."""
    total = 0.0
    for t in range(len(samples)):
        peak = 0.0
        for r in range(len(slots)):
            load = 0.0
            for e in slots[r]:
                load += samples[t, e] / copies[e]
            peak = max(peak, load)
        total += peak * len(slots) / samples[t].sum()
    return total / len(samples)
