"""The greedy planners as plain loops over one layer, slow and obviously right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def replicate(load, num_slots, most_copies, *, high_ties=False):
    """Experts in order of creation, and their copies."""
    experts, copies = list(range(len(load))), [1] * len(load)
    while len(experts) < num_slots:
        open_experts = [e for e in range(len(load)) if copies[e] < most_copies]
        sign = 1 if high_ties else -1
        best = max(open_experts, key=lambda e: (load[e] / load.dtype.type(copies[e]), sign * e))
        experts.append(best)
        copies[best] += 1
    return experts, copies


def pack(weights, num_bins):
    """Items of each bin in order of arrival."""
    size = len(weights) // num_bins
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    total = [0.0] * num_bins
    for item in sorted(range(len(weights)), key=lambda i: -weights[i]):  # stable
        b = min((b for b in range(num_bins) if len(bins[b]) < size), key=total.__getitem__)
        bins[b].append(item)
        total[b] += float(weights[item])
    return bins


def pack_or_keep(weights, num_bins):
    if len(weights) == num_bins:
        return [[i] for i in range(num_bins)]
    return pack(weights, num_bins)


def deepseek(load, num_slots, num_ranks, num_expert_groups=1, num_nodes=1):
    """DeepSeek's EPLB on float32 loads, bins summed in double."""
    load = np.asarray(load, np.float32)
    size = len(load) // num_expert_groups
    group_load = load.reshape(num_expert_groups, size).sum(axis=1)
    slots = []
    for groups in pack_or_keep(group_load, num_nodes):
        members = [g * size + i for g in groups for i in range(size)]
        local = load[members]
        experts, copies = replicate(local, num_slots // num_nodes, num_slots)
        weights = [local[e] / np.float32(copies[e]) for e in experts]
        for rank in pack_or_keep(weights, num_ranks // num_nodes):
            slots += [members[experts[i]] for i in rank]
    return slots


def distinct(load, num_slots, num_ranks):
    """Greedy in float64 without a second copy on any rank."""
    load = np.asarray(load, np.float64)
    if not load.any():
        each = [num_slots // len(load) + (e < num_slots % len(load)) for e in range(len(load))]
        dealt = [e for e, n in enumerate(each) for _ in range(n)]
        return [e for r in range(num_ranks) for e in dealt[r::num_ranks]]
    copies = replicate(load, num_slots, num_ranks)[1]
    share = load / copies
    size = num_slots // num_ranks
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    free = [0.0] * num_ranks  # minus the load
    for expert in sorted(range(len(load)), key=lambda e: -share[e]):
        for _ in range(copies[expert]):
            fits = [r for r in range(num_ranks) if len(ranks[r]) < size and expert not in ranks[r]]
            if fits:
                rank = max(fits, key=lambda r: (free[r], -r))
                ranks[rank].append(expert)
                free[rank] -= share[expert]
            else:
                exchange(ranks, free, share, expert, size)
    return [e for rank in ranks for e in rank]


def exchange(ranks, free, share, expert, size):
    moves = [
        (max(-free[full] - share[y] + share[expert], -free[room] + share[y]), full, p, room)
        for full in range(len(ranks))
        if len(ranks[full]) == size and expert not in ranks[full]
        for p, y in enumerate(ranks[full])
        for room in range(len(ranks))
        if len(ranks[room]) < size and y not in ranks[room]
    ]
    _, full, p, room = min(moves)
    other = ranks[full][p]
    ranks[room].append(other)
    free[room] -= share[other]
    ranks[full][p] = expert
    free[full] += share[other] - share[expert]


def trtllm(load, num_slots, num_ranks):
    load = np.asarray(load, np.float32).astype(np.float64)
    if load.any():
        copies = replicate(load, num_slots, num_slots, high_ties=True)[1]
    else:
        copies = [num_slots // len(load) + (e < num_slots % len(load)) for e in range(len(load))]
    experts = [e for e, n in enumerate(copies) for _ in range(n)]
    bins = pack([load[e] / copies[e] for e in experts], num_ranks)
    return [experts[i] for b in bins for i in b]


def peak(load: Sequence[float], slots: Sequence[int], num_ranks: int) -> float:
    """Load of the busiest rank under an even split."""
    size = len(slots) // num_ranks
    shares = [load[e] / slots.count(e) for e in slots]
    return max(sum(shares[r * size : (r + 1) * size]) for r in range(num_ranks))
