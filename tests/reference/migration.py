"""What each slot receives, from where and when, as plain loops; choices by trying them all."""

from __future__ import annotations

from itertools import permutations, product


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


def match(stays):
    """The best sum of ``stays[a][name of a]`` over all ways to name the ranks, by trying them."""
    ranks = range(len(stays))
    return max(sum(stays[a][name[a]] for a in ranks) for name in permutations(ranks))


def least_busiest_sender(options, num_ranks):
    """The least any rank can be kept to if every transfer is sent by one of its options."""
    return min(max(chosen.count(rank) for rank in range(num_ranks)) for chosen in product(*options))


def replay(migration, weights):
    """Weights ``[layer][slot]`` after the migration, round by round, through receive buffers.

    Every transfer reads its sender's slots as they were before the layer was touched.
    """
    old, new = migration.old, migration.new
    size = new.slots_per_rank
    after = []
    for layer, before in enumerate(weights):
        buffers = {}  # (rank, expert): what arrived
        for now in range(max(migration.round[layer]) + 1):
            senders, receivers = set(), set()
            for slot in range(new.num_slots):
                if migration.round[layer][slot] != now:
                    continue
                sender, receiver = int(migration.source[layer][slot]), slot // size
                assert sender not in senders, "a rank sends twice in a round"
                assert receiver not in receivers, "a rank receives twice in a round"
                senders.add(sender)
                receivers.add(receiver)
                expert = int(new.slots[layer][slot])
                block = range(sender * size, (sender + 1) * size)
                held = next(s for s in block if old.slots[layer][s] == expert)
                buffers[receiver, expert] = before[held].copy()
        row = []
        for slot in range(new.num_slots):
            rank, expert = slot // size, int(new.slots[layer][slot])
            block = range(rank * size, (rank + 1) * size)
            local = [s for s in block if old.slots[layer][s] == expert]
            row.append(before[local[0]].copy() if local else buffers[rank, expert])
        after.append(row)
    return after
