"""Chance, skew and drift of an even split, by plain loops."""

from __future__ import annotations


def split_wait(*, recorded, fair, familiar, slots, num_ranks, token_seconds):
    """Mean seconds of a step by part: loads ``(T, L, E)``, slots ``(L, S)``."""
    steps = len(recorded)
    num_experts = recorded.shape[-1]

    def mean_wait(load_TLE):
        seconds = work = 0.0
        for step in load_TLE:
            for layer, load in enumerate(step):
                ranks = rank_loads(load, slots[layer], num_ranks)
                mean = sum(ranks) / num_ranks
                seconds += token_seconds * (max(ranks) - mean)
                work += token_seconds * mean
        return seconds / steps, work / steps

    even = [[[sum(load) / num_experts] * num_experts for load in step] for step in recorded]
    wait, work = mean_wait(recorded)
    luck = mean_wait(fair)[0] - mean_wait(even)[0]
    chance = min(max(luck, 0.0), wait)
    known = min(max(mean_wait(familiar)[0], chance), wait)
    return {"experts": work, "chance": chance, "skew": known - chance, "drift": wait - known}


def rank_loads(load, slots, num_ranks):
    """What each rank gets if copies share their expert's load evenly."""
    copies = [list(slots).count(expert) for expert in range(len(load))]
    per_rank = len(slots) // num_ranks
    ranks = [0.0] * num_ranks
    for slot, expert in enumerate(slots):
        ranks[slot // per_rank] += load[expert] / copies[expert]
    return ranks
