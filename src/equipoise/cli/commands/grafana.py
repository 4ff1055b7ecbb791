"""``equipoise grafana``: what Grafana and Prometheus need to watch a running system."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.output import Json, check_output
from equipoise.cli.views.console import print_json
from equipoise.engines.files import replacing_folder
from equipoise.report.grafana import dashboard
from equipoise.report.prometheus import alert_rules


def grafana(
    *, output: Annotated[Path, Parameter(name=["--output", "-o"])], json: Json = False
) -> int:
    """Write a Grafana dashboard and Prometheus alert rules over the metrics that equipoise exports.

    Parameters
    ----------
    output
        Folder to make.
    """
    check_output(output, folder=True)
    files = {"grafana-dashboard.json": dashboard(), "prometheus-alerts.yml": alert_rules()}
    with replacing_folder(output) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    if json:
        print_json({"output": str(output), "files": list(files)})
    else:
        print(f"{output}: {' and '.join(files)} written.")
    return 0
