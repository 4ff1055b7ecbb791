"""What the ranks carry after a move, from scratch: plain loops."""

from __future__ import annotations


def power_after(load, risk, slow, held, move):
    """Sum over ranks of the 16th power of what each carries, one number a scenario.

    ``held`` is a set of experts for each rank; the move is a rank, an expert that leaves it (or
    ``None``) and one that arrives.
    """
    at, leaving, arriving = move
    held = [set(experts) for experts in held]
    held[at].discard(leaving)
    held[at].add(arriving)
    totals = []
    for t in range(len(load[0])):
        total = 0.0
        for rank, experts in enumerate(held):
            carried = 0.0
            for e in experts:
                share = 1 / sum(e in others for others in held)
                carried += load[e][t] * share + risk[e][t] * share**2
            total += (slow[rank] * carried) ** 16
        totals.append(total)
    return totals
