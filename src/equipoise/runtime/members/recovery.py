"""A model on other ranks than before: some have died or left, some have come.

What a slot holds is what its bytes say, whatever a placement says of it: moves that were under way
when a rank died may have been made on some ranks and not on others. Rank 0 decides what the slots
shall hold, and of that every rank keeps what it has, copies from its peers what they have, and
reads the rest from the checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from equipoise.balance import check_count
from equipoise.control.messages import decode, encode
from equipoise.dispatch import Dispatcher
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.plan.problem import Problem
from equipoise.plan.weigh.failover import Content, refit
from equipoise.runtime.members.agreement import Group, gather
from equipoise.runtime.moe.checkpoint import Checkpoint
from equipoise.runtime.moe.layer import ExpertFunction, ExpertParallelLayer, swiglu
from equipoise.runtime.moe.model import ExpertParallelModel, assemble
from equipoise.runtime.moving.checksum import expert_checksum, slot_bytes
from equipoise.topology import Topology

Ints = NDArray[np.int64]
T = TypeVar("T")

logger = logging.getLogger("equipoise.runtime")


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What a rebuild has done; but for the time the same on every rank. As text, a sentence or two.

    Parameters
    ----------
    num_ranks
        Ranks that serve now.
    newcomers
        Those of them that had nothing.
    kept, copied, reloaded
        Slots, all layers and ranks together: left as they were, filled from a rank that had the
        expert, read from the checkpoint.
    wrong
        Slots that held other bytes than they should have, one sentence each; none of them serves.
    slots_per_rank
        Slots of a layer on each rank.
    more_bytes
        Memory that each rank now takes for experts beyond what it took before.
    seconds
        How long it took this rank.
    """

    num_ranks: int
    newcomers: int
    kept: int
    copied: int
    reloaded: int
    wrong: tuple[str, ...]
    slots_per_rank: int
    more_bytes: int
    seconds: float

    def __str__(self) -> str:
        text = (
            f"{self.num_ranks} ranks ({self.newcomers} new) serve: {self.kept} slots kept, "
            f"{self.copied} copied, {self.reloaded} reloaded in {self.seconds:.2f} s."
        )
        if self.wrong:
            text += f" {len(self.wrong)} slots held what they should not."
        if self.more_bytes > 0:
            text += (
                f" Each rank now has {self.slots_per_rank} slots a layer, which take "
                f"{self.more_bytes / 2**20:.1f} MiB more."
            )
        return text


class RankError(EquipoiseError):
    """Something went wrong on one rank, which alone cannot go on.

    Parameters
    ----------
    rank, text
        Which, and what, a sentence.
    """

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(f"Rank {rank}: {text}")
        self.rank = rank


