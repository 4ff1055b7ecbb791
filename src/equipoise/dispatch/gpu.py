"""Min-max dispatch on a GPU: counts, quotas and slots without waiting for the host.

``GpuPlacement`` holds a placement on the device, and ``GpuMinMax`` dispatches batches over it with
the kernels in ``_triton_kernels.py``. On other devices the functions at the end of this file give
the same integers with torch; they check their progress on the host.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

MAX_ROUNDS = 256
"""Most rounds of the solver. How many batches need: ``equipoise explain gpu``."""

_BLOCK, _TILE, _STEP = 1024, 128, 16  # ids a row of the tally, ids a program, rows summed at a time
_FAR = 2**30
_MOST = 2**31  # assignments times copies of an expert: sums of the kernels stay below it
_INTEGERS = (torch.int32, torch.int64)

# Rows of the table of shared slots, as in the kernels.
_SLOT, _EXPERT, _GROUP, _RANK, _BY_RANK, _PLACE = range(6)
_GROUP_FIRST, _GROUP_END, _RANK_FIRST, _RANK_END, _TABLE_ROWS = range(6, 11)

Ints = NDArray[np.int64]


class GpuQuotas(NamedTuple):
    """The quotas of one layer's slots for a batch. Both tensors are on the device.

    Parameters
    ----------
    quotas
        Assignments of each slot, ``(S,)`` int32; over the slots of an expert they sum to its count.
    status
        Proven lower bound of the peak, peak, and number of rounds, ``(3,)`` int32. If the first two
        are equal, the split is optimal.
    """

    quotas: torch.Tensor
    status: torch.Tensor


class GpuPlacement:
    """A placement on a device, as tables whose shapes depend only on ``(L, S, E, R)``.

    Its attribute ``host`` is the placement itself.

    Parameters
    ----------
    placement
        Placement with any number of copies, also several of an expert on one rank.
    device
        Device that the batches are on.

    Raises
    ------
    EquipoiseError
        A device that does not exist.
    """

    def __init__(self, placement: Placement, device: torch.device | str = "cuda") -> None:
        self.host = placement
        try:
            self.tables = _tables(placement, device)
        except (RuntimeError, AssertionError) as error:  # torch raises either for a wrong device
            raise EquipoiseError(f"Device {device} cannot be used here: {error}") from error
        self.device = self.tables["listed"].device

    def replace(self, placement: Placement) -> None:
        """Replace the placement in the same memory, so that captured CUDA graphs use the new one.

        Raises
        ------
        EquipoiseError
            A placement with another number of layers, slots, experts or ranks.
        """
        old, new = _shape(self.host), _shape(placement)
        if old != new:
            raise EquipoiseError(
                f"The placement has (layers, slots, experts, ranks) = {new}, the one on the "
                f"device {old}; make a new GpuPlacement and capture its graphs again."
            )
        for name, table in _tables(placement, "cpu").items():
            self.tables[name].copy_(table)
        self.host = placement


@dataclass(frozen=True, kw_only=True)
class GpuMinMax:
    """``MinMax``, and the choice of slots, for batches on a device; one layer per call.

    If ``status`` says that the split is optimal, its peak is the least that whole numbers allow, as
    that of ``MinMax().split(...)`` on the host. Otherwise ``max_rounds`` was too small: quotas
    still sum to the counts, and ``status`` bounds their distance from the optimum.

    All ranks are assumed to be equally fast. The assignments of a layer times the most copies of an
    expert must be below 2**31.

    Parameters
    ----------
    placement
        Placement on the device.
    max_rounds
        Largest number of rounds of the solver.
    backend
        Implementation. ``"triton"`` never waits for the host, and all calls can be captured in a
        CUDA graph after each has run once. ``"torch"`` gives the same results without Triton, but
        waits for the host. ``None`` is Triton on a GPU and torch elsewhere.
    """

    placement: GpuPlacement
    max_rounds: int = MAX_ROUNDS
    backend: Literal["triton", "torch"] | None = None

    def __post_init__(self) -> None:
        if self.max_rounds < 0:
            raise EquipoiseError(f"max_rounds is {self.max_rounds}; expected 0 or more.")
        if self.backend not in (None, "triton", "torch"):
            raise EquipoiseError(f"There is no backend {self.backend!r}; use 'triton' or 'torch'.")

    @property
    def _triton(self) -> Any:
        """The Triton kernels, or ``None`` if torch does the work."""
        on_gpu = self.placement.device.type == "cuda"
        if self.backend == "torch" or (self.backend is None and not on_gpu):
            return None
        if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
            raise EquipoiseError(
                f"Triton does not run on {self.placement.device}; use backend 'torch', or set "
                "TRITON_INTERPRET=1 before Triton is imported to interpret its kernels."
            )
        try:
            from equipoise.dispatch import _triton_kernels
        except ImportError as error:
            raise EquipoiseError("Triton is missing; install it or use backend 'torch'.") from error
        return _triton_kernels

    def counts(self, topk_ids: torch.Tensor) -> torch.Tensor:
        """Count the assignments of each expert, ``(E,)`` int32, from ids ``(D, K)``."""
        return self._tally(self._checked_ids(topk_ids)).sum(0, dtype=torch.int32)

    def quotas(self, counts: torch.Tensor, layer: int) -> GpuQuotas:
        """Compute the split of a batch with the least peak.

        Parameters
        ----------
        counts
            Assignments ``(E,)`` int32, or rows ``(X, E)`` to be summed.
        layer
            Row of the placement.

        Raises
        ------
        EquipoiseError
            Counts of another device, shape or type, or a layer that does not exist.
        """
        self._check_layer(layer)
        rows = self._checked_counts(counts)
        if self._triton is None:
            placed = self.placement
            return _solve(rows, placed.tables, layer, self.max_rounds, placed.host.num_ranks)
        return self._launch_solve(rows, layer)

    def assign(
        self,
        topk_ids: torch.Tensor,
        quotas: torch.Tensor,
        layer: int,
        *,
        counts: torch.Tensor | None = None,
        source: int = 0,
    ) -> torch.Tensor:
        """Send every choice of every token to a slot of its expert, each slot up to its quota.

        An expert's assignments are numbered: those of lower sources first, then in the order of
        ``topk_ids``. The first fill the quota of its lowest slot, the next that of the next slot,
        and so on.

        Parameters
        ----------
        topk_ids
            Expert ids ``(D, K)``, int32 or int64; outside ``[0, E)`` is padding.
        quotas
            Assignments of all sources to each slot, ``(S,)`` int32.
        layer
            Row of the placement.
        counts
            Assignments of all sources, ``(sources, E)`` int32; ``None`` if these are all tokens.
        source
            Row of these tokens in ``counts``.

        Returns
        -------
        Slots, of the shape and type of ``topk_ids``; -1 for padding and for what exceeds quotas.

        Raises
        ------
        EquipoiseError
            Tensors of another device, shape or type, or a layer or source that does not exist.
        """
        ids = self._checked_ids(topk_ids)
        return self._assign(ids, self._tally(ids), quotas, layer, counts, source)

    def dispatch(
        self,
        topk_ids: torch.Tensor,
        layer: int,
        *,
        counts: torch.Tensor | None = None,
        source: int = 0,
    ) -> torch.Tensor:
        """Call ``quotas`` and ``assign``: turn expert ids ``(D, K)`` into slots ``(D, K)``.

        With several sources, first gather the ``counts`` of all. Every source then computes the
        same quotas and sends its tokens to its own part of them.
        """
        ids = self._checked_ids(topk_ids)
        table = self._tally(ids)
        quotas, _ = self.quotas(table if counts is None else counts, layer)
        return self._assign(ids, table, quotas, layer, counts, source)

    def _launch_solve(self, rows: torch.Tensor, layer: int) -> GpuQuotas:
        p, tables = self.placement.host, self.placement.tables
        totals, quotas, status = (
            torch.empty(size, dtype=torch.int32, device=rows.device)
            for size in (p.num_experts, p.num_slots, 3)
        )
        width = tables["table"].shape[-1]
        with _current(rows):
            self._triton.solve[(1,)](
                rows,
                len(rows),
                tables["alone"],
                tables["table"],
                totals,
                quotas,
                status,
                layer,
                self.max_rounds,
                E=p.num_experts,
                R=p.num_ranks,
                W=p.slots_per_rank,
                COLUMNS=_power(p.num_experts),
                WIDE=_power(p.slots_per_rank),
                P=width,
                STEP=_STEP,
                num_warps=4 if width <= 1024 else 8,
            )
        return GpuQuotas(quotas, status)

    def _tally(self, ids: torch.Tensor) -> torch.Tensor:
        """Count the assignments of each expert in each block of ids, ``(blocks, E)``."""
        E = self.placement.host.num_experts
        if self._triton is None:
            return _tally(ids.flatten(), E)
        num_blocks = -(-ids.numel() // _BLOCK) or 1
        table = torch.empty(num_blocks, E, dtype=torch.int32, device=ids.device)
        with _current(ids):
            self._triton.tally[(num_blocks,)](
                ids, table, ids.numel(), E=E, BINS=_power(E + 1), BLOCK=_BLOCK
            )
        return table

    def _assign(
        self,
        ids: torch.Tensor,
        table: torch.Tensor,
        quotas: torch.Tensor,
        layer: int,
        counts: torch.Tensor | None,
        source: int,
    ) -> torch.Tensor:
        self._check_layer(layer)
        p, tables = self.placement.host, self.placement.tables
        rows = table if counts is None else self._checked_counts(counts)
        if not 0 <= source < (1 if counts is None else len(rows)):
            raise EquipoiseError(f"There is no source {source}; counts have a row for each.")
        _check(quotas, "Quotas", (p.num_slots,), self.placement.device)
        listed, first = tables["listed"], tables["first"]
        if self._triton is None:
            return _assign(ids, rows[:source], quotas, listed[layer], first[layer])
        slots = torch.empty_like(ids)
        if not ids.numel():
            return slots
        with _current(ids):
            self._triton.assign[(-(-ids.numel() // _TILE),)](
                ids,
                slots,
                ids.numel(),
                table,
                rows,
                source,
                quotas,
                listed,
                first,
                layer,
                E=p.num_experts,
                S=p.num_slots,
                BLOCK=_BLOCK,
                TILE=_TILE,
                STEP=_STEP,
            )
        return slots

    def _checked_ids(self, ids: torch.Tensor) -> torch.Tensor:
        if ids.ndim != 2 or ids.dtype not in _INTEGERS or ids.device != self.placement.device:
            raise EquipoiseError(
                f"Expert ids are {_about(ids)}; expected (tokens, top_k) of int32 or int64 on "
                f"{self.placement.device}."
            )
        most = int(self.placement.host.copies.max())
        if ids.numel() * most >= _MOST:
            raise EquipoiseError(
                f"{ids.numel()} assignments to experts of up to {most} copies; expected a product "
                "below 2**31. Give fewer tokens at a time."
            )
        return ids.contiguous()

    def _checked_counts(self, counts: torch.Tensor) -> torch.Tensor:
        E = self.placement.host.num_experts
        rows = counts[None] if counts.ndim == 1 else counts
        _check(rows, "Counts", (len(rows) if rows.ndim else 0, E), self.placement.device)
        return rows.contiguous()

    def _check_layer(self, layer: int) -> None:
        num_layers = self.placement.host.num_layers
        if not 0 <= layer < num_layers:
            raise EquipoiseError(f"There is no layer {layer}; the placement has {num_layers} rows.")


def _check(tensor: torch.Tensor, what: str, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.shape != shape or tensor.dtype != torch.int32 or tensor.device != device:
        raise EquipoiseError(
            f"{what} are {_about(tensor)}; expected {shape} of torch.int32 on {device}."
        )


def _about(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"


def _current(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Make the tensor's device the current one, where Triton launches kernels."""
    device: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return device


