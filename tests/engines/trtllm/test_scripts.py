from __future__ import annotations

import numpy as np
import pytest

from equipoise.engines.trtllm.scripts import num_rank_files, read_statistic
from equipoise.errors import EquipoiseError
from tests.cli.samples import write_sample
from tests.engines.trtllm.test_traces import META, RANK0, RANK1, dump


@pytest.fixture
def golden(tmp_path):
    return dump(tmp_path / "dump", RANK0, RANK1)


@pytest.mark.parametrize(
    ("start", "stop", "steps"),
    [(None, None, [10, 11]), (11, None, [11]), (None, 11, [10]), (10, 12, [10, 11])],
)
def test_a_part_of_the_iterations(golden, start, stop, steps):
    assert read_statistic(golden, start, stop).steps.tolist() == steps
    assert num_rank_files(golden) == 2


@pytest.mark.parametrize(
    ("start", "stop", "said"),
    [
        (9, None, "the iterations 9 to 11 were asked for, 10-11 were recorded"),
        (None, 13, "the iterations 10 to 12 were asked for, 10-11 were recorded"),
        (11, 13, "the iterations 11 to 12 were asked for, 11 were recorded"),
        (12, 14, r"none of them is in \[12, 14\)"),
    ],
)
def test_iterations_that_were_not_recorded_are_refused(golden, start, stop, said):
    with pytest.raises(EquipoiseError, match=said):
        read_statistic(golden, start, stop)


def test_ranks_of_a_folder_with_the_tokens_choices_only(tmp_path):
    assert num_rank_files(write_sample(tmp_path, "raw")) == 2


def test_experts_without_load_are_kept_as_the_folder_states_them(tmp_path):
    """A plain reading takes experts that nobody chose, at the end of all layers, for padding."""
    vectors = {key: [*np.array(counts) * 100, 0, 0] for key, counts in RANK0.items()}
    folder = dump(tmp_path / "dump", vectors, meta=META.replace(": 4", ": 6"))
    assert read_statistic(folder, None, None).num_experts == 6