def rebuild(
    model: ExpertParallelModel | None,
    checkpoint: Checkpoint | None,
    *,
    topology: Callable[[int], Topology] = Topology,
    group: Group = None,
    load_LE: ArrayLike | None = None,
    slots_per_rank: int | None = None,
    compute: ExpertFunction = swiglu,
    dispatch: str | Dispatcher = "even",
    max_num_tokens: int | None = None,
) -> tuple[ExpertParallelModel, Recovered]:
    """Have a model served by the ranks of a new group, whatever each of them holds.

    Every rank of the group has to call it. Where it raises, the model can be given to it again,
    with another group: what has been done by then counts. Recording ends.

    Parameters
    ----------
    model
        What this rank has served, over a group that may be dead; changed in place. ``None`` on a
        rank that is new.
    checkpoint
        What the model was loaded from. ``None``: there is none, an expert that is lost is an error,
        and so is a rank without a model.
    topology
        The devices, from their number; asked on rank 0.
    group
        The ranks; ``None``: all processes.
    load_LE
        Loads to balance, ``(L, E)``; read on rank 0. ``None``, or no load at all: all alike.
    slots_per_rank
        Slots of a layer on each rank, more if it takes more to hold all experts; read on rank 0.
        ``None``: as many as before.
    compute, dispatch, max_num_tokens
        See ``ExpertParallelLayer``.

    Raises
    ------
    EquipoiseError
        On every rank: experts that are lost, and no checkpoint; a checkpoint of another model; no
        rank with a model; ranks with different models; ranks without room for all experts.
    RankError
        On every rank: what went wrong on one of them; the others may go on without it.
    """
    began, rank = time.monotonic(), dist.get_rank(group)
    part = _Part(model, checkpoint)
    brought = _everywhere(part.bring, _Brought, group)
    try:
        decision = _everywhere(
            lambda: _decide(brought, topology, load_LE, slots_per_rank) if rank == 0 else None,
            _Decision | None,
            group,
        )[0]
    except RankError as error:  # any other rank would decide the same
        raise EquipoiseError(str(error)) from error
    assert decision is not None  # of rank 0
    for row in range(decision.placement.num_layers):
        filling = _Filling(decision, row, rank, part.old_weights(row), part.device)
        _everywhere(partial(filling.prepare, checkpoint), None, group)
        filling.exchange(group)
        layer = ExpertParallelLayer(
            decision.placement.rows([row]),
            filling.new,
            compute=compute,
            dispatch=dispatch,
            topology=decision.topology,
            group=group,
            max_num_tokens=max_num_tokens,
        )
        decision.check_served(row, layer)
        part.put(row, layer)
    return part.model, _recovered(brought, decision, began)


@dataclass(frozen=True)
class _Served:
    """What those that have served a model know of it; all have to know the same.

    Parameters
    ----------
    layer_ids, num_experts
        Of the model.
    checksums
        Of each expert of each layer.
    tensors
        Of an expert of each layer: shape and type by name.
    """

    layer_ids: tuple[int, ...]
    num_experts: int
    checksums: tuple[tuple[int, ...], ...]
    tensors: tuple[dict[str, tuple[tuple[int, ...], str]], ...]

    @property
    def slot_bytes(self) -> int:
        """What one slot more in every layer takes."""
        return sum(
            math.prod(shape) * _dtype(dtype).itemsize
            for of_layer in self.tensors
            for shape, dtype in of_layer.values()
        )


@dataclass(frozen=True)
class _Brought:
    """What a rank brings along.

    Parameters
    ----------
    served
        The model; ``None`` on a rank that is new.
    held
        The expert of each slot of each layer, -1 for one that nobody knows.
    wrong
        Slots that do not hold what they should.
    checkpoint
        Layers and experts of the model in it; ``None`` without one.
    """

    served: _Served | None
    held: list[list[int]]
    wrong: list[str]
    checkpoint: tuple[tuple[int, ...], int] | None


@dataclass(frozen=True, eq=False)
class _Decision:
    """What every slot shall hold and where it has it from.

    Parameters
    ----------
    served
        The model.
    topology
        The ranks there are now.
    slots
        The expert of each slot, ``(L, S)``.
    content
        The ``Content`` of each slot, ``(L, S)``.
    source, position
        For what is copied, the rank that has it and where, ``(L, S)``: a slot of the new layer, or
        ``C`` and a slot of the old one. The rank is -1 for all else.
    """

    served: _Served
    topology: Topology
    slots: Ints
    content: NDArray[np.int8]
    source: Ints
    position: Ints

    @cached_property
    def placement(self) -> Placement:
        """The same as a placement."""
        return Placement(
            self.slots,
            num_ranks=self.topology.num_ranks,
            num_experts=self.served.num_experts,
            layer_ids=self.served.layer_ids,
        )

    def check_served(self, row: int, layer: ExpertParallelLayer) -> None:
        """Make sure that a layer has the experts that it had; on every rank alike."""
        for expert, known in enumerate(self.served.checksums[row]):
            if layer.checksums[expert] != known:
                raise EquipoiseError(
                    f"Layer {layer.layer_id}: expert {expert} has changed on its way between "
                    "ranks; rebuild again."
                )


