"""Four ranks that balance a model with model runner V2's own controller, state and policies.

    python -m tests.integration.ascend.ranks_v2 ANSWER

with the folder of the release first on the path. What vLLM's own policy, vllm-ascend's STAIR and
ours came to is written to ``ANSWER``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
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
        return state

    def begin_step(self) -> None:
        from tests.integration.vllm import stand_ins

        self.controller.set_batch_phase(batch_has_prefill=False)
        self.controller.prepare_forward(stand_ins.ModelConfig(), num_unpadded_tokens=0)


class DefaultRank(RankV2):
    """The same with vLLM's policy."""

    policy = "default"


def main() -> None:
    answer = Path(sys.argv[1])
    found = {
        f"{policy.policy}, {name}": asdict(
            serve(
                folder(answer.parent / f"{policy.policy}-{name}"),
                options=options,
                rebalances=REBALANCES,
                use_async=True,
                rank_class=policy,
            )
        )
        for policy in (DefaultRank, RankV2)
        for name, options in (("stock", None), ("ours", "{}"))
    }
    answer.write_text(json.dumps(found))


def folder(path: Path) -> Path:
    path.mkdir()
    return path


if __name__ == "__main__":
    main()
