"""The routed experts of one layer, spread with copies over the ranks of a process group.

Letters: ``D`` tokens of this rank, ``K`` choices of a token, ``H`` width of the model, ``C`` slots
of a rank; ``R``, ``S``, ``E`` as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.checks import check_count
from equipoise.dispatch import Dispatcher
from equipoise.dispatch.chunking import chunk_tokens
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.runtime.members.agreement import ProcessGroup, agree, peers
from equipoise.runtime.moe.assignment import TokenAssignment, token_assignment
from equipoise.runtime.moe.recorder import LoadRecorder, count_experts
from equipoise.runtime.moving.checksum import expert_checksum
from equipoise.runtime.moving.store import write_slots
from equipoise.topology import Topology


class ExpertFunction(Protocol):
    """The function that the experts of a rank compute."""

    def __call__(
        self, rows: Tensor, counts: Sequence[int], weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Apply to each row the expert of its slot.

        Parameters
        ----------
        rows
            Tokens ``(n, H)``, those of slot 0 first.
        counts
            Number of rows of each slot, ``C`` numbers that sum to ``n``.
        weights
            Tensors by name, ``(C, ...)`` each.

        Returns
        -------
        ``(n, H)``, in the order of ``rows``.
        """
        ...


def swiglu(rows: Tensor, counts: Sequence[int], weights: Mapping[str, Tensor]) -> Tensor:
    """Compute gated experts, ``down(silu(gate(x)) * up(x))``, as in Mixtral, Qwen-MoE and DeepSeek.

    Weights are ``gate_up_proj`` ``(C, 2 F, H)``, gate first, and ``down_proj`` ``(C, H, F)``.
    """

    def expert(slot: int, part: Tensor) -> Tensor:
        gate_up = nn.functional.linear(part, weights["gate_up_proj"][slot])
        gate, up = gate_up.chunk(2, dim=-1)
        inner = nn.functional.silu(gate) * up
        return nn.functional.linear(inner, weights["down_proj"][slot])

    return each_slot(expert, rows, counts)


def each_slot(
    expert: Callable[[int, Tensor], Tensor], rows: Tensor, counts: Sequence[int]
) -> Tensor:
    """Compute one expert after the other: ``expert(slot, its rows)`` of those that have rows."""
    parts = [rows[:0]]
    for slot, part in enumerate(torch.split(rows, list(counts))):
        if len(part):
            parts.append(expert(slot, part))
    return torch.cat(parts)