class _Part:
    """A rank's model while it is rebuilt: the one it has, or a new one."""

    def __init__(self, model: ExpertParallelModel | None, checkpoint: Checkpoint | None) -> None:
        self._model, self._checkpoint = model, checkpoint
        self._layers: list[ExpertParallelLayer] = []

    def bring(self) -> _Brought:
        """Look at what there is; of a new model, load all but the routed experts."""
        checkpoint = self._checkpoint
        has = None if checkpoint is None else (checkpoint.layer_ids, checkpoint.num_experts)
        if self._model is None:
            if checkpoint is None:
                raise EquipoiseError("There is no model on this rank, and no checkpoint of one.")
            self.device = checkpoint.device
            self._body = checkpoint.read_rest()
            return _Brought(None, [], [], has)
        self._model.stop_recording()
        self.device = next(iter(self._model.layers[0].weights.values())).device
        held, wrong = zip(*map(_held, self._model.layers), strict=True)
        return _Brought(
            _served(self._model), list(held), [text for of in wrong for text in of], has
        )

    def old_weights(self, row: int) -> dict[str, Tensor]:
        """What the slots of a layer hold; nothing in a new model."""
        return {} if self._model is None else self._model.layers[row].weights

    def put(self, row: int, layer: ExpertParallelLayer) -> None:
        """Let the new layer serve; the old one's memory is free then."""
        if self._model is None:
            self._layers.append(layer)
        else:
            self._model.replace(row, layer)

    @property
    def model(self) -> ExpertParallelModel:
        """The model, once all layers are in place."""
        return self._model or assemble(self._body, self._layers)


@dataclass(eq=False)
class _Filling:
    """A rank's part in filling the slots of a layer.

    Parameters
    ----------
    decision, row
        What they shall hold.
    rank
        This one.
    old
        What its slots have held; nothing if it is new.
    device
        Where they are.
    """

    decision: _Decision
    row: int
    rank: int
    old: dict[str, Tensor]
    device: torch.device

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """Make ``new``, with what the slots keep, in place if their number stays, and reload."""
        C = self.decision.placement.slots_per_rank
        if self.old and all(len(tensor) == C for tensor in self.old.values()):
            self.new = self.old
        else:
            tensors = self.decision.served.tensors[self.row].items()
            self.new = {
                name: torch.empty((C, *shape), dtype=_dtype(dtype), device=self.device)
                for name, (shape, dtype) in tensors
            }
            for slot in self._slots(Content.KEPT):
                self._copy(slot, self.old, slot)
        if slots := self._slots(Content.RELOADED):
            assert checkpoint is not None  # or rank 0 would have refused
            self._reload(slots, checkpoint)

    def exchange(self, group: Group) -> None:
        """Copy what ranks have: one batch of messages, in an order that all of them share."""
        source, position = self.decision.source[self.row], self.decision.position[self.row]
        C = self.decision.placement.slots_per_rank
        operations = []
        for slot in np.flatnonzero(source >= 0).tolist():
            giver, at, taker = int(source[slot]), int(position[slot]), slot // C
            if giver == self.rank:
                origin, at = (self.new, at) if at < C else (self.old, at - C)
                if taker == giver:
                    self._copy(slot % C, origin, at)
                else:
                    operations += _messages(dist.isend, origin, at, group, taker)
            elif taker == self.rank:
                operations += _messages(dist.irecv, self.new, slot % C, group, giver)
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()

    def _slots(self, content: Content) -> list[int]:
        """Slots of this rank that have their expert from there."""
        by_rank = self.decision.content[self.row].reshape(self.decision.placement.num_ranks, -1)
        slots: list[int] = np.flatnonzero(by_rank[self.rank] == content).tolist()
        return slots

    def _copy(self, slot: int, origin: Mapping[str, Tensor], at: int) -> None:
        for name, tensor in self.new.items():
            tensor[slot] = origin[name][at]

    def _reload(self, slots: list[int], checkpoint: Checkpoint) -> None:
        served, layer_id = self.decision.served, self.decision.served.layer_ids[self.row]
        experts = self.decision.placement.by_rank[self.row, self.rank, slots].tolist()
        read = checkpoint.read_slots(layer_id, experts)
        for at, (slot, expert) in enumerate(zip(slots, experts, strict=True)):
            if int(expert_checksum(read, at)) != served.checksums[self.row][expert]:
                raise EquipoiseError(
                    f"Layer {layer_id}: expert {expert} is not in the checkpoint as it was served; "
                    "give the one that was loaded, in the same number format."
                )
            self._copy(slot, read, at)


