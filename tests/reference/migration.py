"""What each slot receives, as plain loops over one layer."""

from __future__ import annotations


def receives(old, new, num_ranks, num_nodes):
    """The class of every slot, by name."""
    size = len(old) // num_ranks

    def block(slots, rank):
        return slots[rank * size : (rank + 1) * size]

    answer = []
    for slot, expert in enumerate(new):
        rank = slot // size
        node = rank * num_nodes // num_ranks
        on_node = [r for r in range(num_ranks) if r * num_nodes // num_ranks == node]
        if old[slot] == expert:
            answer.append("UNCHANGED")
        elif expert in block(old, rank):
            answer.append("SAME_RANK")
        elif expert in new[rank * size : slot]:
            answer.append("FREE_RIDER")
        elif any(expert in block(old, r) for r in on_node):
            answer.append("SAME_NODE")
        else:
            answer.append("CROSS_NODE")
    return answer


def keep_slots(old, new, num_ranks):
    size = len(old) // num_ranks
    answer = []
    for first in range(0, len(old), size):
        before, unused = old[first : first + size], list(new[first : first + size])
        row = [None] * size
        for slot, expert in enumerate(before):
            if expert in unused:
                unused.remove(expert)
                row[slot] = expert
        for slot in range(size):
            if row[slot] is None:
                row[slot] = unused.pop(0)
        answer += row
    return answer
