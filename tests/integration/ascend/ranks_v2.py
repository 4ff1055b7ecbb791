"""Four ranks that balance a model with model runner V2's own controller, state and policies.

    python -m tests.integration.ascend.ranks_v2 ANSWER

with the folder of the release first on the path. What vllm-ascend's STAIR and ours came to is
written to ``ANSWER``. With vLLM's policy 0.30.0rc2 moves nothing: it waits for loads that no code
reports for a policy without windows.
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

from tests.integration.vllm.ranks import Rank, serve  # noqa: E402  after the stand-ins


class RankV2(Rank):
    """A rank whose state and policy vllm-ascend makes."""

    variable = "EQUIPOISE_ASCEND"
    policy = "stair"

    def new_state(self, config: Any) -> Any:
        import torch
        from vllm.distributed.eplb import eplb_state
        from vllm_ascend.ascend_config import EplbConfig
        from vllm_ascend.worker.v2.eplb import AscendEPLBController

        eplb_state.EplbState.cuda_device_index = 0  # 0.32 calls it device_index
        config.eplb_config.policy = self.policy
        self.controller = AscendEPLBController(config, torch.device("cpu"), EplbConfig())
        self.controller.prepare_load()
        state = self.controller.state
        state.device_index = 0
        state.should_record_tensor = torch.ones((), dtype=torch.bool)  # shared by routers, if any
        return state

    def run(self, rebalances: int) -> None:
        """Begin with the weights of vllm-ascend's own layout."""
        (model,) = self.state.model_states.values()
        self.model.hold(model.physical_to_logical_map)
        self.model.moe_layers = [SimpleNamespace(eplb_state=None)] * self.model.num_moe_layers
        super().run(rebalances)

    def begin_step(self) -> None:
        from tests.integration.vllm import stand_ins

        self.controller.set_batch_phase(batch_has_prefill=False)
        self.controller.prepare_forward(stand_ins.ModelConfig(), num_unpadded_tokens=0)


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
        )
        found[name] = asdict(served)
    answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
