"""Give maps to a release's own reader: ``python -m tests.integration.ascend.readers MAPS ANSWER``.

``MAPS`` is a file of JSON, a list of ``[path, experts, ranks, layers]``. The answer has an entry
for each: what every rank holds, ``[layer][rank][slot]``, and where it sends each expert,
``[layer][rank][expert]``, or the reader's error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.integration.ascend import stand_ins


def read(path: str, experts: int, ranks: int, layers: int) -> Any:
    from vllm_ascend.eplb.core.eplb_utils import init_eplb_config

    config = stand_ins.Ascend(10, 2, 0, 2, path)
    held, sent = [], []
    try:
        for layer in range(layers):
            found = []
            for rank in range(ranks):
                moe = SimpleNamespace(
                    num_experts=experts, ep_size=ranks, ep_rank=rank, supports_eplb=True
                )
                found.append(init_eplb_config(config, layer, moe))
            maps = found[0][0]
            size = int(maps.max()) + 1
            slots = torch.argsort(torch.where(maps < 0, experts, maps), dim=1)[:, :size]
            held.append(slots.tolist())
            sent.append([table.tolist() for _, _, table, _ in found])
    except Exception as error:  # what it refuses
        return repr(error)
    return {"held": held, "sent": sent}


if __name__ == "__main__":
    stand_ins.install()
    maps, answer = (Path(name) for name in sys.argv[1:])
    answer.write_text(json.dumps([read(*entry) for entry in json.loads(maps.read_text())]))
