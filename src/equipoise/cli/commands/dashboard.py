"""``equipoise dashboard``: a local web page that answers what-if questions and watches a group."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import Json
from equipoise.cli.options.recording import Recording, TraceArguments
from equipoise.cli.views.console import print_json, stdout
from equipoise.engines.formats import given
from equipoise.engines.served_models import served_models
from equipoise.errors import EquipoiseError
from equipoise.report.dashboard import Dashboard, DashboardServer
from equipoise.report.monitor.address import Addresses
from equipoise.simulate.what_if import Question, WhatIf


def dashboard(
    trace: Recording | None = None,
    /,
    *,
    metrics: str | None = None,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8760,
    reading: TraceArguments | None = None,
    json: Json = False,
) -> int:
    """Serve a local web page: what balancing would do, and what a group does.

    Sliders set the skew of the router, the batch, the ranks, the copies, the dispatcher, the
    hardware and the model; every answer is planned and timed again at once. It answers only to
    127.0.0.1, until Ctrl-C. More: equipoise explain dashboard.

    For example:

        equipoise dashboard
        equipoise dashboard sample --port 8800
        equipoise dashboard --metrics http://127.0.0.1:9400/metrics

    Parameters
    ----------
    metrics
        Address of the metrics of rank 0 of a running group, such as http://127.0.0.1:9400/metrics:
        adds the live view.
    port
        Port of 127.0.0.1 at which the page is served; 0: any port that is free.
    json
        Print the address as one JSON document.
    """
    if trace is None and reading is not None and given(reading):
        unused = ", ".join(sorted(map(option_name, given(reading))))
        raise EquipoiseError(f"{unused}: only with TRACE, a recording.")
    group = None if metrics is None else Addresses([metrics])
    recording = None if trace is None else (reading or TraceArguments()).read(trace)
    what_if = WhatIf(served_models(), recording, name="" if trace is None else trace.name)
    server = DashboardServer(Dashboard(what_if, group), port)
    what_if.answer(Question())  # compiles the kernels before anybody waits for an answer
    if json:
        print_json({"url": server.url})
    else:
        stdout().print(f"The dashboard is at {server.url} until Ctrl-C.")
    server.serve_until_interrupted()
    return 0
