from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.engines._shared import torch_archive
from equipoise.engines.ascend.plain_load import FORMAT
from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.errors import FormatError
from equipoise.placement import Placement
from equipoise.trace import Trace


def read(path: Path, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), no_progress)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_reads_the_table_that_torch_wrote(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "load.pt"
    torch.save(torch.tensor([[1, 2, 3], [0, 5, 0]], dtype=getattr(torch, dtype)), file)
    assert FORMAT.matches(file)
    trace = read(file)
    assert trace.counts.tolist() == [[[1, 2, 3], [0, 5, 0]]]
    assert trace.layer_ids == (0, 1)
    assert trace.provenance.format == "pt-load"
    assert "taken as logical experts" in trace.provenance.notes[0]
    assert read(file, layer_ids=(3, 4)).layer_ids == (3, 4)


@pytest.mark.parametrize(
    ("root", "complaint"),
    [
        (np.zeros(3, np.int64), r"tensor \(3,\); expected one tensor"),
        (np.zeros((1, 2, 3, 1), np.int64), r"tensor \(1, 2, 3, 1\)"),
        ({"logical_count": np.ones((2, 3), np.int64)}, "holds a dict"),
        ([np.ones((2, 3), np.int64)], "holds a list"),
    ],
)
def test_claims_bare_tables_only(tmp_path: Path, root: Any, complaint: str) -> None:
    file = tmp_path / "load.pt"
    torch_archive.save(file, root)
    assert not FORMAT.matches(file)
    with pytest.raises(FormatError, match=complaint):
        read(file)


@pytest.mark.parametrize(
    ("table", "options", "complaint"),
    [
        ([[0.5, 1]], {}, "fractions"),
        ([[float("nan"), 1]], {}, "NaN"),
        ([[-1.0, 1]], {}, ">= 0"),
        ([[]], {}, "shape"),
        ([[1.0, 2]], {"layer_ids": (3, 4)}, "2 layer ids for 1 layers"),
    ],
)
def test_refuses_tables_that_are_no_load(
    tmp_path: Path, table: Any, options: dict[str, Any], complaint: str
) -> None:
    file = tmp_path / "load.pt"
    torch_archive.save(file, np.array(table, dtype=np.float32))
    with pytest.raises(FormatError, match=rf"load\.pt.*{complaint}"):
        read(file, **options)


def test_other_files_are_not_claimed(tmp_path: Path) -> None:
    file = tmp_path / "load.pt"
    file.write_bytes(b"PK")
    assert not FORMAT.matches(file)
    assert not FORMAT.matches(tmp_path)
    assert not FORMAT.matches(tmp_path / "nothing.pt")


RUN_MAP = Placement(
    np.array([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]]), num_ranks=2, num_experts=4, layer_ids=(3, 4)
)
SLOT_LOAD = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])


@pytest.mark.parametrize("shape", [(2, 6), (2, 2, 3)])
def test_a_load_of_slots_is_folded_by_the_map_of_the_run(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    file = tmp_path / "load.pt"
    torch_archive.save(file, SLOT_LOAD.reshape(shape))
    trace = read(file, placement=RUN_MAP)
    assert trace.counts.tolist() == [[[6, 8, 3, 4], [3, 4, 7, 7]]]
    assert trace.layer_ids == (3, 4)
    assert "6 slots were folded" in trace.provenance.notes[0]


def test_columns_are_taken_as_experts_and_said_so(tmp_path: Path) -> None:
    file = tmp_path / "load.pt"
    torch_archive.save(file, SLOT_LOAD)
    trace = read(file)
    assert trace.num_experts == 6
    assert "what its 6 columns are; they were taken as logical experts" in trace.provenance.notes[0]
    assert "(placement)" in trace.provenance.notes[0]


@pytest.mark.parametrize(
    ("load", "options", "said"),
    [
        (SLOT_LOAD.reshape(2, 2, 3), {}, "can be the load of slots .* or windows"),
        (SLOT_LOAD.reshape(2, 3, 2), {"placement": RUN_MAP}, "the placement given has 2 ranks"),
        (SLOT_LOAD[:, :4].copy(), {"placement": RUN_MAP}, r"\(2, 4\), the placement given has"),
        (SLOT_LOAD[:1].copy(), {"placement": RUN_MAP}, r"\(1, 6\), the placement given has"),
        (SLOT_LOAD - 9, {"placement": RUN_MAP}, "has count -8"),
        (RUN_MAP.slots.copy(), {}, "that is a map"),
        (np.full((2, 2, 3), -1), {}, "has count -1"),
    ],
)
def test_what_is_no_load_or_could_be_two_is_refused(
    tmp_path: Path, load: Any, options: Any, said: str
) -> None:
    file = tmp_path / "load.pt"
    torch_archive.save(file, load.astype(np.int64))
    with pytest.raises(FormatError, match=f"load.pt: .*{said}"):
        read(file, **options)
