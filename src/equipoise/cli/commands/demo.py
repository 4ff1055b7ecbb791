"""``equipoise demo``: a small model served by several processes and balanced while it serves."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.groups import METRICS
from equipoise.cli.options.limits import Redundant
from equipoise.cli.options.output import Json
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.running import Screen
from equipoise.cli.views.signals import sigterm_as_exit
from equipoise.control.status import Arrival, Status, arrival_key, status_key
from equipoise.dispatch.registry import check_serving
from equipoise.errors import EquipoiseError
from equipoise.report.live import View
from equipoise.sample import sample_model_path

if TYPE_CHECKING:
    from equipoise.runtime.serving.processes import Processes
    from equipoise.runtime.serving.server import Options

_SHIFT = ("docs", "tables")  # the two domains of prompts whose loads differ most
_BATCH_SIZE = 16  # a process; with fewer, chance hides most of the imbalance
_LOOK_SECONDS = 0.25
_PATIENCE_SECONDS = 120.0
_START_SECONDS = 30.0  # for each process: all of them load torch at the same time
_RANKS_IN_TIME = 8  # that answer each other within the usual limits, on a machine of few cores
_LOOPBACK = "127.0.0.1"
_INTERRUPTED = 130  # the exit status of a program that Ctrl-C has ended


def demo(
    *,
    processes: Annotated[int, Parameter(validator=Number(gte=2, lte=64))] = 4,
    seconds: Annotated[float, Parameter(validator=Number(gt=0, lte=86400))] = 60.0,
    model: Path | None = None,
    redundant: Annotated[int | None, Redundant] = None,
    dispatch: str = "minmax",
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    no_balance: bool = False,
    metrics_port: Annotated[
        int | None, Parameter(validator=Number(gte=1, lte=65535), group=METRICS)
    ] = None,
    metrics_host: Annotated[str | None, Parameter(group=METRICS)] = None,
    metrics_details: Annotated[bool, Parameter(group=METRICS)] = False,
    metrics_look: Annotated[bool, Parameter(group=METRICS)] = False,
    json: Json = False,
) -> int:
    """Serve a small model on several processes, shift the load, and balance it live.

    For example:

        equipoise demo
        equipoise demo --processes 8 --seconds 120
        equipoise demo --no-balance --metrics-port 9400

    Half of the time the prompts are prose, then they are tables, which other experts serve. Needs
    torch, transformers and prometheus-client: pip install 'equipoise[runtime]'. Ctrl-C ends it with
    the table of what was served.

    Parameters
    ----------
    processes
        Number of expert-parallel ranks, all on this machine.
    seconds
        Time to serve, from the first step.
    model
        Folder of a model, of a type that our runtime serves, and its tokenizer; the small model
        that comes with equipoise if not given.
    redundant
        Redundant slots of a layer, all ranks together; about one a rank if not given.
    dispatch
        Dispatcher that shares tokens over the copies of an expert.
    seed
        Random seed of the prompts.
    no_balance
        Leave the experts where they are, without redundant slots.
    metrics_port
        Port of this machine at which the first process serves its metrics to Prometheus; each
        further process uses the next port.
    metrics_host
        Address at which the metrics are served. The default, 127.0.0.1, is for programs on this
        machine only; 0.0.0.0 allows everybody who reaches the port.
    metrics_details
        Export metrics of each rank and layer too.
    metrics_look
        Let programs on this machine request a look at the loads by a POST to /look at that port, as
        the key l of equipoise monitor does.
    """
    asked = {"host": metrics_host is not None, "details": metrics_details, "look": metrics_look}
    for name, given in asked.items():
        if given and metrics_port is None:
            raise EquipoiseError(f"--metrics-{name} needs --metrics-port; give both.")
    if metrics_look and metrics_host is not None:
        raise EquipoiseError(
            "--metrics-look is for programs on this machine; leave --metrics-host out."
        )
    ports = _metrics_ports(metrics_port, processes)
    folder = sample_model_path() if model is None else model
    screen = Screen(silent=json)
    with screen.spinner("Loading torch"):
        launch, serve = _runtime()
    options = replace(
        _options(processes, seconds, folder, redundant, dispatch, seed, not no_balance),
        metrics_details=metrics_details,
    )
    view = View(folder.resolve().name, seconds, processes)
    ended: dict[str, str] = {}
    status = 0
    with sigterm_as_exit():
        _rehearse(options, screen)
        store = launch.local_store()
        calls = {
            f"p{number}": {
                "host": "127.0.0.1",
                "port": store.port,
                "name": f"p{number}",
                "options": options,
                "metrics_port": port,
                "metrics_host": metrics_host or _LOOPBACK,
                "metrics_look": metrics_look,
            }
            for number, port in enumerate(ports)
        }
        try:
            with launch.Processes(serve, calls) as running, screen.following(view) as show:
                _follow(view, lambda: _look(view, store, calls), running, seconds, show)
                ended = running.ended()
        except KeyboardInterrupt:
            if not view.elapsed:
                raise
            status = _INTERRUPTED
    if json:
        print_json(view.summary().as_dict() | {"ended": ended})
    else:
        _tell(view, ended)
    return status


def _runtime() -> tuple[Any, Callable[..., None]]:
    """Import the parts that need torch and the rest of the extra."""
    try:
        from equipoise.runtime.serving import processes as launch
        from equipoise.runtime.serving.server import serve
    except ImportError as error:
        raise EquipoiseError(f"The demo needs {error.name}; install equipoise[runtime].") from error
    return launch, serve


def _rehearse(options: Options, screen: Screen) -> None:
    """Compile all that serving needs, before its clock runs."""
    from equipoise.runtime.serving.warm_up import rehearse
    from equipoise.topology import Topology

    what = "Compiling kernels; half a minute the first time"
    screen.say(f"{what}.")
    with screen.spinner(what):
        rehearse(options.dispatch, Topology(options.processes))


def _options(
    processes: int,
    seconds: float,
    model: Path,
    redundant: int | None,
    dispatch: str,
    seed: int,
    balance: bool,
) -> Options:
    """Options of every process; bad arguments are refused before a process is started."""
    from equipoise.control.settings import Settings
    from equipoise.runtime.moe.checkpoint import Checkpoint
    from equipoise.runtime.serving.prompts import Prompts, Stream
    from equipoise.runtime.serving.server import Options

    if not (model / "config.json").is_file():
        raise EquipoiseError(
            f"{model}: there is no model here (no config.json); give the folder of one, or leave "
            "--model out for the small one that comes with equipoise."
        )
    if redundant is not None and not balance:
        raise EquipoiseError("--no-balance has no redundant slots; leave --redundant out.")
    check_serving(dispatch)
    checkpoint = Checkpoint(model)
    num_experts = checkpoint.num_experts
    if redundant is None:
        redundant = processes + -(num_experts + processes) % processes
    settings = Settings(  # a look every few seconds, not every few minutes
        num_redundant=redundant, window=64, update_interval=64, warm_up_steps=16, wait_steps=512
    )
    settings.num_slots(num_experts, processes)
    before, after = _SHIFT
    prompts = Prompts(seed, [(0.0, {before: 1.0}), (seconds / 2, {after: 1.0})])
    source = Stream(prompts, model.resolve() / "tokenizer.json")
    source.check(checkpoint.vocab_size)
    crowd = max(processes / _RANKS_IN_TIME, 1.0)
    return Options(
        model=model.resolve(),
        source=source,
        secret=secrets.token_hex(32),
        processes=processes,
        settings=settings if balance else None,
        dispatch=dispatch,
        batch_size=_BATCH_SIZE,
        timeout_seconds=Options.timeout_seconds * crowd,
        silence_seconds=Options.silence_seconds * crowd,
    )


def _metrics_ports(first: int | None, processes: int) -> list[int | None]:
    if first is None:
        return [None] * processes
    if first + processes - 1 > 65535:
        raise EquipoiseError(
            f"--metrics-port is {first}; {processes} processes need one port each, up to 65535."
        )
    return [first + number for number in range(processes)]


def _follow(
    view: View,
    look: Callable[[], bool],
    running: Processes,
    seconds: float,
    show: Callable[[], None],
) -> None:
    """Look at the processes until the time is over."""
    heard = time.monotonic()
    while view.elapsed < seconds:
        time.sleep(_LOOK_SECONDS)
        if look():
            heard = time.monotonic()
        show()
        ended = running.ended()
        if ended and (not view.elapsed or len(ended) == running.count):
            raise EquipoiseError("; ".join(f"{name} {why}" for name, why in ended.items()))
        patience = _PATIENCE_SECONDS + (0 if view.elapsed else _START_SECONDS * running.count)
        if time.monotonic() - heard > patience:
            raise EquipoiseError(f"The processes have published nothing for {patience:g} s.")


def _look(view: View, store: Any, names: Iterable[str]) -> bool:
    """Show the view what the processes have published; return whether any of it is new."""
    arrivals = _published(store, {name: arrival_key(name) for name in names})
    statuses = _published(store, {name: status_key(name) for name in names})
    is_further = view.wait({name: Arrival(text.decode()) for name, text in arrivals.items()})
    return view.update({name: Status.decode(text) for name, text in statuses.items()}) or is_further


def _published(store: Any, keys: Mapping[str, str]) -> dict[str, bytes]:
    there = {name: key for name, key in keys.items() if store.check([key])}
    return dict(zip(there, store.multi_get(list(there.values())), strict=True))


def _tell(view: View, ended: Mapping[str, str]) -> None:
    console = stdout()
    console.print()
    console.print(view.summary().table())
    for name, why in ended.items():
        console.print(f"{name} {why}")
