"""What losses take, by trying them all: one layer, plain loops."""

from __future__ import annotations

from itertools import combinations


def homes(slots, num_ranks, domain_of_rank):
    """The set of domains that hold each expert."""
    size = len(slots) // num_ranks
    hosts = {}
    for slot, expert in enumerate(slots):
        hosts.setdefault(int(expert), set()).add(int(domain_of_rank[slot // size]))
    return hosts


def lost_experts(hosts, lost):
    return [expert for expert, domains in hosts.items() if domains <= set(lost)]


def expected_lost(hosts, num_failure_domains, losses):
    every = list(combinations(range(num_failure_domains), losses))
    return sum(len(lost_experts(hosts, lost)) for lost in every) / len(every)


def survival(layers, num_failure_domains, losses):
    """Share of the combinations of lost domains that leave every expert of every layer alive."""
    every = list(combinations(range(num_failure_domains), losses))
    return sum(not any(lost_experts(h, lost) for h in layers) for lost in every) / len(every)


def best_covered(num_experts, capacities, most):
    """Most of ``sum(min(homes, most))`` over experts for domains with these many slots.

    Tries every way to fill the domains with distinct experts, for very small problems.
    """
    best = 0

    def fill(domain, counts):
        nonlocal best
        if domain == len(capacities):
            if min(counts) > 0:
                best = max(best, sum(min(c, most) for c in counts))
            return
        for chosen in combinations(range(num_experts), min(capacities[domain], num_experts)):
            fill(domain + 1, [c + (e in chosen) for e, c in enumerate(counts)])

    fill(0, [0] * num_experts)
    return best
