import json
from dataclasses import replace

import numpy as np
import pytest

from equipoise.engines._shared import torch_archive
from equipoise.engines.formats import MapContext, Severity
from equipoise.engines.map_io import examine_map
from equipoise.engines.sglang.maps import FORMAT, KEY, write
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement

# A model of four decoder layers, the first dense, with MoE layers 1 and 3.
ROWS = [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]]
PLACEMENT = Placement([ROWS[1], ROWS[3]], num_ranks=2, num_experts=4, layer_ids=[1, 3])
CONTEXT = MapContext(
    num_ranks=2, num_experts=4, layer_ids=(1, 3), num_hidden_layers=4, num_redundant=2
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "location.json"


def codes(path, root, context=CONTEXT):
    """Codes found, without W3, which every map with redundant slots has."""
    path.write_text(json.dumps(root))
    found = [finding.code for finding in FORMAT.check(FORMAT.parse(path), context)]
    return [code for code in found if code != "W3"]


def changed(layer, slot, value):
    rows = [list(row) for row in ROWS]
    rows[layer][slot] = value
    return {KEY: rows}


def test_golden_json(path):
    write(PLACEMENT, path, CONTEXT)
    assert path.read_text() == (
        '{"physical_to_logical_map": [\n'
        "[0, 1, 2, 3, 0, 1],\n"
        "[0, 1, 2, 3, 0, 1],\n"
        "[0, 1, 2, 3, 0, 1],\n"
        "[3, 2, 1, 0, 2, 3]\n"
        "]}\n"
    )
    assert json.loads(path.read_text()) == {KEY: ROWS}


@pytest.mark.parametrize("name", ["location.json", "location.pt"])
def test_round_trip(tmp_path, name):
    path = tmp_path / name
    write(PLACEMENT, path, CONTEXT)
    raw = FORMAT.parse(path)
    assert FORMAT.matches(path)
    assert [f.code for f in FORMAT.check(raw, CONTEXT)] == ["W3"]
    assert FORMAT.to_placement(raw, CONTEXT) == PLACEMENT


def test_all_rows_where_nobody_says_which_are_dense(path):
    write(PLACEMENT, path, CONTEXT)
    placement = FORMAT.to_placement(FORMAT.parse(path), MapContext(num_ranks=2))
    assert placement == Placement(ROWS, num_ranks=2, num_experts=4)


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "location.pt"
    write(PLACEMENT, path, CONTEXT)
    root = torch.load(path, weights_only=True)
    assert root[KEY].tolist() == ROWS
    assert root[KEY].dtype == torch.int64


def test_deepseek_v3_has_three_dense_rows(path):
    rows = [np.arange(288) % 256] * 58
    placement = Placement(rows, num_ranks=32, num_experts=256, layer_ids=range(3, 61))
    context = MapContext(num_ranks=32, layer_ids=tuple(range(3, 61)), num_hidden_layers=61)
    write(placement, path, context)
    raw = FORMAT.parse(path)
    assert len(raw.rows) == 61
    assert raw.rows[0] == [s % 256 for s in range(288)]
    assert FORMAT.to_placement(raw, context) == placement


def test_writing_needs_the_decoder_layers(path):
    with pytest.raises(EquipoiseError, match="num_hidden_layers"):
        write(PLACEMENT, path)
    with pytest.raises(EquipoiseError, match="layer 3, the file has rows 0 to 2"):
        write(PLACEMENT, path, MapContext(num_hidden_layers=3))
    assert not path.exists()


def test_a_good_map(path):
    assert codes(path, {KEY: ROWS}) == []


def test_s1_a_second_key(path):
    assert codes(path, {KEY: ROWS, "logical_count": [[1]]}) == ["S1"]
    path.write_text('{"%s": [[0]], "%s": %s}' % (KEY, KEY, json.dumps(ROWS)))  # noqa: UP031
    findings = FORMAT.check(FORMAT.parse(path), CONTEXT)
    assert [f.code for f in findings] == ["S1", "W3"]


def test_s2_rows_other_than_decoder_layers(path):
    assert codes(path, {KEY: [*ROWS, ROWS[0]]}) == ["S2"]
    assert set(codes(path, {KEY: ROWS[:3]})) == {"S2"}
    no_count = MapContext(num_ranks=2, num_experts=4, layer_ids=(1, 3, 4))
    assert codes(path, {KEY: ROWS}, no_count) == ["S2", "W2"]


def test_s3_the_width(path):
    rows = [*ROWS[:3], ROWS[3][:-1]]
    assert codes(path, {KEY: rows}) == ["S3"]
    assert codes(path, {KEY: ROWS}, replace(CONTEXT, num_redundant=4)) == ["S3"]
    assert codes(path, {KEY: ROWS}, replace(CONTEXT, num_ranks=4)) == ["S3"]
    assert codes(path, {KEY: [*ROWS[:3], "x"]}) == ["S3"]


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 4])
@pytest.mark.parametrize("layer", [0, 1])
def test_s4_a_bad_id_in_any_row(path, layer, value):
    assert codes(path, changed(layer, 4, value)) == ["S4"]


