"""Serve the small model with torchrun, balanced live.

    torchrun --nproc-per-node 4 examples/serve.py [--requests 512] [--results FOLDER]
    torchrun --nproc-per-node 4 examples/serve.py --keep map.json   # the map it came to
    torchrun --nproc-per-node 4 examples/serve.py --map map.json    # starts from it, and stays

    torchrun --nproc-per-node 4 examples/serve.py --metrics-port 9400   # see docs/howto/monitor.md

EXPERT_STATISTIC_ITER_RANGE=100-200 in the environment records those forward passes, a file for each
process in EXPERT_STATISTIC_PATH, see docs/howto/trtllm.md; --unbalanced serves the experts in
order.

With the balancing options of an engine, as its manual writes them
(docs/reference/engine-options.md):

    ... examples/serve.py --additional-config '{"dynamic_eplb": true}'       # vllm-ascend
    ... examples/serve.py --eplb-config '{"num_redundant_experts": 8}'       # vLLM
    ... examples/serve.py --load-balancer moe_load_balancer.yaml             # TensorRT-LLM

Without a secret in EQUIPOISE_SECRET, the same for all processes, whoever reaches the port of the
store can join. On two nodes, in the checkout on each, NODE being 0 and 1 and SECRET what
`openssl rand -hex 32` prints:

    EQUIPOISE_SECRET=SECRET torchrun --nnodes 2 --node-rank NODE --nproc-per-node 2 \
        --master-addr ADDRESS_OF_NODE_0 --master-port 29500 examples/serve.py --nodes 2

Before they serve, one process a node compiles what they need; half a minute the first time. The
log says what moves and why. torchrun starts the processes and has the store in which they meet.
When a process fails it ends the others too. To survive that, start processes that call ``serve``
by something that does not, as ``equipoise demo`` does.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

from torch.distributed import TCPStore

from equipoise import (
    EquipoiseError,
    Placement,
    Topology,
    read_map,
    sample_model_path,
    write_map,
)
from equipoise.control.settings import Settings
from equipoise.engines.formats import MapContext
from equipoise.engines.settings import EngineOptions, read_options
from equipoise.engines.trtllm.statistic import recording_asked_for
from equipoise.runtime.moe.checkpoint import Checkpoint
from equipoise.runtime.serving.prompts import Prompts, Stream
from equipoise.runtime.serving.server import Options, serve
from equipoise.runtime.serving.warm_up import rehearse

_PATIENCE_SECONDS = 60
ENGINES = {"additional_config": "ascend", "eplb_config": "vllm", "load_balancer": "trtllm"}


def keep(path: Path, placement: Placement) -> None:
    """Write the map of a placement that is served."""
    write_map(placement, path, format="equipoise")


def rehearse_once(dispatch: str) -> None:
    """One process a node compiles, the others wait for all nodes."""
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["LOCAL_RANK"] == "0":
        rehearse(dispatch, Topology(int(os.environ["WORLD_SIZE"])))
        store.set(f"rehearsed/{os.environ['GROUP_RANK']}", "")
    nodes = range(int(os.environ["GROUP_WORLD_SIZE"]))
    store.wait([f"rehearsed/{node}" for node in nodes], timedelta(minutes=10))


def main() -> None:
    """Serve as the process that torchrun has started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument(
        "--metrics-port", type=int, help="answer Prometheus; each further process at the next port"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--map", type=Path)
    start.add_argument("--additional-config", metavar="JSON|FILE", help="options of vllm-ascend")
    start.add_argument("--eplb-config", metavar="JSON|FILE", help="options of vLLM")
    start.add_argument("--load-balancer", metavar="FILE|YAML", help="options of TensorRT-LLM")
    start.add_argument("--unbalanced", action="store_true", help="measure and move nothing")
    arguments = parser.parse_args()
    try:
        balancing = _balancing(arguments)
        options = _options(arguments, balancing)
    except EquipoiseError as error:
        if os.environ["LOCAL_RANK"] != "0":  # it is the same for all processes of a node
            time.sleep(_PATIENCE_SECONDS)  # torchrun ends this one when the first has said it
            sys.exit(2)
        parser.error(str(error))
    if os.environ["RANK"] == "0":
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        for advice in balancing.advice:
            logging.warning(advice)
        if (start := options.placement) is not None:
            stays = "" if balancing.settings.layers_per_step else ", and nothing moves"
            logging.info(
                f"It starts from the map given, with {start.num_redundant} redundant slots{stays}."
            )
    rehearse_once(options.dispatch)
    try:
        serve(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            f"rank{int(os.environ['RANK']):04}",
            options,
            metrics_port=_metrics_port(arguments.metrics_port),
        )
    except EquipoiseError as error:
        parser.exit(2, f"serve.py: error: {error}\n")


def _metrics_port(first: int | None) -> int | None:
    return None if first is None else first + int(os.environ["LOCAL_RANK"])


def _balancing(arguments: argparse.Namespace) -> EngineOptions:
    """How to balance: as an engine's options say, or quickly, for a look at it."""
    ranks = int(os.environ["WORLD_SIZE"])
    for option, engine in ENGINES.items():
        source = getattr(arguments, option)
        if source is not None:
            model = Checkpoint(sample_model_path())
            return read_options(
                engine,
                source,
                num_experts=model.num_experts,
                num_ranks=ranks,
                layer_ids=model.layer_ids,
            )
    settings = Settings(
        num_redundant=2 * ranks,
        window=64,
        update_interval=64,
        warm_up_steps=16,
        layers_per_step=0 if arguments.map else 1,
        map_path=arguments.map,
    )
    start = read_map(arguments.map, MapContext(num_ranks=ranks)) if arguments.map else None
    return EngineOptions(settings=settings, placement=start)


def _options(arguments: argparse.Namespace, balancing: EngineOptions) -> Options:
    if arguments.keep and not arguments.keep.parent.is_dir():
        raise EquipoiseError(f"There is no folder {arguments.keep.parent} for the map; make it.")
    if arguments.keep and balancing.keep:
        raise EquipoiseError("--keep and expert_map_record_path both keep the map; give one.")
    if arguments.keep and arguments.unbalanced:
        raise EquipoiseError("With --unbalanced there is no map to --keep; give one of them.")
    prompts = Prompts(0, [(0.0, {"docs": 1.0})])
    return Options(
        model=sample_model_path(),
        source=Stream(prompts, sample_model_path() / "tokenizer.json"),
        limit=arguments.requests,
        processes=int(os.environ["WORLD_SIZE"]),
        nodes=arguments.nodes,
        batch_size=16,
        settings=None if arguments.unbalanced else balancing.settings,
        placement=balancing.placement,
        keep=partial(keep, arguments.keep) if arguments.keep else balancing.keep,
        recording=recording_asked_for(os.environ),
        results=arguments.results,
        metrics_details=arguments.metrics_port is not None,
    )


if __name__ == "__main__":
    main()
