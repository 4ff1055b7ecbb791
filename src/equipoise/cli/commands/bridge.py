"""``equipoise bridge``: an engine's own metrics, log or recording, told in our metrics' names."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.limits import Size
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import examine_map
from equipoise.engines.registry import live
from equipoise.errors import EquipoiseError


def bridge(
    source: str,
    /,
    *,
    engine: Annotated[str, Parameter(name="--for")],
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] = 9410,
    host: str = "127.0.0.1",
    ranks: Annotated[int | None, Size] = None,
    map: Path | None = None,
    details: bool = False,
    once: bool = False,
) -> int:
    """Export an engine's own figures to Prometheus, under equipoise's metric names.

    The engine is asked whenever Prometheus asks. Needs prometheus-client: pip install
    'equipoise[runtime]'. Ctrl-C ends it.

    For example:

        equipoise bridge http://127.0.0.1:8000/metrics --for vllm
        equipoise bridge server.log --for sglang --port 9411 --details
        equipoise bridge eplb_stats.jsonl --for vllm --once

    Parameters
    ----------
    source
        Source of the figures: the address of the engine's metrics, its log, or a recording of
        expert loads.
    engine
        Engine that the figures are from: sglang, vllm or ascend.
    port
        Port at which Prometheus is answered.
    host
        Address at which Prometheus is answered. The default is for programs on this machine only;
        0.0.0.0 allows everybody who reaches the port.
    ranks
        Number of expert-parallel ranks, for a recording that does not state it.
    map
        Map that was served during the recording. If not given: every expert is counted once.
    details
        Export the figures of each rank and layer too.
    once
        Print the metrics once and end, without serving them.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest

        from equipoise.control.metrics_page import listen
        from equipoise.engines.bridge import Bridge, open_source
    except ImportError as error:
        raise EquipoiseError(
            f"The bridge needs {error.name}; install equipoise[runtime]."
        ) from error
    placement = None if map is None else examine_map(map, MapContext(num_ranks=ranks)).placement
    opened = open_source(source, live(engine), num_ranks=ranks, placement=placement)
    opened()  # says what is wrong before anything is answered
    collector = Bridge(opened, with_details=details)
    if once:
        registry = CollectorRegistry()
        registry.register(collector)
        print(generate_latest(registry).decode(), end="")
        return 0
    print(f"{source} is told at http://{host}:{listen(collector, port, host)}/metrics", flush=True)
    Event().wait()  # until Ctrl-C
    return 0
