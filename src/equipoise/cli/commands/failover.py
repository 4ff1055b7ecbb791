"""``equipoise failover``: maps for the ranks that are left, or for fewer or more of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console

from equipoise.cli.options.limits import Size
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.maps import check_decoder_layers
from equipoise.cli.options.names import in_options
from equipoise.cli.options.output import For, Json, Output, check_output, check_target
from equipoise.cli.options.recording import Recording, TraceArguments
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.notes import print_recording
from equipoise.cli.views.progress import progress_bar
from equipoise.cli.views.text import one_line
from equipoise.dispatch import Even
from equipoise.engines.files import output_file, output_folder
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import read_map, write_maps
from equipoise.engines.registry import map_format
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.plan import Problem, evaluate
from equipoise.plan.weigh.failover import Content, Refit, failover_maps, resize
from equipoise.report.terminal import WholeTable
from equipoise.topology import Topology
from equipoise.trace import Trace

Lost = Literal["rank", "node"]


def failover(
    map: Path,
    trace: Recording,
    /,
    *,
    ranks: Annotated[int | None, Size] = None,
    lost: Lost | None = None,
    to_ranks: Annotated[int | None, Size] = None,
    for_: Annotated[str | None, For] = None,
    output: Annotated[Path | None, Output] = None,
    hidden_layers: Annotated[int | None, Size] = None,
    machine: MachineArguments | None = None,
    reading: TraceArguments | None = None,
    json: Json = False,
) -> int:
    """Make the maps for lost ranks or nodes, or for fewer or more ranks.

    Few slots change: the other ranks keep what they have where possible.

    For example:

        equipoise failover map.json sample --lost rank
        equipoise failover map.json sample --lost rank --for equipoise -o maps
        equipoise failover map.yaml RECORDING --ranks 32 --to-ranks 24 -o smaller.yaml

    Parameters
    ----------
    map
        Map in force.
    ranks
        Number of expert-parallel ranks, if the map does not state it.
    lost
        Kind of loss: makes a map for the loss of each rank, or of each node.
    to_ranks
        Number of ranks to make one map for: the last ranks leave, or new ones follow.
    for_
        Engine that loads the maps: equipoise, trtllm, sglang, vllm-41141, vllm-49572, vllm-53022,
        ascend. If not given: what the name of --output says (with --to-ranks).
    output
        Folder for the maps of --lost, or file for the map of --to-ranks.
    hidden_layers
        Number of decoder layers of the model, dense ones included; an SGLang map has a row for
        each.
    """
    reading, machine = reading or TraceArguments(), machine or MachineArguments()
    if (lost is None) == (to_ranks is None):
        raise EquipoiseError("Give one of --lost (rank or node) and --to-ranks.")
    if (lost == "node") != (machine.ranks_per_node is not None):
        raise EquipoiseError("--lost node needs --ranks-per-node, which nothing else uses.")
    format = _format(for_, output, hidden_layers, lost)
    recording = reading.read(trace, ranks=ranks)
    context = MapContext(
        num_ranks=ranks, num_experts=recording.num_experts, layer_ids=recording.layer_ids
    )
    current = read_map(map, context)
    topology = machine.topology(current.num_ranks)
    problem = Problem(recording, topology, current.num_slots)
    paths = _paths(output, format, lost, topology)
    _check_paths(paths, lost, map, trace, reading.run_map)
    with progress_bar("planning"):
        changes = _changes(current, problem, lost, to_ranks)
    now = evaluate(current, recording, dispatch=Even(topology=topology)).mean_imbalance
    if format is not None:
        changes = _write(changes, paths, format, MapContext(num_hidden_layers=hidden_layers))
    if json:
        print_json(_document(now, changes))
    else:
        _print(stdout(), recording, now, changes)
    return 0


def _format(
    format: str | None,
    output: Path | None,
    hidden_layers: int | None,
    lost: Lost | None,
) -> str | None:
    """The format of the maps; refuses what would fail, or be ignored, only after the work."""
    if output is None and hidden_layers is not None:
        raise EquipoiseError("--hidden-layers: only for maps; give --output as well.")
    if output is None or lost is None:
        chosen = check_target(output, format)
    else:
        chosen = format
        _check_folder(output)
        if chosen is None:
            raise EquipoiseError(
                "--output is a folder of maps; name the engine that loads them with --for."
            )
    if chosen is not None:
        map_format(chosen)
        check_decoder_layers(hidden_layers, chosen)
    if output is not None and lost is None:
        output_file(output)
    return chosen


def _check_folder(output: Path) -> None:
    """Refuse a folder that cannot be made."""
    if output.is_dir():
        return
    if output.exists():
        raise EquipoiseError(f"{output}: is a file; give the name of a folder for several maps.")
    output_folder(output)


@dataclass(frozen=True, kw_only=True)
class _Change:
    """A map for other ranks, how balanced they are, and where it was written."""

    name: str
    refit: Refit
    imbalance: float
    path: Path | None = None
    left_out: tuple[str, ...] = ()


def _changes(
    current: Placement, problem: Problem, lost: Lost | None, to_ranks: int | None
) -> list[_Change]:
    if to_ranks is not None:
        return [_change(f"{to_ranks} ranks", resize(current, problem, to_ranks), problem)]
    assert lost is not None  # checked
    refits = failover_maps(current, problem, failure_domain=lost)
    return [_change(f"{lost} {i}", refit, problem) for i, refit in enumerate(refits)]


def _change(name: str, refit: Refit, problem: Problem) -> _Change:
    return _Change(name=name, refit=refit, imbalance=refit.evaluate(problem).mean_imbalance)


def _paths(
    output: Path | None, format: str | None, lost: Lost | None, topology: Topology
) -> list[Path]:
    """The maps to write."""
    if output is None or format is None:
        return []
    if lost is None:
        return [output]
    number = topology.num_ranks if lost == "rank" else topology.num_nodes
    width, suffix = len(f"{number - 1}"), map_format(format).suffixes[0]
    return [output / f"without-{lost}-{i:0{width}}{suffix}" for i in range(number)]


def _check_paths(paths: list[Path], lost: Lost | None, *inputs: Path | None) -> None:
    """Refuse a folder in which a map of another deployment would stay, and outputs onto inputs."""
    if lost is not None and paths and paths[0].parent.exists():
        folder, ours = paths[0].parent, {path.name for path in paths}
        if other := sorted(path.name for path in folder.iterdir() if path.name not in ours):
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            raise EquipoiseError(
                f"{folder}: holds {other[0]}{more}, which these {len(paths)} maps do not replace: "
                "an engine could load it for the wrong deployment. Give a new or empty folder."
            )
    for path in paths:
        if lost is None or path.parent.exists():
            check_output(path, *inputs)


def _write(
    changes: list[_Change], paths: list[Path], format: str, context: MapContext
) -> list[_Change]:
    maps = {path: change.refit.placement for path, change in zip(paths, changes, strict=True)}
    left_out = write_maps(maps, format=format, context=context)
    return [
        replace(change, path=path, left_out=tuple(sentences))
        for change, path, sentences in zip(changes, paths, left_out, strict=True)
    ]


def _document(now: float, changes: list[_Change]) -> dict[str, object]:
    before = changes[0].refit.old
    return {
        "ranks": before.num_ranks,
        "experts": before.num_experts,
        "slots": before.num_slots,
        "mean_imbalance": now,
        "maps": [
            {
                "name": change.name,
                "gone": change.refit.gone.tolist(),
                "old_rank": change.refit.old_rank.tolist(),
                "ranks": change.refit.placement.num_ranks,
                "slots": change.refit.placement.num_slots,
                **_contents(change.refit),
                "mean_imbalance": change.imbalance,
                "status": change.refit.status,
                "map": None
                if change.path is None
                else {"path": str(change.path), "lost": change.left_out},
            }
            for change in changes
        ],
    }


def _contents(refit: Refit) -> dict[str, int]:
    """Slots of all layers by where their expert comes from."""
    totals = refit.counts.sum(axis=0)
    return {kind.name.lower(): int(totals[kind]) for kind in Content}


def _print(console: Console, recording: Trace, now: float, changes: list[_Change]) -> None:
    before = changes[0].refit.old
    print_recording(console, recording)
    console.print(
        f"{before.num_experts} experts in {before.num_slots} slots on {before.num_ranks} ranks: "
        f"max/mean rank load {now:.3f}, even split, recorded steps\n"
    )
    console.print(_table(changes))
    worst = max(changes, key=lambda c: (c.refit.placement.slots_per_rank, c.imbalance))
    label = "" if len(changes) == 1 else f"Hardest without {worst.name}: "
    console.print(f"\n{label}{worst.refit.status}")
    _print_maps(console, changes)


def _table(changes: list[_Change]) -> WholeTable:
    table = WholeTable(box=None)
    title = "without" if len(changes) > 1 else "to"
    for name in (title, "ranks gone", "kept", "copied", "reloaded", "slots a rank", "max/mean"):
        table.add_column(name, justify="left" if name == title else "right", no_wrap=True)
    for change in changes:
        table.add_row(
            change.name,
            format_ids(change.refit.gone.tolist()),
            *(f"{slots:,}" for slots in _contents(change.refit).values()),
            str(change.refit.placement.slots_per_rank),
            f"{change.imbalance:.3f}",
        )
    return table


def _print_maps(console: Console, changes: list[_Change]) -> None:
    paths = [change.path for change in changes if change.path is not None]
    if not paths:
        return
    where = paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
    console.print(one_line(f"\nWritten, read back and compared: {where}"))
    for sentence in dict.fromkeys(s for change in changes for s in change.left_out):
        console.print(f"  not in the file: {one_line(in_options(sentence))}")
