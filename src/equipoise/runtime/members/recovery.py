"""A model on other ranks than before: some have died or left, some have come.

Every rank looks at what its slots hold (``holdings``). Rank 0 decides what they shall hold
(``decision``), and of that every rank keeps what it has, copies from its peers what they have, and
reads the rest from the checkpoint (``filling``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor

from equipoise.control.messages import decode, encode
from equipoise.dispatch import Dispatcher
from equipoise.errors import EquipoiseError
from equipoise.plan.weigh.failover import Content
from equipoise.runtime.members.agreement import ProcessGroup, gather
from equipoise.runtime.members.decision import Decision, decide
from equipoise.runtime.members.filling import Filling
from equipoise.runtime.members.holdings import Brought, held_by, served_by
from equipoise.runtime.moe.checkpoint import Checkpoint
from equipoise.runtime.moe.layer import ExpertFunction, ExpertParallelLayer, swiglu
from equipoise.runtime.moe.model import ExpertParallelModel, assemble
from equipoise.topology import Topology

T = TypeVar("T")


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
    group: ProcessGroup = None,
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
    brought = _everywhere(part.bring, Brought, group)
    try:
        decision = _everywhere(
            lambda: decide(brought, topology, load_LE, slots_per_rank) if rank == 0 else None,
            Decision | None,
            group,
        )[0]
    except RankError as error:  # any other rank would decide the same
        raise EquipoiseError(str(error)) from error
    assert decision is not None  # of rank 0
    for row in range(decision.placement.num_layers):
        filling = Filling(decision, row, rank, part.old_weights(row), part.device)
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


class _Part:
    """A rank's model while it is rebuilt: the one it has, or a new one."""

    def __init__(self, model: ExpertParallelModel | None, checkpoint: Checkpoint | None) -> None:
        self._model, self._checkpoint = model, checkpoint
        self._layers: list[ExpertParallelLayer] = []

    def bring(self) -> Brought:
        """Look at what there is; of a new model, load all but the routed experts."""
        checkpoint = self._checkpoint
        has = None if checkpoint is None else (checkpoint.layer_ids, checkpoint.num_experts)
        if self._model is None:
            if checkpoint is None:
                raise EquipoiseError("There is no model on this rank, and no checkpoint of one.")
            self.device = checkpoint.device
            self._body = checkpoint.read_rest()
            return Brought(None, [], [], has)
        self._model.stop_recording()
        self.device = next(iter(self._model.layers[0].weights.values())).device
        held, wrong = zip(*map(held_by, self._model.layers), strict=True)
        return Brought(
            served_by(self._model), list(held), [text for of in wrong for text in of], has
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


def _everywhere(do: Callable[[], T], kind: Any, group: ProcessGroup) -> list[T]:
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


def _recovered(brought: Sequence[Brought], decision: Decision, began: float) -> Recovered:
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
