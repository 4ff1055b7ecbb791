"""Where tokens go and what a layer takes, as plain loops over every way to choose the copies."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np


def outcomes(choices, slots, num_experts):
    """Every choice of one slot for each expert of a token; all are equally likely."""
    known = [e for e in choices if 0 <= e < num_experts]
    return list(product(*([s for s, held in enumerate(slots) if held == e] for e in known)))


def reach(ids_DK, slots, num_experts, units_of_slot, num_units):
    """Share of the tokens with a choice that reach each unit; a rank or a node."""
    hit, tokens = np.zeros(num_units), 0
    for choices in ids_DK:
        ways = outcomes(choices, slots, num_experts)
        if ways == [()]:
            continue
        tokens += 1
        for way in ways:
            for unit in {units_of_slot[s] for s in way}:
                hit[unit] += 1 / len(ways)
    return hit / max(tokens, 1)


def same_rank_pairs(ids_DK, slots, num_experts, rank_of_slot):
    together, pairs = 0.0, 0
    for choices in ids_DK:
        ways = outcomes(choices, slots, num_experts)
        pairs += len(list(combinations(ways[0], 2)))
        for way in ways:
            same = sum(rank_of_slot[s] == rank_of_slot[o] for s, o in combinations(way, 2))
            together += same / len(ways)
    return together / max(pairs, 1)


def slot_seconds(layer, load, risk, copies):
    assignments = load / copies + risk / copies**2
    if assignments == 0:
        return 0.0
    if layer.token_block > 1:
        assignments = -(-assignments // layer.token_block) * layer.token_block
    return max(layer.expert_seconds, layer.token_seconds * assignments)


def rank_seconds(layer, slots, scenario, with_risk):
    """What every rank takes for its experts, at its speed."""
    R = len(layer.speed_R)
    seconds = np.full(R, layer.fixed_seconds)
    for s, e in enumerate(slots):
        risk = layer.risk_ET[e, scenario] if with_risk else 0.0
        copies = list(slots).count(e)
        seconds[s * R // len(slots)] += slot_seconds(
            layer, layer.load_ET[e, scenario], risk, copies
        )
    return seconds / layer.speed_R


def wire_seconds(layer, slots):
    """What every rank waits for its tokens."""
    R, E = len(layer.speed_R), len(layer.load_ET)
    rank = np.arange(len(slots)) * R // len(slots)
    on_rank = reach(layer.ids_DK, slots, E, rank, R)
    on_node = reach(layer.ids_DK, slots, E, layer.node_R[rank], layer.node_R.max() + 1)
    return layer.node_seconds * on_node[layer.node_R] + layer.rank_seconds * on_rank


def layer_time(layer, slots, wired):
    """Mean over scenarios of the 16-norm over ranks."""
    wires = wire_seconds(layer, slots) if wired else 0.0
    norms = [
        ((rank_seconds(layer, slots, t, True) + wires) ** 16).sum() ** (1 / 16)
        for t in range(len(layer.weight_T))
    ]
    return float(np.dot(layer.weight_T, norms))


def peak_time(layer, slots):
    peaks = [rank_seconds(layer, slots, t, False).max() for t in range(len(layer.weight_T))]
    return float(np.dot(layer.weight_T, peaks))


def objective(layer, slots, timed):
    """What ``Colocate`` lowers, its limits on balance aside."""
    return layer_time(layer, slots, True) if timed else float(wire_seconds(layer, slots).mean())
