"""``equipoise report_load_statistics``: TensorRT-LLM's script of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Iteration
from equipoise.cli.views.notes import print_notes
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.trtllm.scripts import num_rank_files, read_statistic
from equipoise.engines.trtllm.table import trtllm_table


def report_load_statistics(
    *,
    expert_statistic_path: Annotated[Path, Parameter(name="--expert_statistic_path")],
    iter_start: Annotated[int | None, Iteration, Parameter(name="--iter_start")] = None,
    iter_stop: Annotated[int | None, Iteration, Parameter(name="--iter_stop")] = None,
    per_expert: Annotated[bool, Parameter(name="--per_expert")] = False,
) -> int:
    r"""Print the balance of a recording, by layer and on average.

    This is the table of TensorRT-LLM's script, to the last digit. Notes on the recording go to
    standard error. equipoise report says more.

    For example:

        equipoise report_load_statistics --expert_statistic_path DUMP
        equipoise report_load_statistics --expert_statistic_path DUMP --per_expert
        equipoise report_load_statistics --expert_statistic_path DUMP \
            --iter_start 100 --iter_stop 200

    Parameters
    ----------
    expert_statistic_path
        Folder of the recording: EXPERT_STATISTIC_PATH.
    iter_start
        First iteration; the first one recorded if not given.
    iter_stop
        Iteration after the last one; all recorded iterations if not given.
    per_expert
        Compare experts instead of ranks.
    """
    with progress_bar(f"reading {expert_statistic_path.name}") as progress:
        trace = read_statistic(expert_statistic_path, iter_start, iter_stop, progress)
    ranks = None if per_expert else num_rank_files(expert_statistic_path)
    print(trtllm_table(trace, num_ranks=ranks, per_expert=per_expert))
    print_notes(trace.provenance.notes)
    return 0