@pytest.mark.parametrize("layer", [0, 1])
def test_s4_a_missing_expert_in_any_row(path, layer):
    assert codes(path, changed(layer, 3, 2)) == ["S4"]


@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_s4_a_tensor_of_another_kind(tmp_path, dtype, path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "location.pt"
    torch.save({KEY: torch.from_numpy(np.array(ROWS).astype(dtype))}, path)
    found = {finding.code for finding in FORMAT.check(FORMAT.parse(path), CONTEXT)}
    assert "S4" in found


def test_an_int32_tensor_is_accepted(tmp_path):
    path = tmp_path / "location.pt"
    torch_archive.save(path, {KEY: np.array(ROWS, dtype=np.int32)})
    raw = FORMAT.parse(path)
    assert FORMAT.to_placement(raw, CONTEXT) == PLACEMENT


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("a.json", "a.JSON"),
        ("a.json", "a.txt"),
        ("a.json", "a.pt"),
        ("a.pt", "a.PT"),
        ("a.pt", "a.json"),
    ],
)
def test_s5_the_suffix(tmp_path, written, name):
    path = tmp_path / written
    write(PLACEMENT, path, CONTEXT)
    path = path.rename(tmp_path / name)
    findings = FORMAT.check(FORMAT.parse(path), CONTEXT)
    assert [f.code for f in findings] == ["S5", "W3"]


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_s6_a_load_file_is_no_map(tmp_path, suffix):
    path = tmp_path / f"load{suffix}"
    if suffix == ".pt":
        torch_archive.save(path, {"logical_count": np.ones((2, 4), dtype=np.int64)})
    else:
        path.write_text('{"logical_count": [[1, 2, 3, 4]]}')
    assert not FORMAT.matches(path)
    with pytest.raises(FormatError, match="holds logical_count"):
        FORMAT.parse(path)


def test_dense_rows_may_repeat_on_a_rank(path):
    rows = [[0, 0, 1, 2, 3, 0], *ROWS[1:]]
    assert codes(path, {KEY: rows}) == []
    assert codes(path, {KEY: [*ROWS[:3], [3, 3, 2, 1, 0, 2]]}) == ["W1"]


def test_all_defects_in_one_run(path):
    root = {KEY: [[0, 1, 2, 3, True, 1], ROWS[1], ROWS[2][:-1]], "x": 1}
    assert codes(path, root) == ["S1", "S4", "S3", "S2", "S2"]


@pytest.mark.parametrize(
    "root", [[], {}, {KEY: []}, {KEY: 3}, {KEY: None}, {"records": []}, [ROWS], 7]
)
def test_what_is_no_map(path, root):
    path.write_text(json.dumps(root))
    with pytest.raises(FormatError, match=r"location\.json"):
        FORMAT.parse(path)


@pytest.mark.parametrize("shape", [(6,), (2, 2, 6)])
def test_a_tensor_of_another_rank(tmp_path, shape):
    path = tmp_path / "location.pt"
    torch_archive.save(path, {KEY: np.zeros(shape, dtype=np.int64)})
    with pytest.raises(FormatError, match="expected a row of expert ids per layer"):
        FORMAT.parse(path)


def test_what_sglang_refuses_and_nobody_doubts_is_read(tmp_path):
    path = tmp_path / "location.txt"
    path.write_text(json.dumps({KEY: ROWS, "host": "x"}))
    reading = examine_map(path, CONTEXT)
    assert reading.placement == PLACEMENT
    assert [f.code for f in reading.findings if f.severity is Severity.ERROR] == ["S1", "S5"]


def test_a_load_next_to_an_empty_map_is_no_map(path):
    path.write_text(json.dumps({"logical_count": [[1, 2]], KEY: None}))
    assert not FORMAT.matches(path)