class ExpertParallelLayer(nn.Module):
    """The routed experts of a layer: this rank computes those in its slots, for all ranks' tokens.

    Transformers calls it in place of the experts of a layer; the router and a shared expert stay
    with the model. In every forward pass the ranks exchange how many assignments each expert has,
    share them over the copies by the same rule, send every assignment to its slot and get the
    result back. The results of a token are added on its own rank in the order of its choices, so no
    sum depends on where experts are.

    The constructor and the call are collective: every rank of the process group takes part, and a
    rank without tokens calls it with none.

    Parameters
    ----------
    placement
        Placement of this layer, one row.
    weights
        Tensors in this rank's slots by name, ``(C, ...)`` each: everything that belongs to an
        expert, scales included. The layer keeps them and changes them in place when experts move.
    compute
        Function that computes the experts.
    dispatch
        Dispatcher or its name, whose quotas are met exactly; or another ``TokenAssignment``.
    topology
        Speeds and nodes of the ranks, for a dispatcher given by name.
    group
        Process group of the ranks; ``None``: all processes.
    max_num_tokens
        Number of tokens, over all ranks, beyond which a forward pass is served in chunks;
        ``None``: always in one.

    Raises
    ------
    EquipoiseError
        On every rank: the ranks disagree, or copies of an expert differ. On this rank: the
        placement has several layers or is for other ranks, or the weights are for other slots.
    """

    def __init__(
        self,
        placement: Placement,
        weights: Mapping[str, Tensor],
        *,
        compute: ExpertFunction = swiglu,
        dispatch: str | Dispatcher | TokenAssignment = "even",
        topology: Topology | None = None,
        group: ProcessGroup = None,
        max_num_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if max_num_tokens is not None:
            check_count("max_num_tokens", max_num_tokens)
        self.rank = dist.get_rank(group)
        self.group = group
        _check(placement, weights, dist.get_world_size(group))
        self.placement = placement
        self._names = tuple(sorted(weights))
        for number, name in enumerate(self._names):  # names of buffers are restricted
            held = weights[name].detach().contiguous()
            self.register_buffer(f"_slots_{number}", held, persistent=False)
        self.compute = compute
        self.assignment = token_assignment(dispatch, topology)
        self.max_num_tokens = max_num_tokens
        self.recorder: LoadRecorder | None = None
        self.meter: Callable[[NDArray[np.int64]], None] | None = None
        """Function called with the assignments of each rank in every chunk, ``(R,)``."""
        self.tally: Callable[[NDArray[np.int64]], None] | None = None
        """Function called with this rank's assignments to each slot in every chunk, ``(S,)``."""
        self.real: Tensor | None = None
        agree(
            f"layer {self.layer_id}",
            f"placement {placement.checksum[:12]}, {self.assignment}, {max_num_tokens=}",
            group,
        )
        self.checksums = self._gather_checksums()

    @property
    def layer_id(self) -> int:
        """The model's number of this layer."""
        return self.placement.layer_ids[0]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights in this rank's slots, ``(C, ...)`` each; the tensors themselves, no copies."""
        return {name: self.get_buffer(f"_slots_{n}") for n, name in enumerate(self._names)}

    def commit(
        self, placement: Placement, slots: Iterable[int], contents: Mapping[str, Tensor]
    ) -> None:
        """Serve another placement from now on, see ``SlotStore``; weights change in place."""
        write_slots(self.weights, slots, contents)
        self.placement = placement

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Serve the tokens of all ranks.

        Tokens that are false in ``self.real``, ``(D,)`` bool, and ids outside ``[0, E)`` are served
        by no expert: their result is zero.

        Parameters
        ----------
        hidden_states
            Hidden states of the tokens, ``(D, H)``.
        top_k_index, top_k_weights
            Chosen experts, and the factors of their results, ``(D, K)``.

        Returns
        -------
        ``(D, H)``, of the type of ``hidden_states``.

        Raises
        ------
        EquipoiseError
            Shapes do not fit; the other ranks then wait until their time-out.
        """
        _check_given(hidden_states, top_k_index, top_k_weights)
        ids_DK = top_k_index
        if self.real is not None:
            ids_DK = torch.where(self.real[:, None], ids_DK, -1)
        counts = count_experts(ids_DK, self.placement.num_experts)
        if self.recorder is not None:
            self.recorder.add(self.layer_id, counts)
        loads, sizes = self._loads(ids_DK, counts)
        given = (hidden_states, ids_DK, top_k_weights)
        chunks = zip(loads, *(torch.split(one, sizes) for one in given), strict=True)
        return torch.cat([hidden_states[:0], *(self._serve(*chunk) for chunk in chunks)])

    def _loads(self, ids_DK: Tensor, counts: Tensor) -> tuple[NDArray[np.int64], list[int]]:
        """Assignments of each chunk by source rank, ``(chunks, R, E)``; this rank's tokens in each.

        Takes one collective, and a second one if there are several chunks.
        """
        tokens = counts.new_full((1,), len(ids_DK))
        load_RE = self._gather(torch.cat([counts, tokens]))
        if self.max_num_tokens is None:
            return load_RE[None, :, :-1], [len(ids_DK)]
        sizes_RC = chunk_tokens(load_RE[:, -1], self.max_num_tokens)
        sizes = sizes_RC[self.rank].tolist()
        if len(sizes) < 2:
            return load_RE[None, :, :-1][: len(sizes)], sizes
        E = self.placement.num_experts
        by_chunk = torch.stack([count_experts(part, E) for part in torch.split(ids_DK, sizes)])
        return self._gather(by_chunk).swapaxes(0, 1), sizes

    def _gather(self, mine: Tensor) -> NDArray[np.int64]:
        """Gather a tensor of every rank, ``(R, ...)``."""
        every = mine.new_empty((self.placement.num_ranks, *mine.shape))
        with peers():
            dist.all_gather(list(every), mine.contiguous(), group=self.group)
        gathered: NDArray[np.int64] = every.cpu().numpy()
        return gathered

    def _serve(
        self, load_RE: NDArray[np.int64], hidden_DH: Tensor, ids_DK: Tensor, weight_DK: Tensor
    ) -> Tensor:
        """Send the tokens of one chunk, serve those that arrive, and return the results."""
        assigned = self.assignment.assign(ids_DK, load_RE, self.placement, self.rank)
        quota_RS = self._tell(assigned.slots) if assigned.quotas is None else assigned.quotas
        D, K = ids_DK.shape
        C, R = self.placement.slots_per_rank, self.placement.num_ranks
        slots, order = assigned.slots.flatten().sort(stable=True)
        rows = order[slots >= 0]  # to send, by slot and then by token
        sent = quota_RS[self.rank].reshape(R, C).sum(axis=1)
        took_RC = quota_RS.reshape(R, R, C)[:, self.rank]
        took = took_RC.sum(axis=1)
        if self.meter is not None:
            self.meter(quota_RS.reshape(R, R, C).sum(axis=(0, 2)))
        if self.tally is not None:
            self.tally(quota_RS[self.rank])
        arrived = self._exchange(hidden_DH[rows // K], sent, took)
        answers = self._exchange(self._answer(arrived, took_RC), took, sent)
        answer = hidden_DH.new_zeros((D * K, hidden_DH.shape[1]))
        answer[rows] = answers
        return _combine(answer.view(D, K, hidden_DH.shape[1]), weight_DK)

    def _tell(self, slot_DK: Tensor) -> NDArray[np.int64]:
        """Number of assignments from every rank to each slot, ``(R, S)``; takes one collective."""
        return self._gather(count_experts(slot_DK, self.placement.num_slots))

    def _answer(self, arrived: Tensor, took_RC: NDArray[np.int64]) -> Tensor:
        """Compute this rank's experts on the rows that arrived, ordered by source and slot."""
        slot = np.tile(np.arange(took_RC.shape[1]), len(took_RC)).repeat(took_RC.ravel())
        by_slot = torch.from_numpy(np.argsort(slot, kind="stable")).to(arrived.device)
        answers = torch.empty_like(arrived)
        answers[by_slot] = self.compute(
            arrived[by_slot], took_RC.sum(axis=0).tolist(), self.weights
        )
        return answers

    def _exchange(self, rows: Tensor, sent: NDArray[np.int64], took: NDArray[np.int64]) -> Tensor:
        """Exchange rows with all ranks, given the numbers to send and to receive."""
        arrived = rows.new_empty((int(took.sum()), rows.shape[1]))
        with peers():
            dist.all_to_all_single(  # as bytes, which work for every number type
                arrived.view(torch.uint8),
                rows.view(torch.uint8),
                took.tolist(),
                sent.tolist(),
                group=self.group,
            )
        return arrived

    def _gather_checksums(self) -> tuple[int, ...]:
        """Gather the checksum of each expert, ``E`` numbers, and make sure that copies agree."""
        slots = range(self.placement.slots_per_rank)
        mine = torch.stack([expert_checksum(self.weights, slot) for slot in slots])
        of_slot = self._gather(mine).ravel().tolist()
        first: dict[int, int] = {}
        for slot, expert in enumerate(self.placement.slots[0].tolist()):
            twin = first.setdefault(expert, slot)
            if of_slot[twin] != of_slot[slot]:
                raise EquipoiseError(
                    f"Layer {self.layer_id}: slots {twin} and {slot} hold different weights; "
                    f"both are to hold expert {expert}."
                )
        return tuple(of_slot[first[expert]] for expert in range(self.placement.num_experts))


def _combine(answer_DKH: Tensor, weight_DK: Tensor) -> Tensor:
    """The weighted sum over choices, added in their order whatever the hardware."""
    total = torch.zeros_like(answer_DKH[:, 0])
    for k in range(answer_DKH.shape[1]):
        total += (answer_DKH[:, k] * weight_DK[:, k, None]).to(total.dtype)
    return total


def _check(placement: Placement, weights: Mapping[str, Tensor], num_ranks: int) -> None:
    if placement.num_layers != 1:
        raise EquipoiseError(f"The placement has {placement.num_layers} layers; expected one.")
    if placement.num_ranks != num_ranks:
        raise EquipoiseError(
            f"The placement is for {placement.num_ranks} ranks, the process group has {num_ranks}; "
            f"make a placement for {num_ranks} ranks."
        )
    if not weights:
        raise EquipoiseError("No weights; expected tensors of the experts by name.")
    for name, tensor in weights.items():
        if tensor.shape[:1] != (placement.slots_per_rank,):
            raise EquipoiseError(
                f"Weights {name!r} have shape {tuple(tensor.shape)}; expected "
                f"a first axis of {placement.slots_per_rank}, the slots of this rank."
            )


def _check_given(hidden_DH: Tensor, ids_DK: Tensor, weight_DK: Tensor) -> None:
    same = ids_DK.shape == weight_DK.shape and len(ids_DK) == len(hidden_DH)
    if not (hidden_DH.ndim == ids_DK.ndim == 2 and same):
        shapes = [tuple(one.shape) for one in (hidden_DH, ids_DK, weight_DK)]
        raise EquipoiseError(
            f"Tokens, choices and their weights have shapes {shapes[0]}, {shapes[1]} and "
            f"{shapes[2]}; expected (tokens, width) and twice (tokens, top_k)."
        )
