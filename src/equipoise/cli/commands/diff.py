"""``equipoise diff``: what must move from one map to another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from rich.table import Table

from equipoise.cli.options.gate import GateArguments
from equipoise.cli.options.hardware import StepArguments
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.maps import MapArguments, check_model_key
from equipoise.cli.options.model import ModelArguments
from equipoise.cli.options.names import in_options
from equipoise.cli.options.output import For, Json, Output, check_output, check_target
from equipoise.cli.options.units import ByteCount
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.hardware import print_facts
from equipoise.cli.views.moves import moves_document, moves_text
from equipoise.cli.views.notes import print_notes
from equipoise.cli.views.scores import whole_document
from equipoise.cli.views.text import one_line
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import (
    detect_map,
    reading_warnings,
    write_map,
)
from equipoise.engines.model_maps import examine_map_of
from equipoise.errors import EquipoiseError
from equipoise.migration import Migration, Receive, match_ranks
from equipoise.migration import diff as compare
from equipoise.placement import Placement
from equipoise.plan.scores import WholeSteps
from equipoise.plan.weigh.gate import Decision


def diff(
    old: Path,
    new: Path,
    /,
    *,
    expert_bytes: Annotated[int | None, ByteCount] = None,
    match: bool = False,
    for_: Annotated[str | None, For] = None,
    output: Annotated[Path | None, Output] = None,
    machine: MachineArguments | None = None,
    deployment: MapArguments | None = None,
    serving: ModelArguments | None = None,
    gate: GateArguments | None = None,
    hardware: StepArguments | None = None,
    json: Json = False,
) -> int:
    r"""Count what must move from one map to another; decide whether it pays.

    The maps may be of different formats. With --trace and the options under "Cost of moving", the
    answer is whether moving pays; the exit status is 1 if it does not. With --hardware the time
    saved is that of whole steps: experts, exchanges and attention.

    For example:

        equipoise diff old.json new.json
        equipoise diff old.yaml new.yaml --ranks 8 --experts 32 --expert-bytes 44M
        equipoise diff OLD NEW --model deepseek-v3 --trace UNSEEN --hardware h100 \
            --dwell-steps 20000 --stall-seconds 0 --interference 0.2 --delay-steps 100

    Parameters
    ----------
    old, new
        Map in force, and map to come.
    expert_bytes
        Bytes of one expert in one layer, scales included, as in 44M: adds volume and time.
    match
        Rename the ranks of the new map, layer by layer, so that most experts stay. Loads stay the
        same, but on other ranks.
    for_
        Engine that loads the renamed map (with --match). If not given: what the name of --output
        says.
    output
        File to write the renamed map to (with --match).
    """
    machine, gate = machine or MachineArguments(), gate or GateArguments()
    serving, hardware = serving or ModelArguments(), hardware or StepArguments()
    expert_bytes = serving.need_expert_bytes(expert_bytes)
    hardware.check(gate.rank_cost)
    gate.check(expert_bytes, timed=hardware.hardware is not None)
    _refuse_unused(machine, match, gate)
    context = (deployment or MapArguments()).context
    format = _format(for_, output, match, old, new, gate.trace)
    _refuse_useless(deployment or MapArguments(), old, new)
    readings = {path: examine_map_of(path, context, serving.config) for path in (old, new)}
    before, after = readings[old].placement, readings[new].placement
    doubts = [
        f"{path}: {in_options(doubt)}"
        for path in readings
        for doubt in reading_warnings(readings[path])
    ]
    topology = hardware.topology(machine, before.num_ranks)
    if match:
        after = match_ranks(before, after, topology)
    migration = compare(before, after, topology)
    steps, decision, whole, facts = gate.steps(), None, None, hardware.facts
    if steps is not None:
        times = hardware.machine(steps, serving.config, topology)
        decision, whole = gate.decide(migration, steps, expert_bytes, times)
        facts = {**facts, **({} if times is None else times.facts)}
    written = _write(after, format, output, context.num_hidden_layers)
    if json:
        document = _document(migration, expert_bytes, decision)
        document |= {"whole_steps": whole_document(whole)}
        print_json(document | {"map": written, "warnings": doubts, "hardware": facts})
    else:
        _print(migration, expert_bytes, decision, whole)
        print_facts(stdout(), facts)
        print_notes(doubts)
        _print_map(written)
    return 0 if decision is None or decision.move else 1


def _refuse_useless(deployment: MapArguments, *maps: Path) -> None:
    """Refuse options that neither of the maps uses."""
    if deployment.model_key is not None:
        check_model_key(deployment.model_key, *(detect_map(path).name for path in maps))


def _refuse_unused(machine: MachineArguments, match: bool, gate: GateArguments) -> None:
    if machine.room is not None and not match:
        raise EquipoiseError("--room: only with --match, which renames ranks of equal room.")
    if machine.speed is not None and not match and gate.trace is None:
        raise EquipoiseError("--speed: only with --match or --trace, which use it.")


def _format(
    format: str | None, output: Path | None, match: bool, *inputs: Path | None
) -> str | None:
    """The format of the renamed map; ``None`` if none is written."""
    chosen = check_target(output, format)
    if output is None:
        return None
    if not match:
        raise EquipoiseError(
            "--for and --output: only with --match; equipoise convert copies maps."
        )
    check_output(output, *inputs)
    return chosen


@dataclass(frozen=True, kw_only=True)
class _Written:
    """The renamed map on disk, and what it does not say."""

    path: str
    lost: list[str]


def _write(
    placement: Placement, format: str | None, output: Path | None, hidden_layers: int | None
) -> _Written | None:
    if format is None or output is None:
        return None
    context = MapContext(num_hidden_layers=hidden_layers)
    lost = write_map(placement, output, format=format, context=context)
    return _Written(path=str(output), lost=lost)


def _document(
    migration: Migration, expert_bytes: int | None, decision: Decision | None
) -> dict[str, object]:
    return {
        "slots": migration.receive.size,
        "moves": _totals(migration),
        "by_layer": {
            str(layer): {kind.name.lower(): int(n) for kind, n in zip(Receive, row, strict=True)}
            for layer, row in zip(migration.new.layer_ids, migration.counts, strict=True)
        },
        **moves_document(migration, expert_bytes),
        "decision": None if decision is None else _finite(decision),
    }


def _finite(decision: Decision) -> dict[str, object]:
    """The decision with ``None`` for steps that never come, which JSON cannot say."""
    values = {name: None if value == np.inf else value for name, value in asdict(decision).items()}
    return values | {"text": decision.text}


def _totals(migration: Migration) -> dict[str, int]:
    totals = migration.counts.sum(axis=0)
    return {kind.name.lower(): int(totals[kind]) for kind in Receive}


_MEANING = {
    Receive.UNCHANGED: "holds its expert already",
    Receive.SAME_RANK: "copied within its rank",
    Receive.FREE_RIDER: "copied from a slot of its rank that receives it",
    Receive.SAME_NODE: "received from a rank of its node",
    Receive.CROSS_NODE: "received from another node",
}


def _print(
    migration: Migration,
    expert_bytes: int | None,
    decision: Decision | None,
    whole: WholeSteps | None,
) -> None:
    table = Table("what becomes of a slot", "slots", "share", box=None)
    for kind, count in zip(Receive, _totals(migration).values(), strict=True):
        table.add_row(_MEANING[kind], f"{count:,}", f"{count / migration.receive.size:.1%}")
    console = stdout()
    console.print(table)
    console.print(moves_text(migration, expert_bytes))
    if decision is not None:
        console.print(decision.text)
    if whole is not None:
        console.print(f"On these steps, {whole.text('on the old map')}")


def _print_map(written: _Written | None) -> None:
    if written is None:
        return
    console = stdout()
    console.print(one_line(f"Written, read back and compared: {written.path}"))
    for sentence in written.lost:
        console.print(f"  not in the file: {one_line(in_options(sentence))}")
