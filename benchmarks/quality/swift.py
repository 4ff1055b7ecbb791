"""The bounded exchange of SwiftBalancer in plain loops, as a row of the comparison; no planner.

Source: the description of vllm-ascend's eplb policy 2. Layer by layer, unless the busiest rank is
within 1 % of the mean:

1. Slots are read column by column: slot 0 of every rank, then slot 1, ... Where an expert is seen
   first is its home; every later sighting is a position for a copy, whatever copy that will be.
2. Copies are handed out again, each to the largest load per copy, at most one a rank.
3. Copies, the largest first, go to the position on the least loaded rank that lacks the expert and
   has not received from the expert's home yet; positions left over are filled with the hottest
   copies left, without that limit.
4. At most 100 exchanges: the busiest rank with the others, the lightest first, one transfer for
   each ordered pair of ranks. Of the exchanges of one expert each, neither on the other side nor
   received before, the one that lowers the pair's maximum most, if that is by 1 % of the mean
   rank's load.
5. The layer changes only if its estimated peak sank. Experts that stay on a rank stay in their
   slot.

``estimate="shipped"`` counts the load of an expert with ``j`` copies more than one as ``2w/(j+2)``
a copy, as its code does; ``"corrected"`` as ``w/(j+1)``, which is what an even split gives each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.migration import keep_slots
from equipoise.placement import Placement
from equipoise.plan import Problem, evaluate

Floats = NDArray[np.float64]

SKIP_BELOW = 1.01
LEAST_GAIN = 0.01
MAX_EXCHANGES = 100


@dataclass(frozen=True, kw_only=True)
class Swift:
    estimate: str = "shipped"

    def place(self, problem: Problem, old: Placement) -> Placement:
        """The placement for the summed load, from the one in force."""
        total = problem.total
        peaks = evaluate(old, total).peak[0]
        slots = old.slots.copy()
        for layer, load in enumerate(total):
            mean = load.sum() / old.num_ranks
            if peaks[layer] < SKIP_BELOW * mean:
                continue
            ranks = _Layer(old.by_rank[layer].tolist(), load, self.estimate)
            ranks.place_copies()
            ranks.exchange(LEAST_GAIN * mean)
            if max(ranks.load) < peaks[layer]:
                slots[layer] = np.concatenate(ranks.held)
        return keep_slots(old, problem.placement(slots))


class _Layer:
    """What every rank holds, its estimated load, and who has sent to whom."""

    def __init__(self, rows: list[list[int]], load: Floats, estimate: str) -> None:
        num_ranks, size = len(rows), len(rows[0])
        self.home: dict[int, int] = {}
        self.room = [0] * num_ranks
        self.held: list[list[int]] = [[] for _ in rows]
        for column in range(size):
            for rank in range(num_ranks):
                expert = rows[rank][column]
                if expert in self.home:
                    self.room[rank] += 1
                else:
                    self.home[expert] = rank
                    self.held[rank].append(expert)
        self.extra = [0] * len(load)
        self.share = load.copy()
        for _ in range(sum(self.room)):
            open_ones = [e for e in range(len(load)) if self.extra[e] < num_ranks - 1]
            e = max(open_ones, key=lambda e: self.share[e])
            self.extra[e] += 1
            j = self.extra[e]
            self.share[e] = load[e] / (j + 1) if estimate == "corrected" else 2 * load[e] / (j + 2)
        self.load = [sum(self.share[e] for e in held) for held in self.held]
        self.sent: set[tuple[int, int]] = set()
        self.received: list[set[int]] = [set() for _ in rows]

    def place_copies(self) -> None:
        copies = [e for e, extra in enumerate(self.extra) for _ in range(extra)]
        copies.sort(key=lambda e: -self.share[e])
        left = [e for e in copies if not self._give(e, one_each=True)]
        for e in left:
            self._give(e, one_each=False)

    def _give(self, expert: int, *, one_each: bool) -> bool:
        """Put a copy on the lightest rank with room that lacks the expert; whether that was done.

        With ``one_each`` not where its home has sent already; else, if need be, where it is.
        """
        home = self.home[expert]
        ranks = [r for r in range(len(self.held)) if self.room[r]]
        lacking = [r for r in ranks if expert not in self.held[r]]
        if one_each:
            ranks = [r for r in lacking if (home, r) not in self.sent]
        elif lacking:
            ranks = lacking
        if not ranks:
            return False
        rank = min(ranks, key=lambda r: self.load[r])
        self.room[rank] -= 1
        self.held[rank].append(expert)
        self.received[rank].add(expert)
        self.sent.add((home, rank))
        self.load[rank] += self.share[expert]
        return True

    def exchange(self, least_gain: float) -> None:
        for _ in range(MAX_EXCHANGES):
            busiest = max(range(len(self.load)), key=lambda r: self.load[r])
            others = sorted(range(len(self.load)), key=lambda r: self.load[r])
            if not any(self._exchange_with(busiest, r, least_gain) for r in others):
                return

    def _exchange_with(self, busy: int, light: int, least_gain: float) -> bool:
        if busy == light or {(busy, light), (light, busy)} & self.sent:
            return False
        best, chosen = least_gain, None
        for a in self._movable(busy, light):
            for b in self._movable(light, busy):
                step = self.share[a] - self.share[b]
                after = max(self.load[busy] - step, self.load[light] + step)
                gain = self.load[busy] - after
                if gain >= best:
                    best, chosen = gain, (a, b)
        if chosen is None:
            return False
        for here, there, expert in ((busy, light, chosen[0]), (light, busy, chosen[1])):
            self.held[here].remove(expert)
            self.held[there].append(expert)
            self.received[there].add(expert)
            self.sent.add((here, there))
            self.load[here] -= self.share[expert]
            self.load[there] += self.share[expert]
        return True

    def _movable(self, here: int, there: int) -> list[int]:
        return [e for e in self.held[here] if e not in self.held[there] + list(self.received[here])]
