"""``equipoise grafana``: what Grafana and Prometheus need to watch a running system."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from equipoise.cli.options.output import Json, Output, check_output
from equipoise.cli.views.console import print_json
from equipoise.engines.files import replacing_folder
from equipoise.report.grafana import dashboard
from equipoise.report.prometheus import alert_rules


def grafana(*, output: Annotated[Path, Output], json: Json = False) -> int:
    """Write a Grafana dashboard and Prometheus alert rules.

    They show the metrics that equipoise exports. More: equipoise explain monitoring.

    For example:

        equipoise grafana -o monitoring
        equipoise grafana --output /etc/equipoise/monitoring
        equipoise grafana -o monitoring --json

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
