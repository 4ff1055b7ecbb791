"""``equipoise calibrate``: the time model's constants from tables of measured times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.output import Json, check_output
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.text import one_line
from equipoise.engines.files import check_readable, write_text
from equipoise.report.terminal import WholeTable
from equipoise.simulate.calibrate import calibrate as fit
from equipoise.simulate.profiles import Calibration


def calibrate(
    folder: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    source: str = "",
    json: Json = False,
) -> int:
    """Fit the time of kernels and exchanges to tables of measured times, and write the profile.

    Parameters
    ----------
    folder
        Folder with moe_compute_deepep.csv, moe_compute_wideep.csv or alltoall.csv, and GPU.json
        for each GPU that has no profile of its own.
    output
        The profile to write.
    source
        What the tables are, for whoever reads the profile; the folder's name if not given.
    """
    check_readable(folder)
    check_output(output, folder)
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