def _messages(
    operation: Callable[..., object],
    weights: Mapping[str, Tensor],
    slot: int,
    group: Group,
    peer: int,
) -> list[dist.P2POp]:
    """An expert to or from a rank, one message a tensor."""
    return [
        dist.P2POp(operation, slot_bytes(weights[name], slot), group=group, group_peer=peer)
        for name in sorted(weights)
    ]


def _everywhere(do: Callable[[], T], kind: Any, group: Group) -> list[T]:
    """Do something on every rank: what each has made of it, of a type, or the same error on all."""
    made: T | None = None
    failure: Exception | None = None
    try:
        made = do()
    except Exception as error:  # whatever it is, the others must not wait for this rank
        failure = error
    mine = encode(made), None if failure is None else str(failure)
    told = gather(mine, tuple[bytes, str | None], group)
    for rank, (_, text) in enumerate(told):
        if text is not None:
            raise RankError(rank, text) from failure
    return [decode(answer, kind) for answer, _ in told]


def _held(layer: ExpertParallelLayer) -> tuple[list[int], list[str]]:
    """The expert of each slot, by its bytes, -1 if it is none; and slots it should not be in."""
    expert_of = {checksum: expert for expert, checksum in enumerate(layer.checksums)}
    supposed = layer.placement.by_rank[0, layer.rank].tolist()
    sums = torch.stack([expert_checksum(layer.weights, slot) for slot in range(len(supposed))])
    held, wrong = [], []
    for slot, (expert, checksum) in enumerate(zip(supposed, sums.tolist(), strict=True)):
        found = expert if layer.checksums[expert] == checksum else expert_of.get(checksum, -1)
        held.append(found)
        if found != expert:
            what = "bytes of no expert" if found < 0 else f"expert {found}"
            wrong.append(f"layer {layer.layer_id}, slot {slot}: {what} instead of expert {expert}.")
            logger.warning("A slot is not used: %s", wrong[-1])
    return held, wrong


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise EquipoiseError(f"Another rank has served tensors of type {name!r}, unknown here.")
    return found


