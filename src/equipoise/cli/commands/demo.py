"""``equipoise demo``: a small model served by several processes and balanced while it serves."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.live import Live

from equipoise.cli.options.groups import METRICS
from equipoise.cli.options.limits import Redundant
from equipoise.cli.options.output import Json
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.signals import sigterm_as_exit
from equipoise.control.status import Status, status_key
from equipoise.dispatch.registry import check_serving
from equipoise.errors import EquipoiseError
from equipoise.report.live import View

if TYPE_CHECKING:
    from equipoise.runtime.serving.processes import Processes
    from equipoise.runtime.serving.server import Options

_SHIFT = ("docs", "tables")  # the two domains of prompts whose loads differ most
_BATCH_SIZE = 16  # a process; with fewer, chance hides most of the imbalance
_LOOK_SECONDS = 0.25
_LINE_SECONDS = 3.0
_PATIENCE_SECONDS = 120.0
_LOOPBACK = "127.0.0.1"


def demo(
    *,
    processes: Annotated[int, Parameter(validator=Number(gte=2, lte=64))] = 4,
    seconds: Annotated[float, Parameter(validator=Number(gt=0, lte=86400))] = 60.0,
    model: Path = Path("models/balance-5m"),
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
    torch, transformers and prometheus-client: pip install 'equipoise[runtime]'. Ctrl-C ends it.

    Parameters
    ----------
    processes
        Expert-parallel ranks, all on this machine.
    seconds
        Time to serve, from the first step.
    model
        Folder of a model, of a type that our runtime serves, and its tokenizer; the default is in a
        checkout of equipoise.
    redundant
        Redundant slots of a layer, all ranks together; about one a rank if not given.
    dispatch
        Dispatcher that shares tokens over the copies of an expert.
    seed
        Random seed of the prompts.
    no_balance
        Leave the experts where they are, without redundant slots.
    metrics_port
        Answer Prometheus at this port of this machine, each further process at the next one.
    metrics_host
        Address to answer it at, 127.0.0.1 if not given: programs on this machine only. 0.0.0.0
        lets everybody who reaches the port ask.
    metrics_details
        Tell Prometheus of each rank and layer too.
    metrics_look
        Let programs on this machine ask for a look at the loads, by a POST to /look at that port:
        what the key l of equipoise monitor does.
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
    launch, serve = _runtime()
    options = replace(
        _options(processes, seconds, model, redundant, dispatch, seed, not no_balance),
        metrics_details=metrics_details,
    )
    view = View(model.resolve().name, seconds)
    with sigterm_as_exit():
        if not json:
            print("Getting ready; half a minute the first time.", flush=True)
        _rehearse(options)
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
        with launch.Processes(serve, calls) as running, _screen(view, silent=json) as show:
            _follow(view, lambda: _statuses(store, calls), running, seconds, show)
            ended = running.ended()
    if json:
        print_json(view.summary().as_dict() | {"ended": ended})
    else:
        _tell(view, ended)
    return 0


def _runtime() -> tuple[Any, Callable[..., None]]:
    """Import the parts that need torch and the rest of the extra."""
    try:
        from equipoise.runtime.serving import processes as launch
        from equipoise.runtime.serving.server import serve
    except ImportError as error:
        raise EquipoiseError(f"The demo needs {error.name}; install equipoise[runtime].") from error
    return launch, serve


def _rehearse(options: Options) -> None:
    """Compile all that serving needs, before its clock runs."""
    from equipoise.runtime.serving.warm_up import rehearse
    from equipoise.topology import Topology

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
            f"{model}: there is no model here (no config.json); run in a checkout of equipoise, "
            "which has one in models/balance-5m, or give the folder with --model."
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
    return Options(
        model=model.resolve(),
        source=source,
        secret=secrets.token_hex(32),
        processes=processes,
        settings=settings if balance else None,
        dispatch=dispatch,
        batch_size=_BATCH_SIZE,
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
    look: Callable[[], dict[str, Status]],
    running: Processes,
    seconds: float,
    show: Callable[[], None],
) -> None:
    """Look at the processes until the time is over."""
    heard = time.monotonic()
    while view.elapsed < seconds:
        time.sleep(_LOOK_SECONDS)
        if view.update(look()):
            heard = time.monotonic()
        show()
        ended = running.ended()
        if ended and (not view.elapsed or len(ended) == running.count):
            raise EquipoiseError("; ".join(f"{name} {why}" for name, why in ended.items()))
        if time.monotonic() - heard > _PATIENCE_SECONDS:
            raise EquipoiseError(f"No process has said anything for {_PATIENCE_SECONDS:g} s.")


def _statuses(store: Any, names: Iterable[str]) -> dict[str, Status]:
    keys = [key for key in map(status_key, names) if store.check([key])]
    statuses = [Status.decode(text) for text in store.multi_get(keys)]
    return {status.name: status for status in statuses}


@contextmanager
def _screen(view: View, *, silent: bool) -> Iterator[Callable[[], None]]:
    """How the present is shown: a picture on a terminal, a line now and then in a pipe."""
    console = stdout()
    if silent:
        yield lambda: None
    elif console.is_terminal:
        with Live(view.render(), console=console, auto_refresh=False) as live:
            yield lambda: live.update(view.render(), refresh=True)
    else:
        yield _every(_LINE_SECONDS, lambda: console.print(view.line()))


def _every(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    """Limit an action to once per interval."""
    due = 0.0

    def act() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            action()

    return act


def _tell(view: View, ended: Mapping[str, str]) -> None:
    console = stdout()
    console.print()
    console.print(view.summary().table())
    for name, why in ended.items():
        console.print(f"{name} {why}")
