"""``equipoise report_load_statistics``: TensorRT-LLM's script of that name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Iteration
from equipoise.cli.options.names import in_options
from equipoise.cli.views.progress import progress_bar
from equipoise.cli.views.text import one_line
from equipoise.engines.trtllm.scripts import num_rank_files, read_statistic
from equipoise.engines.trtllm.table import trtllm_table


def report_load_statistics(
    *,
    expert_statistic_path: Annotated[Path, Parameter(name="--expert_statistic_path")],
    iter_start: Annotated[int | None, Iteration, Parameter(name="--iter_start")] = None,
    iter_stop: Annotated[int | None, Iteration, Parameter(name="--iter_stop")] = None,
    per_expert: Annotated[bool, Parameter(name="--per_expert", negative=())] = False,
) -> int:
    """Print TensorRT-LLM's table of a recording, as its script does, to the last digit.

    Notes on the recording go to standard error. See equipoise report for more than this table.

    Parameters
    ----------
    expert_statistic_path
        The folder of the recording: EXPERT_STATISTIC_PATH.
    iter_start
        The first iteration; the first recorded if not given.
    iter_stop
        The iteration after the last one; all recorded if not given.
    per_expert
        Compare experts instead of ranks.
    """
    with progress_bar(f"reading {expert_statistic_path.name}") as progress:
        trace = read_statistic(expert_statistic_path, iter_start, iter_stop, progress)
    ranks = None if per_expert else num_rank_files(expert_statistic_path)
    print(trtllm_table(trace, num_ranks=ranks, per_expert=per_expert))
    for note in trace.provenance.notes:
        print(f"equipoise: note: {one_line(in_options(note))}", file=sys.stderr)
    return 0