def _served(model: ExpertParallelModel) -> _Served:
    return _Served(
        layer_ids=tuple(layer.layer_id for layer in model.layers),
        num_experts=model.layers[0].placement.num_experts,
        checksums=tuple(layer.checksums for layer in model.layers),
        tensors=tuple(
            {
                name: (tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
                for name, tensor in layer.weights.items()
            }
            for layer in model.layers
        ),
    )


def _decide(
    brought: Sequence[_Brought],
    topology: Callable[[int], Topology],
    load_LE: ArrayLike | None,
    slots_per_rank: int | None,
) -> _Decision:
    """What the slots shall hold, and from where."""
    served = _common(brought)
    devices, num_ranks = topology(len(brought)), len(brought)
    if devices.num_ranks != num_ranks:
        raise EquipoiseError(f"The topology has {devices.num_ranks} ranks, the group {num_ranks}.")
    if slots_per_rank is not None:
        check_count("slots_per_rank", slots_per_rank)
    held = _table(brought, len(served.layer_ids))
    wanted = max(slots_per_rank or held.shape[2], -(-served.num_experts // num_ranks))
    problem = Problem(
        _load(load_LE, served), devices, num_ranks * wanted, layer_ids=served.layer_ids
    )
    placement, content = refit(held, problem)
    _check_lost(placement, content, brought)
    source, position = _sources(held, placement, content)
    return _Decision(served, devices, placement.slots, content, source, position)


def _common(brought: Sequence[_Brought]) -> _Served:
    """What those who have served the model know of it; checkpoints have to be of it."""
    first = next((one.served for one in brought if one.served is not None), None)
    if first is None:
        raise EquipoiseError("No rank has a model that it has served; load one.")
    for rank, one in enumerate(brought):
        if one.served not in (None, first):
            raise EquipoiseError(
                f"Rank {rank} has served another model than the ranks before it; start it anew."
            )
        if one.checkpoint not in (None, (first.layer_ids, first.num_experts)):
            raise EquipoiseError(
                f"The checkpoint of rank {rank} is not that of the model, which has layers "
                f"{format_ids(first.layer_ids)} of {first.num_experts} experts."
            )
    return first


def _table(brought: Sequence[_Brought], num_layers: int) -> Ints:
    """The expert of each slot that ranks bring along, ``(L, R, C)``, -1 for none."""
    most = max(len(slots) for one in brought for slots in one.held)
    table = np.full((num_layers, len(brought), most), -1)
    for rank, one in enumerate(brought):
        for row, slots in enumerate(one.held):
            table[row, rank, : len(slots)] = slots
    return table


def _load(load_LE: ArrayLike | None, served: _Served) -> NDArray[np.float64]:
    shape = (len(served.layer_ids), served.num_experts)
    load = np.ones(shape) if load_LE is None else np.asarray(load_LE, dtype=np.float64)
    if load.shape != shape:
        raise EquipoiseError(
            f"Loads have shape {load.shape}; expected {shape[0]} layers of {shape[1]} experts."
        )
    return load if load.any() else np.ones(shape)


def _check_lost(
    placement: Placement, content: NDArray[np.int8], brought: Sequence[_Brought]
) -> None:
    """Who is to reload an expert needs a checkpoint."""
    without = np.array([one.checkpoint is None for one in brought])
    lost = (content == Content.RELOADED) & without[placement.rank_of_slot]
    if lost.any():
        where = "; ".join(
            f"layer {layer_id}: {format_ids(sorted(slots[at].tolist()))}"
            for layer_id, slots, at in zip(placement.layer_ids, placement.slots, lost, strict=True)
            if at.any()
        )
        raise EquipoiseError(
            f"No rank has these experts any more, and there is no checkpoint: {where}."
        )


def _sources(held_LRC: Ints, placement: Placement, content: NDArray[np.int8]) -> tuple[Ints, Ints]:
    """Where what is copied comes from, as in ``_Decision``: the slot's own rank, or the lowest.

    From a slot that keeps or reloads the expert if there is one: it is not written meanwhile. There
    is one unless a rank gives up slots, whose content then has a memory of its own.
    """
    C = placement.slots_per_rank
    source, position = np.full(content.shape, -1), np.full(content.shape, -1)
    for row, slot in np.argwhere(content == Content.COPIED):
        expert = placement.slots[row, slot]
        stays = np.flatnonzero((placement.slots[row] == expert) & (content[row] != Content.COPIED))
        options = [divmod(int(s), C) for s in stays]
        if not options:
            options = [(rank, C + at) for rank, at in np.argwhere(held_LRC[row] == expert).tolist()]
        source[row, slot], position[row, slot] = min(
            options, key=lambda option: (option[0] != slot // C, option)
        )
    return source, position


def _recovered(brought: Sequence[_Brought], decision: _Decision, began: float) -> Recovered:
    kept, copied, reloaded = ((decision.content == content).sum() for content in Content)
    before = max(len(slots) for one in brought for slots in one.held)
    size = decision.placement.slots_per_rank
    return Recovered(
        num_ranks=len(brought),
        newcomers=sum(one.served is None for one in brought),
        kept=int(kept),
        copied=int(copied),
        reloaded=int(reloaded),
        wrong=tuple(f"Rank {r}, {text}" for r, one in enumerate(brought) for text in one.wrong),
        slots_per_rank=size,
        more_bytes=(size - before) * decision.served.slot_bytes,
        seconds=time.monotonic() - began,
    )
