"""Min-max dispatch on a GPU, in Triton. ``gpu.py`` computes the same integers in torch.

Each layer takes three kernels, none of which waits for the host. ``tally`` counts a batch by block
of assignments, ``solve`` turns counts into quotas, ``assign`` turns quotas into slots.

``solve`` runs as one program. Its graph consists of the *shared slots*, those of experts with two
slots or more; the other slots leave no choice. Shared slots are listed group by group; a group is
the slots of one expert. Every step works on all of them at once, in vectors of one length ``P``.
Sums over groups or over ranks are differences of a running sum. At least one of the ``P`` entries
is padding, and so is the last group, which is empty.

The level starts at a lower bound of the peak. A search from the ranks below the level, backwards
along shared experts with load to move, gives every rank its distance to them. Each rank above the
level then pushes its excess one rank nearer, through its experts in order, and a rank takes no more
than it has room for or can push on (push-relabel with exact distances). Ranks that reach no rank
below the level are a closed set. If one of them is above the level, their mean load, rounded up, is
the next level (discrete Newton). Loads are whole and are only moved, so quotas sum to the counts
whenever the rounds end. Once no rank is above the level, the peak is the least possible.

All integers are int32, so a layer's assignments times an expert's most copies must stay below
2**31.
"""

from __future__ import annotations

import triton
import triton.language as tl

FAR = tl.constexpr(2**30)  # larger than any distance

# Rows of the table of shared slots, each with P entries. Entries of these rows are shared slots:
SLOT = tl.constexpr(0)  # its number among all slots; -1 for padding
EXPERT = tl.constexpr(1)
GROUP = tl.constexpr(2)
RANK = tl.constexpr(3)
# The shared slots are also listed rank by rank, at *places*:
BY_RANK = tl.constexpr(4)  # the shared slot at each place
PLACE = tl.constexpr(5)  # the place of each shared slot
# The first shared slot of each group and the one after its last; the same of ranks, as places:
GROUP_FIRST = tl.constexpr(6)
GROUP_END = tl.constexpr(7)
RANK_FIRST = tl.constexpr(8)
RANK_END = tl.constexpr(9)
TABLE_ROWS = tl.constexpr(10)

_VARYING = ("num_ids", "num_rows", "layer", "max_rounds", "source")  # compiled once for all values


@triton.jit
def _at(values: tl.tensor, index: tl.tensor) -> tl.tensor:
    """Return ``values[index]``, element by element."""
    return tl.gather(values, index, 0)


@triton.jit
def _before(values: tl.tensor) -> tl.tensor:
    """Return the sum of all earlier entries at each entry."""
    return tl.cumsum(values, 0) - values


@triton.jit
def _sums(values: tl.tensor, first: tl.tensor, end: tl.tensor) -> tl.tensor:
    """Return the sum of the entries of each group or rank, which are ``first`` to ``end - 1``."""
    before = _before(values)
    return _at(before, end) - _at(before, first)


@triton.jit
def _fill(amount: tl.tensor, room: tl.tensor, first: tl.tensor) -> tl.tensor:
    """Put the amount of each group or rank into its entries' rooms, in order; return the parts.

    ``amount`` and ``first`` have the same value at all entries of a group or rank.
    """
    before = _before(room)
    return tl.minimum(tl.maximum(amount - (before - _at(before, first)), 0), room)


