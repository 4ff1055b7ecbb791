"""Serve the small model with torchrun, balanced live.

    torchrun --nproc-per-node 4 examples/serve.py [--requests 64] [--results FOLDER]
    torchrun --nproc-per-node 4 examples/serve.py --keep map.json   # the map it came to
    torchrun --nproc-per-node 4 examples/serve.py --map map.json    # starts from it, and stays

On two nodes, in the checkout on each, NODE being 0 and 1:

    torchrun --nnodes 2 --node-rank NODE --nproc-per-node 2 --master-addr ADDRESS_OF_NODE_0 \
        --master-port 29500 examples/serve.py --nodes 2

torchrun starts the processes and has the store in which they meet. When a process fails it ends
the others too. To survive that, start processes that call ``serve`` by something that does not,
as ``equipoise demo`` does.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from equipoise import Placement, read_map, write_map
from equipoise.engines.formats import MapContext
from equipoise.runtime.prompts import Prompts, Stream
from equipoise.runtime.server import Options, serve
from equipoise.runtime.settings import Settings

MODEL = Path(__file__).parents[1] / "models" / "balance-5m"


def keep(path: Path, placement: Placement) -> None:
    """Write the map of a placement that has settled."""
    write_map(placement, path, format="equipoise")


def main() -> None:
    """Serve as the process that torchrun has started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--map", type=Path)
    options = parser.parse_args()
    processes = int(os.environ["WORLD_SIZE"])
    start = read_map(options.map, MapContext(num_ranks=processes)) if options.map else None
    settings = Settings(
        num_redundant=2 * processes,
        window=32,
        update_interval=32,
        warm_up_steps=8,
        layers_per_step=0 if options.map else 1,
        map_path=options.map,
    )
    prompts = Prompts(0, [(0.0, {"docs": 1.0})])
    serve(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        f"rank{int(os.environ['RANK']):04}",
        Options(
            model=MODEL,
            source=Stream(prompts, MODEL / "tokenizer.json"),
            limit=options.requests,
            processes=processes,
            nodes=options.nodes,
            settings=settings,
            placement=start,
            keep=partial(keep, options.keep) if options.keep else None,
            results=options.results,
        ),
    )


if __name__ == "__main__":
    main()
