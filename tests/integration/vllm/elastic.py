"""Four ranks of which one leaves and comes back, through vLLM's own state and weight movement.

The order is that of vLLM's elastic code, which needs engines on GPUs around it: to shrink, experts
move while all ranks are still there, then those that stay change their groups; to grow, the groups
change first.
"""

from __future__ import annotations

from typing import Any

from tests.integration.vllm.ranks import EXPERTS, RANKS, Rank

PER_RANK = 12
STAY = RANKS - 1
assert PER_RANK * STAY >= EXPERTS


class ElasticRank(Rank):
    """A rank of a group whose last rank leaves in the middle and comes back."""

    slots = RANKS * PER_RANK

    def run(self, rebalances: int) -> None:
        """Serve with all ranks, with one fewer, and with all again."""
        self._enter(RANKS)
        self._steps(rebalances)
        self._shrink()
        if self.rank < STAY:
            self._steps(rebalances)
        self._grow()
        self._steps(rebalances)

    def _shrink(self) -> None:
        (model,) = self.state.model_states.values()
        before = model.physical_to_logical_map[:, : STAY * PER_RANK].clone()
        mapping = {rank: rank if rank < STAY else -1 for rank in range(RANKS)}
        self.state.rearrange(rank_mapping=mapping, use_last_expert_load=True)
        after = model.physical_to_logical_map
        assert after.shape[1] == STAY * PER_RANK
        self.served.resized.append(int((after != before).sum()))
        self._enter(STAY)
        if self.rank < STAY:
            self._resize(STAY)

    def _grow(self) -> None:
        import torch
        from vllm.distributed.parallel_state import get_ep_group

        from tests.integration.vllm import stand_ins

        (model,) = self.state.model_states.values()
        self._enter(RANKS)
        self._resize(RANKS)
        if self.rank >= STAY:
            self.model.forget()
        in_force = model.physical_to_logical_map.clone()
        in_force[:, STAY * PER_RANK :] = -1
        torch.distributed.broadcast(in_force, 0, group=get_ep_group().cpu_group)
        self.state.update_mapping(stand_ins.ModelConfig(), in_force)
        self.state.rearrange(use_last_expert_load=True)
        self.served.resized.append(int((model.physical_to_logical_map != in_force).sum()))

    def _enter(self, num_ranks: int) -> None:
        """Change to groups of the first ranks; every rank that is left out has its own."""
        from vllm.distributed import parallel_state

        from tests.integration.vllm import stand_ins

        ranks = [list(range(num_ranks)), *([rank] for rank in range(num_ranks, RANKS))]
        ep, eplb = (stand_ins.elastic_group(ranks, self.rank, name) for name in ("ep", "eplb"))
        parallel_state._EP, parallel_state._EPLB = ep, eplb
        communicator: Any = self.state.create_communicator(stand_ins.ModelConfig(), eplb)
        self.state.update_communicator(stand_ins.ModelConfig(), communicator)

    def _resize(self, num_ranks: int) -> None:
        from tests.integration.vllm import stand_ins

        slots = num_ranks * PER_RANK
        self.state.reconfigure_physical_expert_slots(stand_ins.ModelConfig(), slots)
        self.model.resize(num_ranks)
