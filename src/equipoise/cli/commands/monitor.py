"""``equipoise monitor``: the live view of a running system."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.limits import Size
from equipoise.cli.views.console import stdout
from equipoise.cli.views.monitor import in_lines, on_screen, print_summary
from equipoise.cli.views.signals import sigterm_as_exit
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import read_map
from equipoise.engines.watching import watch
from equipoise.errors import EquipoiseError
from equipoise.report.monitor.address import Addresses, checked_url, post
from equipoise.report.monitor.look import Source
from equipoise.report.monitor.looker import Looker
from equipoise.report.monitor.monitor import Monitor

_ADDRESS = re.compile(r"\w+://.*|[\w.-]+:[0-9]+(/.*)?|\[[0-9a-f:]+\]:[0-9]+(/.*)?", re.ASCII)


def monitor(
    source: str,
    /,
    *more: str,
    interval: Annotated[float, Parameter(validator=Number(gte=0.1, lte=3600))] = 2.0,
    looks: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    ranks: Annotated[int | None, Size] = None,
    map: Path | None = None,
    ask: str | None = None,
    json: Annotated[
        bool, Parameter(name="--json", help="Print a line of JSON for each look.")
    ] = False,
) -> int:
    """Watch a running system: imbalance, ranks, layers, experts, events.

    On a terminal it fills the screen and obeys keys, which the last line names; Ctrl-C ends it with
    a summary. In a pipe it prints a line for each look.

    For example:

        equipoise monitor http://127.0.0.1:9400/metrics
        equipoise monitor eplb_stats.jsonl --interval 5
        equipoise monitor eplb_stats.jsonl --looks 10 --json

    Parameters
    ----------
    source
        Source of the figures: the address at which a serving group answers Prometheus
        (http://127.0.0.1:9400/metrics), a statistics file of vLLM, a folder of SGLang's dumps, or
        any other recording that grows.
    more
        Addresses of the other processes of the same group.
    interval
        Seconds between two looks.
    looks
        Number of looks after which it ends. If not given: it goes on until Ctrl-C.
    ranks
        Number of ranks of the running system, for a recording that does not state it.
    map
        Map that the running system serves, for a recording of experts. If not given: experts in
        order, without copies.
    ask
        Address to which the key l sends a POST to ask for fresh figures, such as
        http://127.0.0.1:30000/dump_expert_distribution_record of SGLang. If not given, /look at the
        first address to watch, where a group that serves with --metrics-look takes it.
    json
        Print a line of JSON for each look.
    """
    seen = _source([source, *more], ranks, map)
    ask_for_look = partial(post, seen.look_url if ask is None else checked_url(ask))
    shown = Monitor(seen.name)
    shown.take(seen.look())  # what cannot be looked at at all is an error, not a picture
    try:
        with sigterm_as_exit():
            if sys.stdout.isatty() and not json and not stdout().is_dumb_terminal:
                on_screen(shown, Looker(seen, interval), looks, ask_for_look)
            else:
                in_lines(shown, Looker(seen, interval), looks, json)
    except KeyboardInterrupt:
        pass
    if not json:
        print_summary(shown)
    return 0


def _source(sources: list[str], ranks: int | None, map: Path | None) -> Source:
    """Addresses, or one file or folder."""
    first = Path(sources[0])
    if first.exists() or not _ADDRESS.fullmatch(sources[0]):
        if len(sources) > 1:
            raise EquipoiseError(
                f"{sources[0]} is not an address, and only addresses can be watched several at a "
                "time; give one file or folder."
            )
        placement = None if map is None else read_map(map, MapContext(num_ranks=ranks))
        return watch(first, num_ranks=ranks, placement=placement)
    given = [name for name, value in (("--ranks", ranks), ("--map", map)) if value is not None]
    if given:
        raise EquipoiseError(
            f"{' and '.join(given)} are for recordings; a serving group says them itself."
        )
    return Addresses(sources)