@triton.jit
def _column_sums(
    rows: tl.tensor,
    num_rows: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """Return the sums over the first ``num_rows`` rows of a matrix at the columns ``column``.

    Entries outside ``inside`` give 0. ``WIDTH`` is the length of a row; ``STEP`` rows load at a
    time.
    """
    total = tl.zeros_like(column)
    for start in range(0, num_rows, STEP):
        row = start + tl.arange(0, STEP)
        mask = (row < num_rows)[:, None] & inside[None, :]
        total += tl.sum(tl.load(rows + row[:, None] * WIDTH + column[None, :], mask, 0), 0)
    return total


@triton.jit
def _experts(ids: tl.tensor, place: tl.tensor, num_ids: tl.tensor, E: tl.constexpr) -> tl.tensor:
    """Return the expert ids at ``place``; ``E`` for an id outside ``[0, E)`` and beyond the end."""
    expert = tl.load(ids + place, place < num_ids, -1)
    return tl.where((expert >= 0) & (expert < E), expert, E).to(tl.int32)


@triton.jit(do_not_specialize=_VARYING)
def tally(
    ids: tl.tensor,
    table: tl.tensor,
    num_ids: tl.tensor,
    E: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Count the assignments of each expert in a block of ids, into a row of ``table``.

    The grid has one program a block.

    Parameters
    ----------
    ids
        Expert ids, ``(num_ids,)``; ids outside ``[0, E)`` are not counted.
    table
        Filled with the counts, ``(blocks, E)`` int32.
    num_ids
        Number of ids.
    E
        Number of experts.
    BINS
        Power of two above ``E``, so that a bin is left for ids outside ``[0, E)``.
    BLOCK
        Number of ids in a block.
    """
    block = tl.program_id(0)
    place = block * BLOCK + tl.arange(0, BLOCK)
    expert = _experts(ids, place, num_ids, E)
    column = tl.arange(0, BINS)
    tl.store(table + block * E + column, tl.histogram(expert, BINS), column < E)


@triton.jit
def _distances(
    near: tl.tensor,
    movable: tl.tensor,
    group: tl.tensor,
    rank: tl.tensor,
    by_rank: tl.tensor,
    group_first: tl.tensor,
    group_end: tl.tensor,
    rank_first: tl.tensor,
    rank_end: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the distance of each rank and of each group to a rank where ``near`` is 0.

    ``near`` is 0 or ``FAR`` on entry. Steps lead along shared slots where ``movable`` is 1. A group
    is as far as the nearest rank that holds it; a rank is one step farther than the nearest group
    from which it can move load. ``FAR`` where there is no path.
    """
    near_group = tl.full(near.shape, FAR, tl.int32)
    step = 0
    found = 1
    while found > 0:
        holds = (_at(near, rank) == step).to(tl.int32)
        arrived = (_sums(holds, group_first, group_end) > 0) & (near_group == FAR)
        near_group = tl.where(arrived, step, near_group)
        leads = (_at(near_group, group) == step).to(tl.int32) * movable
        reached = (_sums(_at(leads, by_rank), rank_first, rank_end) > 0) & (near == FAR)
        step += 1
        near = tl.where(reached, step, near)
        found = tl.sum(reached.to(tl.int32), 0)
    return near, near_group


@triton.jit(do_not_specialize=_VARYING)
def solve(
    rows: tl.tensor,
    num_rows: tl.tensor,
    alone: tl.tensor,
    table: tl.tensor,
    totals: tl.tensor,
    quotas: tl.tensor,
    status: tl.tensor,
    layer: tl.tensor,
    max_rounds: tl.tensor,
    E: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    P: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """Compute the quotas of a layer's slots; one program, see the module.

    Parameters
    ----------
    rows
        Counts, ``(num_rows, E)`` int32; their sum is the load.
    num_rows
        Number of rows.
    alone
        Expert of each slot that is its expert's only one, else -1, ``(L, S)``.
    table
        Shared slots of each layer, ``(L, TABLE_ROWS, P)``.
    totals
        Scratch, ``(E,)``.
    quotas
        Filled with the quota of each slot, ``(S,)`` int32.
    status
        Filled with the proven bound of the peak, the peak and the number of rounds, ``(3,)``.
    layer
        Index of the layer.
    max_rounds
        Number of rounds after which the search stops with the split it has.
    E, R, W
        Number of experts, of ranks, and of slots per rank.
    COLUMNS, WIDE
        Least powers of two not below ``E`` and ``W``.
    P
        Length of the vectors, a power of two.
    STEP
        Number of rows added up at a time.
    """
    column = tl.arange(0, COLUMNS)
    total = _column_sums(rows, num_rows, column, column < E, E, STEP)
    tl.store(totals + column, total, column < E)
    tl.debug_barrier()  # below, threads read totals that other threads wrote

    v = tl.arange(0, P)
    own = tl.arange(0, WIDE)
    place = v[:, None] * W + own[None, :]
    expert = tl.load(alone + layer * R * W + place, (v < R)[:, None] & (own < W)[None, :], -1)
    fixed = tl.load(totals + expert, expert >= 0, 0)
    tl.store(quotas + place, fixed, expert >= 0)
    base = tl.sum(fixed, 1)

    shared = table + layer * TABLE_ROWS * P + v
    slot = tl.load(shared + SLOT * P)
    group = tl.load(shared + GROUP * P)
    rank = tl.load(shared + RANK * P)
    by_rank = tl.load(shared + BY_RANK * P)
    at_place = tl.load(shared + PLACE * P)
    group_first = tl.load(shared + GROUP_FIRST * P)
    group_end = tl.load(shared + GROUP_END * P)
    rank_first = tl.load(shared + RANK_FIRST * P)
    rank_end = tl.load(shared + RANK_END * P)
    rank_there = _at(rank, by_rank)
    first_there = _at(rank_first, rank_there)
    first = _at(group_first, group)

    wanted = tl.load(totals + tl.load(shared + EXPERT * P), slot >= 0, 0)
    copies = tl.maximum(_at(group_end, group) - first, 1)
    flow = wanted // copies + (v - first < wanted % copies).to(tl.int32)  # an even split to start
    flow = tl.where(slot >= 0, flow, 0)
    load = base + _sums(_at(flow, by_rank), rank_first, rank_end)
    level = tl.maximum(tl.cdiv(tl.sum(total, 0), R), tl.max(base, 0))
    rounds = 0
    while (tl.max(load, 0) > level) & (rounds < max_rounds):
        near = tl.where((v < R) & (load < level), 0, FAR)
        near, near_group = _distances(
            near, (flow > 0).to(tl.int32), group, rank, by_rank,
            group_first, group_end, rank_first, rank_end,
        )  # fmt: skip
        closed = ((v < R) & (near == FAR)).to(tl.int32)
        if tl.max(load * closed, 0) > level:
            level = tl.cdiv(tl.sum(load * closed, 0), tl.sum(closed, 0))
        else:
            here = _at(near, rank)
            there = _at(near_group, group)
            forward = _at(tl.where(here == there + 1, flow, 0), by_rank)
            onward = _sums(forward, rank_first, rank_end)
            excess = tl.maximum(load - level, 0)
            room = tl.where(near == 0, level - load, tl.maximum(onward - excess, 0))

            give = _at(_fill(_at(excess, rank_there), forward, first_there), at_place)
            offered = _at(_sums(give, group_first, group_end), group)
            take = _fill(offered, tl.where(here == there, _at(room, rank), 0), first)
            take = _fill(_at(room, rank_there), _at(take, by_rank), first_there)
            take = _at(take, at_place)
            taken = _at(_sums(take, group_first, group_end), group)
            flow += take - _fill(taken, give, first)
            load = base + _sums(_at(flow, by_rank), rank_first, rank_end)
        rounds += 1
    tl.store(quotas + slot, flow, slot >= 0)
    tl.store(status, level)
    tl.store(status + 1, tl.max(load, 0))
    tl.store(status + 2, rounds)


@triton.jit(do_not_specialize=_VARYING)
def assign(
    ids: tl.tensor,
    slots: tl.tensor,
    num_ids: tl.tensor,
    table: tl.tensor,
    rows: tl.tensor,
    source: tl.tensor,
    quotas: tl.tensor,
    listed: tl.tensor,
    first: tl.tensor,
    layer: tl.tensor,
    E: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """Choose the slot of each id in a tile, by its number among its expert's ids and the quotas.

    An id's number counts the ids of the same expert in lower sources, in earlier blocks, and
    earlier in its own block. The grid has one program a tile.

    Parameters
    ----------
    ids
        Expert ids, ``(num_ids,)``.
    slots
        Filled with the slot of each id, ``(num_ids,)`` int32; -1 for ids outside ``[0, E)``.
    num_ids
        Number of ids.
    table
        Counts of each block, ``(blocks, E)``, from ``tally``.
    rows
        Counts of each source, ``(sources, E)``.
    source
        Index of the source whose ids these are.
    quotas
        Quota of each slot, ``(S,)``.
    listed
        Slots expert by expert, ``(L, S)``.
    first
        Place in ``listed`` of each expert's first slot, ``(L, E + 1)``.
    layer
        Index of the layer.
    E, S
        Number of experts and of slots.
    BLOCK, TILE
        Number of ids in a block and in a tile; a block is a multiple of a tile.
    STEP
        Number of rows added up at a time.
    """
    start = tl.program_id(0) * TILE
    block = start // BLOCK
    place = start + tl.arange(0, TILE)
    expert = _experts(ids, place, num_ids, E)
    known = expert < E
    number = _column_sums(rows, source, expert, known, E, STEP)
    number += _column_sums(table, block, expert, known, E, STEP)
    for begin in range(block * BLOCK, start + TILE, TILE):
        other_place = begin + tl.arange(0, TILE)
        other = _experts(ids, other_place, num_ids, E)
        earlier = other_place[None, :] < place[:, None]
        number += tl.sum((earlier & (other[None, :] == expert[:, None])).to(tl.int32), 1)

    begin = tl.load(first + layer * (E + 1) + expert, known, 0)
    copies = tl.load(first + layer * (E + 1) + expert + 1, known, 0) - begin
    chosen = tl.full(expert.shape, -1, tl.int32)
    for copy in range(0, tl.max(copies, 0)):
        there = known & (copy < copies)
        slot = tl.load(listed + layer * S + begin + copy, there, 0)
        quota = tl.load(quotas + slot, there, 0)
        chosen = tl.where(there & (number >= 0) & (number < quota), slot, chosen)
        number -= quota
    tl.store(slots + place, chosen, place < num_ids)