def _power(least: int) -> int:
    """Return the lowest power of two that is at least this number."""
    return 1 << (least - 1).bit_length()


def _shape(p: Placement) -> tuple[int, int, int, int]:
    return p.num_layers, p.num_slots, p.num_experts, p.num_ranks


def _tables(p: Placement, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Make the tables that the kernels read; ``_triton_kernels.py`` describes each of them."""
    copies = np.take_along_axis(p.copies, p.slots, axis=1)
    before = np.zeros((p.num_layers, 1), np.int64)
    tables = {
        "alone": np.where(copies == 1, p.slots, -1),
        "table": np.stack([_shared_slots(p, row) for row in range(p.num_layers)]),
        "listed": np.argsort(p.slots, axis=1, kind="stable"),
        "first": np.concatenate([before, p.copies.cumsum(axis=1)], axis=1),
    }
    return {
        name: torch.as_tensor(table, dtype=torch.int32, device=device)
        for name, table in tables.items()
    }


def _shared_slots(p: Placement, row: int) -> Ints:
    """The slots of experts that have several, by group and by rank, ``(_TABLE_ROWS, P)``."""
    width = _power(max(2 * p.num_redundant, p.num_ranks) + 1)
    slots = np.argsort(p.slots[row], kind="stable")
    slots = slots[p.copies[row, p.slots[row, slots]] > 1]
    n, rank = len(slots), slots // p.slots_per_rank
    by_rank = np.argsort(slots)
    experts, group = np.unique(p.slots[row, slots], return_inverse=True)
    table = np.zeros((_TABLE_ROWS, width), np.int64)
    table[_SLOT], table[_GROUP] = -1, width - 1
    table[_BY_RANK] = table[_PLACE] = np.arange(width)
    table[[# Rows of the table of shared slots, as in the kernels.
_SLOT, _EXPERT, _GROUP, _RANK, _BY_RANK], :n] = (
        slots, experts[group], group, rank, by_rank,
    )  # fmt: skip
    table[_PLACE, by_rank] = np.arange(n)
    for first, end, keys, count in (
        (_GROUP_FIRST, _GROUP_END, group, len(experts)),
        (_RANK_FIRST, _RANK_END, rank[by_rank], p.num_ranks),
    ):
        table[first, :count] = np.searchsorted(keys, np.arange(count))
        table[end, :count] = np.searchsorted(keys, np.arange(count), side="right")
    return table


# From here on the kernels of ``_triton_kernels.py`` again, in torch and in the same order.


class _Shared(NamedTuple):
    """A layer's table of shared slots, row by row."""

    slot: torch.Tensor
    expert: torch.Tensor
    group: torch.Tensor
    rank: torch.Tensor
    by_rank: torch.Tensor
    place: torch.Tensor
    group_first: torch.Tensor
    group_end: torch.Tensor
    rank_first: torch.Tensor
    rank_end: torch.Tensor

    def of_groups(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the slots of each group."""
        before = _before(values)
        return before[self.group_end] - before[self.group_first]

    def of_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the shared slots of each rank."""
        before = _before(values[self.by_rank])
        return before[self.rank_end] - before[self.rank_first]

    def fill_groups(self, amount: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        """Put an amount of each group into the rooms of its slots, in order."""
        return _fill(amount[self.group], room, self.group_first[self.group])

    def fill_ranks(self, amount: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        """Put an amount of each rank into the rooms of its shared slots, in order."""
        rank = self.rank[self.by_rank]
        return _fill(amount[rank], room[self.by_rank], self.rank_first[rank])[self.place]


def _before(values: torch.Tensor) -> torch.Tensor:
    return values.cumsum(0) - values


def _fill(amount: torch.Tensor, room: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    before = _before(room)
    return torch.minimum((amount - (before - before[first])).clamp(min=0), room)


def _tally(ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Count each expert's assignments with all ids in one block, ``(1, E)``."""
    known = (ids >= 0) & (ids < num_experts)
    bins = torch.zeros(num_experts + 1, dtype=torch.int32, device=ids.device)
    bins.scatter_add_(
        0, torch.where(known, ids, num_experts).long(), torch.ones_like(ids, dtype=torch.int32)
    )
    return bins[None, :num_experts]


def _solve(
    rows: torch.Tensor, tables: dict[str, torch.Tensor], layer: int, max_rounds: int, num_ranks: int
) -> GpuQuotas:
    total = rows.sum(0)
    alone = tables["alone"][layer].long()
    quotas = torch.where(alone >= 0, total[alone], 0)
    g = _Shared(*tables["table"][layer].long())
    base = torch.zeros_like(g.slot)
    base[:num_ranks] = quotas.view(num_ranks, -1).sum(1)
    flow = _even(total, g)
    load = base + g.of_ranks(flow)
    level = torch.maximum(-(-total.sum() // num_ranks), base.max())
    rounds = 0
    while load.max() > level and rounds < max_rounds:
        near, near_group = _distances(load < level, flow > 0, g, num_ranks)
        closed = near == _FAR
        closed[num_ranks:] = False
        if (load[closed] > level).any():
            level = -(-load[closed].sum() // closed.sum())
        else:
            flow = _push(flow, load, level, near, near_group, g)
            load = base + g.of_ranks(flow)
        rounds += 1
    quotas[g.slot[g.slot >= 0]] = flow[g.slot >= 0]
    status = torch.stack([level, load.max(), torch.full_like(level, rounds)])
    return GpuQuotas(quotas.int(), status.int())


def _even(total: torch.Tensor, g: _Shared) -> torch.Tensor:
    first = g.group_first[g.group]
    copies = (g.group_end[g.group] - first).clamp(min=1)
    ordinal = torch.arange(len(first), device=first.device) - first
    wanted = total[g.expert]
    return torch.where(g.slot >= 0, wanted // copies + (ordinal < wanted % copies), 0)


def _distances(
    below: torch.Tensor, movable: torch.Tensor, g: _Shared, num_ranks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    near = torch.where(below, 0, _FAR)
    near[num_ranks:] = _FAR
    near_group = torch.full_like(near, _FAR)
    step, found = 0, True
    while found:
        holds = (near[g.rank] == step).long()
        near_group[(g.of_groups(holds) > 0) & (near_group == _FAR)] = step
        leads = (near_group[g.group] == step) & movable
        reached = (g.of_ranks(leads.long()) > 0) & (near == _FAR)
        step += 1
        near[reached] = step
        found = bool(reached.any())
    return near, near_group


def _push(
    flow: torch.Tensor,
    load: torch.Tensor,
    level: torch.Tensor,
    near: torch.Tensor,
    near_group: torch.Tensor,
    g: _Shared,
) -> torch.Tensor:
    """One step of all ranks above the level to ranks one nearer to those below it."""
    here, there = near[g.rank], near_group[g.group]
    forward = torch.where(here == there + 1, flow, 0)
    excess = (load - level).clamp(min=0)
    room = torch.where(near == 0, level - load, (g.of_ranks(forward) - excess).clamp(min=0))
    give = g.fill_ranks(excess, forward)
    take = g.fill_groups(g.of_groups(give), torch.where(here == there, room[g.rank], 0))
    take = g.fill_ranks(room, take)
    return flow + take - g.fill_groups(g.of_groups(take), give)


def _assign(
    ids: torch.Tensor,
    lower: torch.Tensor,
    quotas: torch.Tensor,
    listed: torch.Tensor,
    first: torch.Tensor,
) -> torch.Tensor:
    num_experts = len(first) - 1
    known = ((ids >= 0) & (ids < num_experts)).flatten()
    expert = torch.where(known, ids.flatten(), num_experts - 1).long()
    key = torch.where(known, expert, num_experts)
    ordered, order = torch.sort(key, stable=True)
    number = torch.empty_like(key)
    number[order] = torch.arange(len(key), device=key.device) - torch.searchsorted(ordered, ordered)
    number += lower.sum(0)[expert]
    listed, first = listed.long(), first.long()
    end = torch.cat([quotas.new_zeros(1, dtype=torch.int64), quotas[listed].cumsum(0)])
    number += end[first[expert]]  # among all assignments, expert by expert
    chosen = listed[(torch.searchsorted(end, number, right=True) - 1).clamp(max=len(listed) - 1)]
    served = known & (number < end[first[expert + 1]])
    return torch.where(served, chosen, -1).to(ids.dtype).view(ids.shape)
