"""Four ranks that balance a model with model runner V2's own controller, state and policies.

    python -m tests.integration.ascend.ranks_v2 ANSWER

with the folder of the release first on the path. What vllm-ascend's STAIR and ours came to is
written to ``ANSWER``. With vLLM's policy 0.30.0rc2 moves nothing: it waits for loads that no code
reports for a policy without windows. Stand-ins are those for vLLM and for vllm-ascend, and the
communicator is vLLM's: vllm-ascend's own pin memory for a device.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.integration.ascend import stand_ins

REBALANCES = 20

if __name__ == "__main__":
    stand_ins.install()

from tests.integration.vllm import stand_ins as of_vllm  # noqa: E402  after the stand-ins
from tests.integration.vllm.ranks import Rank, serve  # noqa: E402


class Model(of_vllm.Model):
    """A model whose layers have vllm-ascend's tables of where each token of an expert goes."""

    def set_eplb_state(self, load: Any, slots: Any, counts: Any) -> None:
        from vllm_ascend.distributed.eplb.eplb_state import AscendEplbLayerState

        self.moe_layers = []
        for layer in range(self.num_moe_layers):
            state = AscendEplbLayerState()
            state.set_layer_state(layer, load, slots, counts)
            self.moe_layers.append(SimpleNamespace(eplb_state=state))

    def lost_rows(self, slots: Any) -> int:
        """Entries of the tables that send an expert's token to a slot without it, ``(L, S)``."""
        lost = 0
        for layer, held in zip(self.moe_layers, slots, strict=True):
            table = layer.eplb_state.expert_replica_routing_table.long()  # (rows, E)
            lost += int((held[table] != held.new_tensor(range(table.shape[1]))).sum())
        return lost


class RankV2(Rank):
    """A rank whose state and policy vllm-ascend makes."""

    variable = "EQUIPOISE_ASCEND"
    policy = "stair"
    steps = 20
    """A layer takes two steps to move, since whether all are ready is known a step later."""

    def new_model(self) -> Any:
        from tests.integration.vllm.ranks import EXPERTS, LAYERS, RANKS

        return Model(self.rank, RANKS, LAYERS, EXPERTS, self.slots)

    def new_state(self, config: Any) -> Any:
        import torch
        from vllm_ascend.ascend_config import EplbConfig
        from vllm_ascend.worker.v2.eplb import AscendEPLBController

        stand_ins.device_of_state()
        config.eplb_config.policy = self.policy
        self.controller = AscendEPLBController(config, torch.device("cpu"), EplbConfig())
        self.controller.prepare_load()
        state = self.controller.state
        state.device_index = 0
        return state

    def run(self, rebalances: int) -> None:
        """Begin with the weights of vllm-ascend's own layout."""
        (model,) = self.state.model_states.values()
        self.model.hold(model.physical_to_logical_map)
        super().run(rebalances)
        self.served.counted = model._load_mapping_generation

    def begin_step(self) -> None:
        (model,) = self.state.model_states.values()
        self.served.wrong += self.model.lost_rows(model.physical_to_logical_map)
        self.controller.set_batch_phase(batch_has_prefill=False)
        self.controller.prepare_forward(of_vllm.ModelConfig(), num_unpadded_tokens=0)


class DefaultRank(RankV2):
    """The same where vLLM's policy is set."""

    policy = "default"


def main() -> None:
    answer = Path(sys.argv[1])
    found = {}
    for name, rank_class, options in (
        ("STAIR", RankV2, None),
        ("ours", RankV2, "{}"),
        ("ours for default", DefaultRank, "{}"),
    ):
        folder = answer.parent / name.replace(" ", "-")
        folder.mkdir()
        served = serve(
            folder,
            options=options,
            rebalances=REBALANCES,
            use_async=True,
            rank_class=rank_class,
            seconds=600,  # STAIR plans for seconds, each rank by itself
        )
        found[name] = asdict(served)
    answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
