"""A model on other ranks than before: some have died or left, some have joined.

Every rank looks at what its slots hold (``holdings``). Rank 0 decides what they are to hold
(``decision``). Then every rank keeps the experts it has, copies those that other ranks have, and
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
from equipoise.runtime.moe.layer import ExpertFunction, ExpertParallelLayer
from equipoise.runtime.moe.model import ExpertParallelModel, assemble
from equipoise.topology import Topology
from equipoise.units import duration, size

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """The result of a rebuild; ranks differ only in the time. ``str`` gives a sentence or two.

    Parameters
    ----------
    num_ranks
        Number of ranks that serve now.
    newcomers
        Number of ranks among them that had no model.
    kept, copied, reloaded
        Numbers of slots, over all layers and ranks: left as they were, copied from a rank that had
        the expert, read from the checkpoint.
    wrong
        Slots that did not hold the bytes they should, one sentence each; none of them serves.
    slots_per_rank
        Number of slots of a layer on each rank.
    more_bytes
        Bytes of memory that each rank now takes for experts beyond what it took before.
    seconds
        Time that it took this rank.
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
            f"{self.copied} copied, {self.reloaded} reloaded in {duration(self.seconds)}."
        )
        if self.wrong:
            text += f" {len(self.wrong)} slots held wrong bytes and are not used."
        if self.more_bytes > 0:
            text += (
                f" Each rank now has {self.slots_per_rank} slots a layer, which take "
                f"{size(self.more_bytes)} more."
            )
        return text


class RankError(EquipoiseError):
    """An error on one rank; only that rank cannot go on.

    Parameters
    ----------
    rank, text
        Number of the rank, and what went wrong, a sentence.
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
    compute: ExpertFunction | None = None,
    dispatch: str | Dispatcher = "even",
    max_num_tokens: int | None = None,
) -> tuple[ExpertParallelModel, Recovered]:
    """Serve a model on the ranks of a new process group, whatever each of them holds.

    Every rank of the process group has to call it. If it raises, call it again with the same model
    and another process group: it keeps what was done by then. Recording ends.

    Parameters
    ----------
    model
        Model that this rank has served, over a process group that may be dead; changed in place.
        ``None`` on a new rank.
    checkpoint
        Checkpoint that the model was loaded from. ``None``: there is none, so a lost expert is an
        error, and so is a rank without a model.
    topology
        Topology for a number of ranks; called on rank 0.
    group
        Process group of the ranks; ``None``: all processes.
    load_LE
        Loads to balance, ``(L, E)``; read on rank 0. ``None`` or all zero: equal loads.
    slots_per_rank
        Number of slots of a layer on each rank, raised if all experts need more; read on rank 0.
        ``None``: the same as before.
    compute
        Function that computes the experts. ``None``: the one that the model has used; on a new
        rank, the one of the checkpoint.
    dispatch, max_num_tokens
        See ``ExpertParallelLayer``.

    Raises
    ------
    EquipoiseError
        On every rank: experts are lost and there is no checkpoint; the checkpoint is of another
        model; no rank has a model; ranks have different models; the ranks have too little room for
        all experts.
    RankError
        On every rank: something went wrong on one of them; the others can go on without it.
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
    except RankError as error:  # another rank in its place would fail in the same way
        raise EquipoiseError(str(error)) from error
    assert decision is not None  # rank 0 has decided
    for row in range(decision.placement.num_layers):
        filling = Filling(decision, row, rank, part.old_weights(row), part.device)
        _everywhere(partial(filling.prepare, checkpoint), None, group)
        filling.exchange(group)
        layer = ExpertParallelLayer(
            decision.placement.rows([row]),
            filling.new,
            compute=compute or part.compute,
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
        """Look at what this rank has; a new rank loads all but the routed experts."""
        checkpoint = self._checkpoint
        has = None if checkpoint is None else (checkpoint.layer_ids, checkpoint.num_experts)
        if self._model is None:
            if checkpoint is None:
                raise EquipoiseError("This rank has neither a model nor a checkpoint of one.")
            self.device = checkpoint.device
            self._body = checkpoint.read_rest()
            return Brought(None, [], [], has)
        self._model.stop_recording()
        self.device = next(iter(self._model.layers[0].weights.values())).device
        held, wrong = zip(*map(held_by, self._model.layers), strict=True)
        return Brought(
            served_by(self._model), list(held), [text for of in wrong for text in of], has
        )

    @property
    def compute(self) -> ExpertFunction:
        """Return the function that the experts have computed so far, or that of the checkpoint."""
        if self._model is not None:
            return self._model.layers[0].compute
        assert self._checkpoint is not None  # see ``bring``
        return self._checkpoint.compute

    def old_weights(self, row: int) -> dict[str, Tensor]:
        """Weights in the slots of a layer; empty in a new model."""
        return {} if self._model is None else self._model.layers[row].weights

    def put(self, row: int, layer: ExpertParallelLayer) -> None:
        """Let the new layer serve, which frees the memory of the old one."""
        if self._model is None:
            self._layers.append(layer)
        else:
            self._model.replace(row, layer)

    @property
    def model(self) -> ExpertParallelModel:
        """The model, once all layers are in place."""
        return self._model or assemble(self._body, self._layers)


def _everywhere(do: Callable[[], T], kind: Any, group: ProcessGroup) -> list[T]:
    """Call a function on every rank and gather the results; one rank's error is raised on all."""
    made: T | None = None
    failure: Exception | None = None
    try:
        made = do()
    except Exception as error:  # of any kind: the others must not wait for this rank
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
