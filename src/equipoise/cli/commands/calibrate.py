"""``equipoise calibrate``: what a machine takes, from tables of measured times or timed runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Size
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import Json, Output, check_output
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.text import one_line
from equipoise.engines.files import check_readable, write_text
from equipoise.engines.timed_runs import STEP_SECONDS, is_timed_run, read_timed_run
from equipoise.errors import EquipoiseError
from equipoise.report.terminal import WholeTable
from equipoise.simulate.calibrate import calibrate as fit
from equipoise.simulate.own_runs import fit_runs
from equipoise.simulate.profiles import Calibration
from equipoise.topology import Topology
from equipoise.units import duration


def calibrate(
    folders: Annotated[list[Path], Parameter(required=True)],
    /,
    *,
    output: Annotated[Path, Output],
    source: str = "",
    ranks: Annotated[int | None, Size] = None,
    dispatch: str | None = None,
    machine: MachineArguments | None = None,
    json: Json = False,
) -> int:
    r"""Fit the time model to measured kernel times, or to runs of your own.

    Kernel times: one folder with moe_compute_deepep.csv, moe_compute_wideep.csv or alltoall.csv,
    and GPU.json for each GPU that has no profile of its own. Runs: three folders or more, of
    different batch sizes. Each holds a recording named trace, step_seconds.csv (a column seconds, a
    row for each recorded step) and map.json, if experts were not in order without copies;
    equipoise forecast takes the result as --rank-cost. More: equipoise explain timemodel.

    For example:

        equipoise calibrate kernel_times -o profile.json
        equipoise calibrate run-64 run-256 run-1024 --ranks 8 -o cost.json
        equipoise calibrate run-64 run-256 run-1024 --ranks 8 --dispatch trtllm \
            --source "our cluster, October" -o cost.json

    Parameters
    ----------
    folders
        One folder of kernel times, or a folder for each timed run.
    output
        File to write the profile to.
    source
        Description of what was measured, for readers of the profile. If not given: the names of the
        folders.
    ranks
        Number of expert-parallel ranks (with runs).
    dispatch
        Dispatcher that shared batches over the copies of an expert (with runs); even if not given.
    """
    options = machine or MachineArguments()
    for folder in folders:
        check_readable(folder)
    check_output(output, *folders)
    if any(map(is_timed_run, folders)):
        if ranks is None:
            raise EquipoiseError("Timed runs need --ranks, the expert-parallel ranks.")
        return _by_runs(folders, options.topology(ranks), dispatch or "even", source, output, json)
    unused = {"--ranks": ranks, "--dispatch": dispatch, **_told(options)}
    said = ", ".join(name for name, value in unused.items() if value is not None)
    if said:
        raise EquipoiseError(f"{said}: only with timed runs, which have {STEP_SECONDS}.")
    if len(folders) > 1:
        raise EquipoiseError(
            f"{len(folders)} folders without {STEP_SECONDS}; expected one folder of tables, or "
            "timed runs."
        )
    return _by_tables(folders[0], source, output, json)


def _told(options: MachineArguments) -> dict[str, object]:
    return {option_name(name): value for name, value in asdict(options).items()}


def _by_runs(
    folders: list[Path], topology: Topology, dispatch: str, source: str, output: Path, json: bool
) -> int:
    runs = [read_timed_run(folder, topology, dispatch) for folder in folders]
    name = source or ", ".join(folder.resolve().name for folder in folders)
    found = fit_runs(runs, name=name)
    write_text(output, found.to_json())
    cost = found.cost
    terms = {
        "step": cost.step_seconds,
        "assignment": cost.assignment_seconds,
        "expert": cost.experts.expert_seconds,
        "expert_assignment": cost.experts.token_seconds,
    }
    if json:
        answer = {"output": str(output), "seconds": terms, "jitter": cost.jitter}
        print_json({**answer, "error": found.error})
        return 0
    console = stdout()
    e = cost.experts
    for sentence in (
        f"A step takes {duration(cost.step_seconds)}, and "
        f"{duration(cost.assignment_seconds)} for each of its assignments in a layer, all ranks "
        "together.",
        f"In addition, the experts of a rank take {duration(e.token_seconds)} for each assignment"
        + (
            f", and at least {duration(e.expert_seconds)} for each expert with load."
            if e.knee
            else "."
        ),
        f"The time of a rank's share of a layer varies by {cost.jitter:.0%} by chance.",
        f"The mean steps of the {len(runs)} runs deviate from this fit by {found.error:.1%}.",
        f"{output}: written. Give it to equipoise forecast as --rank-cost.",
    ):
        console.print(one_line(sentence))
    return 0


def _by_tables(folder: Path, source: str, output: Path, json: bool) -> int:
    found = fit(folder, source=source)
    write_text(output, found.to_json())
    if json:
        print_json({"output": str(output), "fits": _rows(found)})
        return 0
    table = WholeTable(box=None)
    for name in ("GPU", "kernel", "does", "format", "cells"):
        table.add_column(name, justify="right" if name == "cells" else "left", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    for row in _rows(found):
        *texts, cells, error = row.values()
        table.add_row(*map(str, texts), f"{cells:,}", f"{100 * float(str(error)):.1f} %")
    console = stdout()
    console.print(table)
    console.print(one_line(f"{output}: written. The error is one standard deviation of a time."))
    return 0


def _rows(found: Calibration) -> list[dict[str, object]]:
    """One for each fit: what it is of, its cells and the model's own error."""
    kernels = [
        (fit.gpu, fit.kernel, f"experts, {fit.phase}", fit.dtype, fit.num_cells, fit.log_error)
        for fit in found.kernels
    ]
    exchanges = [
        (fit.gpu, fit.kernel, fit.op, fit.dtype, fit.num_cells, fit.log_error)
        for fit in found.exchanges
    ]
    names = ("gpu", "kernel", "does", "dtype", "cells", "log_error")
    return [dict(zip(names, row, strict=True)) for row in (*kernels, *exchanges)]
