"""Tokens to slots in plain loops over one layer, slow and obviously right."""

from __future__ import annotations

from fractions import Fraction


def assign(topk_ids, quotas, slots, num_ranks, ahead):
    """The slot of every (token, choice) of one layer; -1 for ids that no slot holds."""
    slots_per_rank = len(slots) // num_ranks
    copies = {e: [s for s, held in enumerate(slots) if held == e] for e in set(slots)}
    total = {e: sum(quotas[s] for s in copies[e]) for e in copies}
    seen = dict.fromkeys(copies, 0)
    taken = [0] * len(slots)

    def share(s):
        """What slot ``s`` should have once the assignment at hand is served."""
        e = slots[s]
        return Fraction(quotas[s] * (seen[e] + 1), total[e])

    def open_slots(e):
        return [s for s in copies[e] if taken[s] < quotas[s] and taken[s] + 1 - ahead <= share(s)]

    answer = []
    for ids in topk_ids:
        chosen = [copies[e][0] if len(copies.get(e, ())) == 1 else -1 for e in ids]
        visited = {s // slots_per_rank for s in chosen if s >= 0}
        with_choice = [k for k, e in enumerate(ids) if len(copies.get(e, ())) > 1]
        could_go = [s // slots_per_rank for k in with_choice for s in open_slots(ids[k])]
        for k in with_choice:
            e = ids[k]

            ranked = []
            for s in open_slots(e):
                rank = s // slots_per_rank
                shared = (1, 0) if rank in visited else (0, could_go.count(rank))
                ranked.append((*shared, share(s) - taken[s], -s))
            best = -max(ranked)[-1]
            chosen[k] = best
            taken[best] += 1
            seen[e] += 1
            visited.add(best // slots_per_rank)
        answer.append(chosen)
    return answer


def distinct_ranks(slots, slots_per_rank):
    return len({s // slots_per_rank for s in slots if s >= 0})


def chunk_sizes(tokens_of_rank, num_chunks):
    """Sizes of the chunks of one rank: dealt out one token at a time."""
    sizes = [0] * num_chunks
    for token in range(tokens_of_rank):
        sizes[token % num_chunks] += 1
    return sizes


def dropped(topk_ids, num_experts, capacity):
    """Which (token, choice) come when their expert has its capacity already."""
    served = dict.fromkeys(range(num_experts), 0)
    mask = []
    for ids in topk_ids:
        row = []
        for e in ids:
            row.append(e in served and served[e] >= capacity)
            if e in served:
                served[e] += 1
        mask.append(row)
    return mask
